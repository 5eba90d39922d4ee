"""What a system is asked to say, and in whose voice: the cross-sentence zero-shot protocol (paper §5.2).

A trial is a target (a text and who said it) and a prompt: another utterance of the same speaker. Trials are drawn by a
seed and saved as JSON lines, so that any other system can be measured on exactly the same ones.

Departure: the paper's prompt is a random 3 s crop. A crop's transcript is known only with an alignment, so that here
the prompt is a whole utterance of about that length, with its own text.

VALL-E-continual (paper §5.2) is the other protocol: the prompt is the beginning of the recording itself. Such a trial
has its target as its prompt.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from valle.config import from_dict
from valle.data.corpus import Utterance
from valle.errors import ValleError

TARGET_S = (4.0, 10.0)
"""Shortest and longest target that is preferred (paper §5.2)."""
PROMPT_RANGE = (5 / 6, 1.5)
"""Shortest and longest prompt that is preferred, in multiples of the wanted length: 2.5 to 4.5 s for 3 s."""


@dataclass(frozen=True)
class Trial:
    """One sentence to say in one voice."""

    id: str
    """The target's and the prompt's ids."""
    speaker: str
    """Who said both."""
    dataset: str
    """The corpus of the target."""
    text: str
    """What is to be said."""
    target: str
    """Recording of the text, relative to the manifest's folder: for the row of the ground truth, not for the system."""
    target_s: float
    """Its length."""
    prompt: str
    """Recording of the voice, relative to the manifest's folder."""
    prompt_text: str
    """What is said in it."""
    prompt_s: float
    """Its length."""
    seed: int
    """For the system's random numbers."""

    @property
    def continual(self) -> bool:
        """Whether the recording is to be continued from its first ``prompt_s``."""
        return self.prompt == self.target


def spread(utterances: Sequence[Utterance], n: int | None) -> list[Utterance]:
    """n utterances (all for None), dealt out evenly over the speakers and over each speaker's own, without chance."""
    if n is None or n >= len(utterances):
        return list(utterances)
    by_speaker: dict[str | None, list[Utterance]] = {}
    for utterance in utterances:
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    shares = dict.fromkeys(by_speaker, 0)
    while n > 0:
        for speaker, own in by_speaker.items():
            if n > 0 and shares[speaker] < len(own):
                shares[speaker] += 1
                n -= 1
    return [own[i * len(own) // shares[s]] for s, own in by_speaker.items() for i in range(shares[s])]


def draw_trials(
    utterances: Sequence[Utterance], n: int, *, folder: Path, prompt_s: float = 3.0, seed: int = 0
) -> list[Trial]:
    """Draw n trials, each target once, the speakers in turn.

    Targets of 4 to 10 s go first; others are taken when those are used up. A prompt is drawn from the speaker's
    utterances of about ``prompt_s``, or is the one nearest to it where there is none; it never has the target's text.

    Args:
        utterances: with text and speaker; others are left out.
        n: how many; fewer when there are not so many targets.
        folder: the manifest's, to which the paths are relative.
        prompt_s: wanted length of the prompts.
        seed: another one draws other trials.

    Raises:
        ValleError: no speaker has two utterances with different texts.
    """
    rng = random.Random(seed)
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        if utterance.text and utterance.speaker:
            by_speaker.setdefault(utterance.speaker, []).append(utterance)
    targets = [(u, own) for own in by_speaker.values() for u in own if any(_may_prompt(v, u) for v in own)]
    if not targets:
        raise ValleError(
            f"no speaker of the {len(utterances)} utterances has two with different texts; the protocol needs that"
        )
    trials = []
    for target, own in _in_turns(targets, rng)[:n]:
        prompt = _draw_prompt(target, own, prompt_s, rng)
        assert target.text is not None
        assert prompt.text is not None
        assert target.speaker is not None
        trials.append(
            Trial(
                id=f"{target.id}_{prompt.id}",
                speaker=target.speaker,
                dataset=target.dataset,
                text=target.text,
                target=seen_from(folder, target.path),
                target_s=target.seconds,
                prompt=seen_from(folder, prompt.path),
                prompt_text=prompt.text,
                prompt_s=prompt.seconds,
                seed=rng.randrange(2**31),
            )
        )
    return trials


def seen_from(folder: Path, path: Path) -> str:
    """A recording's path relative to the manifest's folder; whole where a manifest names files elsewhere."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.resolve().as_posix()


def draw_continual(
    utterances: Sequence[Utterance], n: int, *, folder: Path, prompt_s: float = 3.0, seed: int = 0
) -> list[Trial]:
    """Draw n recordings to be continued, the speakers in turn; those of 4 to 10 s go first.

    Args:
        utterances: with text and speaker; others are left out, and those with less than 1.5 s after ``prompt_s``: the
            system wants a second, and silence at the ends is cut off.
        n: how many; fewer when there are not so many.
        folder: the manifest's, to which the paths are relative.
        prompt_s: how much of the beginning the system hears.
        seed: another one draws others.

    Raises:
        ValleError: no utterance is long enough.
    """
    rng = random.Random(seed)
    long = [u for u in utterances if u.text and u.speaker and u.seconds >= prompt_s + 1.5]
    if not long:
        raise ValleError(
            f"none of the {len(utterances)} utterances with a text is {prompt_s + 1.5:g} s long; the continual "
            "protocol needs that"
        )
    trials = []
    for target, _ in _in_turns([(u, []) for u in long], rng)[:n]:
        path = seen_from(folder, target.path)
        trials.append(
            Trial(
                id=f"{target.id}_continued",
                speaker=target.speaker or "",
                dataset=target.dataset,
                text=target.text or "",
                target=path,
                target_s=target.seconds,
                prompt=path,
                prompt_text=target.text or "",
                prompt_s=prompt_s,
                seed=rng.randrange(2**31),
            )
        )
    return trials


def of_run(trial: Trial, run: int) -> Trial:
    """The trial with the seed of its run: its own for run 0, others for those that repeat it."""
    if run == 0:
        return trial
    drawn = hashlib.sha256(f"{trial.seed}/run {run}".encode()).digest()[:4]
    return replace(trial, seed=int.from_bytes(drawn, "big") % 2**31)


def save_trials(path: str | Path, trials: Sequence[Trial]) -> None:
    """Write JSON lines."""
    Path(path).write_text("".join(json.dumps(asdict(t), ensure_ascii=False) + "\n" for t in trials), encoding="utf-8")


def load_trials(path: str | Path) -> list[Trial]:
    """Read what ``save_trials`` wrote, or a list made elsewhere with the same fields.

    Raises:
        ValleError: no such file, or a line that is no trial.
    """
    path = Path(path)
    if not path.is_file():
        raise ValleError(f"there is no list of trials {path}; without --trials one is drawn")
    trials = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            trials.append(from_dict(Trial, json.loads(line), f"{path}, line {number}"))
        except json.JSONDecodeError as error:
            raise ValleError(f"{path}, line {number} is not JSON: {error}") from error
    if not trials:
        raise ValleError(f"{path} holds no trial")
    return trials


def in_range(seconds: float, bounds: tuple[float, float]) -> bool:
    """Both ends included."""
    return bounds[0] <= seconds <= bounds[1]


def _may_prompt(prompt: Utterance, target: Utterance) -> bool:
    return prompt.id != target.id and (prompt.text or "").casefold() != (target.text or "").casefold()


def _in_turns(
    targets: list[tuple[Utterance, list[Utterance]]], rng: random.Random
) -> list[tuple[Utterance, list[Utterance]]]:
    """In random order, the speakers in turn, those of the preferred length before all others."""
    targets = list(targets)
    rng.shuffle(targets)
    turns: dict[tuple[bool, str], int] = {}
    keys = {}
    for target, _ in targets:
        group = (not in_range(target.seconds, TARGET_S), str(target.speaker))
        turns[group] = turns.get(group, -1) + 1
        keys[target.id] = (group[0], turns[group])
    return sorted(targets, key=lambda pair: keys[pair[0].id])  # stable: within a turn the order stays random


def _draw_prompt(target: Utterance, own: list[Utterance], prompt_s: float, rng: random.Random) -> Utterance:
    others = [u for u in own if _may_prompt(u, target)]
    bounds = (PROMPT_RANGE[0] * prompt_s, PROMPT_RANGE[1] * prompt_s)
    fitting = [u for u in others if in_range(u.seconds, bounds)]
    return rng.choice(fitting) if fitting else min(others, key=lambda u: abs(u.seconds - prompt_s))
