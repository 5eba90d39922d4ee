"""Speech measured: the paper's cross-sentence zero-shot protocol (§5.2), beside recordings and their codec round trip.

Each trial's text is spoken in the voice of its prompt; the recogniser counts the words, the speaker network compares
the voice with the prompt (SIM-o) and with the prompt after the codec (SIM-r). The recording of the same text by the
same speaker is the row above, its round trip through the codec the next: what the codec alone costs.

By the continual protocol the recording itself is continued from its first seconds. The words are those of the whole,
the voice is that of what follows the beginning, compared with the beginning.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from valle.audio import Audio, load, resample, trim_silence
from valle.codec.base import Codec
from valle.errors import ValleError
from valle.eval import progress
from valle.eval.bootstrap import Estimate, mean_interval, ratio_interval
from valle.eval.hard_cases import describe_cases, hard_cases
from valle.eval.journal import Journal
from valle.eval.judges import Judges, error_counts
from valle.eval.results import Column, missing, rows_by_corpus, table, without_folders
from valle.eval.speaker import cosine
from valle.eval.systems import file_label
from valle.eval.trials import TARGET_S, Trial, in_range, of_run
from valle.eval.wer import WordErrors, error_rate

if TYPE_CHECKING:
    from valle.eval.quality import SoundQuality
    from valle.eval.systems import Baseline
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
QUALITY_COLUMNS = (
    Column("dnsmos", "DNSMOS ↑"),
    Column("dnsmos_sig", "of it speech"),
    Column("dnsmos_bak", "background"),
    Column("dnsmos_p808", "P.808 ↑"),
    Column("f0_hz", "pitch Hz", 0),
    Column("f0_shift", "off the recording's, semitones ↓", 1),
    Column("f0_spread", "its spread, semitones", 1),
    Column("voiced", "voiced %", 0, percent=True),
    Column("level_spread", "spread of the level, dB", 1),
)
RUN_COLUMNS = (COLUMNS[0], *COLUMNS[3:6])
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

    def __init__(self, tts: VALLE, streamed: bool = False, **options: Any) -> None:
        """``options`` are those of ``VALLE.generate``; ``streamed``: as ``VALLE.stream`` speaks, early."""
        self.name, self._tts, self._streamed, self._options = tts.model.info.name, tts, streamed, options

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        options = {"ref_audio": prompt, "ref_text": trial.prompt_text, "seed": trial.seed, **self._options}
        text = "" if trial.continual else trial.text
        if not self._streamed:
            return self._tts.generate(text, continual=trial.continual, **options)
        chunks = list(self._tts.stream(text, continual=trial.continual, **options))
        wav = torch.cat([chunk.waveform for chunk in chunks], dim=1)
        return Audio(wav, self._tts.sample_rate, info={**chunks[0].info, "stop": "streamed"})


def measure_speech(
    system: System,
    codec: Codec,
    trials: Sequence[Trial],
    folder: Path,
    judges: Judges,
    journal: Journal,
    *,
    baselines: Sequence[Baseline] = (),
    runs: int = 1,
    quality: SoundQuality | None = None,
    n_hard: int = 5,
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
        baselines: other systems, a row each.
        runs: how often each sentence is spoken, each time from another seed.
        quality: for the sound, in a table of its own; None for none.
        n_hard: how many of the sentences understood worst are told.
        n_listen: of how many trials the waves are written; None for all.
        wavs: where to.

    Raises:
        ValleError: trials of both protocols, or baselines for the continual one.
    """
    continual = trials[0].continual
    if any(trial.continual != continual for trial in trials):
        raise ValleError("the list of trials mixes both protocols (prompt and target are one recording in some only)")
    if continual and baselines:
        raise ValleError("other systems cannot continue a recording; leave out --system, or the continual protocol")
    systems = {system.name: _Speaker(system, system.name, runs)}
    systems |= {b.name: _Speaker(b, b.identity, runs if b.draws else 1) for b in baselines}
    meter = _Meter(systems, codec, folder, judges, journal, quality)
    for number, trial in enumerate(progress(trials, "trials", "trial")):
        meter.measure(trial, wavs if n_listen is None or number < n_listen else None)
    records = {name: [[journal[_key(t, name)]] for t in trials] for name in (RECORDING, ROUND_TRIP)}
    for name, speaker in systems.items():
        records[name] = [[journal[_key(of_run(t, r), speaker.key)] for r in range(speaker.runs)] for t in trials]
    rows = {name: _row(own) for name, own in records.items()}
    ends = {name: own for name, own in records.items() if name != ROUND_TRIP}
    corpora = rows_by_corpus(ends, [t.dataset for t in trials], _row)
    stops = {
        name: dict(Counter(record["stop"] for own in records[name] for record in own).most_common()) for name in systems
    }
    by_run = {
        name: [_row([[own[r]] for own in records[name]]) for r in range(speaker.runs)]
        for name, speaker in systems.items()
        if speaker.runs > 1
    }
    spread = {name: _spread(own) for name, own in by_run.items()}
    results: dict[str, Any] = {"rows": rows, "by_corpus": corpora, "stops": stops[system.name], "n_trials": len(trials)}
    results |= {"trials": _describe(trials), "hard_cases": hard_cases(trials, records[system.name], n_hard)}
    if baselines:
        results |= {"stops_of_baselines": {name: own for name, own in stops.items() if name != system.name}}
    if by_run:
        results |= {"runs": runs, "by_run": by_run, "spread_over_runs": spread}
    return results, describe_speech(results, trials)


def describe_speech(results: Mapping[str, Any], trials: Sequence[Trial]) -> str:
    """The results of ``measure_speech`` as markdown, of the same trials."""
    rows, corpora = results["rows"], results["by_corpus"]
    systems = [name for name in rows if name not in (RECORDING, ROUND_TRIP)]
    by_run, quality = results.get("by_run"), any(c.key in row for row in rows.values() for c in QUALITY_COLUMNS)
    stops = {systems[0]: results["stops"], **results.get("stops_of_baselines", {})}
    continual = trials[0].continual
    how = (
        f"continued from its first {trials[0].prompt_s:g} s" if continual else "each in the voice of another utterance"
    )
    how += "" if continual else " of the same speaker"
    what = "recordings" if continual else "sentences"
    return (
        f"{len(trials)} {what} of {len({t.speaker for t in trials})} speakers, {how}; mean and 95 % interval.\n\n"
        + table("", rows, COLUMNS)
        + missing({name: rows[name] for name in systems}, COLUMNS[:1] + COLUMNS[3:], len(trials))
        + (f"\n{_describe_runs(by_run, results['spread_over_runs'])}" if by_run else "")
        + (f"\n{table('sound', rows, QUALITY_COLUMNS)}" if quality else "")
        + (f"\n{table('corpus', corpora, COLUMNS)}\n" if corpora else "\n")
        + _sentence(results["trials"], len(trials))
        + "".join(_describe_stops(name if len(systems) > 1 else "", own) for name, own in stops.items())
        + describe_cases(results.get("hard_cases", ()), systems[0], results.get("runs", 1))
    )


def speech_records(
    results: Mapping[str, Any], trials: Sequence[Trial], records: Mapping[tuple[str, ...], Mapping[str, Any]]
) -> dict[str, list[list[Mapping[str, Any]]]]:
    """By row, the measurements of each trial, one a run.

    Args:
        results: of ``measure_speech``; with ``systems``, the commands of the other systems by name, if there are any.
        trials: the same.
        records: of the journal.

    Raises:
        ValleError: one is missing.
    """
    commands: Mapping[str, str] = results.get("systems", {})
    keys = {name: name for name in results["rows"]}
    for key in dict.fromkeys(key[-1] for key in records):
        keys |= {name: key for name, command in commands.items() if without_folders(key) == command}
    found: dict[str, list[list[Mapping[str, Any]]]] = {}
    for name, key in keys.items():
        runs = len(results.get("by_run", {}).get(name, [name]))
        wanted = [[_key(of_run(trial, run), key) for run in range(runs)] for trial in trials]
        if lacking := next((k for own in wanted for k in own if k not in records), None):
            raise ValleError(
                f"the measurement of {lacking[0]} by {name} is missing in utterances.jsonl; run the command that made "
                "the folder again, it measures only what is missing"
            )
        found[name] = [[records[k] for k in own] for own in wanted]
    return found


@dataclass(frozen=True)
class _Speaker:
    """A system and its place in the journal."""

    system: System | Baseline
    key: str
    """Its row's in the journal."""
    runs: int
    """How often it says each sentence."""


class _Meter:
    """Measures one trial after the other."""

    def __init__(
        self,
        systems: Mapping[str, _Speaker],
        codec: Codec,
        folder: Path,
        judges: Judges,
        journal: Journal,
        quality: SoundQuality | None,
    ) -> None:
        self.systems, self.codec, self.folder, self.judges, self.journal = systems, codec, folder, judges, journal
        self.quality, self.rate = quality, codec.sample_rate

    def measure(self, trial: Trial, wavs: Path | None) -> None:
        """Put what is not there yet into the journal, and write the waves where they are wanted and not there."""
        stem = trial.id.replace("/", "-")
        to_write = wavs is not None and not (wavs / f"{stem}-0-prompt.flac").is_file()
        own = [name for name in (RECORDING, ROUND_TRIP) if _key(trial, name) not in self.journal]
        turns = [
            (place, speaker, run)
            for place, speaker in enumerate(self.systems.values())
            for run in range(speaker.runs)
            if to_write or _key(of_run(trial, run), speaker.key) not in self.journal
        ]
        if not own and not turns:
            return
        recording = self._load(trial.target)  # [N]
        if trial.continual:  # what the system is given begins where the speech does
            recording = trim_silence(torch.from_numpy(recording)[None], self.rate)[0].numpy()
        head = round(trial.prompt_s * self.rate) if trial.continual else 0
        prompt = recording[:head] if trial.continual else self._load(trial.prompt)  # [N']
        decoded = round_trip(self.codec, recording)
        voices = self.judges.voice(prompt, self.rate), self.judges.voice(round_trip(self.codec, prompt), self.rate)
        scene = _Scene(trial, voices, max(len(recording) - head, 1), self._pitch(recording[head:]))
        for name, wav in ((RECORDING, recording), (ROUND_TRIP, decoded)):
            if name in own:
                self.journal.add(_key(trial, name), self._judge(scene, wav, head))
        if wavs is not None:
            wavs.mkdir(parents=True, exist_ok=True)
        for place, speaker, run in turns:
            told = of_run(trial, run)
            began = perf_counter()
            spoken, failure = self._speak(speaker.system, told)
            elapsed = perf_counter() - began
            if _key(told, speaker.key) not in self.journal:
                wav = self._samples(spoken)
                n_given = round(float(spoken.info.get("recorded_s", 0)) * self.rate)
                record = self._judge(scene, wav, n_given)
                record |= {
                    "seconds": max(len(wav) - n_given, 0) / self.rate,
                    "elapsed_s": elapsed,
                    "stop": failure or str(spoken.info.get("stop", "unknown")),
                }
                self.journal.add(_key(told, speaker.key), record)
            if wavs is not None and spoken.waveform.shape[1]:
                named = "spoken" if place == 0 else file_label(speaker.system.name)
                again = f"-{run + 1}" if speaker.runs > 1 else ""
                spoken.save(wavs / f"{stem}-{3 + place}-{named}{again}.flac")
        if wavs is not None and to_write:  # the prompt last: it tells that all are there
            for label, wav in (("2-round-trip", decoded), ("1-recording", recording), ("0-prompt", prompt)):
                Audio(torch.from_numpy(wav)[None], self.rate).save(wavs / f"{stem}-{label}.flac")

    def _judge(self, scene: _Scene, wav: NDArray[np.float32], n_given: int) -> dict[str, Any]:
        """One measurement of wav [N], of which the first ``n_given`` samples are the prompt (continual)."""
        new = wav[n_given:]
        record: dict[str, Any] = {
            "wer": self.judges.words(wav, self.rate, scene.trial.text),
            "sim_o": self._similarity(new, scene.voices[0]),
            "sim_r": self._similarity(new, scene.voices[1]),
            "length": len(new) / scene.n_samples,
        }
        if self.quality is not None:
            record |= self.quality(new, self.rate)
            if record["f0_hz"] and scene.pitch_hz:
                record["f0_shift"] = abs(12 * float(np.log2(record["f0_hz"] / scene.pitch_hz)))
        return record

    def _pitch(self, wav: NDArray[np.float32]) -> float | None:
        return None if self.quality is None else self.quality.pitch_hz(wav, self.rate)

    def _speak(self, system: System | Baseline, trial: Trial) -> tuple[Audio, str]:
        """What the system says, and why it did not."""
        try:
            return system.speak(trial, self.folder / trial.prompt), ""
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
def round_trip(codec: Codec, wav: NDArray[np.float32]) -> NDArray[np.float32]:
    """wav [N] through the codec -> [N], with all codebooks."""
    device = next(codec.parameters()).device
    decoded = codec.decode(codec.encode(torch.from_numpy(wav)[None, None].to(device)))  # [1, 1, N']
    return decoded[0, 0, : len(wav)].float().cpu().numpy()


@dataclass(frozen=True)
class _Scene:
    """What all rows of a trial are compared with."""

    trial: Trial
    voices: tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]
    """Of the prompt, as recorded and after the codec."""
    n_samples: int
    """Of the recording, without the prompt (continual)."""
    pitch_hz: float | None
    """Its pitch."""


def _key(trial: Trial, row: str) -> tuple[str, ...]:
    """In the journal: the same sentence from another seed is another measurement."""
    return trial.id, str(trial.seed), row


def _row(records: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Estimate | float | None]:
    """Means over one row's records: the runs of each trial. The interval is one over trials, not over runs."""
    counts = [_sum(own) for runs in records if (own := error_counts(runs))]
    n_words = sum(c.words for c in counts)
    row: dict[str, Estimate | float | None] = {
        "wer": error_rate(counts),
        "deletions": sum(c.deletions for c in counts) / n_words if n_words else None,
        "insertions": sum(c.insertions for c in counts) / n_words if n_words else None,
    }
    present = [c.key for c in QUALITY_COLUMNS if any(c.key in r for runs in records for r in runs)]
    for key in ("sim_o", "sim_r", "length", *present):
        row[key] = mean_interval([_mean([r.get(key) for r in runs]) for runs in records])
    if "elapsed_s" in records[0][0]:
        elapsed, seconds = ([sum(r[key] for r in runs) for runs in records] for key in ("elapsed_s", "seconds"))
        row["rtf"] = ratio_interval(elapsed, seconds)
    return row


def _sum(counts: Sequence[WordErrors]) -> WordErrors:
    """The errors of all runs of a trial."""
    return WordErrors(
        *(sum(getattr(c, key) for c in counts) for key in ("words", "substitutions", "deletions", "insertions"))
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _spread(rows: Sequence[Mapping[str, Estimate | float | None]]) -> dict[str, float | None]:
    """Standard deviation of each mean over the runs."""
    spread: dict[str, float | None] = {}
    for column in RUN_COLUMNS:
        means = [value.mean for row in rows if isinstance(value := row.get(column.key), Estimate)]
        spread[column.key] = float(np.std(means, ddof=1)) if len(means) == len(rows) else None
    return spread


def _describe_runs(
    by_run: Mapping[str, Sequence[Mapping[str, Estimate | float | None]]], spread: Mapping[str, Mapping[str, Any]]
) -> str:
    """Each run by itself, and how far they lie apart."""
    rows: dict[str, Mapping[str, Estimate | float | None]] = {}
    for name, own in by_run.items():
        rows |= {f"{name}, run {run}": row for run, row in enumerate(own, 1)}
        rows[f"{name}, standard deviation"] = spread[name]
    return table("by run", rows, RUN_COLUMNS)


def _describe_stops(name: str, stops: Mapping[str, int]) -> str:
    whose = f"The speech of {name}" if name else "The speech"
    return f"{whose} ended by: " + ", ".join(f"{reason} {n}" for reason, n in stops.items()) + ".\n"


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
