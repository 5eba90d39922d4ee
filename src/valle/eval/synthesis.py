"""Speech measured: the paper's cross-sentence zero-shot protocol (§5.2), beside recordings and their codec round trip.

Each trial's text is spoken in the voice of its prompt; the recogniser counts the words, the speaker network compares
the voice with the prompt (SIM-o) and with the prompt after the codec (SIM-r). The recording of the same text by the
same speaker is the row above, its round trip through the codec the next: what the codec alone costs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from valle.audio import Audio, load, resample
from valle.codec.base import Codec
from valle.errors import ValleError
from valle.eval import progress
from valle.eval.bootstrap import Estimate, mean_interval, ratio_interval
from valle.eval.journal import Journal
from valle.eval.judges import Judges, error_counts
from valle.eval.results import Column, missing, rows_by_corpus, table
from valle.eval.speaker import cosine
from valle.eval.trials import TARGET_S, Trial, in_range
from valle.eval.wer import error_rate

if TYPE_CHECKING:
    from valle.tts import VALLE

logger = logging.getLogger(__name__)

COLUMNS = (
    Column("wer", "WER % ↓", 1, percent=True),
    Column("deletions", "of it deleted", 1, percent=True),
    Column("insertions", "inserted", 1, percent=True),
    Column("sim_o", "SIM-o ↑", 3),
    Column("sim_r", "SIM-r ↑", 3),
    Column("length", "length / recording"),
    Column("rtf", "real-time factor ↓"),
)
RECORDING = "recording"
ROUND_TRIP = "codec round trip"


class System(Protocol):
    """Whatever turns a text and a voice into speech."""

    name: str

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        """The trial's text in the voice of the recording ``prompt``; ``info["stop"]`` may say why it ended.

        Raises:
            ValleError: this one cannot be spoken; counted as silence.
        """


class ValleSystem:
    """A model of this project, as ``VALLE.generate`` speaks with its own choice of sampling."""

    def __init__(self, tts: VALLE, **options: Any) -> None:
        """``options`` are those of ``VALLE.generate``."""
        self.name, self._tts, self._options = tts.model.info.name, tts, options

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        return self._tts.generate(
            trial.text, ref_audio=prompt, ref_text=trial.prompt_text, seed=trial.seed, **self._options
        )


def measure_speech(
    system: System,
    codec: Codec,
    trials: Sequence[Trial],
    folder: Path,
    judges: Judges,
    journal: Journal,
    *,
    n_listen: int | None = None,
    wavs: Path | None = None,
) -> tuple[dict[str, Any], str]:
    """Measure a system on trials: results ready for JSON, and markdown.

    Args:
        system: what speaks.
        codec: for the round trips; the system's own.
        trials: what to say.
        folder: the manifest's, to which the trials' paths are relative.
        judges: for words and voices.
        journal: keeps single measurements, and has those of an earlier call.
        n_listen: of how many trials the waves are written; None for all.
        wavs: where to.
    """
    meter = _Meter(system, codec, folder, judges, journal)
    for number, trial in enumerate(progress(trials, "trials", "trial")):
        meter.measure(trial, wavs if n_listen is None or number < n_listen else None)
    records = {name: [journal[_key(t, name)] for t in trials] for name in (RECORDING, ROUND_TRIP, system.name)}
    rows = {name: _row(own) for name, own in records.items()}
    ends = {name: records[name] for name in (RECORDING, system.name)}
    corpora = rows_by_corpus(ends, [t.dataset for t in trials], _row)
    stops = dict(Counter(record["stop"] for record in records[system.name]).most_common())
    described = _describe(trials)
    results = {"rows": rows, "by_corpus": corpora, "stops": stops, "n_trials": len(trials), "trials": described}
    text = (
        f"{len(trials)} sentences of {len({t.speaker for t in trials})} speakers, each in the voice of another "
        "utterance of the same speaker; mean and 95 % interval.\n\n"
        + table("", rows, COLUMNS)
        + missing({system.name: rows[system.name]}, COLUMNS[:1] + COLUMNS[3:], len(trials))
        + (f"\n{table('corpus', corpora, COLUMNS)}\n" if corpora else "\n")
        + _sentence(described, len(trials))
        + "The speech ended by: "
        + ", ".join(f"{reason} {n}" for reason, n in stops.items())
        + ".\n"
    )
    return results, text


class _Meter:
    """Measures one trial after the other."""

    def __init__(self, system: System, codec: Codec, folder: Path, judges: Judges, journal: Journal) -> None:
        self.system, self.codec, self.folder, self.judges, self.journal = system, codec, folder, judges, journal
        self.rate = codec.sample_rate

    def measure(self, trial: Trial, wavs: Path | None) -> None:
        """Put what is not there yet into the journal, and write the waves where they are wanted and not there."""
        todo = [n for n in (RECORDING, ROUND_TRIP, self.system.name) if _key(trial, n) not in self.journal]
        stem = trial.id.replace("/", "-")
        if not todo and (wavs is None or (wavs / f"{stem}-0-prompt.flac").is_file()):
            return
        prompt, recording = (self._load(path) for path in (trial.prompt, trial.target))  # [N] each
        waves = {RECORDING: recording, ROUND_TRIP: self._round_trip(recording)}
        began = perf_counter()
        spoken, failure = self._speak(trial)
        elapsed = perf_counter() - began
        waves[self.system.name] = self._samples(spoken)
        voices = self.judges.voice(prompt, self.rate), self.judges.voice(self._round_trip(prompt), self.rate)
        for name in todo:
            wav = waves[name]
            record: dict[str, Any] = {
                "wer": self.judges.words(wav, self.rate, trial.text),
                "sim_o": self._similarity(wav, voices[0]),
                "sim_r": self._similarity(wav, voices[1]),
                "length": len(wav) / len(recording),
            }
            if name == self.system.name:
                seconds = len(wav) / self.rate
                record |= {
                    "seconds": seconds,
                    "elapsed_s": elapsed,
                    "stop": failure or str(spoken.info.get("stop", "unknown")),
                }
            self.journal.add(_key(trial, name), record)
        if wavs is not None:
            wavs.mkdir(parents=True, exist_ok=True)
            if len(waves[self.system.name]):
                spoken.save(wavs / f"{stem}-3-spoken.flac")
            for label, wav in (("2-round-trip", waves[ROUND_TRIP]), ("1-recording", recording), ("0-prompt", prompt)):
                Audio(torch.from_numpy(wav)[None], self.rate).save(wavs / f"{stem}-{label}.flac")

    def _speak(self, trial: Trial) -> tuple[Audio, str]:
        """What the system says, and why it did not."""
        try:
            return self.system.speak(trial, self.folder / trial.prompt), ""
        except ValleError as error:
            logger.warning("%s: %s", trial.id, error)
            return Audio(torch.zeros(1, 0), self.rate), "refused"

    def _similarity(self, wav: NDArray[np.float32], voice: NDArray[np.float32] | None) -> float | None:
        own = self.judges.voice(wav, self.rate)
        return None if own is None or voice is None else cosine(own, voice)

    def _load(self, path: str) -> NDArray[np.float32]:
        return load(self.folder / path, self.rate).waveform[0].numpy()

    def _samples(self, audio: Audio) -> NDArray[np.float32]:
        return resample(audio.waveform.float().cpu(), audio.sample_rate, self.rate)[0].numpy()

    @torch.inference_mode()
    def _round_trip(self, wav: NDArray[np.float32]) -> NDArray[np.float32]:
        """wav [N] -> [N], with all codebooks."""
        device = next(self.codec.parameters()).device
        decoded = self.codec.decode(self.codec.encode(torch.from_numpy(wav)[None, None].to(device)))  # [1, 1, N']
        return decoded[0, 0, : len(wav)].float().cpu().numpy()


def _key(trial: Trial, row: str) -> tuple[str, ...]:
    """In the journal: the same sentence from another seed is another measurement."""
    return trial.id, str(trial.seed), row


def _row(records: Sequence[Mapping[str, Any]]) -> dict[str, Estimate | float | None]:
    """Means over one row's records."""
    counts = error_counts(records)
    n_words = sum(c.words for c in counts)
    row: dict[str, Estimate | float | None] = {
        "wer": error_rate(counts),
        "deletions": sum(c.deletions for c in counts) / n_words if n_words else None,
        "insertions": sum(c.insertions for c in counts) / n_words if n_words else None,
    }
    row |= {key: mean_interval([r[key] for r in records]) for key in ("sim_o", "sim_r", "length")}
    if "elapsed_s" in records[0]:
        row["rtf"] = ratio_interval([r["elapsed_s"] for r in records], [r["seconds"] for r in records])
    return row


def _describe(trials: Sequence[Trial]) -> dict[str, Any]:
    """How long targets and prompts are."""
    targets, prompts = [t.target_s for t in trials], [t.prompt_s for t in trials]
    return {
        "targets_s": [min(targets), float(np.median(targets)), max(targets)],
        "prompts_s": [min(prompts), float(np.median(prompts)), max(prompts)],
        "targets_in_range": sum(in_range(s, TARGET_S) for s in targets),
        "by_dataset": dict(Counter(t.dataset for t in trials)),
    }


def _sentence(described: Mapping[str, Any], n: int) -> str:
    (t0, t1, t2), (p0, p1, p2) = described["targets_s"], described["prompts_s"]
    return (
        f"Recordings of the texts: {t0:.1f} to {t2:.1f} s, median {t1:.1f} s, {described['targets_in_range']} of {n} "
        f"within the protocol's {TARGET_S[0]:g} to {TARGET_S[1]:g} s. "
        f"Prompts: {p0:.1f} to {p2:.1f} s, median {p1:.1f} s. "
    )
