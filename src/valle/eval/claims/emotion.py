"""Emotion kept (paper §5.4), by what carries it: pitch, its spread, the spread of the level, and the speaking rate.

There is no corpus of emotions here. Over trials, each number of what was said is correlated with that of the prompt;
the recording of the same text by the same speaker is the reference, which shares the speaker but not the mood of the
prompt. Since a deep voice is deep in all its recordings, the same is told within speakers, their means taken away.

The experiment: the same prompt with its pitch moved up and down (Praat's PSOLA). What the output's pitch moves for a
semitone of the prompt's is what is kept; the codec's round trip of a recording moved likewise is the ceiling.

A classifier of emotions, where one is given, names those of prompt, speech and recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from valle.codec.pitch import shift_pitch
from valle.eval import progress
from valle.eval.bootstrap import Estimate, correlation, mean_interval, statistic_interval
from valle.eval.claims.scene import REFUSED, Measured, Stage, draw, phones_per_s, semitones
from valle.eval.prosody import prosody
from valle.eval.results import Column, missing, table
from valle.eval.synthesis import round_trip
from valle.eval.trials import Trial

SHIFTS = (-3.0, 3.0)
"""Semitones by which the prompt's pitch is moved."""
MEASURES = {
    "pitch": "mean pitch, semitones",
    "f0_spread": "its spread, semitones",
    "level_spread": "spread of the level, dB",
    "rate": "phones a second",
}
SIGNALS = ("prompt", "spoken", "recording")
COLUMNS = tuple(Column(key, title.partition(",")[0]) for key, title in MEASURES.items())
SHIFT_COLUMNS = (Column("kept", "kept of a semitone"), Column("moved", "moved, semitones, from lowest to highest"))
BY_SHIFT_COLUMNS = (Column("prompt", "pitch of the prompt"), Column("spoken", "of what was said"))
EMOTION_COLUMNS = (
    Column("same", "same emotion as the prompt %", 1, percent=True),
    Column("probability", "probability of the prompt's emotion"),
)
HOW_TO_GET_ONE = (
    "Without a classifier of emotions their names are not told: give --emotion the folder or hub id of a model of "
    "transformers for audio classification with weights as safetensors, such as a Wav2Vec2 that learnt IEMOCAP."
)


class Emotions(Protocol):
    """Names what a voice feels."""

    def probabilities(self, wav: NDArray[np.float32], sample_rate: int) -> dict[str, float]:
        """Of wav [N], by emotion; they add up to 1."""


def measure_emotion(stage: Stage, *, shifts: Sequence[float] = SHIFTS, emotions: Emotions | None = None) -> Measured:
    """Speak each trial after its prompt as it is, and with its pitch moved.

    Args:
        stage: who speaks what.
        shifts: semitones; none leaves the experiment out.
        emotions: the classifier.
    """
    plain, moved = [], []
    for trial in progress(stage.trials, "trials", "trial"):
        key = (trial.id, str(trial.seed), "plain")
        if key not in stage.journal:
            stage.journal.add(key, _measure(stage, trial, emotions))
        plain.append(stage.journal[key])
        moved.append([_moved(stage, trial, shift) for shift in shifts])
    rows = {name: {m: _related(plain, m, of) for m in MEASURES} for name, of in _ROWS.items()}
    speakers = [t.speaker for t in stage.trials]
    within = {name: {m: _related(plain, m, of, speakers) for m in MEASURES} for name, of in _ROWS.items()}
    within = within if any(any(row.values()) for row in within.values()) else {}
    means = {name: {m: mean_interval([r[name][m] for r in plain]) for m in MEASURES} for name in SIGNALS}
    shift_rows = _shift_rows(moved) if len(shifts) > 1 else {}
    by_shift = _by_shift(plain, moved, shifts) if shifts else {}
    named = _emotion_rows(plain) if emotions is not None else {}
    refused = sum(r["stop"] == REFUSED for r in [*plain, *(r for own in moved for r in own)])
    results = {
        "correlation": rows,
        "within_speakers": within,
        "means": means,
        "shifts": {"semitones": list(shifts), "rows": shift_rows, "by_shift": by_shift},
        "emotions": named,
        "n_trials": len(stage.trials),
        "refused": refused,
    }
    n = len(stage.trials)
    text = (
        f"{n} sentences of {len(set(speakers))} speakers, each in the voice of another utterance of its speaker; "
        "correlation over sentences with the prompt, and its 95 % interval.\n\n"
        + table("correlation with the prompt", rows, COLUMNS)
        + missing(rows, COLUMNS, n)
        + (f"\n{table('the same within speakers', within, COLUMNS)}" if within else "")
        + f"\n{table('means', means, tuple(Column(k, t) for k, t in MEASURES.items()))}"
        + (
            f"\nThe prompt's pitch moved by {', '.join(f'{s:+g}' for s in shifts)} semitones, spoken from one seed; "
            f"against what Praat finds in the moved prompt:\n\n{table('pitch', shift_rows, SHIFT_COLUMNS)}"
            f"{missing(shift_rows, SHIFT_COLUMNS[1:], n)}"
            if shift_rows
            else ""
        )
        + (f"\nAgainst the prompt as it is:\n\n{table('moved by', by_shift, BY_SHIFT_COLUMNS)}" if by_shift else "")
        + (f"\n{table('emotion', named, EMOTION_COLUMNS)}" if named else f"\n{HOW_TO_GET_ONE}\n")
        + (f"\n{refused} of {n * (1 + len(shifts))} were refused.\n" if refused else "")
        + _plot(stage, plain)
    )
    return results, text


_ROWS = {"what was said": "spoken", "recording of the text": "recording"}


def _measure(stage: Stage, trial: Trial, emotions: Emotions | None) -> dict[str, Any]:
    """A trial with its prompt as it is."""
    prompt, recording = stage.load(trial.prompt), stage.load(trial.target)
    spoken, stop = stage.say(trial, prompt, "plain")
    waves = {
        "prompt": (trial.prompt_text, prompt),
        "spoken": (trial.text, spoken),
        "recording": (trial.text, recording),
    }
    record: dict[str, Any] = {name: _numbers(text, wav, stage.rate) for name, (text, wav) in waves.items()}
    if emotions is not None:
        named = {n: emotions.probabilities(wav, stage.rate) if len(wav) else None for n, (_, wav) in waves.items()}
        record["emotions"] = named
    return {**record, "stop": stop}


def _moved(stage: Stage, trial: Trial, shift: float) -> Mapping[str, Any]:
    """A trial with the pitch of its prompt moved; the recording likewise, and through the codec."""
    key = (trial.id, str(trial.seed), f"moved {shift:+g}")
    if key not in stage.journal:
        prompt = shift_pitch(stage.load(trial.prompt), stage.rate, shift)
        recording = shift_pitch(stage.load(trial.target), stage.rate, shift)
        spoken, stop = stage.say(trial, prompt, f"moved{shift:+g}")
        waves = {"prompt": prompt, "spoken": spoken, "recording": recording}
        waves["round_trip"] = round_trip(stage.codec, recording)
        pitches = {name: semitones(prosody(wav, stage.rate)["f0_hz"]) for name, wav in waves.items()}
        stage.journal.add(key, {**pitches, "stop": stop})
    return stage.journal[key]


def _numbers(text: str, wav: NDArray[np.float32], sample_rate: int) -> dict[str, float | None]:
    """Those that are correlated, of wav [N]."""
    told = prosody(wav, sample_rate)
    return {
        "pitch": semitones(told["f0_hz"]),
        "f0_spread": told["f0_spread"],
        "level_spread": told["level_spread"],
        "rate": phones_per_s(text, wav, sample_rate),
    }


def _related(
    records: Sequence[Mapping[str, Any]], measure: str, signal: str, speakers: Sequence[str] = ()
) -> Estimate | None:
    """The correlation of a number of the prompt with that of another signal; with ``speakers``, within them."""
    pairs = [(r["prompt"][measure], r[signal][measure]) for r in records]
    told = [i for i, pair in enumerate(pairs) if None not in pair]
    values = {i: np.asarray(pairs[i], np.float64) for i in told}
    if not speakers:
        return statistic_interval([values[i][None] for i in told], correlation)
    groups = [[values[i] for i in told if speakers[i] == name] for name in dict.fromkeys(speakers)]
    centred = [np.stack(own) - np.mean(own, 0) for own in groups if len(own) > 1]  # speakers stand or fall together
    return statistic_interval(centred, correlation) if len(centred) > 2 else None


def _shift_rows(moved: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Estimate | None]]:
    """What was said against the moved prompt, the codec's round trip against the moved recording."""
    rows: dict[str, dict[str, Estimate | None]] = {}
    for name, cause, effect in (
        ("what was said", "prompt", "spoken"),
        ("codec round trip", "recording", "round_trip"),
        ("the moved prompt itself", "prompt", "prompt"),
    ):
        groups, spans = [], []
        for own in moved:
            pairs = np.asarray([(r[cause], r[effect]) for r in own if None not in (r[cause], r[effect])], np.float64)
            if len(pairs) > 1:
                groups.append(pairs - pairs.mean(0))  # how deep the voice is does not count
                ends = pairs[[pairs[:, 0].argmin(), pairs[:, 0].argmax()], 1]
                spans.append(float(ends[1] - ends[0]))
        rows[name] = {"kept": statistic_interval(groups, _through_zero), "moved": mean_interval(spans)}
    return rows


def _by_shift(
    plain: Sequence[Mapping[str, Any]], moved: Sequence[Sequence[Mapping[str, Any]]], shifts: Sequence[float]
) -> dict[str, dict[str, Estimate | None]]:
    """By how many semitones each shift moved the prompt, and the speech after it."""
    rows: dict[str, dict[str, Estimate | None]] = {}
    for i, shift in enumerate(shifts):
        pairs = {of: [(a[of]["pitch"], b[i][of]) for a, b in zip(plain, moved, strict=True)] for of in SIGNALS[:2]}
        rows[f"{shift:+g}"] = {
            of: mean_interval([None if None in pair else pair[1] - pair[0] for pair in own])
            for of, own in pairs.items()
        }
    return rows


def _through_zero(pairs: NDArray[np.float64]) -> float:
    """The slope of pairs that each have their group's mean taken away."""
    square = float(pairs[:, 0] @ pairs[:, 0])
    return float(pairs[:, 0] @ pairs[:, 1]) / square if square > 1e-12 else np.nan


def _emotion_rows(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Estimate | None]]:
    """How often what was said, and the recording, has the prompt's emotion."""
    rows: dict[str, dict[str, Estimate | None]] = {}
    for name, signal in _ROWS.items():
        same: list[float | None] = []
        probability: list[float | None] = []
        for named in (r["emotions"] for r in records):
            if named["prompt"] and named[signal]:
                wanted = max(named["prompt"], key=named["prompt"].__getitem__)
                same.append(float(max(named[signal], key=named[signal].__getitem__) == wanted))
                probability.append(named[signal][wanted])
        rows[name] = {"same": mean_interval(same), "probability": mean_interval(probability)}
    return rows


def _plot(stage: Stage, records: Sequence[Mapping[str, Any]]) -> str:
    """Every number of what was said over that of the prompt."""

    def paint(figure: Any) -> None:
        for ax, (measure, title) in zip(figure.subplots(2, 2).flat, MEASURES.items(), strict=True):
            for signal, colour, label in (
                ("recording", "#888a85", "recording"),
                ("spoken", "#3465a4", "what was said"),
            ):
                pairs = [(r["prompt"][measure], r[signal][measure]) for r in records]
                pairs = [pair for pair in pairs if None not in pair]
                if pairs:
                    x, y = zip(*pairs, strict=True)
                    ax.plot(x, y, "o", color=colour, markersize=4, alpha=0.7, label=label)
                    ax.axline((x[0], x[0]), slope=1, color="black", linewidth=0.6)
            ax.set_title(title, fontsize=9)
            ax.set_xlabel("of the prompt", fontsize=8)
            ax.spines[["top", "right"]].set_visible(False)
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=2)

    alt = "Pitch, its spread, the spread of the level and the rate of what was said, over those of the prompts"
    return draw(stage.out / "prosody.png", paint, alt, inches=(7.5, 6.5))
