"""A listening test: its screens, and which system is behind each. The key file ``test.json``, which no rater gets."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from valle.config import from_dict
from valle.errors import ValleError
from valle.files import write_atomic

Kind = Literal["smos", "mos", "cmos"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SCALES: dict[Kind, tuple[int, int]] = {"smos": (1, 5), "mos": (1, 5), "cmos": (-3, 3)}
"""Lowest and highest score. Of CMOS: how much better the second sound is than the first."""
RECORDING = "recording"
"""The system that is a person: the hidden reference."""

MAX_REPEAT_DIFFERENCE = 0.3
"""Between a rater's answers to one screen, on average, as a share of the scale: 1.2 points of five, 1.8 of seven.

Answers by chance differ by 0.4.
"""

KEY_FILE = "test.json"
PAGE_FOLDER = "page"
AUDIO_FOLDER = "audio"
DATABASE = "answers.sqlite"


@dataclass(frozen=True)
class Presentation:
    """One screen: something to hear and a score to give."""

    id: str
    """Opaque, as the page has it."""
    kind: Kind
    """The question."""
    trial: str
    """The sentence."""
    systems: tuple[str, ...]
    """Who speaks it: one system, or for CMOS two, in the order that half of the raters hear."""
    seconds: float
    """All that must be heard, a prompt included."""
    n_sounds: int
    """Of so many sounds."""
    repeat_of: str = ""
    """The screen that this one repeats; CMOS the other way round."""
    training: bool = False
    """For getting used to it; counts for nothing."""


@dataclass(frozen=True)
class ListeningTest:
    """Everything that ``serve`` and ``report`` need to know."""

    id: str
    """Goes with every answer, so that answers of two tests never mix."""
    systems: tuple[str, ...]
    """In the order of the tables."""
    baseline: str
    """The system that the others are compared with."""
    seed: int
    """Of the choice of trials and repeats."""
    presentations: tuple[Presentation, ...]
    """In no order; every rater has their own."""

    @property
    def by_id(self) -> dict[str, Presentation]:
        """The screens by what the page calls them."""
        return {p.id: p for p in self.presentations}

    @property
    def kinds(self) -> list[Kind]:
        """What is asked."""
        return [kind for kind in KINDS if any(p.kind == kind for p in self.presentations)]

    def save(self, folder: Path) -> None:
        """Write the key, readable by its owner only."""
        path = folder / KEY_FILE
        write_atomic(path, (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode())
        os.chmod(path, 0o600)

    @classmethod
    def load(cls, folder: str | Path) -> ListeningTest:
        """Read the key of a folder that ``build`` made.

        Raises:
            ValleError: there is none, or it is damaged.
        """
        path = Path(folder) / KEY_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValleError(
                f"{folder} holds no listening test ({KEY_FILE}: {error.strerror}); make one with "
                "`valle eval listening build`"
            ) from error
        except ValueError as error:
            raise ValleError(f"{path} is damaged ({error}); build the test again") from error
        if not isinstance(values, dict):
            raise ValleError(f"{path} is damaged (no table); build the test again")
        return from_dict(cls, values, str(path))
