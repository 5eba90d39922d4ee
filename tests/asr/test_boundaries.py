"""Comparing two aligners: phones of two alphabets are paired, and only boundaries that both have are compared."""

import json

import numpy as np
import pytest
import soundfile
import torch

from sounds import voiced
from valle.asr import Aligner, Alignment
from valle.asr.aligner import AlignerConfig
from valle.asr.boundaries import Comparison, Phone, Sphinx, Word, main, our_phones, pair, quantile_interval, table
from valle.asr.boundaries import words_of as words_of_text
from valle.errors import ValleError
from valle.text import DEFAULT_INVENTORY


def phones(*timed):
    return tuple(Phone(name, start) for name, start in timed)


def test_phones_are_paired_by_what_they_sound_like():
    assert pair(["ð", "ə", "k", "æ", "t"], ["DH", "AH", "K", "AE", "T"]) == [0, 1, 2, 3, 4]
    assert pair(["ð", "k", "æ", "t"], ["DH", "AH", "K", "AE", "T"]) == [0, None, 1, 2, 3]
    assert pair(["ð", "ə", "n", "k", "æ"], ["DH", "AH", "K", "EH"]) == [0, 1, 3, 4]
    assert pair(["s"], ["AH"]) == [None]
    assert pair([], ["AH"]) == [None]
    assert pair(["ə"], []) == []


def test_what_is_compared():
    ours = phones(("ð", 0.0), ("ə", 0.13), ("k", 0.2), ("æ", 0.31), ("t", 0.4), ("s", 0.5), ("æ", 0.61), ("d", 0.7))
    theirs = [
        Word("the", phones(("DH", 0.1), ("AH", 0.15))),
        Word("cat", phones(("K", 0.22), ("AE", 0.3), ("T", 0.4))),
        Word("sat", phones(("S", 0.5), ("AE", 0.6), ("T", 0.7))),  # ours says "sad"
    ]
    result = Comparison()
    result.add(ours, theirs)
    assert result.words == [[pytest.approx(-0.02), pytest.approx(0.0)]]
    assert result.phones == [[pytest.approx(-0.02), pytest.approx(0.01), pytest.approx(0.0)]]
    assert (result.n_words, result.n_words_compared, result.n_words_matched, result.n_phones) == (3, 2, 2, 8)
    # A sound that only ours has, between two words: nobody knows whose it is.
    result = Comparison()
    result.add((*ours[:2], Phone("n", 0.16), *ours[2:]), theirs)
    assert result.words == [[pytest.approx(0.0)]]
    result.leave_out("a reason")
    told = table(result)
    assert "1 utterances, 3 words, 8 phones" in told
    assert "Utterances left out: 1 a reason." in told
    assert "| of words | 1 | 0 [0, 0] |" in told
    assert "| of words | 0 | – |" in table(Comparison())


def test_diphthongs_and_affricates_are_one_phone_inside_a_word():
    class Even:
        inventory_version = DEFAULT_INVENTORY.version

        def fingerprint(self):
            return ""

        def align(self, wav, ids):
            return Alignment(torch.ones(len(ids), dtype=torch.int64), 0.0)

    symbols = list("ˈtʃaɪ tː ʃ")
    found = our_phones(Even(), torch.zeros(1, 320 * len(symbols)), symbols)
    assert [p.name for p in found] == ["tʃ", "aɪ", "t", "ʃ"]
    assert [round(p.start_s * 75) for p in found] == [1, 3, 6, 9]


def test_quantiles_have_intervals_over_utterances():
    groups = [[0.1 * i, 0.1 * i + 0.01] for i in range(20)] + [[]]
    median = quantile_interval(groups, 0.5)
    assert median.n == 20
    assert median.mean == pytest.approx(0.955, abs=0.05)
    assert median.low < median.mean < median.high
    assert quantile_interval([[], []], 0.5) is None
    assert quantile_interval([[3.0]], 0.9).high == 3.0


def test_words_as_the_dictionary_has_them():
    assert words_of_text("“It’s 3 o'clock,” he said – 'twas late!") == [
        "it's",
        "three",
        "o'clock",
        "he",
        "said",
        "twas",
        "late",
    ]


def test_pocketsphinx_itself(tmp_path, capsys):
    pytest.importorskip("pocketsphinx")
    sphinx = Sphinx()
    assert sphinx.knows("hello")
    assert not sphinx.knows("qwertzuiop")
    wav = voiced(3, 16000)
    found = sphinx.align(wav, ["hello", "you"])
    if found is not None:  # it is no speech
        assert [w.text for w in found] == ["hello", "you"]
        starts = [p.start_s for w in found for p in w.phones]
        assert starts == sorted(starts)
    lines = []
    for i, text in enumerate(("Hello you.", "Qwertzuiop.", "Who are you?")):
        soundfile.write(tmp_path / f"{i}.wav", wav + np.float32(i) * 1e-4, 16000)
        lines.append(json.dumps({"id": str(i), "path": f"{i}.wav", "seconds": 3, "split": "test", "text": text}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    aligner = Aligner(AlignerConfig(DEFAULT_INVENTORY.version, DEFAULT_INVENTORY.kinds, 1))
    aligner.units.clamp_(min=0)
    aligner.save(tmp_path / "aligner")
    command = [str(tmp_path), "--aligner", str(tmp_path / "aligner"), "--out", str(tmp_path / "table.md")]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "1 a word that the dictionary does not have" in told
    assert (tmp_path / "table.md").read_text() == told
    with pytest.raises(ValleError, match="no recording with a text in the split 'dev'"):
        main([*command, "--split", "dev"])
    with pytest.raises(ValleError, match="--n is 0"):
        main([*command, "--n", "0"])
