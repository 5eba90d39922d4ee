"""From waves to a test: which sentences, in which screens, and a page that does not tell which system is which.

All waves become mono, 24 kHz, 16 bit, with their sounding parts at -26 dB of full scale (the speech level of ITU-T
P.800), less where a peak would clip: louder sounds better to most people, and a recording of 48 kHz would be known by
its treble. They stay uncompressed wav, which every browser plays: a lossy codec would be judged along with the systems,
and Opus in Ogg is silent in older Safari. Tags go, since those of this project say which sound is synthetic; the page
says it of the whole test.
"""

from __future__ import annotations

import base64
import html
import json
import math
import random
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle.errors import ValleError
from valle.eval import progress
from valle.eval.listening.design import (
    AUDIO_FOLDER,
    KEY_FILE,
    PAGE_FOLDER,
    RECORDING,
    Kind,
    ListeningTest,
    Presentation,
)
from valle.eval.listening.source import Sentence, systems_of
from valle.files import write_atomic

if TYPE_CHECKING:
    from valle.audio import Audio

LEVEL_DB = -26.0
"""Of the sounding parts of every wave, in dB relative to full scale."""
MAX_SECONDS = 60.0
"""A longer wave is a mistake: nobody can judge it as one."""


@dataclass(frozen=True)
class Wanted:
    """What a test is to be."""

    kinds: tuple[Kind, ...] = ("mos",)
    """The questions."""
    systems: tuple[str, ...] = ()
    """All when empty."""
    baseline: str = ""
    """What the others are compared with; the first that is not the recording when empty."""
    n: int = 10
    """Sentences."""
    repeats: float = 0.1
    """Screens of each kind that come twice: their share below 1, their number from 1 on."""
    n_training: int = 1
    """Screens of each kind to get used to it."""
    seed: int = 0
    """Of the choice of sentences and repeats."""
    title: str = "Listening test"
    """Heading of the page."""
    contact: str = ""
    """Whom raters can ask."""
    with_text: bool = False
    """Show what is said."""
    embed: bool = False
    """All sounds inside the page, which is then one file that can be sent."""


def design(sentences: Sequence[Sentence], wanted: Wanted) -> tuple[ListeningTest, list[Sentence]]:
    """Choose sentences and lay out the screens; also gives the sentences that are heard, training included.

    Raises:
        ValleError: there is an unknown system, too few systems, or no sentence that all systems speak.
    """
    known = systems_of(sentences)
    systems = wanted.systems or tuple(known)
    if unknown := [name for name in (*systems, wanted.baseline) if name and name not in known]:
        raise ValleError(f"there is no speech of {unknown[0]!r}; there are {', '.join(known)}")
    if RECORDING in known and RECORDING not in systems:
        systems = (RECORDING, *systems)  # hidden among the others, whatever is asked
    others = [name for name in systems if name != RECORDING]
    if not others:
        raise ValleError("there are only recordings; a test needs a system that speaks")
    baseline = wanted.baseline or others[0]
    if baseline not in systems:
        raise ValleError(f"the baseline {baseline!r} is not among --systems {', '.join(systems)}")
    if "cmos" in wanted.kinds and len(systems) < 2:
        raise ValleError(f"CMOS compares two systems and there is only {systems[0]!r}; leave out --kind cmos")
    usable = [
        s for s in sentences if all(name in s.waves for name in systems) and ("smos" not in wanted.kinds or s.prompt)
    ]
    if not usable:
        prompt = " and a prompt" if "smos" in wanted.kinds else ""
        raise ValleError(f"no sentence has waves of all of {', '.join(systems)}{prompt}; choose with --systems")
    rng = random.Random(wanted.seed)
    usable = rng.sample(usable, len(usable))
    chosen, rest = usable[: wanted.n], usable[wanted.n :] or usable  # training sentences are others, if there are any
    screens: list[Presentation] = []
    for kind in wanted.kinds:
        counted = _screens(kind, chosen, systems, baseline)
        training = _screens(kind, rest, systems, baseline)
        screens += [*counted, *_repeats(counted, wanted.repeats, rng)]
        for screen in rng.sample(training, min(wanted.n_training, len(training))):
            screens.append(replace(screen, training=True))
    test = ListeningTest(secrets.token_hex(8), systems, baseline, wanted.seed, tuple(screens))
    heard = {screen.trial for screen in screens}
    return test, [s for s in usable if s.id in heard]


def build(sentences: Sequence[Sentence], wanted: Wanted, out: Path) -> ListeningTest:
    """Write a test into ``out``: ``page/`` for raters, ``test.json`` for the one who asks.

    Raises:
        ValleError: as ``design``; a wave cannot be read, is silent or too long; the folder has a test already.
    """
    if (out / KEY_FILE).exists():
        raise ValleError(f"{out} holds a test already, whose answers would be lost; choose another --out")
    test, heard = design(sentences, wanted)
    by_id = {sentence.id: sentence for sentence in heard}
    audio = out / PAGE_FOLDER / AUDIO_FOLDER
    try:
        (out / PAGE_FOLDER if wanted.embed else audio).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValleError(f"the folder {out} cannot be made: {error.strerror or error}; give another --out") from error
    prompts: dict[str, str] = {}
    screens: list[Presentation] = []
    items: list[dict[str, Any]] = []
    for screen in progress(
        random.SystemRandom().sample(test.presentations, len(test.presentations)), "sounds", "screen"
    ):
        sentence, seconds = by_id[screen.trial], 0.0
        sounds: list[str] = []
        paths = [sentence.waves[name] for name in screen.systems]
        if screen.kind == "smos":
            assert sentence.prompt is not None
            paths.insert(0, sentence.prompt)
        for number, path in enumerate(paths):
            wav = _read(path)
            seconds += wav.seconds
            is_prompt = screen.kind == "smos" and number == 0
            if not is_prompt or screen.trial not in prompts:
                sound = _put(wav, None if wanted.embed else audio)
                if is_prompt:
                    prompts[screen.trial] = sound
            sounds.append(prompts[screen.trial] if is_prompt else sound)
        screens.append(replace(screen, seconds=seconds))
        items.append(
            {
                "id": screen.id,
                "kind": screen.kind,
                "sounds": sounds,
                "place": _place(screen, test),
                "text": sentence.text if wanted.with_text else "",
            }
        )
    test = ListeningTest(test.id, test.systems, test.baseline, test.seed, tuple(screens))
    about = {
        "test": test.id,
        "title": wanted.title,
        "contact": wanted.contact,
        "minutes": math.ceil(sum(1.2 * s.seconds + 6 for s in screens) / 60),
    }
    write_atomic(out / PAGE_FOLDER / "index.html", render({**about, "items": items}).encode())
    test.save(out)  # last: a folder with a key is a whole test
    return test


def render(data: dict[str, Any]) -> str:
    """The page, with ``data`` in it and a policy that lets only its own script and style run, and no host be asked."""
    template = files("valle.eval.listening").joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_source(template, 'script')}; style-src {_source(template, 'style')}; "
        "media-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    body = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    for mark, value in (("{{policy}}", policy), ("{{title}}", html.escape(data["title"])), ("{{data}}", body)):
        template = template.replace(mark, value, 1)
    return template


def _source(page: str, tag: str) -> str:
    """What a content security policy calls the page's own script or style."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found is not None
    return "'sha256-" + base64.b64encode(sha256(found[1].encode()).digest()).decode() + "'"


def _screens(kind: Kind, sentences: Sequence[Sentence], systems: Sequence[str], baseline: str) -> list[Presentation]:
    """One for each sentence and system, or for CMOS each pair with the baseline, as often first as second."""
    screens = []
    for number, sentence in enumerate(sentences):
        for other in (name for name in systems if kind != "cmos" or name != baseline):
            heard: tuple[str, ...] = (other,)
            if kind == "cmos":
                heard = (other, baseline) if number % 2 else (baseline, other)
            n_sounds = 1 if kind == "mos" else 2
            screens.append(Presentation(secrets.token_hex(6), kind, sentence.id, heard, 0.0, n_sounds))
    return screens


def _repeats(screens: Sequence[Presentation], repeats: float, rng: random.Random) -> list[Presentation]:
    """Screens that come again, the systems in turn; a pair comes the other way round."""
    n = math.ceil(repeats * len(screens)) if repeats < 1 else round(repeats)
    if n > len(screens):
        raise ValleError(f"--repeats {repeats:g} is more than the {len(screens)} screens; give at most so many")
    by_systems: dict[frozenset[str], list[Presentation]] = {}
    for screen in rng.sample(list(screens), len(screens)):
        by_systems.setdefault(frozenset(screen.systems), []).append(screen)
    turns = [own[turn] for turn in range(len(screens)) for own in by_systems.values() if turn < len(own)]
    return [
        replace(screen, id=secrets.token_hex(6), systems=tuple(reversed(screen.systems)), repeat_of=screen.id)
        for screen in turns[:n]
    ]


def _place(screen: Presentation, test: ListeningTest) -> str:
    """Where in a rater's order it may come: so far apart that the first answer is forgotten."""
    if screen.training:
        return "training"
    if screen.repeat_of:
        return "late"
    return "early" if any(other.repeat_of == screen.id for other in test.presentations) else "any"


def _read(path: Path) -> Audio:
    from valle.audio import SAMPLE_RATE, Audio, load, normalise_loudness

    audio = load(path, SAMPLE_RATE, max_s=MAX_SECONDS, what="sound")
    if not audio.waveform.any():
        raise ValleError(f"the sound {path} is silent; leave its trial out")
    return Audio(normalise_loudness(audio.waveform, SAMPLE_RATE, LEVEL_DB), SAMPLE_RATE)


def _put(audio: Audio, folder: Path | None) -> str:
    """Write a wave under a name that tells nothing, or into the text of the page; gives where it is."""
    data = audio.to_bytes("wav")
    if folder is None:
        return "data:audio/wav;base64," + base64.b64encode(data).decode()
    name = f"{secrets.token_hex(8)}.wav"
    write_atomic(folder / name, data)
    return f"{AUDIO_FOLDER}/{name}"
