"""Build a packed dataset: text -> normalised -> phoneme ids, audio -> codec -> codes (paper §4.1, recogniser left out).

Utterances that would teach nonsense are left out with a reason: unreadable or silent audio, too short or too long, no
text, or a text that its audio cannot hold. Each is encoded alone, because padding would change the codes at its end. A
build that was stopped goes on where it was: a shard that is complete and made from the same input is kept.

With an aligner (``valle.asr``) the pack also tells how many frames each phoneme lasts. With ``augment`` it holds more
versions of each utterance, by virtual voices (``valle.data.augment``).

``valle prepare SOURCE... --codec DIR --out DIR [--splits train,dev] [--aligner DIR] [--augment N]``
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from valle.config import to_dict
from valle.data.augment import RECIPE, scale_durations, version_name, voice_of
from valle.data.corpus import Utterance, load_wav, read_manifest
from valle.data.pack import (
    INFO_FILE,
    PHONEMES_FILE,
    Pack,
    PackedUtterance,
    PackInfo,
    PackSplit,
    ShardInfo,
    write_info,
    write_shard,
)
from valle.errors import ValleError

if TYPE_CHECKING:
    from valle.asr import Aligner
    from valle.codec.base import Codec
    from valle.text import PhonemeInventory

Phonemize = Callable[[str, str], Sequence[str]]
A = TypeVar("A")
B = TypeVar("B")

SILENCE_PEAK = 1e-3
"""A recording that never gets louder than this, -60 dBFS, is silence."""
MAX_PHONEMES_PER_S = 35.0
"""Nobody speaks faster (fast conversation has about 20): the text is not what is said."""
MIN_PHONEMES_PER_S = 1.5
"""Nobody speaks slower: the recording goes on after the text."""


@dataclass(frozen=True)
class PrepareConfig:
    """What decides which utterances enter a pack, and its form."""

    min_seconds: float = 0.5
    """Shorter recordings are left out."""
    max_seconds: float = 30.0
    """Longer recordings are left out."""
    shard_hours: float = 1.0
    """Length of one file of the pack; a stopped build loses at most this much."""
    trim: bool = True
    """Cut silence off both ends, as is done with references."""
    normalise: bool = True
    """Bring all to one level, that of references."""
    compact: bool = False
    """Store ten bits a code instead of sixteen."""
    min_fit: float | None = None
    """With an aligner: utterances whose text fits worse (``Alignment.fit``, -4 is hardly what is said) are left out; by
    default none."""
    augment: int = 0
    """Further versions of each utterance, by as many virtual voices of its speaker."""
    augment_splits: tuple[str, ...] = ("train",)
    """Splits that get them; others are to tell of real voices."""

    def __post_init__(self) -> None:
        if self.augment < 0:
            raise ValleError(f"augment is {self.augment}; it is how many versions of an utterance to add, 0 or more")

    def n_versions(self, split: str) -> int:
        """Further versions of each utterance of a split."""
        return self.augment if split in self.augment_splits else 0


class Rejected(Exception):
    """This utterance stays out; the message is the reason."""


def read_utterance(
    utterance: Utterance,
    sample_rate: int,
    inventory: PhonemeInventory,
    phonemize: Phonemize,
    config: PrepareConfig,
) -> tuple[list[int], Tensor]:
    """Phoneme ids and wav [1, N] of an utterance that is fit to learn from; an aligner learns from the same.

    Raises:
        Rejected: it is not.
    """
    if not (utterance.text or "").strip():
        raise Rejected("no text")
    assert utterance.text is not None
    try:
        ids = inventory.encode(list(phonemize(utterance.text, utterance.lang)))
    except ValleError as error:
        raise Rejected("text that cannot be phonemised") from error
    wav = _load(utterance, sample_rate, config)  # [1, N]
    seconds = wav.shape[1] / sample_rate
    if len(ids) / seconds > MAX_PHONEMES_PER_S:
        raise Rejected("more text than its audio can hold")
    if len(ids) / seconds < MIN_PHONEMES_PER_S:
        raise Rejected("more audio than its text can fill")
    return ids, wav


def ahead(function: Callable[[A], B], items: Iterable[A], *, n_threads: int = 2, depth: int = 16) -> Iterator[B]:
    """``map(function, items)`` in threads, up to ``depth`` items before they are asked for; the order stays."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _load(utterance: Utterance, sample_rate: int, config: PrepareConfig) -> Tensor:
    """wav [1, N], made ready as ``valle.audio.load_reference`` makes the prompts that the models will be given."""
    from valle.audio import normalise_loudness, trim_silence

    try:
        wav = load_wav(utterance, sample_rate)  # [1, N]
    except ValleError as error:
        raise Rejected("unreadable audio") from error
    if float(wav.abs().max()) < SILENCE_PEAK:
        raise Rejected("silent audio")
    if config.trim:
        wav = trim_silence(wav, sample_rate)
    seconds = wav.shape[1] / sample_rate
    if seconds < config.min_seconds:
        raise Rejected(f"shorter than {config.min_seconds:g} s")
    if seconds > config.max_seconds:
        raise Rejected(f"longer than {config.max_seconds:g} s")
    if config.normalise:
        wav = normalise_loudness(wav, sample_rate)
    return wav


def build_pack(
    manifests: Sequence[str | Path],
    codec: Codec,
    out: str | Path,
    *,
    splits: Iterable[str] = ("train", "dev"),
    config: PrepareConfig | None = None,
    inventory: PhonemeInventory | None = None,
    phonemize: Phonemize | None = None,
    device: str | torch.device = "cpu",
    aligner: Aligner | None = None,
    like: Pack | None = None,
) -> PackInfo:
    """Encode the utterances of ``manifests`` into the pack ``out``.

    Args:
        manifests: one or more ``manifest.jsonl`` (or their folders); speaker names must be unique over all of them.
        codec: makes the codes; its fingerprint is stored.
        out: the pack's folder; complete shards of the same input that are in it are kept.
        splits: which splits to take.
        config: what to leave out.
        inventory: phoneme ids, ``valle.text.DEFAULT_INVENTORY`` by default.
        phonemize: (text, language) -> symbols, ``valle.text`` with espeak by default.
        device: where the codec runs.
        aligner: tells how long each phoneme lasts; without one the pack holds no durations.
        like: a pack of the same recordings by another codec, whose phonemes and durations are taken over: only the
            codes are made anew, in a third of the time. What it does not hold is left out, or with ``aligner``, which
            must be the pack's, prepared as any other.

    Raises:
        ValleError: a manifest is wrong, the aligner is for another inventory or frame rate, no utterance of a split is
            fit, or a name could be taken for a version's.
    """
    config, splits, out = config or PrepareConfig(), tuple(splits), Path(out)
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
    utterances = [u for manifest in manifests for u in read_manifest(manifest) if u.split in splits]
    for split in splits:
        if not any(u.split == split for u in utterances):
            raise ValleError(f"no manifest given has an utterance in the split {split!r}")
    if config.augment:
        _check_names(utterances)
    codec = codec.to(device).eval()
    out.mkdir(parents=True, exist_ok=True)
    inventory.save(out / PHONEMES_FILE)
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
    maker = _ShardMaker(info, codec, inventory, phonemize, config, device, aligner)
    if like is not None:
        maker.recall([like.split(split) for split in splits])
    shards: list[ShardInfo] = []
    rejected: list[dict[str, str]] = []
    often = 0.2 if sys.stderr.isatty() else 30.0  # seconds between updates: a log is not a screen
    with tqdm(total=len(utterances), desc="prepare", file=sys.stderr, dynamic_ncols=True, mininterval=often) as bar:
        for split in splits:
            hours = config.shard_hours / (1 + config.n_versions(split))
            for number, part in enumerate(_parts([u for u in utterances if u.split == split], hours)):
                shard, left_out = maker.make(out / f"{split}-{number:05d}.safetensors", split, part, bar)
                shards.append(shard)
                rejected += left_out
    reasons = {split: dict(Counter(r["reason"] for r in rejected if r["split"] == split)) for split in splits}
    for split in splits:
        if not sum(s.utterances for s in shards if s.split == split):
            raise ValleError(f"every utterance of the split {split!r} was left out: {reasons[split]}")
    (out / "rejected.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rejected), encoding="utf-8")
    info = dataclasses.replace(info, shards=tuple(shards), rejected=reasons)
    write_info(out, info)
    return info


class _ShardMaker:
    """Makes one shard after the other."""

    def __init__(
        self,
        info: PackInfo,
        codec: Codec,
        inventory: PhonemeInventory,
        phonemize: Phonemize,
        config: PrepareConfig,
        device: str | torch.device,
        aligner: Aligner | None,
    ) -> None:
        self.info, self.codec, self.inventory, self.config = info, codec, inventory, config
        self.phonemize, self.device, self.aligner = phonemize, device, aligner
        self.speakers = {name: i for i, name in enumerate(info.speakers)}
        self.known: dict[str, tuple[PackSplit, int]] | None = None

    def recall(self, splits: Iterable[PackSplit]) -> None:
        """Take phonemes and durations from these splits instead of making them."""
        self.known = {name: (split, i) for split in splits for i, name in enumerate(split.ids)}

    def _recalls(self, utterance: Utterance) -> bool:
        """Whether its phonemes and durations are those of another pack."""
        return self.known is not None and utterance.id in self.known

    def make(
        self, path: Path, split: str, utterances: list[Utterance], bar: tqdm[Any]
    ) -> tuple[ShardInfo, list[dict[str, str]]]:
        """Write one shard, or keep the one that is there; returns it and what was left out of it."""
        n_versions = self.config.n_versions(split)
        key = self._key(utterances, n_versions)
        metadata = _metadata(path)
        if metadata.get("key") == key:
            bar.update(len(utterances))
        else:
            packed: list[PackedUtterance] = []
            left_out: list[dict[str, str]] = []
            reads = ahead(functools.partial(self._read, n_versions), utterances, depth=max(2, 16 // (1 + n_versions)))
            for utterance, read in zip(utterances, reads, strict=True):
                try:
                    if isinstance(read, Rejected):
                        raise read
                    packed += self._encode(utterance, *read)
                except Rejected as reason:
                    detail = str(reason.__cause__ or "")
                    left_out.append({"id": utterance.id, "split": split, "reason": str(reason), "detail": detail})
                bar.update()
            n_frames = sum(u.codes.shape[1] for u in packed)
            # Without it the folder is no pack: what it said of the shards is true no more.
            (path.parent / INFO_FILE).unlink(missing_ok=True)
            extra = {"key": key, "n_frames": str(n_frames), "rejected": json.dumps(left_out)}
            write_shard(path, packed, self.info, compact=self.config.compact, metadata=extra)
            metadata = _metadata(path)
        hours = int(metadata["n_frames"]) / self.info.frame_rate / 3600
        rejected: list[dict[str, str]] = json.loads(metadata["rejected"])
        return ShardInfo(path.name, split, len(json.loads(metadata["ids"])), round(hours, 4)), rejected

    def _read(self, n_versions: int, utterance: Utterance) -> tuple[list[int], list[Tensor]] | Rejected:
        """What can be done before the codec's turn comes, in another thread: phonemes, and the wav of each version."""
        rate = self.codec.sample_rate
        try:
            if self.known is not None and utterance.id in self.known:
                split, i = self.known[utterance.id]
                ids, wav = split.phonemes(i).tolist(), _load(utterance, rate, self.config)  # [S], [1, N]
            elif self.known is None or self.aligner is not None:
                ids, wav = read_utterance(utterance, rate, self.inventory, self.phonemize, self.config)
            else:
                raise Rejected("not in the pack it was to be like")
        except Rejected as reason:
            return reason
        return ids, [wav, *(self._version(utterance, wav, version) for version in range(1, n_versions + 1))]

    def _version(self, utterance: Utterance, wav: Tensor, version: int) -> Tensor:
        """wav [1, N] as a virtual voice, [1, N']; the level is set last, as that of a reference is."""
        from valle.audio import normalise_loudness

        voice = voice_of(utterance.speaker, utterance.id, version)
        wav = voice.apply(wav, self.codec.sample_rate, utterance.id)
        return normalise_loudness(wav, self.codec.sample_rate) if self.config.normalise else wav

    def _encode(self, utterance: Utterance, ids: list[int], wavs: list[Tensor]) -> list[PackedUtterance]:
        """Codes, and durations if they are known, of each version of an utterance that is fit; or ``Rejected``."""
        durations = self._durations(utterance, ids, wavs[0])  # [S]
        packed: list[PackedUtterance] = []
        for version, wav in enumerate(wavs):
            with torch.inference_mode():
                codes = self.codec.encode(wav.unsqueeze(0).to(self.device))[0].cpu()  # [8, T]
            lasting = durations
            if durations is not None and version:
                lasting = scale_durations(durations, codes.shape[1])
            elif durations is not None and int(durations.sum()) != codes.shape[1]:
                assert self._recalls(utterance), "the aligner and the codec disagree about the frames"
                raise Rejected("a recording that is not as it was in the pack it was to be like")
            speaker = -1 if utterance.speaker is None else self.speakers[version_name(utterance.speaker, version)]
            name = version_name(utterance.id, version)
            packed.append(PackedUtterance(name, torch.tensor(ids), codes, speaker, lasting))
        return packed

    def _durations(self, utterance: Utterance, ids: list[int], wav: Tensor) -> Tensor | None:
        """Frames of each phoneme [S] in the recording, None where nothing tells them; or ``Rejected``."""
        if self._recalls(utterance):
            assert self.known is not None
            split, i = self.known[utterance.id]
            return split.durations(i) if self.info.aligned else None
        if self.aligner is None:
            return None
        try:
            alignment = self.aligner.align(wav, ids)
        except ValleError as error:
            raise Rejected("text and audio that cannot be aligned") from error
        least = self.config.min_fit
        if least is not None and alignment.fit < least:
            raise Rejected("text that is hardly what is said")
        return alignment.durations

    def _key(self, utterances: list[Utterance], n_versions: int) -> str:
        """What a shard was made from; another key means that it must be made again."""
        digest = hashlib.sha256()
        config = to_dict(self.config)
        del config["augment"], config["augment_splits"]  # n_versions says it, and only where there are versions
        made_by = [self.codec.fingerprint(), self.inventory.version, config]
        if self.aligner is None:
            del config["min_fit"]  # it decides nothing
        else:
            made_by.append(self.aligner.fingerprint())
        if self.known is not None:
            made_by.append(f"like {self.info.aligner}")
        if n_versions:
            made_by.append(f"virtual voices {n_versions}, recipe {RECIPE}")
        digest.update(json.dumps(made_by).encode())
        for u in utterances:
            number = None if u.speaker is None else self.speakers[u.speaker]
            digest.update(json.dumps([u.id, str(u.path), u.text, u.lang, number]).encode())
            if n_versions and u.speaker is not None:  # its name draws the voices
                numbers = [self.speakers[version_name(u.speaker, v)] for v in range(1, n_versions + 1)]
                digest.update(json.dumps([u.speaker, numbers]).encode())
            if self.known is not None and u.id in self.known:
                split, i = self.known[u.id]
                durations = split.durations(i).tolist() if self.info.aligned else []
                digest.update(json.dumps([split.phonemes(i).tolist(), durations]).encode())
        return digest.hexdigest()[:16]


def _parts(utterances: list[Utterance], hours: float) -> list[list[Utterance]]:
    """Cut into runs of about ``hours`` each."""
    parts: list[list[Utterance]] = [[]]
    filled = 0.0
    for utterance in utterances:
        if filled >= hours * 3600:
            parts.append([])
            filled = 0.0
        parts[-1].append(utterance)
        filled += utterance.seconds
    return parts


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


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a shard; empty when it is not there or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def _check_fit(aligner: Aligner, inventory: PhonemeInventory, codec: Codec) -> None:
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


def espeak() -> Phonemize:
    """Normaliser and espeak, one phonemizer a language."""
    from valle.text import Phonemizer

    made: dict[str, Phonemizer] = {}

    def phonemize(text: str, lang: str) -> Sequence[str]:
        if lang not in made:
            made[lang] = Phonemizer(lang)
        return made[lang](text)

    return phonemize


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``valle prepare``."""
    parser = argparse.ArgumentParser(prog="valle prepare", description="Recordings and their texts to training data.")
    parser.add_argument("manifests", nargs="+", metavar="SOURCE", help="manifest.jsonl, or the folder it lies in")
    parser.add_argument("--codec", required=True, metavar="DIR", help="the codec")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the packed dataset goes")
    parser.add_argument("--splits", default="train,dev", metavar="A,B", help="which splits to take (train,dev)")
    parser.add_argument("--min-seconds", type=float, default=PrepareConfig.min_seconds, metavar="F")
    parser.add_argument("--max-seconds", type=float, default=PrepareConfig.max_seconds, metavar="F")
    parser.add_argument("--aligner", metavar="DIR", help="also tell how long each phoneme lasts, by this aligner")
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
    parser.add_argument("--compact", action="store_true", help="ten bits a code in place of sixteen, for travelling")
    parser.add_argument("--device", default="cpu", help="where the codec runs (cpu)")
    args = parser.parse_args(argv)
    if args.min_fit is not None and not args.aligner:
        raise ValleError("--min-fit is given without --aligner, which tells how well a text fits; give both")
    splits = args.splits.split(",")
    if args.augment and not any(split in PrepareConfig.augment_splits for split in splits):
        raise ValleError("--augment adds to the split train, which is not among --splits; leave out one of the two")
    from valle.codec.base import load_codec

    config = PrepareConfig(
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
        compact=args.compact,
        min_fit=args.min_fit,
        augment=args.augment,
    )
    codec = load_codec(args.codec)
    aligner = None
    if args.aligner:
        from valle.asr import Aligner

        aligner = Aligner.load(args.aligner)
    info = build_pack(
        args.manifests,
        codec,
        args.out,
        splits=splits,
        config=config,
        device=args.device,
        aligner=aligner,
        like=Pack(args.like) if args.like else None,
    )
    for split in splits:
        n = sum(s.utterances for s in info.shards if s.split == split)
        left_out = ", ".join(f"{n} {reason}" for reason, n in info.rejected[split].items()) or "none"
        tqdm.write(f"{split}: {n} utterances, {info.hours(split):.2f} h; left out: {left_out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from valle.cli import main as cli

    sys.exit(cli(["prepare", *sys.argv[1:]]))
