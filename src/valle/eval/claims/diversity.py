"""Diversity (paper §5.4): the same text after the same prompt from ten seeds, and how far what is said lies apart.

Measured are the length, the pitch and the voice. A pitch contour is brought to 100 points between the first and the
last sound and its own mean taken away, in semitones; two are as far apart as the root mean square of their difference,
or, where only the shape counts, as the mean difference along the cheapest path of dynamic time warping (Sakoe and
Chiba, 1978). Beside it stand speech without sampling (temperature 0, one candidate), which ought to be the same from
every seed, and recordings: of the speaker and of others, with other texts; with the same text where the corpus has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle.data.corpus import Utterance, load_wav
from valle.eval import progress
from valle.eval.bootstrap import Estimate, mean_interval
from valle.eval.claims.scene import REFUSED, Measured, Stage, draw, phones_per_s, semitones, speech_of
from valle.eval.judges import error_counts
from valle.eval.prosody import intonation, prosody
from valle.eval.results import Column, missing, table
from valle.eval.speaker import cosine
from valle.eval.synthesis import RECORDING
from valle.eval.trials import Trial, of_run, spread
from valle.eval.wer import error_rate, normalise_words

N_POINTS = 100
"""Of a contour, whatever the length of the speech."""
BAND = 20
"""Points by which warping may move one."""
GREEDY_SEEDS = 2
"""From which speech without sampling is made, to see that the seed changes nothing."""
N_RECORDINGS = 10
"""Most recordings of a speaker, and of other speakers, that are compared."""
N_PANELS = 4
"""Trials that are plotted."""
GREEDY = {"temperature": 0.0, "nar_temperature": 0.0, "num_candidates": 1}

SPREAD_COLUMNS = (
    Column("seconds", "length, s"),
    Column("rate", "speaking rate %", 1, percent=True),
    Column("pitch", "mean pitch, semitones"),
    Column("contour", "contour, semitones"),
    Column("warped", "contour, warped"),
    Column("cosine", "cosine of voices", 3),
    Column("wer", "WER %", 1, percent=True),
)
APART_COLUMNS = (
    Column("length", "length off by %", 1, percent=True),
    Column("pitch", "mean pitch off by, semitones"),
    Column("contour", "contour, semitones"),
    Column("warped", "contour, warped"),
    Column("cosine", "cosine of voices", 3),
)
Sample = Mapping[str, Any]
"""What is kept of one piece of speech, see ``_sample``."""


def measure_diversity(stage: Stage, utterances: Sequence[Utterance], *, n_seeds: int = 10) -> Measured:
    """Speak each trial from so many seeds.

    Args:
        stage: who speaks what.
        utterances: of the split, for the rows of recordings.
        n_seeds: each trial's own seed and others that follow from it.
    """
    by_speaker = {
        t.speaker: spread([u for u in utterances if u.speaker == t.speaker], N_RECORDINGS) for t in stage.trials
    }
    sampled: list[list[Sample]] = []
    greedy: list[list[Sample]] = []
    targets: list[Sample] = []
    for trial in progress(stage.trials, "trials", "trial"):
        prompt: NDArray[np.float32] | None = None
        for number in range(n_seeds + GREEDY_SEEDS):
            key, run = (
                (f"seed {number}", number) if number < n_seeds else (f"greedy {number - n_seeds}", number - n_seeds)
            )
            seed = of_run(trial, run).seed
            if (trial.id, str(seed), key) in stage.journal:
                continue
            prompt = stage.load(trial.prompt) if prompt is None else prompt
            wav, stop = stage.say(trial, prompt, key, seed=seed, **({} if number < n_seeds else GREEDY))
            stage.journal.add((trial.id, str(seed), key), {**_sample(stage, wav, trial.text), "stop": stop})
        if (trial.target, RECORDING) not in stage.journal:
            stage.journal.add((trial.target, RECORDING), _sample(stage, stage.load(trial.target), trial.text))
        runs = [str(of_run(trial, i).seed) for i in range(max(n_seeds, GREEDY_SEEDS))]
        sampled.append([stage.journal[(trial.id, runs[i], f"seed {i}")] for i in range(n_seeds)])
        greedy.append([stage.journal[(trial.id, runs[i], f"greedy {i}")] for i in range(GREEDY_SEEDS)])
        targets.append(stage.journal[(trial.target, RECORDING)])
    own = {speaker: [_recorded(stage, u) for u in us] for speaker, us in by_speaker.items()}
    others = [[samples[i] for samples in own.values() if i < len(samples)][:N_RECORDINGS] for i in range(N_RECORDINGS)]
    same = [[_recorded(stage, u) for u in us] for trial in stage.trials if len(us := _of_text(utterances, trial)) > 1]
    named = f"{stage.voice.name}, {n_seeds} seeds"
    groups: dict[str, tuple[list[list[Sample]], bool]] = {
        named: (sampled, True),
        f"{stage.voice.name}, greedy, {GREEDY_SEEDS} seeds": (greedy, True),
        "recordings, same text": (same, True),
        "recordings of one speaker, other texts": (list(own.values()), False),
        "recordings of several speakers, other texts": (others, False),
    }
    rows = {name: _spread_row(groups_, same_text) for name, (groups_, same_text) in groups.items() if groups_}
    apart = {
        name: _apart_row(sampled_, targets)
        for name, sampled_ in ((named, sampled), (f"{stage.voice.name}, greedy", greedy))
    }
    refused = sum(s.get("stop") == REFUSED for group in sampled for s in group)
    results = {
        "rows": rows,
        "to_recording": apart,
        "n_trials": len(stage.trials),
        "n_seeds": n_seeds,
        "n_groups": {name: len(groups_) for name, (groups_, _) in groups.items()},
        "refused": refused,
    }
    text = (
        f"{len(stage.trials)} sentences of {len({t.speaker for t in stage.trials})} speakers, each from {n_seeds} "
        "seeds after the same prompt. Of each sentence the standard deviation over the seeds (length, rate in per cent "
        "of its mean, pitch) or the mean over all pairs (contours, cosines); of these the mean over sentences and its "
        "95 % interval. For recordings with other texts, over speakers.\n\n"
        + table("spread", rows, SPREAD_COLUMNS)
        + "\nWhat was said against the recording of the same text, mean over seeds and sentences:\n\n"
        + table("distance", apart, APART_COLUMNS)
        + missing(apart, APART_COLUMNS, len(stage.trials))
        + (
            ""
            if same
            else "\nNo text of these is said twice in the corpus, so that recordings with one text are missing.\n"
        )
        + (f"\n{refused} of {len(stage.trials) * n_seeds} were refused.\n" if refused else "")
        + _plot(stage, sampled, greedy, targets)
    )
    return results, text


def contour_of(wav: NDArray[np.float32], sample_rate: int) -> list[float] | None:
    """The pitch of wav [N] at ``N_POINTS`` places, in semitones above 100 Hz, bridged where unvoiced; None without."""
    told = intonation(wav, sample_rate)
    voiced = np.flatnonzero((told.hz > 0) & told.sounding)
    if len(voiced) < 2:
        return None
    bridged = np.interp(np.linspace(0, len(told.hz) - 1, N_POINTS), voiced, 12 * np.log2(told.hz[voiced] / 100))
    return [round(float(x), 3) for x in bridged]


def contour_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """a, b [P, n], each without its mean -> root mean square difference [P]."""
    difference: NDArray[np.float64] = np.sqrt(np.square(_centred(a) - _centred(b)).mean(1))
    return difference


def warped_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """a, b [P, n], each without its mean -> mean absolute difference along the cheapest path [P].

    Symmetric weights: a step in both counts twice, so that every path weighs 2 n. No point moves by more than ``BAND``.
    """
    costs = np.abs(_centred(a)[:, :, None] - _centred(b)[:, None, :])  # [P, n, n]
    n = costs.shape[1]
    total = np.full((len(costs), n + 1, n + 1), np.inf)
    total[:, 0, 0] = 0
    for i in range(1, n + 1):
        for j in range(max(1, i - BAND), min(n, i + BAND) + 1):
            cost = costs[:, i - 1, j - 1]
            both = total[:, i - 1, j - 1] + 2 * cost
            one = np.minimum(total[:, i - 1, j], total[:, i, j - 1]) + cost
            total[:, i, j] = np.minimum(both, one)
    distance: NDArray[np.float64] = total[:, n, n] / (2 * n)
    return distance


def _centred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = x - x.mean(1, keepdims=True)
    return centred


def _sample(stage: Stage, wav: NDArray[np.float32], text: str) -> dict[str, Any]:
    """What is kept of wav [N] in which the text is said."""
    speech = speech_of(wav, stage.rate)
    voice = stage.judges.voice(speech, stage.rate)
    return {
        "seconds": len(speech) / stage.rate,
        "rate": phones_per_s(text, wav, stage.rate),
        "pitch": semitones(prosody(speech, stage.rate)["f0_hz"]),
        "contour": contour_of(speech, stage.rate),
        "voice": None if voice is None else [round(float(x), 5) for x in voice],
        "wer": stage.judges.words(wav, stage.rate, text),
    }


def _recorded(stage: Stage, utterance: Utterance) -> Sample:
    key = (utterance.id, RECORDING)
    if key not in stage.journal:
        wav = load_wav(utterance, stage.rate)[0].numpy()
        stage.journal.add(key, _sample(_by_sound(stage), wav, utterance.text or ""))
    return stage.journal[key]


def _by_sound(stage: Stage) -> Stage:
    """The same without a recogniser: recordings with other texts are compared by sound alone."""
    return replace(stage, judges=replace(stage.judges, recogniser=None))


def _of_text(utterances: Sequence[Utterance], trial: Trial) -> list[Utterance]:
    """Recordings with the trial's text, at most so many."""
    wanted = normalise_words(trial.text)
    return [u for u in utterances if u.text and normalise_words(u.text) == wanted][:N_RECORDINGS]


def _spread_row(groups: Sequence[Sequence[Sample]], same_text: bool) -> dict[str, Estimate | float | None]:
    """Mean over groups of how far their samples lie apart."""
    told = [_spread(group, same_text) for group in groups]
    row: dict[str, Estimate | float | None] = {
        c.key: mean_interval([one[c.key] for one in told]) for c in SPREAD_COLUMNS if c.key != "wer"
    }
    row["wer"] = error_rate(error_counts([s for group in groups for s in group])) if same_text else None
    return row


def _spread(group: Sequence[Sample], same_text: bool) -> dict[str, float | None]:
    """Of one group of samples; None where fewer than two tell."""

    def deviation(key: str) -> tuple[float, float] | None:
        values = [s[key] for s in group if s[key] is not None and s["seconds"] > 0]
        return (float(np.std(values, ddof=1)), float(np.mean(values))) if len(values) > 1 else None

    seconds, rate, pitch = deviation("seconds"), deviation("rate"), deviation("pitch")
    pairs = list(combinations([s["contour"] for s in group if s["contour"] is not None], 2))
    a, b = np.asarray([p[0] for p in pairs]), np.asarray([p[1] for p in pairs])  # [P, n] each
    voices = [np.asarray(s["voice"], np.float32) for s in group if s["voice"] is not None]
    cosines = [cosine(x, y) for x, y in combinations(voices, 2)]
    return {
        "seconds": seconds[0] if seconds and same_text else None,
        "rate": rate[0] / rate[1] if rate else None,
        "pitch": pitch[0] if pitch else None,
        "contour": float(contour_distance(a, b).mean()) if pairs else None,
        "warped": float(warped_distance(a, b).mean()) if pairs else None,
        "cosine": float(np.mean(cosines)) if cosines else None,
    }


def _apart_row(groups: Sequence[Sequence[Sample]], targets: Sequence[Sample]) -> dict[str, Estimate | float | None]:
    """Mean over trials of how far what was said lies from the recording."""
    told: dict[str, list[float | None]] = {c.key: [] for c in APART_COLUMNS}
    for group, target in zip(groups, targets, strict=True):
        lengths = [abs(s["seconds"] / target["seconds"] - 1) for s in group if s["seconds"] and target["seconds"]]
        pitches = [
            abs(s["pitch"] - target["pitch"]) for s in group if s["pitch"] is not None and target["pitch"] is not None
        ]
        contours = [s["contour"] for s in group if s["contour"] is not None and target["contour"] is not None]
        a, b = np.asarray(contours), np.asarray([target["contour"]] * len(contours))
        voices = [
            cosine(np.asarray(s["voice"]), np.asarray(target["voice"])) for s in group if s["voice"] and target["voice"]
        ]
        told["length"].append(float(np.mean(lengths)) if lengths else None)
        told["pitch"].append(float(np.mean(pitches)) if pitches else None)
        told["contour"].append(float(contour_distance(a, b).mean()) if contours else None)
        told["warped"].append(float(warped_distance(a, b).mean()) if contours else None)
        told["cosine"].append(float(np.mean(voices)) if voices else None)
    return {key: mean_interval(values) for key, values in told.items()}


def _plot(
    stage: Stage, sampled: Sequence[Sequence[Sample]], greedy: Sequence[Sequence[Sample]], targets: Sequence[Sample]
) -> str:
    """The contours of the first trials, over the seconds that they take."""
    n = min(N_PANELS, len(sampled))

    def paint(figure: Any) -> None:
        for i, ax in enumerate(figure.subplots(n, 1, squeeze=False)[:, 0]):
            lines = [(s, "#3465a4", 0.8, "sampled") for s in sampled[i]]
            lines += [(greedy[i][0], "#cc0000", 1.8, "greedy"), (targets[i], "black", 1.8, "recording")]
            seen: set[str] = set()
            for sample, colour, width, label in lines:
                if sample["contour"] is not None:
                    t = np.linspace(0, sample["seconds"], N_POINTS)
                    hz = 100 * 2 ** (np.asarray(sample["contour"]) / 12)
                    ax.plot(t, hz, color=colour, linewidth=width, label=None if label in seen else label)
                    seen.add(label)
            text = stage.trials[i].text
            ax.set_title(text if len(text) < 90 else f"{text[:87]}...", fontsize=8, loc="left", parse_math=False)
            ax.set_ylabel("pitch, Hz")
            ax.spines[["top", "right"]].set_visible(False)
            if i == 0 and seen:
                ax.legend(fontsize=7, frameon=False)
        ax.set_xlabel("s")

    alt = "Pitch contours of the same sentence from several seeds, without sampling, and as recorded"
    return draw(stage.out / "contours.png", paint, alt, inches=(7.5, 2.0 * n + 0.4))
