"""``valle eval samples DIR``: a page of samples for the repository, made from a measurement whose waves were kept.

Which sentences are heard is a rule and no choice: the first of the list of trials, as many as asked. Only prompts whose
licence lets anybody pass them on are taken, and the page names licence and source of each. Files are MP3, mono, small.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle import page
from valle.errors import ValleError
from valle.eval import report_page
from valle.eval.document import TRIALS_FILE
from valle.eval.journal import read_records
from valle.eval.report_page import LEGEND, Listened, listen_to_speech, show
from valle.eval.results import made_by, read_results
from valle.files import write_atomic

if TYPE_CHECKING:
    from valle.data.corpus import Utterance
    from valle.eval.trials import Trial

MAX_BYTES = 1_500_000
"""Of all samples together: what is committed stays in the history."""
FREE_LICENCES = {
    "CC0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "APACHE-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "PUBLIC-DOMAIN": "https://creativecommons.org/publicdomain/mark/1.0/",
}
"""Under which a recording may be passed on in another format when its source is named, and where they stand."""
SOURCES = {
    "speechocean762": "speechocean762 (Zhang and others, 2021; openslr.org/101): read with a Mandarin accent",
    "librispeech": "LibriSpeech (Panayotov and others, 2015; openslr.org/12), from readings of LibriVox",
    "kokoro": "Kokoro-82M (hexgrad) reading published sentences: a voice that is itself synthetic",
    "kathleen": "Kathleen reading the CMU Arctic prompts",
}
"""Whom to name, by what a data set's name begins with."""


@dataclass(frozen=True)
class Sample:
    """A sentence, its prompt and what the model made of them."""

    number: int
    """From 1 on."""
    trial: Trial
    """As measured."""
    prompt: Utterance
    """As its manifest tells."""
    heard: Listened
    """Prompt and speech, the files beside the page."""

    @property
    def source(self) -> str:
        """Where the prompt is from."""
        name = self.prompt.dataset
        return next((words for begin, words in SOURCES.items() if name.startswith(begin)), name)


def write_samples(folder: Path, manifest: Path, out: Path, n: int, command: str) -> list[Sample]:
    """Write ``index.html``, ``README.md`` and the sounds into ``out``; gives what was written.

    Args:
        folder: of a ``valle eval speech`` whose waves were kept.
        manifest: of its recordings, for their licences.
        out: where to; samples of an earlier call go.
        n: how many; fewer when the list is shorter.
        command: told on the page.

    Raises:
        ValleError: no speech, waves, manifest or free prompt; or the samples are too large together.
    """
    from valle.data.corpus import read_manifest
    from valle.eval.synthesis import speech_records
    from valle.eval.trials import load_trials, seen_from

    results = read_results(folder)
    if results["kind"] != "speech":
        raise ValleError(f"{folder} holds results of {results['kind']}; samples are made of `valle eval speech`")
    trials = load_trials(folder / TRIALS_FILE)
    records = speech_records(results, trials, read_records(folder / "utterances.jsonl"))
    heard = {one.id: one for one in listen_to_speech(folder, trials, records)}
    root = manifest if manifest.is_dir() else manifest.parent
    prompts = {seen_from(root, u.path): u for u in read_manifest(manifest)}
    chosen, refused = choose(trials, prompts, n)
    if not chosen:
        raise ValleError(f"no prompt of {folder} has a licence that lets it be passed on ({', '.join(FREE_LICENCES)})")
    if lacking := next((t for t in chosen if t.id not in heard), None):
        raise ValleError(
            f"{folder} keeps no waves of {lacking.id}; run the same `valle eval speech` again with --listen "
            f"{trials.index(chosen[-1]) + 1}"
        )
    files: dict[str, bytes] = {}
    samples = []
    for number, trial in enumerate(chosen, 1):
        sounds = []
        for label, sound in (("prompt", heard[trial.id].sounds[0]), ("spoken", _spoken(heard[trial.id], results))):
            name = f"{number:02d}-{label}.mp3"
            if sound.path is not None:
                files[name] = page.to_mp3(sound.path)
            sounds.append(replace(sound, path=out / name if sound.path is not None else None))
        about = f"{trial.speaker}, seed {trial.seed}"
        one = Listened(trial.id, f"{number}. {trial.text}", about, tuple(sounds))
        samples.append(Sample(number, trial, prompts[trial.prompt], one))
    size = sum(map(len, files.values()))
    if size > MAX_BYTES:
        raise ValleError(f"{n} samples are {size / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:g} MB are kept: fewer --n")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("[0-9][0-9]-*.mp3"):
        old.unlink()
    for name, data in files.items():
        write_atomic(out / name, data)
    write_atomic(out / "index.html", _page(results, samples, refused, command, out).encode())
    write_atomic(out / "README.md", _readme(results, samples, refused, command).encode())
    return samples


def choose(trials: Sequence[Trial], prompts: Mapping[str, Utterance], n: int) -> tuple[list[Trial], list[Trial]]:
    """The first n trials with a prompt that may be passed on; and those before the last of them that have none."""
    chosen: list[Trial] = []
    refused: list[Trial] = []
    for trial in trials:
        if len(chosen) == n:
            break
        prompt = prompts.get(trial.prompt)
        free = prompt is not None and _plain(prompt.licence) in FREE_LICENCES
        (chosen if free else refused).append(trial)
    return chosen, refused if chosen else list(trials)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
    """
    about = "A page of samples, made from a measurement whose waves were kept."
    parser = argparse.ArgumentParser(prog="valle eval samples", description=about, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `valle eval speech --listen N` wrote")
    parser.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="of its recordings: licences")
    parser.add_argument("--out", type=Path, default=Path("docs/samples"), metavar="DIR", help="where to (%(default)s)")
    parser.add_argument("--n", type=int, default=10, choices=range(1, 100), metavar="N", help="samples (%(default)s)")
    args = parser.parse_args([re.sub("^--[^=]*", lambda option: option[0].replace("_", "-"), arg) for arg in argv])
    command = made_by(["samples", *argv])["command"]
    samples = write_samples(args.folder, args.manifest, args.out, args.n, command)
    size = sum(path.stat().st_size for path in args.out.glob("*.mp3"))
    sys.stdout.write(
        f"{len(samples)} samples, {size / 1e6:.2f} MB; written: {args.out}/index.html, {args.out}/README.md\n"
    )
    return 0


def _spoken(one: Listened, results: Mapping[str, Any]) -> report_page.Sound:
    return next(sound for sound in one.sounds if sound.name == results["model"]["name"])


def _plain(licence: str) -> str:
    """As it stands in ``FREE_LICENCES``: CC BY 4.0 is CC-BY-4.0."""
    return "-".join(licence.upper().replace("-", " ").split())


def _rule(results: Mapping[str, Any], samples: Sequence[Sample], refused: Sequence[Trial]) -> list[str]:
    """What the samples are and how they were chosen, in paragraphs."""
    model, split = results["model"], results["data"]["split"]
    voices = len({s.trial.speaker for s in samples})
    left_out = ", ".join(t.id for t in refused)
    return [
        f"{len(samples)} sentences in {voices} voices of the split {split}, which training never heard: a prompt of "
        f"about three seconds, and what {model['name']} ({model['digest']}) says in its voice. They are the first "
        f"{len(samples)} of the list that seed {results['seed']} drew for the measurement, in its order: none was "
        "chosen or left out for how it sounds."
        + (f" Left out because their licence is not known to allow it: {left_out}." if refused else ""),
        f"All speech of {model['name']} is synthetic: a machine made it, not the person whose voice the prompt is. "
        "Every such file says so in its metadata.",
    ]


def _sources(samples: Sequence[Sample]) -> list[tuple[str, str, str]]:
    """Samples, source and licence of the prompts, by source."""
    by_source: dict[tuple[str, str], list[str]] = {}
    for sample in samples:
        licence = f"{sample.prompt.licence}, {FREE_LICENCES[_plain(sample.prompt.licence)]}"
        by_source.setdefault((sample.source, licence), []).append(str(sample.number))
    return [(", ".join(numbers), source, licence) for (source, licence), numbers in by_source.items()]


_CHANGED = (
    "Of the prompts only the format was changed here: mono, 24 kHz, MP3. What was heard and SIM-o are those of the "
    "measurement, before the speech became MP3."
)


def _page(
    results: Mapping[str, Any], samples: Sequence[Sample], refused: Sequence[Trial], command: str, out: Path
) -> str:
    title = f"Samples of {results['model']['name']}"
    return page.page(
        title,
        [
            f"<h1>{html.escape(title)}</h1>",
            *(f"<p>{html.escape(paragraph)}</p>" for paragraph in _rule(results, samples, refused)),
            LEGEND,
            *(show(sample.heard, out, embedded=False) for sample in samples),
            "<h2>Where the prompts are from</h2>",
            page.table([("samples", "source", "licence"), *_sources(samples)], "sources of the prompts"),
            f"<p class='note'>{_CHANGED}</p>",
            f"<p class='note'>Made by <code>{html.escape(command)}</code>.</p>",
        ],
        report_page.STYLE,
    )


def _readme(results: Mapping[str, Any], samples: Sequence[Sample], refused: Sequence[Trial], command: str) -> str:
    model = results["model"]["name"]
    lines = [
        f"# Samples of {model}\n",
        *(f"{paragraph}\n" for paragraph in _rule(results, samples, refused)),
        "[index.html](index.html) plays them and shows what a recogniser heard; open it from a copy of this folder.\n",
        f"| | text | prompt | {model} | words wrong | SIM-o |",
        "|---|---|---|---|---|---|",
    ]
    for sample in samples:
        prompt, spoken = sample.heard.sounds
        errors = spoken.errors
        wrong = f"{errors.errors} of {errors.words}" if errors else "–"
        similarity = next((f.removeprefix("SIM-o ") for f in spoken.figures if f.startswith("SIM-o ")), "–")
        links = [f"[{s.path.name}]({s.path.name})" if s.path else "–" for s in (prompt, spoken)]
        cells = [str(sample.number), sample.trial.text, *links, wrong, similarity]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    judges = results["judges"]
    lines += [
        f"\nJudges: {judges['recogniser']}; {judges['speaker']}.",
        "\n## Where the prompts are from\n",
        "| samples | source | licence |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in _sources(samples)),
        f"\n{_CHANGED}\n",
        f"Made by `{command}`.",
    ]
    return "\n".join(lines) + "\n"
