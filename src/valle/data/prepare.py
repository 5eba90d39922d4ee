"""Build a packed dataset: text -> normalised -> phoneme ids, audio -> codec -> codes (paper §4.1).

Recordings come from any source (``valle.data.sources``). Those without text are transcribed if there is a recogniser
(``valle.data.recognise``), and cut in their pauses where they are long (``valle.data.cutting``); what would teach
nonsense is left out with a reason (``valle.data.reading``); with an aligner (``valle.asr``) the pack also tells how
many frames each phoneme lasts; with ``augment`` it holds more versions of each utterance, by virtual voices
(``valle.data.augment``). A build that was stopped goes on where it was (``valle.data.shards``); many workers make the
same pack as one (``valle.data.engine``).

``valle prepare SOURCE... --codec DIR --out DIR [--recogniser KIND:MODEL] [--aligner DIR] [--augment N] [--workers N]``
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from valle.data.augment import version_name
from valle.data.corpus import Utterance
from valle.data.cutting import check_names, is_too_long
from valle.data.engine import Recipe, Shard, check_workers, make_shards
from valle.data.pack import INFO_FILE, PHONEMES_FILE, Pack, PackInfo, ShardInfo, write_info
from valle.data.progress import Progress
from valle.data.quality import QualityConfig
from valle.data.reading import Phonemize, PrepareConfig, espeak
from valle.data.segment import load_detector
from valle.data.shards import parts
from valle.data.sources import SourceConfig, read_sources
from valle.errors import ValleError
from valle.files import write_atomic

if TYPE_CHECKING:
    from valle.asr import PhonemeAligner
    from valle.codec.base import Codec
    from valle.data.segment import SpeechDetector
    from valle.data.transcripts import Recogniser
    from valle.text import PhonemeInventory


def build_pack(
    sources: Sequence[str | Path],
    codec: Codec,
    out: str | Path,
    *,
    splits: Iterable[str] = ("train", "dev"),
    config: PrepareConfig | None = None,
    inventory: PhonemeInventory | None = None,
    phonemize: Phonemize | None = None,
    device: str | torch.device = "cpu",
    aligner: PhonemeAligner | None = None,
    like: Pack | None = None,
    source_config: SourceConfig | None = None,
    recogniser: Recogniser | str | None = None,
    transcripts: str | Path | None = None,
    min_confidence: float = 0.0,
    detector: SpeechDetector | None = None,
    workers: int = 1,
    ray_address: str | None = None,
) -> PackInfo:
    """Encode the utterances of ``sources`` into the pack ``out``.

    Args:
        sources: paths or ``kind:path`` (``valle.data.sources``); speaker names must be unique over all of them.
        codec: makes the codes; its fingerprint is stored.
        out: the pack's folder; complete shards of the same input that are in it are kept.
        splits: which splits to take; ``train+unlabelled`` takes two as one, named as the first.
        config: what to leave out.
        inventory: phoneme ids, ``valle.text.DEFAULT_INVENTORY`` by default.
        phonemize: (text, language) -> symbols, ``valle.text`` with espeak by default.
        device: where the codec runs.
        aligner: tells how long each phoneme lasts; without one the pack holds no durations.
        like: a pack of the same recordings by another codec, whose phonemes and durations are taken over: only the
            codes are made anew, in a third of the time. What it does not hold is left out, or with ``aligner``, which
            must be the pack's, prepared as any other.
        source_config: what the sources do not tell themselves.
        recogniser: transcribes recordings without text; without one they are left out. ``KIND:MODEL`` is loaded by
            each worker.
        transcripts: where its transcripts are kept, ``out/transcripts.jsonl`` by default.
        min_confidence: transcripts of which it is less sure are left out.
        detector: tells speech from pauses in recordings that are cut; Silero's by default.
        workers: how many shards are made at a time; the pack is the same. More than one needs Ray.
        ray_address: of a Ray cluster whose machines work (``valle.data.engine.make_shards``).

    Raises:
        ValleError: a source is wrong, the aligner is for another inventory or frame rate, no utterance of a split is
            fit, a name could be taken for a version's, or workers cannot be had.
    """
    config, splits, out = config or PrepareConfig(), tuple(splits), Path(out)
    check_workers(workers, ray_address)
    if inventory is None:
        from valle.text import DEFAULT_INVENTORY

        inventory = DEFAULT_INVENTORY
    phonemize = phonemize or espeak()
    if aligner is not None:
        _check_fit(aligner, inventory, codec)
    if like is not None:
        if aligner is not None and like.info.aligner != aligner.fingerprint():
            raise ValleError(
                f"the durations in the pack {like.folder} are another aligner's; give --aligner the one that it was "
                "made with, or leave --like out"
            )
        if like.folder.resolve() == out.resolve():
            raise ValleError(f"{out} cannot be made like itself; give another folder with --out")
        like.require(inventory_version=inventory.version)
        if like.info.frame_rate != codec.frame_rate:
            raise ValleError(
                f"the pack {like.folder} has {like.info.frame_rate:g} frames a second and the codec "
                f"{codec.frame_rate:g}; prepare without --like"
            )
    taken, splits = _taken(splits)
    utterances = [
        dataclasses.replace(u, split=taken[u.split]) for u in read_sources(sources, source_config) if u.split in taken
    ]
    for split in splits:
        if not any(u.split == split for u in utterances):
            raise ValleError(
                f"no source given has an utterance in the split {split!r}; take other splits with --splits, or where "
                "the source has no splits of its own, see --dev-share and --split-by"
            )
    if config.augment:
        _check_names(utterances)
    cuts = recogniser is not None and any(is_too_long(u, config) for u in utterances)
    if cuts:
        check_names(utterances)
    out.mkdir(parents=True, exist_ok=True)
    for torn in out.glob(".*.part"):  # left by a run that was killed while writing
        torn.unlink(missing_ok=True)
    _save_inventory(out, inventory)
    info = PackInfo(
        codec_fingerprint=codec.fingerprint(),
        inventory_version=inventory.version,
        n_phonemes=len(inventory),
        separator_id=inventory.encode([" "])[0],
        frame_rate=codec.frame_rate,
        n_quantizers=codec.n_quantizers,
        codebook_size=codec.codebook_size,
        phoneme_kinds=inventory.kinds,
        aligned=like.info.aligned if like is not None else aligner is not None,
        aligner=like.info.aligner if like is not None else "" if aligner is None else aligner.fingerprint(),
        speakers=_speakers(utterances, config),
        augment=max((config.n_versions(split) for split in splits), default=0),
    )
    recipe = Recipe(
        out,
        info,
        codec,
        inventory,
        phonemize,
        config,
        device,
        aligner,
        like=None if like is None else like.folder,
        like_splits=splits,
        recogniser=recogniser,
        transcripts=Path(transcripts or out / "transcripts.jsonl"),
        min_confidence=min_confidence,
        detector=(detector or load_detector().name) if cuts else None,
    )
    to_make: list[Shard] = []
    for split in splits:
        hours = config.shard_hours / (1 + config.n_versions(split))
        for number, part in enumerate(parts([u for u in utterances if u.split == split], hours)):
            to_make.append(Shard(len(to_make), f"{split}-{number:05d}.safetensors", split, part))
    shards: list[ShardInfo] = []
    rejected: list[dict[str, str]] = []
    with Progress(sum(u.seconds for u in utterances)) as progress:
        for made in make_shards(recipe, to_make, progress, workers=workers, ray_address=ray_address):
            shards.append(made.info)
            rejected += made.rejected
    reasons = {split: dict(Counter(r["reason"] for r in rejected if r["split"] == split)) for split in splits}
    for split in splits:
        if not sum(s.utterances for s in shards if s.split == split):
            raise ValleError(f"every utterance of the split {split!r} was left out: {reasons[split]}")
    write_atomic(out / "rejected.jsonl", "".join(json.dumps(r) + "\n" for r in rejected).encode())
    info = dataclasses.replace(info, shards=tuple(shards), rejected=reasons)
    write_info(out, info)
    return info


def _save_inventory(out: Path, inventory: PhonemeInventory) -> None:
    """Write ``phonemes.json``; what ``dataset.json`` says with another one is true no more, so it goes first."""
    path = out / PHONEMES_FILE
    try:
        is_there = type(inventory).load(path) == inventory
    except (OSError, ValueError):
        is_there = False
    if not is_there:
        (out / INFO_FILE).unlink(missing_ok=True)
        inventory.save(path)


def _taken(splits: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """``train+unlabelled, dev`` -> in which split of the pack each one goes, and the splits of the pack.

    Raises:
        ValleError: a split is taken twice.
    """
    groups = [split.split("+") for split in splits]
    names = [name for group in groups for name in group]
    for name in names:
        if not name or names.count(name) > 1:
            raise ValleError(
                f"--splits takes the split {name!r} more than once, or a name is empty; give each once, such as "
                "train+unlabelled,dev"
            )
    return {name: group[0] for group in groups for name in group}, tuple(group[0] for group in groups)


def _speakers(utterances: list[Utterance], config: PrepareConfig) -> tuple[str, ...]:
    """Names of the speakers, then of their virtual ones: the numbers of the real ones do not depend on those."""
    real = {u.speaker for u in utterances if u.speaker is not None}
    virtual = {
        version_name(u.speaker, version)
        for u in utterances
        if u.speaker is not None
        for version in range(1, config.n_versions(u.split) + 1)
    }
    return (*sorted(real), *sorted(virtual))


def _check_names(utterances: list[Utterance]) -> None:
    """
    Raises:
        ValleError: a name that a version of another could have.
    """
    for u in utterances:
        for what, name in (("id", u.id), ("speaker", u.speaker or "")):
            if "~" in name:
                raise ValleError(
                    f"the {what} {name!r} has a ~, by which versions of virtual voices are named; "
                    "rename it or leave out --augment"
                )


def _check_fit(aligner: PhonemeAligner, inventory: PhonemeInventory, codec: Codec) -> None:
    """
    Raises:
        ValleError: the aligner's phonemes are not the inventory's, or its frames not the codec's.
    """
    from valle.asr.aligner import HOP_LENGTH, SAMPLE_RATE

    if aligner.inventory_version != inventory.version:
        raise ValleError(
            f"the aligner knows the phoneme inventory {aligner.inventory_version}, but {inventory.version} is used; "
            "train one with `valle asr train-aligner`"
        )
    if (codec.sample_rate, codec.hop_length) != (SAMPLE_RATE, HOP_LENGTH):
        raise ValleError(
            f"the codec has a frame every {codec.hop_length} samples at {codec.sample_rate} Hz; an aligner is for "
            f"{HOP_LENGTH} at {SAMPLE_RATE} Hz: leave out --aligner"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``valle prepare``."""
    parser = argparse.ArgumentParser(prog="valle prepare", description="Recordings and their texts to training data.")
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder of recordings, a list of them, a corpus or a data set: PATH or KIND:PATH (docs/data.md)",
    )
    parser.add_argument(
        "--codec", default="embedded", metavar="DIR", help="the codec, or a model that has it (embedded)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the packed dataset goes")
    parser.add_argument(
        "--splits", default="train,dev", metavar="A,B", help="which splits to take; A+B takes two as one (train,dev)"
    )
    parser.add_argument("--min-seconds", type=float, default=PrepareConfig.min_seconds, metavar="F")
    parser.add_argument("--max-seconds", type=float, default=PrepareConfig.max_seconds, metavar="F")
    parser.add_argument(
        "--aligner",
        metavar="DIR",
        help="also tell how long each phoneme lasts, by this aligner, or that of a model, such as embedded",
    )
    parser.add_argument(
        "--like",
        metavar="PACK",
        help="take phonemes and durations from a pack of these recordings by another codec; with --aligner, others too",
    )
    parser.add_argument(
        "--min-fit",
        type=float,
        metavar="F",
        help="with --aligner: leave out texts that fit worse, such as -4 (none)",
    )
    parser.add_argument(
        "--augment",
        type=int,
        default=PrepareConfig.augment,
        metavar="N",
        help="add N versions of each utterance of the split train, as spoken by virtual voices (0)",
    )
    parser.add_argument(
        "--recogniser",
        metavar="KIND:MODEL",
        help="transcribe recordings without text: vosk:FOLDER, whisper:base or whisper:FOLDER",
    )
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, metavar="F", help="with --recogniser: of a transcript, 0 to 1 (0)"
    )
    parser.add_argument(
        "--transcripts", metavar="FILE", help="where transcripts are kept (transcripts.jsonl in the pack's folder)"
    )
    parser.add_argument(
        "--segment",
        choices=("auto", "all", "none"),
        default=PrepareConfig.segment,
        help="with --recogniser: cut recordings above --max-seconds in their pauses, into pieces of 10 to 20 s, and "
        "transcribe these; auto: those without text, all: also those with one, which is then not used (auto)",
    )
    parser.add_argument(
        "--quality",
        action="store_true",
        help="leave out what is noisy, clipped, narrow or hardly speech (docs/data.md)",
    )
    source = parser.add_argument_group("sources that have no splits, languages or parts of their own")
    source.add_argument("--dev-share", type=float, default=SourceConfig.dev_share, metavar="F", help="for dev (0.02)")
    source.add_argument("--test-share", type=float, default=SourceConfig.test_share, metavar="F", help="for test (0)")
    source.add_argument("--split-by", choices=("speaker", "utterance"), default="speaker", help="(speaker)")
    source.add_argument("--lang", default=SourceConfig.lang, metavar="L", help="of the texts, as espeak names it (en)")
    source.add_argument("--parts", default="", metavar="A,B", help="of a corpus, such as dev-clean (all)")
    source.add_argument("--download", action="store_true", help="fetch a published corpus first")
    source.add_argument("--cache", metavar="DIR", help="for sound that a data set holds inside")
    parser.add_argument("--compact", action="store_true", help="ten bits a code in place of sixteen, for travelling")
    parser.add_argument(
        "--shard-hours",
        type=float,
        default=PrepareConfig.shard_hours,
        metavar="F",
        help="length of one file, which is made by one worker and begun anew if it was stopped (1)",
    )
    work = parser.add_argument_group("who works (docs/data.md, many workers)")
    work.add_argument("--workers", type=int, default=1, metavar="N", help="shards at a time; more than 1 need Ray (1)")
    work.add_argument("--ray-address", metavar="ADDR", help="let a Ray cluster work: HOST:PORT of its head, or auto")
    work.add_argument("--device", default="cpu", help="where the codec runs; cuda takes a GPU a worker (cpu)")
    args = parser.parse_args(argv)
    if args.min_fit is not None and not args.aligner:
        raise ValleError("--min-fit is given without --aligner, which tells how well a text fits; give both")
    splits = args.splits.split(",")
    if (args.min_confidence or args.transcripts) and not args.recogniser:
        raise ValleError("--min-confidence and --transcripts are for a recogniser; give --recogniser as well")
    if args.segment == "all" and not args.recogniser:
        raise ValleError("--segment all has the pieces of long recordings transcribed; give --recogniser as well")
    if args.augment and not any(split.split("+")[0] in PrepareConfig.augment_splits for split in splits):
        raise ValleError("--augment adds to the split train, which is not among --splits; leave out one of the two")
    from valle.codec.base import load_codec
    from valle.pretrained import part_of

    config = PrepareConfig(
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
        shard_hours=args.shard_hours,
        compact=args.compact,
        min_fit=args.min_fit,
        augment=args.augment,
        quality=QualityConfig() if args.quality else None,
        segment=args.segment,
    )
    source_config = SourceConfig(
        dev_share=args.dev_share,
        test_share=args.test_share,
        split_by=args.split_by,
        lang=args.lang,
        parts=tuple(filter(None, args.parts.split(","))),
        download=args.download,
        cache=Path(args.cache) if args.cache else None,
    )
    check_workers(args.workers, args.ray_address)
    if args.recogniser and (args.workers > 1 or args.ray_address):
        from valle.data.recognise import load_recogniser

        load_recogniser(args.recogniser)  # what is wrong with it shows here, and what it fetches is fetched once
    codec = load_codec(part_of(args.codec, "codec"))
    aligner = None
    if args.aligner:
        from valle.asr.hybrid.model import load_aligner

        aligner = load_aligner(part_of(args.aligner, "aligner"))
    info = build_pack(
        args.sources,
        codec,
        args.out,
        splits=splits,
        config=config,
        device=args.device,
        aligner=aligner,
        like=Pack(args.like) if args.like else None,
        source_config=source_config,
        recogniser=args.recogniser,
        transcripts=args.transcripts,
        min_confidence=args.min_confidence,
        workers=args.workers,
        ray_address=args.ray_address,
    )
    for split in (name.split("+")[0] for name in splits):
        n = sum(s.utterances for s in info.shards if s.split == split)
        left_out = ", ".join(f"{n} {reason}" for reason, n in info.rejected[split].items()) or "none"
        sys.stderr.write(f"{split}: {n} utterances, {info.hours(split):.2f} h; left out: {left_out}\n")
    return 0


if __name__ == "__main__":
    from valle.cli import main as cli

    sys.exit(cli(["prepare", *sys.argv[1:]]))
