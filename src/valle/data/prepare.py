"""Build a packed dataset: text -> normalised -> phoneme ids, audio -> codec -> codes (paper §4.1, recogniser left out).

Utterances that would teach nonsense are left out with a reason: unreadable or silent audio, too short or too long, no
text, or a text that its audio cannot hold. Each is encoded alone, because padding would change the codes at its end. A
build that was stopped goes on where it was: a shard that is complete and made from the same input is kept.

``valle prepare SOURCE... --codec DIR --out DIR [--splits train,dev]``
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from valle.config import to_dict
from valle.data.corpus import Utterance, load_wav, read_manifest
from valle.data.pack import (
    PHONEMES_FILE,
    PackedUtterance,
    PackInfo,
    ShardInfo,
    write_info,
    write_shard,
)
from valle.errors import ValleError

if TYPE_CHECKING:
    from valle.codec.base import Codec
    from valle.text import PhonemeInventory

Phonemize = Callable[[str, str], Sequence[str]]

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


class _Rejected(Exception):
    """This utterance stays out; the message is the reason."""


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

    Raises:
        ValleError: a manifest is wrong, or no utterance of a split is fit.
    """
    config, splits, out = config or PrepareConfig(), tuple(splits), Path(out)
    if inventory is None:
        from valle.text import DEFAULT_INVENTORY

        inventory = DEFAULT_INVENTORY
    phonemize = phonemize or _espeak()
    utterances = [u for manifest in manifests for u in read_manifest(manifest) if u.split in splits]
    for split in splits:
        if not any(u.split == split for u in utterances):
            raise ValleError(f"no manifest given has an utterance in the split {split!r}")
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
        speakers=tuple(sorted({u.speaker for u in utterances if u.speaker is not None})),
    )
    maker = _ShardMaker(info, codec, inventory, phonemize, config, device)
    shards: list[ShardInfo] = []
    rejected: list[dict[str, str]] = []
    often = 0.2 if sys.stderr.isatty() else 30.0  # seconds between updates: a log is not a screen
    with tqdm(total=len(utterances), desc="prepare", file=sys.stderr, dynamic_ncols=True, mininterval=often) as bar:
        for split in splits:
            for number, part in enumerate(_parts([u for u in utterances if u.split == split], config.shard_hours)):
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
    ) -> None:
        self.info, self.codec, self.inventory, self.config = info, codec, inventory, config
        self.phonemize, self.device = phonemize, device
        self.speakers = {name: i for i, name in enumerate(info.speakers)}

    def make(
        self, path: Path, split: str, utterances: list[Utterance], bar: tqdm[Any]
    ) -> tuple[ShardInfo, list[dict[str, str]]]:
        """Write one shard, or keep the one that is there; returns it and what was left out of it."""
        key = self._key(utterances)
        metadata = _metadata(path)
        if metadata.get("key") == key:
            bar.update(len(utterances))
        else:
            packed: list[PackedUtterance] = []
            left_out: list[dict[str, str]] = []
            for utterance in utterances:
                try:
                    packed.append(self._encode(utterance))
                except _Rejected as reason:
                    detail = str(reason.__cause__ or "")
                    left_out.append({"id": utterance.id, "split": split, "reason": str(reason), "detail": detail})
                bar.update()
            n_frames = sum(u.codes.shape[1] for u in packed)
            extra = {"key": key, "n_frames": str(n_frames), "rejected": json.dumps(left_out)}
            write_shard(path, packed, self.info, compact=self.config.compact, metadata=extra)
            metadata = _metadata(path)
        hours = int(metadata["n_frames"]) / self.info.frame_rate / 3600
        rejected: list[dict[str, str]] = json.loads(metadata["rejected"])
        return ShardInfo(path.name, split, len(json.loads(metadata["ids"])), round(hours, 4)), rejected

    def _encode(self, utterance: Utterance) -> PackedUtterance:
        """Phonemes and codes of one utterance, or ``_Rejected``."""
        if not (utterance.text or "").strip():
            raise _Rejected("no text")
        assert utterance.text is not None
        try:
            ids = self.inventory.encode(list(self.phonemize(utterance.text, utterance.lang)))
        except ValleError as error:
            raise _Rejected("text that cannot be phonemised") from error
        wav = self._load(utterance)  # [1, N]
        seconds = wav.shape[1] / self.codec.sample_rate
        if seconds < self.config.min_seconds:
            raise _Rejected(f"shorter than {self.config.min_seconds:g} s")
        if seconds > self.config.max_seconds:
            raise _Rejected(f"longer than {self.config.max_seconds:g} s")
        if len(ids) / seconds > MAX_PHONEMES_PER_S:
            raise _Rejected("more text than its audio can hold")
        if len(ids) / seconds < MIN_PHONEMES_PER_S:
            raise _Rejected("more audio than its text can fill")
        with torch.inference_mode():
            codes = self.codec.encode(wav.unsqueeze(0).to(self.device))[0].cpu()  # [8, T]
        speaker = -1 if utterance.speaker is None else self.speakers[utterance.speaker]
        return PackedUtterance(utterance.id, torch.tensor(ids), codes, speaker)

    def _load(self, utterance: Utterance) -> Tensor:
        """wav [1, N], made ready as ``valle.audio.load_reference`` makes the prompts that the models will be given."""
        from valle.audio import normalise_loudness, trim_silence

        try:
            wav = load_wav(utterance, self.codec.sample_rate)  # [1, N]
        except ValleError as error:
            raise _Rejected("unreadable audio") from error
        if float(wav.abs().max()) < SILENCE_PEAK:
            raise _Rejected("silent audio")
        if self.config.trim:
            wav = trim_silence(wav, self.codec.sample_rate)
        if self.config.normalise:
            wav = normalise_loudness(wav, self.codec.sample_rate)
        return wav

    def _key(self, utterances: list[Utterance]) -> str:
        """What a shard was made from; another key means that it must be made again."""
        digest = hashlib.sha256()
        config = to_dict(self.config)
        digest.update(json.dumps([self.codec.fingerprint(), self.inventory.version, config]).encode())
        for u in utterances:
            number = None if u.speaker is None else self.speakers[u.speaker]
            digest.update(json.dumps([u.id, str(u.path), u.text, u.lang, number]).encode())
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


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a shard; empty when it is not there or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def _espeak() -> Phonemize:
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
    parser.add_argument("--compact", action="store_true", help="ten bits a code in place of sixteen, for travelling")
    parser.add_argument("--device", default="cpu", help="where the codec runs (cpu)")
    args = parser.parse_args(argv)
    from valle.codec.base import load_codec

    config = PrepareConfig(min_seconds=args.min_seconds, max_seconds=args.max_seconds, compact=args.compact)
    splits = args.splits.split(",")
    codec = load_codec(args.codec)
    info = build_pack(args.manifests, codec, args.out, splits=splits, config=config, device=args.device)
    for split in splits:
        n = sum(s.utterances for s in info.shards if s.split == split)
        left_out = ", ".join(f"{n} {reason}" for reason, n in info.rejected[split].items()) or "none"
        tqdm.write(f"{split}: {n} utterances, {info.hours(split):.2f} h; left out: {left_out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from valle.cli import main as cli

    sys.exit(cli(["prepare", *sys.argv[1:]]))
