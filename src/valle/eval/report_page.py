"""``report.html``: the tables of ``report.md`` with plots of single sentences and with players, in one page.

It is made from what lies in the folder, ``results.json``, ``utterances.jsonl``, ``trials.jsonl`` and ``wavs/``, so that
``valle eval report DIR`` writes it again without measuring.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle import page
from valle.eval import plots
from valle.eval.bootstrap import Estimate
from valle.eval.document import TRIALS_FILE, body_of, markdown
from valle.eval.journal import Record, read_records
from valle.eval.plots import Lane, series_plot, strip_plot
from valle.eval.results import read_results
from valle.eval.wer import AlignedWord, WordErrors, align_words
from valle.files import write_atomic

if TYPE_CHECKING:
    from valle.eval.trials import Trial

N_PLAYERS = 20
"""Utterances with players, unless told otherwise."""
PAGE_FILE = "report.html"

STYLE = """
.sounds { list-style: none; padding: 0; display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(13.5rem, 1fr)) }
.sounds li { background: var(--tint); border-radius: .5rem; padding: .7rem .9rem } .sounds p { margin: .2rem 0 }
.utterance { border-top: 1px solid var(--line); padding: .8rem 0 } .heard { font-size: .93rem }
del { color: var(--bad) } ins { color: var(--bad); text-decoration: underline wavy } details { margin: 1rem 0 }
summary { cursor: pointer; padding: .4rem 0 }
"""
LEGEND = (
    "<p class='note'>What the recogniser heard stands below each sound, normalised: "
    "<del>struck through</del> what it missed, <ins>underlined</ins> what it heard instead or too much.</p>"
)


@dataclass(frozen=True)
class Sound:
    """One wave of an utterance, and what was measured of it."""

    name: str
    """Who speaks."""
    path: Path | None
    """The file; None where nothing was spoken."""
    figures: tuple[str, ...] = ()
    """What was measured, in words."""
    errors: WordErrors | None = None
    """What the recogniser heard; None where it was not asked."""
    text: str = ""
    """What is said, where it is not what the utterance says."""


@dataclass(frozen=True)
class Listened:
    """An utterance to listen to."""

    id: str
    """The trial's, or the recording's."""
    title: str
    """What is said."""
    about: str
    """Where it is from."""
    sounds: tuple[Sound, ...]
    """The prompt first."""


def write_report_page(folder: Path, *, n_players: int = N_PLAYERS, embedded: bool = False) -> Path:
    """Write ``report.html`` into a folder with results; gives its path.

    Args:
        folder: what ``valle eval`` wrote.
        n_players: utterances to listen to, at most.
        embedded: their sounds inside the page, rather than files beside it.

    Raises:
        ValleError: something is missing that the page is made from.
    """
    results = read_results(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    title = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), "Results")
    shown: list[str] = []
    listened: list[Listened] = []
    if results["kind"] == "speech":
        from valle.eval.synthesis import speech_records
        from valle.eval.trials import load_trials

        trials = load_trials(folder / TRIALS_FILE)
        records = speech_records(results, trials, read_records(folder / "utterances.jsonl"))
        shown = _speech_plots(results, trials, records)
        listened = listen_to_speech(folder, trials, records)[: max(n_players, 0)]
    elif results["kind"] == "codec":
        shown = _codec_plots(results)
        listened = listen_to_codec(folder, results)[: max(n_players, 0)]
    tables, end = _split(page.from_markdown(text))
    parts = [*tables, *shown]
    if listened:
        parts += ["<h2>Listen</h2>", LEGEND, *(show(one, folder, embedded) for one in listened)]
    elif shown:
        kept = "a higher --players" if (folder / "wavs").is_dir() else f"--listen {N_PLAYERS}"
        parts.append(f"<p class='note'>There is nothing to listen to; the same command with {kept} changes that.</p>")
    style = plots.STYLE + STYLE
    write_atomic(folder / PAGE_FILE, page.page(title, [*parts, *end], style).encode())
    return folder / PAGE_FILE


def listen_to_speech(
    folder: Path, trials: Sequence[Trial], records: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
) -> list[Listened]:
    """The trials whose waves are there, in the order of the list: prompt, recording, round trip and every system.

    Args:
        folder: of the results.
        trials: what was said.
        records: by row, the measurements of each trial (``speech_records``); of several runs the first is heard.
    """
    from valle.eval.listening.source import read_sources

    if not any((folder / "wavs").glob("*-0-prompt.*")):
        return []
    sentences = {sentence.id: sentence for sentence in read_sources([str(folder)])}
    found = []
    for i, trial in enumerate(trials):
        sentence = sentences.get(trial.id.replace("/", "-"))
        if sentence is None:
            continue
        sounds = [Sound("prompt", sentence.prompt, text=f"the first {trial.prompt_s:g} s of the recording")]
        if not trial.continual:
            sounds = [Sound("prompt", sentence.prompt, text=trial.prompt_text)]
        for name, own in records.items():
            record = own[i][0]
            errors = WordErrors(**record["wer"]) if record["wer"] else None
            figures = [_wer(errors)] if errors else []
            figures += [f"SIM-o {record['sim_o']:.3f}"] if record["sim_o"] is not None else []
            if record.get("stop", "eos") not in ("eos", "ended"):
                figures.append(f"ended by {record['stop']}")
            sounds.append(Sound(name, sentence.waves.get(name), tuple(figures), errors))
        about = f"{trial.id}: {trial.speaker}, {trial.dataset}, seed {trial.seed}"
        found.append(Listened(trial.id, trial.text, about, tuple(sounds)))
    return found


def listen_to_codec(folder: Path, results: Mapping[str, Any]) -> list[Listened]:
    """The recordings whose waves are there, each with its round trips."""
    from valle.eval.codec_table import COLUMNS, ORIGINAL

    waves = sorted((folder / "wavs").glob(f"*-0-{ORIGINAL}.*"))
    if not waves:
        return []
    records: dict[str, dict[str, Record]] = {}
    for (name, row), record in read_records(folder / "utterances.jsonl").items():
        records.setdefault(name.replace("/", "-"), {})[row] = record
    found = []
    for wave in waves:
        stem = wave.stem.removesuffix(f"-0-{ORIGINAL}")
        own, sounds = records.get(stem, {}), []
        for row in results["rows"]:
            record = own.get(row, {"wer": None})
            label = f"0-{ORIGINAL}" if row == ORIGINAL else f"{row}-codebooks"
            path = wave.with_name(f"{stem}-{label}{wave.suffix}")
            errors = WordErrors(**record["wer"]) if record["wer"] else None
            figures = [_wer(errors)] if errors else []
            figures += [f"{c.name} {c.show(record[c.key])}" for c in COLUMNS[1:-1] if record.get(c.key) is not None]
            name = ORIGINAL if row == ORIGINAL else f"{row} codebook{'s' * (row != '1')}"
            sounds.append(Sound(name, path if path.is_file() else None, tuple(figures), errors))
        said = next((s.errors.reference for s in sounds if s.errors), "")
        found.append(Listened(stem, said or stem, stem if said else "", tuple(sounds)))
    return found


def show(one: Listened, folder: Path, embedded: bool) -> str:
    """An utterance as a part of a page in ``folder``."""
    items = []
    for sound in one.sounds:
        lines = [f"<h4>{html.escape(sound.name)}</h4>"]
        if sound.path is None:
            lines.append("<p class='note'>nothing was spoken</p>")
        else:
            inside = sound.path.relative_to(folder).as_posix()
            source = page.embed(sound.path) if embedded else page.reference(inside)
            lines.append(page.player(source, f"{sound.name}: {sound.text or one.title}"))
        if sound.figures:
            lines.append(f"<p>{'<br>'.join(map(html.escape, sound.figures))}</p>")
        if sound.errors is not None:
            words = align_words(sound.errors.reference, sound.errors.hypothesis)
            lines.append(f"<p class='heard'>{mark_errors(words) or '(nothing)'}</p>")
        if sound.text:
            lines.append(f"<p class='heard'>{html.escape(sound.text)}</p>")
        items.append("<li>" + "\n".join(lines) + "</li>")
    about = f"<p class='note'>{html.escape(one.about)}</p>" if one.about else ""
    inner = "\n".join(items)
    return (
        f'<section class="utterance"><h3>{html.escape(one.title)}</h3>{about}<ul class="sounds">{inner}</ul></section>'
    )


def mark_errors(words: Sequence[AlignedWord]) -> str:
    """What was heard, its errors marked: ``<del>`` what was missed, ``<ins>`` what was heard for it or too much."""
    marked = []
    for mark, said, heard in words:
        if mark == "":
            marked.append(html.escape(heard))
            continue
        marked += [f"<del>{html.escape(said)}</del>"] if said else []
        marked += [f"<ins>{html.escape(heard)}</ins>"] if heard else []
    return " ".join(marked)


def main(argv: Sequence[str]) -> int:
    """``valle eval report DIR``; returns the exit code.

    Raises:
        ValleError: something is missing in the folder.
    """
    from valle.eval.report import add_page_options

    about = "Write report.md and report.html of a finished folder again, without measuring."
    parser = argparse.ArgumentParser(prog="valle eval report", description=about, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `valle eval codec | speech | lm | judges` wrote")
    add_page_options(parser)
    args = parser.parse_args([re.sub("^--[^=]*", lambda option: option[0].replace("_", "-"), arg) for arg in argv])
    results = read_results(args.folder)
    text = markdown(results, body_of(results, args.folder))
    write_atomic(args.folder / "report.md", text.encode())
    write_report_page(args.folder, n_players=args.players, embedded=args.embed_audio)
    sys.stdout.write(f"written: {args.folder}/report.md, {args.folder}/{PAGE_FILE}\n")
    return 0


def _speech_plots(
    results: Mapping[str, Any],
    trials: Sequence[Trial],
    records: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
) -> list[str]:
    """Word error rate and similarity of every sentence, and the same as a table."""
    from valle.eval.synthesis import COLUMNS

    words, similarity = (next(c for c in COLUMNS if c.key == key) for key in ("wer", "sim_o"))
    values: dict[str, dict[str, list[float | None]]] = {
        "wer": {name: [_rate(runs) for runs in own] for name, own in records.items()},
        "sim_o": {name: [_mean([r["sim_o"] for r in runs]) for runs in own] for name, own in records.items()},
    }
    captions = {
        "wer": "Word error rate of each sentence. Below the dots the rate over all words, with its 95 % interval: long "
        "sentences weigh more.",
        "sim_o": "Cosine of each sentence's voice with its prompt's; below the dots the mean with its 95 % interval.",
    }
    drawn = []
    for column in (words, similarity):
        lanes = {
            name: Lane(
                [(v, t.id) for v, t in zip(own, trials, strict=True) if v is not None],
                results["rows"][name].get(column.key),
            )
            for name, own in values[column.key].items()
        }
        drawn.append(strip_plot(lanes, column, captions[column.key]))
    if not any(drawn):
        return []
    rows = [["sentence", *(f"{c.name}, {name}" for c in (words, similarity) for name in records)]]
    for i, trial in enumerate(trials):
        rows.append([trial.id, *(c.show(values[c.key][name][i]) for c in (words, similarity) for name in records)])
    every = f"<details><summary>All {len(trials)} sentences as a table</summary>{page.table(rows)}</details>"
    return ["<h2>Sentence by sentence</h2>", *drawn, every]


def _codec_plots(results: Mapping[str, Any]) -> list[str]:
    """Each measure by the number of codebooks."""
    from valle.eval.codec_table import COLUMNS, ORIGINAL

    drawn = []
    for column in COLUMNS[1:]:
        cells = {name: row.get(column.key) for name, row in results["rows"].items()}
        series = {name: e for name, e in cells.items() if name != ORIGINAL and isinstance(e, Estimate)}
        guide = cells.get(ORIGINAL)
        guide = guide if isinstance(guide, Estimate) else None
        ordered = dict(sorted(series.items(), key=lambda item: int(item[0])))
        drawn.append(series_plot(ordered, column, "codebooks", guide))
    return ["<h2>By the number of codebooks</h2>", f'<div class="plots">{"".join(drawn)}</div>'] if any(drawn) else []


def _split(parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """A report's parts, and the last two of them: of what and by which command it was made."""
    at = next((i for i, part in enumerate(parts) if part.startswith("<p>Data: ")), len(parts))
    return list(parts[:at]), list(parts[at:])


def _rate(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Errors by words of one sentence, over its runs."""
    counts = [WordErrors(**record["wer"]) for record in runs if record["wer"]]
    n_words = sum(c.words for c in counts)
    return sum(c.errors for c in counts) / n_words if n_words else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _wer(errors: WordErrors) -> str:
    rate = f"WER {100 * errors.errors / errors.words:.0f} %, " if errors.words else ""
    return f"{rate}{errors.errors} of {errors.words} words wrong"
