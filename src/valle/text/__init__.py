"""Text: normalised, split into sentences, turned into phonemes of a fixed inventory (paper, section 4.1)."""

from valle.text.inventory import DEFAULT_INVENTORY, MARK, PAUSE, PHONE, PUNCTUATION, WORD_BOUNDARY, PhonemeInventory
from valle.text.normalise import normalise
from valle.text.phonemes import Phonemizer, languages
from valle.text.sentences import split_sentences

__all__ = [
    "DEFAULT_INVENTORY",
    "MARK",
    "PAUSE",
    "PHONE",
    "PUNCTUATION",
    "WORD_BOUNDARY",
    "PhonemeInventory",
    "Phonemizer",
    "languages",
    "normalise",
    "split_sentences",
]
