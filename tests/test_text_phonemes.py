"""Phonemes: the fixed inventory, and espeak in a dozen languages."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valle.errors import ValleError
from valle.text import (
    DEFAULT_INVENTORY,
    PUNCTUATION,
    PhonemeInventory,
    Phonemizer,
    languages,
    phonemes,
    split_sentences,
)

SAMPLES = {
    "en-us": "The quick brown fox jumps over the lazy dog; isn't it 3 o'clock?",
    "en-gb": "Father's car is parked near the water, rather far from here.",
    "de": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich – am 3. Mai!",
    "fr-fr": "Portez ce vieux whisky au juge blond qui fume : 21 cafés, s’il vous plaît.",
    "es": "¿Dónde está el jamón? El pingüino Wenceslao hizo kilómetros bajo la lluvia.",
    "it": "Quel vituperabile xenofobo zelante assaggia il whisky, ma gli gnocchi no.",
    "pt-br": "Luís argüia à Júlia que brações, fé, chá, óxido, pôr, zângão eram palavras.",
    "ru": "Съешь ещё этих мягких французских булок, да выпей же чаю 16 раз.",
    "pl": "Pchnąć w tę łódź jeża lub ośm skrzyń fig.",
    "cs": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "tr": "Pijamalı hasta yağız şoföre çabucak güvendi.",
    "el": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Τι κάνεις;",
    "ar": "نص حكيم له سر قاطع وذو شأن عظيم؟",
    "hi": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश।",
    "cmn": "你好，世界！我有三十五本书，你呢？",
    "yue": "我哋今日去邊度食飯呀？",
    "ja": "いろはにほへと、ちりぬるを。カタカナ 123。",
    "ko": "키스의 고유조건은 입술끼리 만나야 한다.",
    "vi": "Con sói nâu nhảy qua con chó lười ở trong rừng.",
    "th": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "sv": "Flygande bäckasiner söka hwila på mjuka tuvor.",
    "da": "Høj bly gom vandt fræk sexquiz på wc.",
    "ka": "გაზაფხული მოვიდა, ყვავილები აყვავდა.",
    "eu": "Txakurra etxean dago, zuhaitza handia da.",
    "am": "ሰላም ለዓለም።",
}


@pytest.fixture(scope="module")
def english() -> Phonemizer:
    return Phonemizer("en-us")


# ------------------------------------------------------------------------------------------------------------ inventory
def test_the_inventory_of_this_version_never_changes() -> None:
    """A renumbered symbol would make every trained model speak wrongly: make a new version instead."""
    digest = hashlib.sha256("".join(DEFAULT_INVENTORY.symbols).encode()).hexdigest()
    assert (DEFAULT_INVENTORY.version, len(DEFAULT_INVENTORY), digest[:16]) == ("ipa-1", 180, "cce2a3416c0de3ed")
    assert all(len(symbol) == 1 for symbol in DEFAULT_INVENTORY.symbols)


def test_encode_and_decode_are_inverse() -> None:
    ids = DEFAULT_INVENTORY.encode(DEFAULT_INVENTORY.symbols)
    assert ids == list(range(len(DEFAULT_INVENTORY)))
    assert DEFAULT_INVENTORY.decode(ids) == list(DEFAULT_INVENTORY.symbols)


def test_unknown_symbols_are_named_with_their_code_points() -> None:
    with pytest.raises(ValleError, match=r"'ipa-1' has no 'Q' \(U\+0051\), '日本' \(U\+65E5 U\+672C\)"):
        DEFAULT_INVENTORY.encode(["a", "Q", "日本", "Q"])


@pytest.mark.parametrize("bad", [-1, len(DEFAULT_INVENTORY)])
def test_ids_outside_the_inventory_are_an_error(bad: int) -> None:
    with pytest.raises(ValleError, match=f"{bad} is no phoneme id"):
        DEFAULT_INVENTORY.decode([0, bad])


def test_an_inventory_of_another_version_is_read_from_its_file(tmp_path: Path) -> None:
    other = PhonemeInventory("mine-7", ("ʃ", "a", "t͡s"))
    other.save(tmp_path / "phonemes.json")
    loaded = PhonemeInventory.load(tmp_path / "phonemes.json")
    assert loaded == other
    assert loaded.encode(["t͡s", "ʃ"]) == [2, 0]
    DEFAULT_INVENTORY.save(tmp_path / "default.json")
    assert PhonemeInventory.load(tmp_path / "default.json") == DEFAULT_INVENTORY


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"version": "a"}', '{"version": 1, "symbols": ["a"]}', '{"version": "a", "symbols": "abc"}',
     '{"version": "a", "symbols": []}', '{"version": "a", "symbols": [1]}', '{"version": "a", "symbols": [""]}'],
)  # fmt: skip
def test_a_file_that_is_no_inventory_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "phonemes.json"
    path.write_text(content)
    with pytest.raises(ValleError, match="is not a phoneme inventory"):
        PhonemeInventory.load(path)


def test_other_broken_inventories_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValleError, match="there is no phoneme inventory"):
        PhonemeInventory.load(tmp_path / "none.json")
    with pytest.raises(ValleError, match="lists 'a' more than once"):
        PhonemeInventory("b", ("a", "b", "a"))
    (tmp_path / "latin.json").write_bytes(b'{"version": "\xff"}')
    with pytest.raises(ValleError, match="is not a phoneme inventory"):
        PhonemeInventory.load(tmp_path / "latin.json")
    (tmp_path / "false.json").write_text(json.dumps({"version": "ipa-1", "symbols": ["a"]}))
    with pytest.raises(ValleError, match="its symbols differ"):
        PhonemeInventory.load(tmp_path / "false.json")


# ----------------------------------------------------------------------------------------------------------- phonemizer
@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "Hello, world!": "həlˈoʊ, wˈɜːld!",
        "Wait... what?! Yes": "wˈeɪt… wˌʌt? jˈɛs",
        "one - two": "wˌʌn— tˈuː",
        '"Why?" he asked.': "wˈaɪ? hiː ˈæskt.",
        "— Well": "wˈɛl",
        "that (small) cat": "ðˈæt, smˈɔːl, kˈæt",
        "the FBI": "ðɪ ˌɛfbˌiːˈaɪ",
        "hello 🙂 world": "həlˈoʊ wˈɜːld",
        "naïve café": "naɪˈiːv kæfˈeɪ",
        "$5": "fˈaɪv dˈɑːlɚz",
        "a b.c:d": "ɐ bˌiːsˈiː: dˈiː",
    }.items(),
)
def test_english_phonemes_with_stress_words_and_punctuation(english: Phonemizer, text: str, expected: str) -> None:
    assert "".join(english(text)) == expected


@pytest.mark.parametrize("lang", SAMPLES)
def test_the_inventory_covers_the_language(lang: str) -> None:
    symbols = Phonemizer(lang)(SAMPLES[lang])
    assert DEFAULT_INVENTORY.decode(DEFAULT_INVENTORY.encode(symbols)) == symbols
    assert " " in symbols or len(SAMPLES[lang].split()) == 1
    assert not any(c in "()_" for c in symbols)
    assert symbols[0] != " " != symbols[-1]
    marks = [c for c in symbols if c in PUNCTUATION]
    assert len(marks) == sum(c in "。！？，、.,!?;:–؟।።" for c in SAMPLES[lang])


def test_a_word_of_another_language_leaves_no_flag() -> None:
    assert "".join(Phonemizer("fr")("J'aime le football.")) == "ʒˈɛm lə fˈʊtbɔːl."


def test_retroflex_and_palatal_letters_of_espeak_become_ipa() -> None:
    assert "ʂ" in Phonemizer("cmn")("是")
    assert "".join(Phonemizer("el")("Καλά;")) == "kalˈa?"


def test_a_batch_is_the_same_as_one_by_one_in_any_order_of_languages(english: Phonemizer) -> None:
    german = Phonemizer("de")
    texts = ["Hello there.", "A second one", "Three!"]
    alone = []
    for text in texts:
        german("Guten Tag")
        alone.append(english(text))
    assert english.batch(texts) == alone
    assert english.batch([]) == []


def test_threads_share_espeak(english: Phonemizer) -> None:
    german = Phonemizer("de")
    expected = {english: english("one water"), german: german("ein Wasser")}
    jobs = [(english, "one water"), (german, "ein Wasser")] * 50
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda job: job[0](job[1]), jobs))
    assert results == [expected[phonemizer] for phonemizer, _ in jobs]


def test_a_phonemizer_can_be_pickled(english: Phonemizer) -> None:
    assert pickle.loads(pickle.dumps(english))("Hello") == english("Hello")


@pytest.mark.parametrize(
    ("code", "lang"),
    {"en": "en-us", "EN_us": "en-us", "zh-CN": "cmn", "fr": "fr-fr", "de-AT": "de", "no": "nb", "pt-PT": "pt"}.items(),
)
def test_usual_language_codes_are_understood(code: str, lang: str) -> None:
    assert Phonemizer(code).lang == lang


@pytest.mark.parametrize("lang", ["", "xx", "klingon", "../en", "mb-en1"])
def test_an_unknown_language_is_one_sentence_with_examples(lang: str) -> None:
    with pytest.raises(ValleError, match=r"language '.*' is unknown; espeak has \d+, such as en-us"):
        Phonemizer(lang)


def test_every_listed_language_can_be_made() -> None:
    assert len(languages()) > 100
    assert [Phonemizer(lang).lang.lower() for lang in languages()] == languages()


@pytest.mark.parametrize("text", ["", "  \n", "🙂🎉", "...?!", "—", "\u200b", "\x00", "()", "\ud800"])
def test_a_text_with_nothing_to_say_is_one_sentence(english: Phonemizer, text: str) -> None:
    with pytest.raises(ValleError, match="nothing that can be spoken; give at least one word"):
        english(text)


def test_a_very_long_text_without_punctuation_is_spoken_whole(english: Phonemizer) -> None:
    text = "water " * 2000
    assert english(text).count("w") == 2000
    assert len(split_sentences(text, 200)) > 50


@pytest.mark.parametrize(
    ("lang", "text"), [("en-us", "a.b." * 300), ("de", "ж." * 300), ("ka", "290." * 90), ("th", "ก" * 500)]
)
def test_endless_words_do_not_end_the_process(lang: str, text: str) -> None:
    """espeak overruns its buffers on the first three; in a process of its own, for the crash would be this one's."""
    code = "import sys; from valle.text import Phonemizer; print(len(Phonemizer(sys.argv[1])(sys.argv[2])))"
    run = subprocess.run([sys.executable, "-c", code, lang, text], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 200


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.sampled_from(["en-us", "de", "cmn", "ar", "hi"]))
def test_any_text_gives_symbols_of_the_inventory_or_one_sentence(text: str, lang: str) -> None:
    try:
        symbols = Phonemizer(lang)(text)
    except ValleError:
        return
    DEFAULT_INVENTORY.encode(symbols)
    assert symbols
    assert symbols[0] not in " " + PUNCTUATION
    assert not any(a == b == " " for a, b in itertools.pairwise(symbols))


def test_a_long_path_does_not_end_the_process(tmp_path: Path) -> None:
    """espeak cuts the path of its data at 160 characters and calls exit(1); environment variables are not heeded."""
    import espeakng_loader

    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path(), target_is_directory=True)
    code = (
        "import sys, espeakng_loader; espeakng_loader.get_data_path = lambda: sys.argv[1]\n"
        "from valle.text import Phonemizer; sys.stdout.buffer.write(''.join(Phonemizer()('Hello')).encode())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(deep / "espeak-ng-data")],
        capture_output=True,
        env={"PHONEMIZER_ESPEAK_LIBRARY": "/nowhere", "PHONEMIZER_ESPEAK_DATA_PATH": "/nowhere"},
    )
    assert run.returncode == 0, run.stderr.decode()
    assert run.stdout.decode() == "həlˈoʊ"


def test_nothing_happens_at_import() -> None:
    code = "import sys, valle.text; print(sorted({'phonemizer', 'num2words', 'torch', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_library_that_cannot_be_loaded_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("espeakng_loader.get_library_path", lambda: str(tmp_path / "none.so"))
    with pytest.raises(ValleError, match="espeak cannot be loaded"):
        phonemes._espeak.__wrapped__()


def test_what_espeak_cannot_read_is_one_sentence() -> None:
    with pytest.raises(ValleError, match="espeak reads nothing in 'xex' from 'hello'"):
        Phonemizer("xex")("hello")


def test_the_data_of_a_short_path_is_used_in_place() -> None:
    assert phonemes.espeak_data_path("/short") == Path("/short")
