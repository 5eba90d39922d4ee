"""Word error rate against counts by hand and against jiwer, and Whisper's settings."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest

from valle.errors import ValleError
from valle.eval.wer import WhisperRecogniser, WordErrors, error_rate, normalise_words, word_errors


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("the cat sat on the mat", "The cat sat on the mat.", (6, 0, 0, 0)),
        ("the cat sat on the mat", "the hat sat on mat", (6, 1, 1, 0)),
        ("the cat sat", "the cat sat down there", (3, 0, 0, 2)),
        ("one two three four", "", (4, 0, 4, 0)),
        ("a b c", "x y z", (3, 3, 0, 0)),
        ("", "what is this", (0, 0, 0, 3)),
    ],
)
def test_counts_by_hand(reference: str, hypothesis: str, counts: tuple[int, int, int, int]) -> None:
    counted = word_errors(reference, hypothesis)
    # "one two three four" becomes "1234": one word for the normaliser.
    expected = (1, 0, 1, 0) if reference.startswith("one") else counts
    assert (counted.words, counted.substitutions, counted.deletions, counted.insertions) == expected


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Mr. Smith's HAT, really!", "mister smith is hat really"),
        ("I won't pay twenty dollars.", "i will not pay $20"),
        ("The colour of the [noise] centre", "the color of the center"),
    ],
)
def test_normaliser_is_whispers(text: str, normalised: str) -> None:
    assert normalise_words(text) == normalised


def test_corpus_rate_is_jiwers() -> None:
    references = ["it was a bright cold day in april", "and the clocks were striking", "he loved big brother"]
    hypotheses = ["it was a bright gold day in a pril", "and clocks were striking", "he loved big big brother"]
    rate = error_rate([word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)])
    assert rate is not None
    assert rate.mean == pytest.approx(jiwer.wer(references, hypotheses))
    assert rate.mean == pytest.approx((2 + 1 + 1 + 1) / 17)  # gold, a + pril; the; big
    assert rate.low < rate.mean < rate.high


def test_errors_survive_json() -> None:
    counted = word_errors("the cat sat", "a cat sat down")
    assert WordErrors(**counted.to_dict()) == counted
    assert counted.errors == 2


def test_no_words_no_rate() -> None:
    assert error_rate([]) is None


@pytest.fixture
def fake_whisper(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the package faster_whisper that writes down how it is called."""
    seen: dict[str, Any] = {}

    class WhisperModel:
        def __init__(self, model: str, **settings: Any) -> None:
            seen["model"], seen["init"] = model, settings

        def transcribe(self, wav: np.ndarray, **settings: Any) -> tuple[list[SimpleNamespace], None]:
            seen["wav"], seen["call"] = wav, settings
            return [SimpleNamespace(text=" Hello there. "), SimpleNamespace(text="General.")], None

    module = ModuleType("faster_whisper")
    module.WhisperModel, module.available_models = WhisperModel, lambda: ["base"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    return seen


def test_whisper_is_asked_for_the_same_answer_every_time(fake_whisper: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    recogniser = WhisperRecogniser(str(tmp_path), threads=1)
    assert recogniser.transcribe(np.zeros(16000, np.float32)) == "Hello there. General."
    assert fake_whisper["init"] == {"device": "cpu", "compute_type": "int8", "cpu_threads": 1}
    call = fake_whisper["call"]
    assert call["temperature"] == 0.0  # a list would fall back to random decoding
    assert call["condition_on_previous_text"] is False
    assert (call["language"], call["beam_size"]) == ("en", 5)


def test_whisper_by_name_and_not_at_all(fake_whisper: dict[str, Any], tmp_path: Path) -> None:
    WhisperRecogniser("base")
    assert fake_whisper["model"] == "base"
    with pytest.raises(ValleError, match=r"holds no Whisper model.*give --whisper a folder"):
        WhisperRecogniser(str(tmp_path))
