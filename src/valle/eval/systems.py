"""Other systems as rows of the table: any command that makes a wav, and espeak-ng as the floor.

A command is started once a sentence, so that its real-time factor holds its start. Espeak has the words right and the
voice of nobody: a system whose words are worse, or whose voice is as far from the prompt, has learnt little.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from valle.audio import Audio, load
from valle.errors import ValleError
from valle.eval.trials import Trial

TIMEOUT_S = 600.0
"""After which a command counts as one that cannot say the sentence."""
FIELDS = ("text", "ref", "ref_text", "seed", "out")
"""What may stand in braces in a command."""
ESPEAK = "espeak"


def file_label(name: str) -> str:
    """A system's name as a part of the names of its files."""
    return re.sub(r"[^\w.-]", "-", name)


class Baseline(Protocol):
    """A system beside the model."""

    name: str
    """Of its row."""
    identity: str
    """What its measurements belong to, in the journal: with another one they are made anew."""
    draws: bool
    """Whether it says a sentence otherwise from another seed."""

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        """The trial's text in the voice of the recording ``prompt``.

        Raises:
            ValleError: this one cannot be spoken; counted as silence.
        """


class CommandSystem:
    """A program that is given the text and the prompt and writes a sound file."""

    def __init__(self, name: str, argv: Sequence[str], identity: str) -> None:
        """
        Args:
            name: of the row.
            argv: the program and its arguments, with ``FIELDS`` in braces.
            identity: see ``Baseline``.
        """
        self.name, self.identity, self._argv = name, identity, list(argv)
        self._fields = set(re.findall(r"\{(\w+)\}", " ".join(argv)))
        self.draws = "seed" in self._fields

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        with tempfile.TemporaryDirectory(prefix="valle-") as folder:
            ref, out = Path(folder) / "ref.wav", Path(folder) / "out.wav"
            if "ref" in self._fields:
                load(prompt).save(ref)
            values = dict(zip(FIELDS, (trial.text, ref, trial.prompt_text, trial.seed, out), strict=True))
            argv = [re.sub(r"\{(\w+)\}", lambda field: str(values[field[1]]), arg) for arg in self._argv]
            try:
                done = subprocess.run(
                    argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
                )
            except (OSError, ValueError, subprocess.TimeoutExpired) as error:  # ValueError: a zero byte in the text
                raise ValleError(f"{self.name} failed: {error}") from error
            said = "".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:]) or "no word why"
            if done.returncode != 0:
                raise ValleError(f"{self.name} failed with exit code {done.returncode}: {said}")
            if not out.is_file():
                raise ValleError(f"{self.name} wrote no {{out}}: {said}")
            audio = load(out, what=f"speech of {self.name}")
        info = {"synthetic": True, "model": self.name, "seed": trial.seed if self.draws else None, "stop": "ended"}
        return replace(audio, info=info)


def command_system(name: str, command: str) -> CommandSystem:
    """A command as it is written in a shell, but run without one.

    Args:
        name: of the row.
        command: ``{text}`` and ``{out}`` (the wav to write) must stand in it, ``{ref}`` (the prompt as a wav),
            ``{ref_text}`` and ``{seed}`` may.

    Raises:
        ValleError: a field is missing or unknown, or there is no such program.
    """
    fields = set(re.findall(r"\{(\w+)\}", command))
    known = ", ".join(f"{{{field}}}" for field in FIELDS)
    if missing := [f"{{{field}}}" for field in ("text", "out") if field not in fields]:
        raise ValleError(f"--system {name}: the command lacks {' and '.join(missing)}; it may have {known}")
    if unknown := sorted(fields - set(FIELDS)):
        raise ValleError(f"--system {name}: {{{unknown[0]}}} is not known; the command may have {known}")
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise ValleError(f"--system {name}: {command} is not a command: {error}") from error
    if shutil.which(argv[0]) is None:
        raise ValleError(f"--system {name}: there is no program {argv[0]}; install it, or give its path")
    return CommandSystem(name, argv, f"{name}: {command}")


def espeak_system() -> CommandSystem:
    """espeak-ng by the library that comes with espeakng-loader: an American voice of its own, the prompt unheard."""
    from importlib.metadata import version

    import espeakng_loader

    from valle.eval import espeak_voice
    from valle.text.phonemes import espeak_data_path

    data = espeak_data_path(espeakng_loader.get_data_path())
    argv = [sys.executable, "-I", espeak_voice.__file__, espeakng_loader.get_library_path(), str(data)]
    identity = f"{ESPEAK}: espeak-ng of espeakng-loader {version('espeakng-loader')}, en-us"
    return CommandSystem(ESPEAK, [*argv, "{text}", "{out}"], identity)


def parse_systems(options: Sequence[str], taken: Sequence[str]) -> list[Baseline]:
    """The systems of ``--system``: ``espeak``, or ``name=command``.

    Args:
        options: as they were given.
        taken: names of other rows.

    Raises:
        ValleError: neither of the two, or a name that is used twice.
    """
    systems: list[Baseline] = []
    for option in options:
        name, equals, command = option.partition("=")
        if equals and re.fullmatch(r"[\w][\w. +-]*", name) and command.strip():
            systems.append(command_system(name, command))
        elif option == ESPEAK:
            systems.append(espeak_system())
        else:
            raise ValleError(f"--system {option} is not known; give espeak, or name=command with {{text}} and {{out}}")
        if systems[-1].name in [*taken, *(s.name for s in systems[:-1])]:
            raise ValleError(f"--system {systems[-1].name}: another row has that name; give another")
    return systems
