"""``valle prepare inspect PACK``: what is in a packed dataset, to be looked at and listened to before training on it.

Prints a table of each split, and writes a page beside the pack: ``inspect/index.html`` with plots (matplotlib) of
lengths, phonemes a second, phonemes, speakers and the use of the codebooks, and examples decoded from their codes. The
page needs nothing but its folder.
"""

from __future__ import annotations

import argparse
import html
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from valle import page
from valle.data.pack import PHONEMES_FILE, Pack, PackSplit
from valle.errors import ValleError
from valle.files import write_atomic
from valle.plots import as_bytes, new_figure
from valle.text.inventory import PhonemeInventory

if TYPE_CHECKING:
    from valle.codec.base import Codec

Table = list[tuple[str, ...]]
"""Rows of equal length, the first being the heading."""

MAX_COUNTED = 20000
"""Utterances, evenly over the pack, whose codes and phonemes are counted; lengths are those of all."""

_N_SPEAKERS = 30  # bars in the plot of speakers
_N_PHONEMES = 70  # bars in the plot of phonemes
_COLOUR = "#3465a4"


@dataclass(frozen=True)
class PackStatistics:
    """What the plots show. ``i`` counts through all splits, in the order of ``Pack.splits``."""

    seconds: NDArray[np.float64]
    """[n] length of each utterance."""
    phonemes_per_s: NDArray[np.float64]
    """[n] symbols a second, marks and word boundaries among them."""
    speaker_hours: dict[str, float]
    """Of each speaker, most first; the name is empty where the speaker is not known."""
    phoneme_counts: NDArray[np.int64]
    """[n_phonemes] over the utterances that were counted."""
    code_counts: NDArray[np.int64]
    """[K, codebook_size] likewise."""
    n_counted: int
    """Utterances that were counted."""

    @property
    def perplexity(self) -> NDArray[np.float64]:
        """[K] two to the entropy of each codebook's entries in bits: as many as if all were used equally often."""
        share = self.code_counts / np.maximum(self.code_counts.sum(1, keepdims=True), 1)
        bits = -(share * np.log2(np.where(share > 0, share, 1))).sum(1)
        return np.asarray(2.0**bits)

    @property
    def used_share(self) -> NDArray[np.float64]:
        """[K] the part of each codebook that occurs at all."""
        return np.asarray((self.code_counts > 0).mean(1))


@dataclass(frozen=True)
class Example:
    """An utterance to listen to."""

    id: str
    """As in the manifest."""
    split: str
    """Where it is."""
    speaker: str
    """Who speaks, empty where not known."""
    seconds: float
    """Its length."""
    symbols: tuple[str, ...]
    """Its phonemes."""
    durations_s: tuple[float, ...] = ()
    """How long each lasts; empty in a pack that is not aligned."""
    wav: str = ""
    """The file beside the page; empty without a codec."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``valle prepare inspect``; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
        ModuleNotFoundError: there is no matplotlib; the table was printed before.
    """
    parser = argparse.ArgumentParser(prog="valle prepare inspect", description="What is in a packed dataset.")
    parser.add_argument("pack", metavar="PACK", help="folder that `valle prepare` wrote")
    parser.add_argument("--codec", metavar="DIR", help="the pack's codec, for listening (the embedded one if it is)")
    parser.add_argument("--out", metavar="DIR", help="where the page goes (PACK/inspect)")
    parser.add_argument("--examples", type=int, default=10, metavar="N", help="to listen to (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of examples (%(default)s)")
    args = parser.parse_args(argv)
    pack = Pack(args.pack)
    splits = {name: pack.split(name) for name in pack.splits}
    sys.stdout.write(f"{_text(split_table(pack, splits))}\n{_text(rejected_table(pack))}\n")
    codec, why_not = find_codec(pack, args.codec)
    out = Path(args.out) if args.out else pack.folder / "inspect"
    write_page(pack, out, codec, n_examples=max(args.examples, 0), seed=args.seed, why_not=why_not)
    if why_not and args.examples > 0:
        sys.stderr.write(f"valle: {why_not}\n")
    sys.stdout.write(f"written: {out / 'index.html'}\n")
    return 0


def split_table(pack: Pack, splits: dict[str, PackSplit]) -> Table:
    """A row for each split: how much there is, and what is usual."""
    rows: Table = [
        ("split", "utterances", "hours", "speakers", "median s", "longest s", "median phonemes/s", "left out")
    ]
    for name, split in splits.items():
        seconds = split.n_frames.numpy() / pack.info.frame_rate
        rates = split.n_phonemes.numpy() / np.maximum(seconds, 1e-9)
        known = set(split.speakers.tolist()) - {-1}
        n_rejected = sum(pack.info.rejected.get(name, {}).values())
        usual = (
            ("–", "–", "–")
            if not len(split)
            else (f"{np.median(seconds):.1f}", f"{seconds.max():.1f}", f"{np.median(rates):.1f}")
        )
        hours = f"{seconds.sum() / 3600:.2f}"
        rows.append((name, str(len(split)), hours, str(len(known)), *usual, str(n_rejected)))
    return rows


def rejected_table(pack: Pack) -> Table:
    """A row for each reason for which utterances were left out, the commonest first."""
    names = list(dict.fromkeys((*pack.splits, *pack.info.rejected)))
    by_reason: dict[str, dict[str, int]] = {}
    for split, reasons in pack.info.rejected.items():
        for reason, n in reasons.items():
            by_reason.setdefault(reason, {})[split] = n
    order = sorted(by_reason, key=lambda reason: (-sum(by_reason[reason].values()), reason))
    rows: Table = [("left out because", *names)]
    rows += [(reason, *(str(by_reason[reason].get(name, 0)) for name in names)) for reason in order]
    return rows if order else [*rows, ("nothing was", *("0" for _ in names))]


def statistics(pack: Pack, max_counted: int = MAX_COUNTED) -> PackStatistics:
    """Measure a pack. Codes and phonemes are counted in ``max_counted`` utterances, evenly over all."""
    info, splits = pack.info, [pack.split(name) for name in pack.splits]
    frames = np.concatenate([s.n_frames.numpy() for s in splits] or [np.zeros(0)])
    n_phonemes = np.concatenate([s.n_phonemes.numpy() for s in splits] or [np.zeros(0)])
    speakers = np.concatenate([s.speakers.numpy() for s in splits] or [np.zeros(0, np.int64)])
    seconds = frames / info.frame_rate
    hours = np.bincount(speakers + 1, weights=seconds / 3600, minlength=len(info.speakers) + 1)
    by_speaker = {name: float(h) for name, h in zip(("", *info.speakers), hours, strict=True) if h > 0}
    k, size = info.n_quantizers, info.codebook_size
    phoneme_counts, code_counts = np.zeros(info.n_phonemes, np.int64), np.zeros(k * size, np.int64)
    places = [(split, i) for split in splits for i in range(len(split))]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), max_counted)).round().astype(int))
    for number in chosen.tolist():
        split, i = places[number]
        codes = split.codes(i).numpy() + size * np.arange(k)[:, None]  # [K, T], the codebooks one after another
        code_counts += np.bincount(codes.ravel(), minlength=k * size)
        phoneme_counts += np.bincount(split.phonemes(i).numpy(), minlength=info.n_phonemes)
    return PackStatistics(
        seconds=seconds,
        phonemes_per_s=n_phonemes / np.maximum(seconds, 1e-9),
        speaker_hours=dict(sorted(by_speaker.items(), key=lambda item: -item[1])),
        phoneme_counts=phoneme_counts,
        code_counts=code_counts.reshape(k, size),
        n_counted=len(chosen),
    )


def find_codec(pack: Pack, folder: str | Path | None = None) -> tuple[Codec | None, str]:
    """The codec of the pack's codes: that of ``folder``, or the embedded one; or None and what to do about it.

    Raises:
        ValleError: ``folder`` holds no codec, or another one than the pack's.
    """
    from valle.codec.base import load_codec
    from valle.pretrained import EMBEDDED

    if folder is not None:
        codec = load_codec(folder)
        pack.require(codec_fingerprint=codec.fingerprint())
        return codec, ""
    if (EMBEDDED / "codec" / "config.json").is_file():
        codec = load_codec(EMBEDDED / "codec")
        if codec.fingerprint() == pack.info.codec_fingerprint:
            return codec, ""
    return None, (
        f"the pack was made by the codec {pack.info.codec_fingerprint}, which is not the embedded one; give its folder "
        "with --codec to listen to examples"
    )


def draw_examples(pack: Pack, folder: Path, codec: Codec | None = None, *, n: int = 10, seed: int = 0) -> list[Example]:
    """Choose ``n`` utterances at random from all splits, and decode them to wav files in ``folder`` with ``codec``."""
    import torch

    from valle.audio import Audio

    inventory = PhonemeInventory.load(pack.folder / PHONEMES_FILE)
    splits = {name: pack.split(name) for name in pack.splits}
    places = [(name, i) for name, split in splits.items() for i in range(len(split))]
    chosen = np.random.default_rng(seed).permutation(len(places))[:n]
    examples = []
    for number, place in enumerate(sorted(chosen.tolist())):
        name, i = places[place]
        split = splits[name]
        codes, speaker, wav = split.codes(i), int(split.speakers[i]), ""  # [K, T]
        if codec is not None:
            with torch.inference_mode():
                wave = codec.decode(codes.unsqueeze(0))[0]  # [1, N]
            wav = f"example-{number:02d}.wav"
            made = {"synthetic": True, "model": "codec reconstruction", "codec": codec.fingerprint()}
            Audio(wave, codec.sample_rate, info=made).save(folder / wav)
        durations = split.durations(i).tolist() if pack.info.aligned else []
        examples.append(
            Example(
                id=split.ids[i],
                split=name,
                speaker=pack.info.speakers[speaker] if speaker >= 0 else "",
                seconds=codes.shape[1] / pack.info.frame_rate,
                symbols=tuple(inventory.decode(split.phonemes(i).tolist())),
                durations_s=tuple(d / pack.info.frame_rate for d in durations),
                wav=wav,
            )
        )
    return examples


def write_page(
    pack: Pack, out: Path, codec: Codec | None = None, *, n_examples: int = 10, seed: int = 0, why_not: str = ""
) -> None:
    """Write ``index.html``, its plots and, with ``codec``, its examples into ``out``, which is made.

    Args:
        pack: what to show.
        out: the page's folder.
        codec: that of the pack; without it the examples are silent.
        n_examples: at most so many.
        seed: of their choice.
        why_not: what the page says where there is no codec.

    Raises:
        ValleError: the folder cannot be written.
        ModuleNotFoundError: there is no matplotlib.
    """
    import matplotlib.figure  # noqa: F401  here, before anything is written

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValleError(f"the folder {out} cannot be made: {error.strerror or error}; give another --out") from error
    numbers = statistics(pack)
    inventory = PhonemeInventory.load(pack.folder / PHONEMES_FILE)
    for name, image in _plots(numbers, inventory).items():
        write_atomic(out / f"{name}.png", image)
    examples = draw_examples(pack, out, codec, n=n_examples, seed=seed)
    write_atomic(out / "index.html", _page(pack, numbers, examples, why_not).encode())


def _plots(numbers: PackStatistics, inventory: PhonemeInventory) -> dict[str, bytes]:
    """PNG files by name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a symbol that the font lacks is drawn as a box
        return {
            "durations": _histogram(numbers.seconds, "seconds", "utterances"),
            "rates": _histogram(numbers.phonemes_per_s, "phonemes a second", "utterances"),
            "phonemes": _phoneme_plot(numbers, inventory),
            "speakers": _speaker_plot(numbers),
            "codes": _code_plot(numbers),
        }


def _axes(n: int = 1, height: float = 3.0) -> tuple[Any, list[Any]]:
    """A figure and its n axes in a row."""
    figure = new_figure(9, height)
    axes = figure.subplots(1, n, squeeze=False)[0].tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _histogram(values: NDArray[np.float64], what: str, of: str) -> bytes:
    figure, (ax,) = _axes()
    if len(values):
        ax.hist(values, bins=60, color=_COLOUR)
        ax.axvline(float(np.median(values)), color="black", linewidth=1, label=f"median {np.median(values):.1f}")
        ax.legend(frameon=False)
    ax.set_xlabel(what)
    ax.set_ylabel(of)
    return as_bytes(figure)


def _phoneme_plot(numbers: PackStatistics, inventory: PhonemeInventory) -> bytes:
    figure, (ax,) = _axes()
    share = 100 * numbers.phoneme_counts / max(int(numbers.phoneme_counts.sum()), 1)
    order = [i for i in np.argsort(-share, kind="stable").tolist() if share[i] > 0][:_N_PHONEMES]
    ax.bar(range(len(order)), share[order], color=_COLOUR)
    ax.set_xticks(range(len(order)), [_visible(inventory.symbols[i]) for i in order], fontsize=8)
    ax.margins(x=0.01)
    ax.set_ylabel("% of all symbols")
    return as_bytes(figure)


def _speaker_plot(numbers: PackStatistics) -> bytes:
    top = list(numbers.speaker_hours.items())[:_N_SPEAKERS]
    figure, (ax,) = _axes(height=1 + 0.2 * max(len(top), 1))
    ax.barh(range(len(top)), [hours for _, hours in top], color=_COLOUR)
    ax.set_yticks(range(len(top)), [_shorten(name) or "(not known)" for name, _ in top], fontsize=8, parse_math=False)
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.set_xlabel("hours")
    return as_bytes(figure)


def _code_plot(numbers: PackStatistics) -> bytes:
    figure, (left, right) = _axes(2)
    k, size = numbers.code_counts.shape
    for ax, values, what, top in (
        (left, numbers.perplexity, f"perplexity, of {size}", size),
        (right, 100 * numbers.used_share, "% of the entries that occur", 100),
    ):
        ax.bar(range(1, k + 1), values, color=_COLOUR)
        ax.set_xticks(range(1, k + 1))
        ax.set_ylim(0, top)
        ax.set_xlabel("codebook")
        ax.set_ylabel(what)
    return as_bytes(figure)


_STYLE = """
.example { border-top: 1px solid var(--line); padding: .8rem 0 } .phonemes { font-size: 1.1rem }
.strip { display: flex; font-size: .7rem } .strip span { overflow: hidden; white-space: nowrap; min-width: 0 }
.strip span:nth-child(odd) { background: var(--tint) }
"""


def _page(pack: Pack, numbers: PackStatistics, examples: list[Example], why_not: str) -> str:
    info = pack.info
    splits = {name: pack.split(name) for name in pack.splits}
    title = f"Pack {pack.folder.resolve().name}"
    kind = "aligned: it tells how long each phoneme lasts" if info.aligned else "not aligned"
    counted = f" Counted in {numbers.n_counted} of {len(numbers.seconds)} utterances."
    partly = counted if numbers.n_counted < len(numbers.seconds) else ""
    n_known = sum(name != "" for name in numbers.speaker_hours)
    use: Table = [("codebook", "perplexity", "entries that occur")]
    for k, (perplexity, used) in enumerate(zip(numbers.perplexity, numbers.used_share, strict=True), 1):
        use.append((str(k), f"{perplexity:.0f}", f"{100 * used:.1f} %"))
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>Codec {html.escape(info.codec_fingerprint)}, {info.n_quantizers} codebooks of {info.codebook_size}, "
        f"{info.frame_rate:g} frames a second; phonemes {html.escape(info.inventory_version)}; {kind}.</p>",
        page.table(split_table(pack, splits), "splits"),
        page.table(rejected_table(pack), "left out"),
        "<h2>Lengths</h2>",
        _img("durations", "Histogram of the lengths of utterances"),
        "<h2>Phonemes a second</h2>",
        "<p class='note'>All symbols count: sounds, marks and word boundaries. Far from the middle the text is "
        "seldom what is said.</p>",
        _img("rates", "Histogram of phonemes a second"),
        "<h2>Phonemes</h2>",
        f"<p class='note'>The {_N_PHONEMES} commonest at most.{partly}</p>",
        _img("phonemes", "Share of each phoneme"),
        "<h2>Speakers</h2>",
        f"<p class='note'>The {min(_N_SPEAKERS, len(numbers.speaker_hours))} with the most hours, of {n_known} known "
        "ones.</p>",
        _img("speakers", "Hours by speaker"),
        "<h2>Use of the codes</h2>",
        "<p class='note'>Perplexity: as many entries as if all were used equally often. A codebook of which little is "
        f"used teaches little.{partly}</p>",
        _img("codes", "Perplexity and used share of each codebook"),
        page.table(use, "use of the codebooks"),
        "<h2>Examples</h2>",
        f"<p>{html.escape(why_not)}</p>" if why_not else "<p class='note'>Decoded from the codes.</p>",
        *(_example(example) for example in examples),
    ]
    return page.page(title, parts, _STYLE)


def _example(example: Example) -> str:
    speaker = html.escape(example.speaker) or "speaker not known"
    lines = [
        '<div class="example">',
        f"<b>{html.escape(example.id)}</b> <span class='note'>{html.escape(example.split)}, {speaker}, "
        f"{example.seconds:.2f} s, {len(example.symbols)} phonemes</span>",
        f'<div class="phonemes">{html.escape("".join(example.symbols))}</div>',
    ]
    if example.wav:
        lines.append(page.player(page.reference(example.wav), example.id))
    if example.durations_s:
        lasting = [(s, d) for s, d in zip(example.symbols, example.durations_s, strict=True) if d > 0]
        spans = (
            f'<span style="flex:{d:.4f}" title="{html.escape(_visible(s))} {1000 * d:.0f} ms">'
            f"{html.escape(_visible(s))}</span>"
            for s, d in lasting
        )
        lines.append(f'<div class="strip">{"".join(spans)}</div>')
    return "\n".join([*lines, "</div>"])


def _img(name: str, alt: str) -> str:
    return f'<img src="{name}.png" alt="{alt}">'


def _text(rows: Table) -> str:
    """Columns for a terminal: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]) + "\n"
        for row in rows
    )


def _visible(symbol: str) -> str:
    """A symbol by itself: a space that is seen, a diacritic with something below it."""
    if symbol == " ":
        return "␣"
    return f"◌{symbol}" if unicodedata.combining(symbol[0]) else symbol


def _shorten(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
