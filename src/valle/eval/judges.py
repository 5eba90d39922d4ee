"""The two networks that judge speech, what identifies them, and how good they are on recordings of people.

A judge's own errors are the floor under every number it gives. ``measure_judges`` finds it on a corpus: the
recogniser's word error rate on the recordings, and how well the speaker network tells its speakers apart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from valle.data.corpus import Utterance, load_wav
from valle.errors import ValleError
from valle.eval import progress
from valle.eval.bootstrap import mean_interval
from valle.eval.journal import Journal, digest
from valle.eval.results import Column, missing, table
from valle.eval.speaker import OnnxSpeaker, SpeakerNetwork, cosine, equal_error_rate
from valle.eval.trials import spread
from valle.eval.wer import RECOGNISER_RATE, Recogniser, WhisperRecogniser, WordErrors, error_rate, word_errors

LEFT_OUT = "none"
"""Given as a judge's path, leaves that judge and its columns out."""


@dataclass(frozen=True)
class Judges:
    """Who listens; None leaves a judge's columns empty."""

    recogniser: Recogniser | None
    """For the word error rate."""
    speaker: SpeakerNetwork | None
    """For the speaker similarity."""
    names: Mapping[str, str]
    """What identifies them in results: name, settings and a digest of the weights."""

    def words(self, wav: NDArray[np.float32], sample_rate: int, text: str | None) -> dict[str, Any] | None:
        """What the recogniser makes of wav [N], counted against the text (``WordErrors.to_dict``)."""
        if self.recogniser is None or not text:
            return None
        heard = self.recogniser.transcribe(soxr.resample(wav, sample_rate, RECOGNISER_RATE)) if len(wav) else ""
        return word_errors(text, heard).to_dict()

    def voice(self, wav: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32] | None:
        """The speaker embedding [D] of wav [N]; None where there is too little to judge."""
        if self.speaker is None or not wav.any():
            return None
        try:
            return self.speaker.embed(wav, sample_rate)
        except ValleError:
            return None


def load_judges(
    whisper: str | None,
    speaker: str | None,
    *,
    recogniser: str | None = None,
    device: str = "auto",
    threads: int = 0,
) -> Judges:
    """The judges at these paths; ``"none"`` leaves one out.

    Args:
        whisper: folder or name of a Whisper; the same as ``recogniser="whisper:..."``.
        speaker: an ONNX file, or ``wavlm:`` and a folder or hub id.
        recogniser: ``whisper:`` or ``hubert:`` and a folder or name.
        device: for HuBERT and WavLM: cpu, or the GPU where there is one. The others compute on the CPU.
        threads: for the others.

    Raises:
        ValleError: one is not given or not there.
    """
    if recogniser is not None and whisper is not None:
        raise ValleError("--recogniser and --whisper both name a recogniser; give one of them")
    named = recogniser or (whisper if whisper in (None, LEFT_OUT) else f"whisper:{whisper}")
    if named is None:
        raise ValleError(
            "the word error rate needs a recogniser; give --whisper a folder with a CTranslate2 Whisper model, or a "
            "name such as base that faster-whisper downloads, or none to leave the rate out"
        )
    if speaker is None:
        raise ValleError(
            "the speaker similarity needs a network; give --speaker an ONNX file such as WeSpeaker's "
            "voxceleb_resnet34.onnx (docs/evaluation.md says where it is), or none to leave the similarity out"
        )
    words, words_name = _load_recogniser(named, device, threads)
    voices, voices_name = _load_speaker(speaker, device, threads)
    return Judges(words, voices, {"recogniser": words_name, "speaker": voices_name})


def _load_recogniser(named: str, device: str, threads: int) -> tuple[Recogniser | None, str]:
    """A recogniser, and what identifies it."""
    kind, _, model = named.partition(":")
    if named == LEFT_OUT:
        return None, LEFT_OUT
    if kind == "whisper" and model:
        whisper = WhisperRecogniser(model, threads=threads)
        weights = f", {digest(model)}" if Path(model).is_dir() else ""
        return whisper, f"{Path(model).name} (faster-whisper, int8, beam 5, temperature 0{weights})"
    if kind == "hubert" and model:
        from valle.eval.pretrained_judges import HubertRecogniser

        hubert = HubertRecogniser(model, device=_device(device))
        return hubert, f"{_label(model)} (HuBERT, CTC, greedy, {digest(hubert.folder)})"
    raise ValleError(
        f"--recogniser {named} is not known; give whisper:DIR, hubert:DIR (or a name in place of DIR), or none"
    )


def _load_speaker(named: str, device: str, threads: int) -> tuple[SpeakerNetwork | None, str]:
    """A speaker network, and what identifies it."""
    if named == LEFT_OUT:
        return None, LEFT_OUT
    if named.startswith("wavlm:"):
        from valle.eval.pretrained_judges import WavLMSpeaker

        model = named.removeprefix("wavlm:")
        wavlm = WavLMSpeaker(model, device=_device(device))
        return wavlm, f"{_label(model)} (WavLM, x-vector, {digest(wavlm.folder)})"
    return OnnxSpeaker(named, threads=threads), f"{Path(named).name} (ONNX, {digest(named)})"


def _label(model: str) -> str:
    """A hub id as it is, a folder without those around it."""
    return Path(model).name if Path(model).expanduser().is_dir() else model


def _device(asked: str) -> str:
    import torch

    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def read(utterance: Utterance, sample_rate: int) -> NDArray[np.float32]:
    """A recording as wav [N], mono."""
    return load_wav(utterance, sample_rate)[0].numpy()


def error_counts(records: Sequence[Mapping[str, Any]]) -> list[WordErrors]:
    """The word errors of the records that have them."""
    return [WordErrors(**record["wer"]) for record in records if record["wer"]]


COLUMNS = (
    Column("wer", "WER % ↓", 1, percent=True),
    Column("same", "cosine, same speaker"),
    Column("different", "cosine, different speakers"),
    Column("eer", "equal error rate % ↓", 1, percent=True),
    Column("threshold", "at cosine"),
)


def measure_judges(
    utterances: Sequence[Utterance],
    judges: Judges,
    journal: Journal,
    *,
    max_utterances: int | None,
    n_pairs: int,
    seed: int,
) -> tuple[dict[str, Any], str]:
    """Judge recordings of people: results ready for JSON, and a markdown table.

    Args:
        utterances: of one split.
        judges: to be judged.
        journal: keeps the transcripts.
        max_utterances: recordings to recognise, spread over the speakers; None for all.
        n_pairs: pairs of one speaker, and as many of two, drawn by the seed.
        seed: of the pairs.
    """
    chosen = spread(utterances, max_utterances)
    for utterance in progress(chosen, "words", "utterance"):
        if (utterance.id,) not in journal:
            journal.add(
                (utterance.id,),
                {"wer": judges.words(read(utterance, RECOGNISER_RATE), RECOGNISER_RATE, utterance.text)},
            )
    same, different = draw_pairs(utterances, n_pairs, seed)
    voices: dict[str, NDArray[np.float32] | None] = {}
    cosines: list[float | None] = []
    for pair in progress([*same, *different], "voices", "pair"):
        for utterance in pair:
            if utterance.id not in voices:
                voices[utterance.id] = judges.voice(read(utterance, RECOGNISER_RATE), RECOGNISER_RATE)
        a, b = (voices[u.id] for u in pair)
        cosines.append(None if a is None or b is None else cosine(a, b))
    near, far = cosines[: len(same)], cosines[len(same) :]
    row: dict[str, Any] = {
        "wer": error_rate(error_counts([journal[(u.id,)] for u in chosen])),
        "same": mean_interval(near),
        "different": mean_interval(far),
    }
    present = [c for c in near if c is not None], [c for c in far if c is not None]
    if all(present):
        row["eer"], row["threshold"] = equal_error_rate(*present)
    n_pairs_drawn = [len(same), len(different)]
    results = {"rows": {"recordings": row}, "n_utterances": len(chosen), "n_pairs": n_pairs_drawn}
    return results, describe_judges(results)


def describe_judges(results: Mapping[str, Any]) -> str:
    """The results of ``measure_judges`` as markdown."""
    rows, n, (same, different) = results["rows"], results["n_utterances"], results["n_pairs"]
    text = f"{n} recordings, {same} pairs of one speaker and {different} of two.\n\n"
    return text + table("", rows, COLUMNS) + missing(rows, COLUMNS[:1], n)


def draw_pairs(
    utterances: Sequence[Utterance], n: int, seed: int
) -> tuple[list[tuple[Utterance, Utterance]], list[tuple[Utterance, Utterance]]]:
    """n pairs of one speaker (the speakers in turn) and n of two; fewer where there are not so many."""
    rng = random.Random(seed)
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        if utterance.speaker is not None:
            by_speaker.setdefault(utterance.speaker, []).append(utterance)
    own = [rng.sample(pairs, len(pairs)) for us in by_speaker.values() if (pairs := list(combinations(us, 2)))]
    turns = max(map(len, own), default=0)
    same = [pairs[turn] for turn in range(min(turns, n)) for pairs in own if turn < len(pairs)][:n]
    two = rng.sample(couples, len(couples)) if (couples := list(combinations(by_speaker.values(), 2))) else []
    different = [(rng.choice(a), rng.choice(b)) for a, b in (two[i % len(two)] for i in range(n))] if two else []
    return same, different
