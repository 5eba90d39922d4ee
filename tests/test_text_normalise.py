"""What is written becomes what is said."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valle.text import normalise

ENGLISH = {
    # cardinals, decimals, signs
    "I have 3 cats": "I have three cats",
    "0 and 21 and 100": "zero and twenty-one and one hundred",
    "1,234,567 people": "one million two hundred thirty-four thousand five hundred sixty-seven people",
    "12345 steps": "twelve thousand three hundred forty-five steps",
    "3.14 and .5 and 0.05": "three point one four and point five and zero point zero five",
    "It was -5 outside": "It was minus five outside",
    "agent 007": "agent zero zero seven",
    "10 000 steps": "ten thousand steps",
    "12345678901234567": "one two three four five six seven eight nine zero one two three four five six seven",
    "pages 10-20": "pages ten to twenty",
    "10–20 of them": "ten to twenty of them",
    "They won 3-1": "They won three to one",
    "10k users, 5M views": "ten thousand users, five million views",
    "٣ and ３": "three and three",
    # ordinals, fractions, percent
    "the 1st, 2nd, 3rd and 21st": "the first, second, third and twenty-first",
    "the 100th and 1,000th": "the one hundredth and one thousandth",
    "1/2 cup, 3/4 cup, 2/3 cup": "one half cup, three quarters cup, two thirds cup",
    "1 1/2 cups or 1½ or ¼": "one and a half cups or one and a half or one quarter",
    "5% of 12.5 %": "five percent of twelve point five percent",
    "10/10, 24/7, 9/11": "ten out of ten, twenty-four seven, nine eleven",
    # years
    "In 1984 and 2005": "In nineteen eighty-four and two thousand five",
    "born in 1066": "born in ten sixty-six",
    "since 1905 or 1900": "since nineteen oh five or nineteen hundred",
    "the year 2024": "the year twenty twenty-four",
    "the 1990s, the '80s and the 1800s": "the nineteen nineties, the eighties and the eighteen hundreds",
    "mid-1990s": "mid-nineteen nineties",
    "the 2000s and 2010s": "the two thousands and twenty tens",
    "1914-1918": "nineteen fourteen to nineteen eighteen",
    "1500 people": "one thousand five hundred people",
    "98/100, 20/20 and 50-50": "ninety-eight out of one hundred, twenty twenty and fifty fifty",
    "a 747-400 in Room 204B": "a seven hundred forty-seven four hundred in Room two hundred four B",
    "$20-$30, £5m-£6m, 20-30%": "twenty dollars to thirty dollars, five million pounds to six million pounds, "
    "twenty to thirty percent",
    "Q3 '19": "Q three nineteen",
    # Roman numerals
    "chapter V, the chapter I like": "chapter five, the chapter I like",
    "Malcolm X": "Malcolm X",
    "Chapter IV of Book II": "Chapter four of Book two",
    "Henry VIII and Elizabeth II": "Henry the eighth and Elizabeth the second",
    "World War II": "World War two",
    "Louis XIV.": "Louis the fourteenth.",
    "Charles I of England": "Charles the first of England",
    "George I think so": "George I think so",
    "I am Part I": "I am Part one",
    # money
    "$1, $5 and $1,000": "one dollar, five dollars and one thousand dollars",
    "$3.50": "three dollars and fifty cents",
    "$0.99 or 99¢": "ninety-nine cents or ninety-nine cents",
    "£1.01 and £2.50": "one pound and one penny and two pounds and fifty pence",
    "€20 or 20€": "twenty euros or twenty euros",
    "$3.5 million": "three point five million dollars",
    "$3.5m, £2bn, $10k, €1.2B": "three point five million dollars, two billion pounds, ten thousand dollars, "
    "one point two billion euros",
    "a $5-million deal": "a five million dollar deal",
    "-$5": "minus five dollars",
    "USD 50 or 50 EUR": "fifty u.s dollars or fifty euros",
    "$100/month": "one hundred dollars per month",
    "50p": "fifty pence",
    "¥500": "five hundred yen",
    # dates
    "12/25/2024": "December twenty-fifth, twenty twenty-four",
    "25/12/2024": "December twenty-fifth, twenty twenty-four",
    "25.12.2024": "December twenty-fifth, twenty twenty-four",
    "2024-12-25": "December twenty-fifth, twenty twenty-four",
    "12/25/98": "December twenty-fifth, nineteen ninety-eight",
    "Mar. 3rd, 2021": "March third, twenty twenty-one",
    "March 3, 2021": "March third, twenty twenty-one",
    "on Dec 25.": "on December twenty-fifth.",
    "3 March 2021": "the third of March, twenty twenty-one",
    "the 4th of July": "the fourth of July",
    "July 4-6": "July fourth to sixth",
    "Sept. 2019": "September twenty nineteen",
    "Mon., Jan. 5": "Monday, January fifth",
    "I may 5 times": "I may five times",
    # times
    "3:45 pm": "three forty-five p.m",
    "3:45pm": "three forty-five p.m",
    "at 3:05 a.m. today": "at three oh five a.m today",
    "We left at 3 p.m. He stayed.": "We left at three p.m. He stayed.",
    "at 5 p.m.": "at five p.m.",
    "14:00": "fourteen hundred",
    "9:00 or 14:30": "nine o'clock or fourteen thirty",
    "9am-5pm": "nine a.m to five p.m",
    "3-4 pm": "three to four p.m",
    "10:30:15": "ten thirty and fifteen seconds",
    "odds of 100:1": "odds of one hundred to one",
    # telephone numbers
    "555-1234": "five five five, one two three four",
    "(555) 123-4567": "five five five, one two three, four five six seven",
    "+1 800 555 0199": "plus one, eight zero zero, five five five, zero one nine nine",
    "+44 20 7946 0958": "plus four four, two zero, seven nine four six, zero nine five eight",
    "Call 911!": "Call nine one one!",
    "version 3.11.4": "version three point eleven point four",
    # units
    "5 km, 1 km, 10kg": "five kilometers, one kilometer, ten kilograms",
    "a 5-km run": "a five kilometer run",
    "20°C or 68 °F": "twenty degrees Celsius or sixty-eight degrees Fahrenheit",
    "-5°C": "minus five degrees Celsius",
    "60 mph and 100 km/h": "sixty miles per hour and one hundred kilometers per hour",
    "50 m² and 3 m3": "fifty square meters and three cubic meters",
    "16GB at 3.2GHz": "sixteen gigabytes at three point two gigahertz",
    "5 ml, 2 lbs, 6 ft": "five milliliters, two pounds, six feet",
    "5'11\" tall": "five feet eleven inches tall",
    "a 45° angle": "a forty-five degrees angle",
    "26.2 mi. in 30 s": "twenty-six point two miles in thirty seconds",
    "$4.2 bn": "four point two billion dollars",
    # abbreviations
    "on Baker St., London": "on Baker Street, London",
    "1/2 tsp. salt": "one half teaspoon salt",
    "b/c he/she left": "because he or she left",
    "Dr. Smith lives on Rodeo Dr.": "Doctor Smith lives on Rodeo Drive.",
    "St. John lives on Main St. in Boston": "Saint John lives on Main Street in Boston",
    "42nd St. is in St. Louis": "forty-second Street is in Saint Louis",
    "Mt. St. Helens": "Mount Saint Helens",
    "Mr. and Mrs. Jones met Ms. Lee": "Mister and Missis Jones met Miz Lee",
    "Prof. Lee, Gen. Grant": "Professor Lee, General Grant",
    "cats vs. dogs, etc.": "cats versus dogs, et cetera.",
    "cats, dogs, etc. and so on": "cats, dogs, et cetera and so on",
    "e.g. this, i.e. that": "for example, this, that is, that",
    "No. 5 is alive. No. It is not.": "number five is alive. No. It is not.",
    "see p. 5, fig. 3": "see page five, figure three",
    "Acme Inc. is big": "Acme Incorporated is big",
    "Martin Luther King Jr. spoke": "Martin Luther King Junior spoke",
    "J. R. R. Tolkien and George W. Bush": "j.r.r Tolkien and George W Bush",
    "Mrs. R. A. Reid saw T. X., who left.": "Missis r.a Reid saw t.x, who left.",
    "by A. Smith, Z., and Co.": "by A-Smith, Z, and Company.",
    "James II. was king; Philip II., too": "James the second was king; Philip the second, too",
    "OW! Shh, HMM.": "OW! Shh, HMM.",
    "This is plan B. Men died.": "This is plan B. Men died.",
    "the U.S. Army in the U.S.": "the u.s Army in the u.s.",
    "He left the U.S. He came back.": "He left the u.s. He came back.",
    "a Ph.D. in art": "a p.h.d in art",
    # letters
    "The FBI, CIA and USA": "The f.b.i, c.i.a and u.s.a",
    "NASA and NATO": "NASA and NATO",
    "CDs and the BBC's news": "c d's and the b.b c's news",
    "an IT job in the US": "an i.t job in the u.s",
    "I do NOT like IT.": "I do NOT like i.t.",
    "OK": "okay",
    "MP3 and H2O": "m.p three and H two O",
    "COVID-19, F-16, A4": "COVID nineteen, F sixteen, A-four",
    "3D in 5G": "three D in five G",
    "HE TOLD US IT WAS FUN": "He Told Us It Was Fun",
    "THE FBI TOLD DR. SMITH": "The f.b.i Told Doctor Smith",
    # addresses, symbols
    "john.smith@example.com": "john dot smith at example dot com",
    "https://www.example.com/a-b": "w.w.w dot example dot com slash a dash b",
    "Visit example.co.uk.": "Visit example dot co dot u.k.",
    "Tom & Jerry": "Tom and Jerry",
    "2 + 2 = 4": "two plus two equals four",
    "5 - 3 < 4": "five minus three less than four",
    "x² + y³": "x squared plus y cubed",
    "3 × 4, 1920x1080": "three times four, one thousand nine hundred twenty by one thousand eighty",
    "#1 fan, #winning": "number one fan, hashtag winning",
    "and/or": "and or",
    "10 / 2 ≠ 6": "ten divided by two is not equal to six",
    "Settings > Privacy": "Settings, Privacy",
    "love <3": "love three",
    "Hello!How are you?Fine": "Hello! How are you? Fine",
    "~5 km ± 1": "about five kilometers plus or minus one",
    "**bold** and _this_": "bold and this",
    "C++": "C plus plus",
    # characters
    "“Quoted” ‘text’ isn’t": "\"Quoted\" 'text' isn't",
    "wait... what. . . now…": "wait… what… now…",
    "one—two – three -- four - five": "one — two — three — four — five",
    "zero\u200bwidth\ufeff": "zerowidth",
    "ﬁne ｆｕｌｌ": "fine full",
    "smile 🙂 now 👍🏽": "smile now",
    "Hello (you) there [now].": "Hello, you, there, now.",
    "word(s)": "words",
    "What?! No!!!": "What?! No!",
    "a line\nand more": "a line and more",
    "A title\n\nA text": "A title. A text",
    "Milk:\n- eggs\n- ham": "Milk: eggs. ham",
    "  a\t b\u00a0c  ": "a b c",
    "bell\x07\x00 and \ud800 too": "bell and too",
    "": "",
    "🙂🎉": "",
    "...": "",
}


@pytest.mark.parametrize(("written", "said"), ENGLISH.items())
def test_english_is_spelt_out(written: str, said: str) -> None:
    assert normalise(written) == said


@pytest.mark.parametrize("written", ENGLISH)
def test_normalising_twice_changes_nothing(written: str) -> None:
    once = normalise(written)
    assert normalise(once) == once


@pytest.mark.parametrize(
    ("written", "said"),
    {
        "on 3/4/2021": "on April third, twenty twenty-one",
        "205 and 12/25/2024": "two hundred and five and December twenty-fifth, twenty twenty-four",
        "1,001 in 2005": "one thousand and one in two thousand and five",
    }.items(),
)
def test_british_english_says_and_and_puts_the_day_first(written: str, said: str) -> None:
    assert normalise(written, "en-gb") == said
    assert normalise(written, "en_GB") == said


@pytest.mark.parametrize(
    ("lang", "written", "said"),
    [
        ("de", "Ich habe 21 Katzen.", "Ich habe einundzwanzig Katzen."),
        ("fr-fr", "J’ai 3 chats… « oui »", 'J\'ai trois chats… " oui "'),
        ("es", "Son 100.", "Son cien."),
        ("pt-br", "16 gatos", "dezesseis gatos"),
        ("pt", "16 gatos", "dezasseis gatos"),
        ("de", "3,5 und 1.000 und 12:30", "3,5 und 1.000 und 12:30"),  # left to espeak
        ("ja", "123", "123"),
        ("cmn", "你好，世界！１２３", "你好, 世界! 123"),
        ("hi", "१२३ नमस्ते", "123 नमस्ते"),
        ("fa", "می\u200cخواهم", "می\u200cخواهم"),
        ("th", "น้ำ", "น้ำ"),
        ("xx", "5 🙂", "5"),
    ],
)
def test_other_languages_keep_what_espeak_reads_better(lang: str, written: str, said: str) -> None:
    assert normalise(written, lang) == said
    assert normalise(said, lang) == said


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("aA1 09.,-/:$£%°#&@+=~^²½'\"()…—\n🙂IVXkmst", max_size=40))
def test_any_text_is_normalised_to_something_without_digits_or_symbols(text: str) -> None:
    said = normalise(text)
    assert not any(c.isdigit() or c in "$£€%#@&+=~^|\\<>*_()[]{}\n\x00" for c in said)
    assert said == said.strip()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([written for written in ENGLISH if "\ud800" not in written]), max_size=4))
def test_normalising_a_text_of_many_parts_twice_changes_nothing(parts: list[str]) -> None:
    once = normalise(" ".join(parts))
    assert normalise(once) == once


def test_ten_thousand_characters_take_no_time() -> None:
    """Patterns that go back over what they have read would take minutes."""
    start = time.process_time()
    for unit in ("1", "1-", "1,", "a", "A.", "-", " .", "a@", "a.b-", "((", "Dr. Smith paid $3.50 on 3/4/2021. "):
        normalise((unit * 10_000)[:10_000])
    assert time.process_time() - start < 10
