"""Acoustic environment kept (paper §5.4): the prompt is put into a room; does what is said after it ring as long?

The prompt of each trial is reverberated with rooms of known T60 (``reverberation.room_response``), the text is spoken
after it from one seed, and the reverberation time of what was said is guessed blindly, as is that of the prompt. The
recording of the text in the same room, and its round trip through the codec, say how much of a room codes can hold: the
ceiling. The same rooms tell how good the guess is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle.eval import progress
from valle.eval.bootstrap import Estimate, correlation, mean_interval, slope, statistic_interval
from valle.eval.claims.reverberation import reverberate, reverberation_s, room_response
from valle.eval.claims.scene import REFUSED, Measured, Stage, draw
from valle.eval.judges import error_counts
from valle.eval.results import Column, missing, table
from valle.eval.speaker import cosine
from valle.eval.synthesis import round_trip
from valle.eval.trials import Trial
from valle.eval.wer import error_rate

ROOMS_S = (0.0, 0.3, 0.6, 0.9)
"""T60 of the rooms; 0 leaves the prompt as it is."""
SIGNALS = ("prompt", "recording", "round_trip", "spoken")
"""Whose reverberation time is guessed."""

ROOM_COLUMNS = (
    Column("prompt", "prompt, s"),
    Column("error", "off the room's by"),
    Column("recording", "recording in the room, s"),
    Column("round_trip", "its codec round trip, s"),
    Column("spoken", "what was said, s"),
    Column("sim", "SIM to the prompt", 3),
    Column("wer", "WER %", 1, percent=True),
)
KEPT_COLUMNS = (Column("slope", "slope ↑"), Column("correlation", "correlation ↑"))


def measure_environment(stage: Stage, *, rooms_s: Sequence[float] = ROOMS_S) -> Measured:
    """Speak each trial after its prompt in each room.

    Args:
        stage: who speaks what.
        rooms_s: their T60 in seconds; 0 is none.
    """
    records: dict[float, list[Mapping[str, Any]]] = {t60: [] for t60 in rooms_s}
    for trial in progress(stage.trials, "trials", "trial"):
        for t60 in rooms_s:
            key = (trial.id, str(trial.seed), f"room {t60:g} s")
            if key not in stage.journal:
                stage.journal.add(key, _measure(stage, trial, t60))
            records[t60].append(stage.journal[key])
    rows = {f"{t60:g} s" if t60 else "none": _row(own, t60) for t60, own in records.items()}
    kept = {
        "what was said, against the prompt": _kept(records, "prompt", "spoken"),
        "codec round trip, against the recording in the room": _kept(records, "recording", "round_trip"),
        "the prompt, against the room itself": _kept(records, "t60", "prompt"),
    }
    refused = sum(r["stop"] == REFUSED for own in records.values() for r in own)
    results = {"rooms": rows, "kept": kept, "n_trials": len(stage.trials), "refused": refused}
    text = (
        f"{len(stage.trials)} sentences of {len({t.speaker for t in stage.trials})} speakers, each after its prompt in "
        f"{len(rooms_s)} rooms; reverberation times guessed blindly from the speech, mean and 95 % interval. A guess "
        "for a dry recording is about 0.3 s, the recording's own room aside.\n\n"
        + table("T60 of the room", rows, ROOM_COLUMNS)
        + missing(rows, ROOM_COLUMNS[:5], len(stage.trials))
        + "\nHow much of a second more is kept (slope), and how surely, over all sentences and rooms; intervals over "
        "sentences:\n\n"
        + table("kept", kept, KEPT_COLUMNS)
        + (f"\n{refused} of {len(stage.trials) * len(rooms_s)} were refused.\n" if refused else "")
        + _plot(stage, records)
    )
    return results, text


def _measure(stage: Stage, trial: Trial, t60: float) -> dict[str, Any]:
    """One trial in one room."""
    response = room_response(t60, stage.rate, trial.seed)  # the same walls, louder or softer, in all rooms of a trial
    prompt = reverberate(stage.load(trial.prompt), response)
    recording = reverberate(stage.load(trial.target), response)
    spoken, stop = stage.say(trial, prompt, f"room-{t60:g}")
    voices = [stage.judges.voice(wav, stage.rate) for wav in (prompt, spoken)]
    waves: dict[str, NDArray[np.float32]] = {
        "prompt": prompt,
        "recording": recording,
        "round_trip": round_trip(stage.codec, recording),
        "spoken": spoken,
    }
    return {
        "t60": t60,
        **{name: reverberation_s(wav, stage.rate) for name, wav in waves.items()},
        "sim": None if voices[0] is None or voices[1] is None else cosine(voices[0], voices[1]),
        "wer": stage.judges.words(spoken, stage.rate, trial.text),
        "stop": stop,
    }


def _row(records: Sequence[Mapping[str, Any]], t60: float) -> dict[str, Estimate | float | None]:
    """Means over the trials in one room."""
    row: dict[str, Estimate | float | None] = {
        name: mean_interval([r[name] for r in records]) for name in (*SIGNALS, "sim")
    }
    told = [abs(r["prompt"] - t60) for r in records if r["prompt"] is not None]
    row["error"] = mean_interval(told) if t60 else None
    row["wer"] = error_rate(error_counts(records))
    return row


def _kept(records: Mapping[float, Sequence[Mapping[str, Any]]], cause: str, effect: str) -> dict[str, Estimate | None]:
    """How one time follows another, over all rooms; a trial's rooms stand or fall together."""
    groups = []
    for of_trial in zip(*records.values(), strict=True):
        pairs = [(r[cause], r[effect]) for r in of_trial if r[cause] is not None and r[effect] is not None]
        groups.append(np.asarray(pairs, np.float64).reshape(-1, 2))
    return {"slope": statistic_interval(groups, slope), "correlation": statistic_interval(groups, correlation)}


def _plot(stage: Stage, records: Mapping[float, Sequence[Mapping[str, Any]]]) -> str:
    """What was said against the prompt, and the codec's round trip against its recording."""
    colours = ("#888a85", "#3465a4", "#73d216", "#cc0000", "#75507b", "#f57900")

    def paint(figure: Any) -> None:
        panels = (("prompt", "spoken", "what was said"), ("recording", "round_trip", "codec round trip"))
        for ax, (cause, effect, title) in zip(figure.subplots(1, 2, sharex=True, sharey=True), panels, strict=True):
            ax.axline((0.5, 0.5), slope=1, color="black", linewidth=0.8)
            for i, (t60, own) in enumerate(records.items()):
                pairs = [(r[cause], r[effect]) for r in own if r[cause] is not None and r[effect] is not None]
                if pairs:
                    x, y = zip(*pairs, strict=True)
                    ax.plot(x, y, "o", color=colours[i % len(colours)], markersize=4, alpha=0.7, label=f"{t60:g} s")
            ax.set_title(title, fontsize=9)
            ax.set_xlabel(f"T60 of the {cause}, guessed, s")
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_ylabel("T60 guessed, s")
            if ax.lines[1:]:
                ax.legend(title="room", fontsize=7, title_fontsize=7, frameon=False)

    alt = "Guessed reverberation times of what was said over those of the prompts, and of the codec's round trips"
    return draw(stage.out / "rooms.png", paint, alt, inches=(8.0, 4.0))
