"""A test to hear, and a panel whose truth is known: what each system is worth, how raters and sentences differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from eval_helpers import speechlike

from valle.eval.listening.answers import Answer
from valle.eval.listening.design import SCALES, ListeningTest, Presentation


def write_list(folder: Path, systems: tuple[str, ...], n: int, *, seconds: float = 0.3, prompts: bool = True) -> Path:
    """A list of n sentences by ``systems``; each wave has a pitch of its own, each file its system's name."""
    lines = []
    for t in range(n):
        for number, system in enumerate(systems):
            path = folder / system / f"{t}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, speechlike(seconds, 110 + 40 * number + t, seed=t), 24000)
            line = {"trial": f"t{t}", "system": system, "path": f"{system}/{t}.wav", "text": f"Sentence <{t}> & so on."}
            if prompts:
                prompt = folder / "prompts" / f"{t}.wav"
                prompt.parent.mkdir(exist_ok=True)
                soundfile.write(prompt, speechlike(seconds, 90, seed=t), 16000)
                line["prompt"] = f"prompts/{t}.wav"
            lines.append(json.dumps(line))
    path = folder / "list.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def rate_all(
    test: ListeningTest,
    truth: Mapping[str, float],
    n_raters: int,
    *,
    seed: int = 0,
    bias: float = 0.4,
    noise: float = 0.7,
    sentence: float = 0.3,
) -> list[Answer]:
    """What a panel answers: the system's worth (for CMOS the difference), sentence, rater's bias, noise.

    Rounding is by chance so that a score's mean is the number before it: as long as no score reaches the scale's ends,
    the truth of a mean is that of ``truth``.
    """
    rng = np.random.default_rng(seed)
    effects: dict[tuple[str, str], float] = {}
    answers = []
    for r in range(n_raters):
        own, swapped = rng.normal(0, bias), bool(r % 2)
        for position, screen in enumerate(test.presentations):
            heard = screen.systems[::-1] if swapped and screen.kind == "cmos" else screen.systems
            worth = 0.0
            for sign, system in zip((1, -1), heard[::-1], strict=False):
                effect = effects.setdefault((system, screen.trial), rng.normal(0, sentence))
                worth += sign * (truth[system] + effect)
            worth += rng.normal(0, noise) + (own if screen.kind != "cmos" else 0.0)
            low, high = SCALES[screen.kind]
            score = min(high, max(low, math.floor(worth + rng.random())))
            swap = swapped and screen.kind == "cmos"
            answers.append(answer(screen, f"r{r}", score, swapped=swap, position=position))
    return answers


def answer(screen: Presentation, rater: str, score: int, **others: Any) -> Answer:
    """A whole answer, everything having been heard."""
    values = {"swapped": False, "heard": screen.n_sounds, "elapsed_s": screen.seconds + 2.0, "position": 0}
    return Answer(rater=rater, presentation=screen.id, score=score, device="headphones", **{**values, **others})


def as_sent(test: ListeningTest, answers: list[Answer]) -> dict[str, Any]:
    """The answers of one rater as the page sends them."""
    return {
        "format": 1,
        "test": test.id,
        "rater": answers[0].rater,
        "device": answers[0].device,
        "answers": [
            {
                "id": a.presentation,
                "score": a.score,
                "swapped": a.swapped,
                "heard": a.heard,
                "elapsed_s": a.elapsed_s,
                "position": a.position,
            }
            for a in answers
        ],
    }
