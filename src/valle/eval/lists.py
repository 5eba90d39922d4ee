"""Lists of sentences and prompts that others publish, as trials: the same test for this model and for theirs.

- Seed-TTS-eval, ``meta.lst``: ``name|prompt text|prompt|text``, sometimes with ``|recording`` of the text; without it
  the recording is ``wavs/name.wav``. Paths are relative to the list's own folder.
- F5-TTS's ``librispeech_pc_test_clean_cross_sentence.lst``, with tabs: prompt, its seconds, its text, target, its
  seconds, its text. Names are LibriSpeech's, ``speaker-chapter-number``, in the folder ``test-clean``.
"""

from __future__ import annotations

import random
from pathlib import Path

from valle.audio import open_audio
from valle.errors import ValleError
from valle.eval.trials import Trial


def read_list(path: str | Path, folder: Path, *, seed: int = 0) -> list[Trial]:
    """Read either list; which one, its first line tells.

    Args:
        path: the list.
        folder: of the recordings, to which the trials' paths are relative.
        seed: for the seeds of the trials, each of which depends on its name only.

    Raises:
        ValleError: no such list, a line of another form, or a recording that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise ValleError(f"there is no list of trials {path}; without --trials one is drawn")
    lines = [(n, line) for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    if not lines:
        raise ValleError(f"{path} holds no trial")
    parse = _librispeech if lines[0][1].count("\t") == 5 else _seed_tts
    return [parse(line, folder, f"{path}, line {n}", seed) for n, line in lines]


def _seed_tts(line: str, folder: Path, where: str, seed: int) -> Trial:
    fields = [field.strip() for field in line.split("|")]
    if len(fields) not in (4, 5):
        raise ValleError(
            f"{where} has neither the form name|prompt text|prompt|text of Seed-TTS-eval nor the six columns with tabs "
            "of F5-TTS's LibriSpeech-PC list"
        )
    name, prompt_text, prompt, text = fields[:4]
    target = fields[4] if len(fields) == 5 else f"wavs/{Path(name).stem if name.endswith('.wav') else name}.wav"
    return _trial(
        (name, Path(prompt).stem, "seed-tts-eval"), (text, target), (prompt_text, prompt), folder, where, seed
    )


def _librispeech(line: str, folder: Path, where: str, seed: int) -> Trial:
    fields = [field.strip() for field in line.split("\t")]
    names = [name for name in fields[0::3] if name.count("-") == 2]
    if len(fields) != 6 or len(names) != 2:
        raise ValleError(f"{where} has not the six columns with tabs of F5-TTS's LibriSpeech-PC list")
    (prompt_id, _, prompt_text), (target_id, _, text) = fields[:3], fields[3:]
    prompt, target = (f"{'/'.join(name.split('-')[:2])}/{name}.flac" for name in names)
    named = (f"{target_id}_{prompt_id}", target_id.split("-")[0], "librispeech-pc")
    return _trial(named, (text, target), (prompt_text, prompt), folder, where, seed)


def _trial(
    named: tuple[str, str, str], said: tuple[str, str], prompt: tuple[str, str], folder: Path, where: str, seed: int
) -> Trial:
    """A trial of (id, speaker, data set), the (text, recording) to be said and those of the prompt."""
    return Trial(
        id=named[0],
        speaker=named[1],
        dataset=named[2],
        text=said[0],
        target=said[1],
        target_s=_seconds(folder, said[1], where),
        prompt=prompt[1],
        prompt_text=prompt[0],
        prompt_s=_seconds(folder, prompt[1], where),
        seed=_seed(seed, named[0]),
    )


def _seconds(folder: Path, path: str, where: str) -> float:
    """Length of a recording, by its header."""
    if not (folder / path).is_file():
        raise ValleError(
            f"{where}: there is no recording {folder / path}; give --manifest the folder that the paths begin in "
            "(of LibriSpeech the folder test-clean)"
        )
    with open_audio(folder / path) as file:
        return float(file.frames / file.samplerate)


def _seed(seed: int, name: str) -> int:
    return random.Random(f"{seed}/{name}").randrange(2**31)
