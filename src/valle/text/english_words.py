"""The words and abbreviations that English normalisation and the splitting into sentences know: tables, no code."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MONTHS = _words("January February March April May June July August September October November December")
MONTH_OF = {name[:3]: name for name in MONTHS} | {"Sept": "September"} | {name: name for name in MONTHS}

WEEKDAYS = {
    "Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday", "Thur": "Thursday",
    "Thurs": "Thursday", "Fri": "Friday", "Sat": "Saturday", "Sun": "Sunday",
}  # fmt: skip

# Before a name only ("Dr. Smith"), so that a full stop after one never ends a sentence.
TITLES = {
    "Mr": "Mister", "Mrs": "Missis", "Ms": "Miz", "Mx": "Mix", "Messrs": "Messieurs", "Dr": "Doctor",
    "Prof": "Professor", "Rev": "Reverend", "Hon": "Honorable", "Gen": "General", "Col": "Colonel", "Capt": "Captain",
    "Cpt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant", "Cpl": "Corporal", "Pvt": "Private", "Maj": "Major",
    "Cmdr": "Commander", "Adm": "Admiral", "Gov": "Governor", "Sen": "Senator", "Rep": "Representative",
    "Pres": "President", "Supt": "Superintendent", "Insp": "Inspector", "Mt": "Mount", "Ft": "Fort",
}  # fmt: skip

# Anywhere, with or without a full stop; the stop may be the sentence's too.
ABBREVIATIONS = {
    "etc": "et cetera", "vs": "versus", "Jr": "Junior", "Sr": "Senior", "Esq": "Esquire", "Inc": "Incorporated",
    "Ltd": "Limited", "Corp": "Corporation", "Bros": "Brothers", "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road",
    "Hwy": "Highway", "Pkwy": "Parkway", "Dept": "Department", "dept": "department", "Univ": "University",
    "Assn": "Association", "Assoc": "Association", "approx": "approximately", "Approx": "Approximately",
    "govt": "government", "Govt": "Government", "misc": "miscellaneous", "cf": "compare", "viz": "namely",
    "apt": "apartment", "Apt": "Apartment", "est": "established", "Est": "Established", "incl": "including",
    "excl": "excluding", "temp": "temperature", "vol": "volume", "Vol": "Volume", "ed": "edition", "max": "maximum",
    "Tel": "telephone", "tel": "telephone", "ext": "extension", "Ext": "Extension", "Co": "Company",
    "tsp": "teaspoon", "tbsp": "tablespoon",
}  # fmt: skip
# Words in their own right without the full stop ("an apt ed. note", "Max", "the Ave Maria", "Est").
NEED_STOP = frozenset(
    _words(
        """
        Ave apt Apt est Est temp ed max ext Ext tel Tel Co Rep Hon Gen Col Sen Pres Adm Maj Rev Gov Vol vol
        Assoc Messrs Mt Ft Mx Insp
        """
    )
)

# Before a number only.
BEFORE_NUMBER = {
    "No": "number", "no": "number", "Nos": "numbers", "nos": "numbers", "p": "page", "pp": "pages", "ch": "chapter",
    "Ch": "Chapter", "fig": "figure", "Fig": "Figure", "Figs": "Figures", "sec": "section", "Sec": "Section",
    "eq": "equation", "Eq": "Equation", "art": "article", "Art": "Article", "c": "circa", "ca": "circa",
    "ver": "version", "vers": "version", "para": "paragraph", "tab": "table", "Tab": "Table",
}  # fmt: skip

# A capitalised one of these after an abbreviation's stop means that the stop ended a sentence.
SENTENCE_STARTERS = frozenset(
    _words(
        """
        The A An He She It They We You I This That These Those But And Or So In On At If When While Then There
        Here What Who Why How Where After Before My His Her Their Our Your Its As For From To With By Not No Yes
        Now However Also One Some Many Most All Both Each Every Once Let Do Did Is Are Was Were Can Could Will
        Would Please
        """
    )
)

# one, more than one. Longer spellings are tried first.
UNITS = {
    "mm": ("millimeter", "millimeters"), "cm": ("centimeter", "centimeters"), "m": ("meter", "meters"),
    "km": ("kilometer", "kilometers"), "nm": ("nanometer", "nanometers"), "μm": ("micrometer", "micrometers"),
    "mi": ("mile", "miles"), "yd": ("yard", "yards"), "ft": ("foot", "feet"), "mg": ("milligram", "milligrams"),
    "μg": ("microgram", "micrograms"), "g": ("gram", "grams"), "kg": ("kilogram", "kilograms"),
    "lb": ("pound", "pounds"), "lbs": ("pound", "pounds"), "oz": ("ounce", "ounces"),
    "ml": ("milliliter", "milliliters"), "mL": ("milliliter", "milliliters"), "cl": ("centiliter", "centiliters"),
    "l": ("liter", "liters"), "L": ("liter", "liters"), "gal": ("gallon", "gallons"), "ha": ("hectare", "hectares"),
    "km/h": ("kilometer per hour", "kilometers per hour"), "kph": ("kilometer per hour", "kilometers per hour"),
    "kmh": ("kilometer per hour", "kilometers per hour"), "mph": ("mile per hour", "miles per hour"),
    "m/s": ("meter per second", "meters per second"), "km/s": ("kilometer per second", "kilometers per second"),
    "m/s^2": ("meter per second squared", "meters per second squared"), "Hz": ("hertz", "hertz"),
    "kHz": ("kilohertz", "kilohertz"), "MHz": ("megahertz", "megahertz"), "GHz": ("gigahertz", "gigahertz"),
    "W": ("watt", "watts"), "kW": ("kilowatt", "kilowatts"), "MW": ("megawatt", "megawatts"),
    "GW": ("gigawatt", "gigawatts"), "kWh": ("kilowatt hour", "kilowatt hours"),
    "MWh": ("megawatt hour", "megawatt hours"), "V": ("volt", "volts"), "mV": ("millivolt", "millivolts"),
    "kV": ("kilovolt", "kilovolts"), "mA": ("milliamp", "milliamps"), "mAh": ("milliamp hour", "milliamp hours"),
    "kJ": ("kilojoule", "kilojoules"), "cal": ("calorie", "calories"), "kcal": ("kilocalorie", "kilocalories"),
    "dB": ("decibel", "decibels"), "Pa": ("pascal", "pascals"), "kPa": ("kilopascal", "kilopascals"),
    "psi": ("pound per square inch", "pounds per square inch"),
    "rpm": ("revolution per minute", "revolutions per minute"),
    "fps": ("frame per second", "frames per second"), "px": ("pixel", "pixels"), "KB": ("kilobyte", "kilobytes"),
    "kB": ("kilobyte", "kilobytes"), "MB": ("megabyte", "megabytes"), "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"), "PB": ("petabyte", "petabytes"),
    "kbps": ("kilobit per second", "kilobits per second"),
    "kbit/s": ("kilobit per second", "kilobits per second"), "Mbps": ("megabit per second", "megabits per second"),
    "Mbit/s": ("megabit per second", "megabits per second"), "Gbps": ("gigabit per second", "gigabits per second"),
    "MB/s": ("megabyte per second", "megabytes per second"), "GB/s": ("gigabyte per second", "gigabytes per second"),
    "ns": ("nanosecond", "nanoseconds"), "μs": ("microsecond", "microseconds"), "ms": ("millisecond", "milliseconds"),
    "sec": ("second", "seconds"), "secs": ("second", "seconds"), "min": ("minute", "minutes"),
    "mins": ("minute", "minutes"), "h": ("hour", "hours"), "hr": ("hour", "hours"), "hrs": ("hour", "hours"),
    "yr": ("year", "years"), "yrs": ("year", "years"), "°C": ("degree Celsius", "degrees Celsius"),
    "°F": ("degree Fahrenheit", "degrees Fahrenheit"), "°": ("degree", "degrees"),
    "sq ft": ("square foot", "square feet"), "sq mi": ("square mile", "square miles"),
    "sq km": ("square kilometer", "square kilometers"), "sq m": ("square meter", "square meters"),
}  # fmt: skip
for _unit in ("mm", "cm", "m", "km", "ft", "mi"):  # m², m2, m^2 and their cubes
    for _power, _word in (("2", "square"), ("3", "cubic")):
        for _spelling in (_unit + _power, f"{_unit}^{_power}"):
            UNITS[_spelling] = (f"{_word} {UNITS[_unit][0]}", f"{_word} {UNITS[_unit][1]}")

# one, more than one, one hundredth, hundredths
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"), "US$": ("u.s dollar", "u.s dollars", "cent", "cents"),
    "C$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "CA$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "A$": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "NZ$": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"),
    "HK$": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"),
    "R$": ("Brazilian real", "Brazilian reais", "centavo", "centavos"),
    "£": ("pound", "pounds", "penny", "pence"), "€": ("euro", "euros", "cent", "cents"), "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"), "₩": ("won", "won", "", ""),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "₿": ("bitcoin", "bitcoins", "", ""),
}  # fmt: skip
CURRENCIES |= {
    "USD": CURRENCIES["US$"], "EUR": CURRENCIES["€"], "GBP": CURRENCIES["£"], "JPY": CURRENCIES["¥"],
    "INR": CURRENCIES["₹"], "CAD": CURRENCIES["C$"], "AUD": CURRENCIES["A$"],
    "CHF": ("Swiss franc", "Swiss francs", "centime", "centimes"), "CNY": ("yuan", "yuan", "fen", "fen"),
}  # fmt: skip

MAGNITUDES = {
    "k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "b": "billion", "B": "billion",
    "bn": "billion", "Bn": "billion", "t": "trillion", "T": "trillion", "tn": "trillion",
}  # fmt: skip

FRACTIONS = {2: "half", 4: "quarter"}  # of the others the ordinal is said

# Followed by a Roman numeral that is said as a cardinal, and as an ordinal.
ROMAN_CARDINAL = (
    "Chapter|Part|Act|Scene|Volume|Vol\\.|Book|Section|Article|Phase|Type|Stage|Figure|Appendix|Title|Level|Grade|"
    "Class|Unit|Lesson|Episode|World War|Super Bowl|Star Wars|Final Fantasy|Rocky|Apollo|Mark|Factor"
)
ROMAN_ORDINAL = (
    "Henry|Louis|Elizabeth|George|Edward|Richard|Charles|James|William|Philip|John|Paul|Benedict|Pius|Leo|Napoleon|"
    "Frederick|Catherine|Nicholas|Alexander|Ivan|Peter|Mary|Gregory|Innocent|Clement|Ferdinand|Francis|Otto|Ramses|"
    "Ramesses|Ptolemy|Darius|Wilhelm|Robert|David|Stephen|Christian|Gustav|Carl|Haakon|Olav|Harald|Victor|"
    "Emmanuel|Alfonso|Felipe|Juan|Sixtus|Urban|Boniface|Celestine|Constantine|Theodosius|Mehmed|Murad|Selim|Pedro|"
    "Albert|Leopold|Baldwin|Maximilian|Joseph|Francis Joseph|Rudolf|Sigismund|Casimir|Artaxerxes|Thutmose|Amenhotep"
)

# Capitals with a vowel that are letters all the same. (Those without a vowel always are, and in a text that is not
# all in capitals so are those of two or three letters that are not SHORT_WORDS.)
SPELLED = frozenset(
    _words(
        """
        AAA ABC ACLU AI API ATM BBA CEO CFO CIA CIO CPA CPU CTO DIY DNA EEG EKG EPA ESP ESPN EU EUR FAA FAQ FBI
        FDA GDP GI GPA GPU HBO HDMI HIV IBM ICU IMF IOU IP IPA IPO IQ IRA IRC IRS ISBN ISP ITV IVF JFK LGBT
        LGBTQ MBA MIA MIT MRI NBA NCAA NEA NFL NGO NHS NIH NSA NYU OCD OCR OECD PHD POW PTA QED RIP RNA ROI RSVP
        SEC SEO SOS SUV TIA UAE UCLA UFO UHF UI UK UN UPS URL USA USB USD USSR UTC VAT VIP VOIP WTO XML YMCA
        """
    )
)
SHORT_WORDS = frozenset(
    _words(
        """
        AH AHA AW EH ER GRR HM HMM OW SH SHH TSK UGH UH UM WOW MR MRS MS DR ST JR SR ACT ADD AGE AGO AID AIM AIR
        ALE ALL AM AN AND ANY ARE ARM ART AS ASK AT ATE BAD BAG BAN BAR BE BED BEE BET BIG BIT BOB BOX BOY BUS
        BUT BUY BYE CAN CAP CAR CAT COW CUP CUT DAD DAY DID DIE DIG DO DOG DOS DUE EAR EAT EGG END ERA EVE EYE
        FAN FAR FAT FED FEE FEW FIT FIX FOR FOX FUN GAS GET GIF GO GOD GOT GUI GUN GUY HA HAD HAS HAT HE HER HEY
        HI HID HIM HIS HIT HO HOT HOW ICE IF ILL IN INK INN IS ITS JET JOB JOE JOY KEY KID LAB LAN LAW LAY LED
        LEG LET LIE LIP LOG LOT LOW MAD MAN MAP MAY ME MEN MET MIX MOM MUD NET NEW NO NOR NOT NOW NUT ODD OF OFF
        OH OIL OLD ON ONE OR OUR OUT OWE OWN PAN PAY PEN PET PIE PIG PIN PIT POP POT PUT RAM RAN RAT RAW RED RID
        ROM ROW RUN SAD SAT SAW SAY SEA SEE SET SEX SHE SHY SIM SIR SIT SIX SKY SO SON SPA SUM SUN TAX TEA TED
        TEN THE TIE TIN TIP TO TOE TOM TON TOO TOP TOY TRY TWO UP USE VAN VIA WAN WAR WAS WAY WE WEB WED WET WHO
        WHY WIN WON YES YET YOU ZOO
        """
    )
)
# A single letter after one of these is a label ("plan B."), not a name's initial.
LETTERED = "plan|option|vitamin|hepatitis|grade|type|class|group|team|section|part|point|letter|exhibit|appendix|answer"
