"""A packed dataset: the codes and phonemes of a corpus on disk, memory-mapped, ready to be batched.

A pack is a folder with

- ``dataset.json``: ``PackInfo``, which names the codec (its fingerprint) and the phoneme inventory (its version) that
  the numbers belong to; a pack of another codec or inventory than the model's is refused, because training on it would
  go wrong in silence;
- ``phonemes.json``: the inventory itself, copied into every model trained on the pack;
- ``<split>-00000.safetensors`` ...: ``codes`` int16 [8, total_T], ``code_offsets`` int64 [n + 1], ``phonemes`` int16
  [total_S], ``phoneme_offsets`` int64 [n + 1], ``speakers`` int32 [n] (-1 where not known); the ids in its metadata.
  An aligned pack has ``durations`` int16 [total_S], frames of each phoneme, which sum to the frames of the utterance.
  A compact pack holds ``codes_10bit`` uint8 [total_T, 10] in place of ``codes``.

Reading needs torch and safetensors alone. ``valle.data.prepare`` builds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from valle.config import from_dict, to_dict
from valle.errors import ValleError
from valle.files import write_atomic

FORMAT = 1
INFO_FILE = "dataset.json"
PHONEMES_FILE = "phonemes.json"


@dataclass(frozen=True)
class ShardInfo:
    """One ``.safetensors`` file of a pack."""

    file: str
    """Its name inside the pack."""
    split: str
    """The split that all of its utterances belong to."""
    utterances: int
    """How many utterances it holds."""
    hours: float
    """Their length in all."""


@dataclass(frozen=True)
class PackInfo:
    """What ``dataset.json`` says."""

    codec_fingerprint: str
    """``Codec.fingerprint()`` of the codec that made the codes."""
    inventory_version: str
    """``PhonemeInventory.version`` of the phoneme ids."""
    n_phonemes: int
    """Number of symbols of the inventory; ids are below it."""
    separator_id: int
    """The phoneme id of a word boundary, put between utterances that are joined."""
    frame_rate: float
    """Frames a second."""
    n_quantizers: int = 8
    """Codebooks in ``codes``."""
    codebook_size: int = 1024
    """Entries of each codebook; codes are below it."""
    speakers: tuple[str, ...] = ()
    """Speaker names, virtual ones (``augment``) after the others; the shards hold indices into this list."""
    phoneme_kinds: tuple[int, ...] = ()
    """``PhonemeInventory.kinds`` of the phoneme ids; empty in old packs."""
    aligned: bool = False
    """Whether the shards tell how long each phoneme lasts."""
    aligner: str = ""
    """``Aligner.fingerprint()`` of the aligner that told it; empty without one, and in old packs."""
    augment: int = 0
    """Versions by virtual voices that follow each utterance of the split train: ``id~1`` ... of ``speaker~1`` ..."""
    shards: tuple[ShardInfo, ...] = ()
    """The files, in order."""
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """By split: how many utterances were left out, by reason; ``rejected.jsonl`` names each."""
    format: int = FORMAT
    """Version of this layout."""

    def hours(self, split: str) -> float:
        """Hours of speech in a split."""
        return sum(s.hours for s in self.shards if s.split == split)


class PackSplit:
    """The utterances of one split; ``i`` counts through its shards in order."""

    def __init__(self, info: PackInfo, paths: list[Path]) -> None:
        from safetensors import safe_open

        self.info = info
        self.ids: list[str] = []
        self._shards: list[dict[str, Tensor]] = []
        index, n_frames, n_phonemes, speakers = [], [], [], []
        for number, path in enumerate(paths):
            if not path.is_file():
                raise ValleError(f"the pack lacks its shard {path}; build the pack again")
            with safe_open(path, framework="pt") as file:
                # NOTE safetensors maps the file into memory: nothing is read before it is used.
                shard = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                self.ids += json.loads(file.metadata()["ids"])
            self._shards.append(shard)
            n_frames.append(shard["code_offsets"].diff())
            n_phonemes.append(shard["phoneme_offsets"].diff())
            speakers.append(shard["speakers"].long())
            rows = torch.arange(len(n_frames[-1]))
            index.append(torch.stack([torch.full_like(rows, number), rows], dim=1))
        self.n_frames = torch.cat(n_frames)
        """[n] length of each utterance in frames."""
        self.n_phonemes = torch.cat(n_phonemes)
        """[n] length of each utterance in phonemes."""
        self.speakers = torch.cat(speakers)
        """[n] index into ``info.speakers``, -1 where the speaker is not known."""
        self._index = torch.cat(index).tolist()

    def __len__(self) -> int:
        return len(self._index)

    def codes(self, i: int) -> Tensor:
        """codes [8, T] int64 of utterance i."""
        shard, row = self._row(i)
        start, stop = shard["code_offsets"][row : row + 2].tolist()
        if "codes" in shard:
            return shard["codes"][:, start:stop].long()
        return unpack_bits(shard["codes_10bit"][start:stop]).long()

    def phonemes(self, i: int) -> Tensor:
        """phonemes [S] int64 of utterance i."""
        shard, row = self._row(i)
        start, stop = shard["phoneme_offsets"][row : row + 2].tolist()
        return shard["phonemes"][start:stop].long()

    def durations(self, i: int) -> Tensor:
        """durations [S] int64 of utterance i: frames of each phoneme, which sum to T.

        Raises:
            ValleError: the pack is not aligned.
        """
        shard, row = self._row(i)
        if "durations" not in shard:
            raise ValleError("the pack does not tell how long phonemes last; build it again with `--aligner`")
        start, stop = shard["phoneme_offsets"][row : row + 2].tolist()
        return shard["durations"][start:stop].long()

    def _row(self, i: int) -> tuple[dict[str, Tensor], int]:
        number, row = self._index[i]
        return self._shards[number], row


class Pack:
    """A packed dataset opened for reading."""

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            ValleError: the folder is no pack, or one of another format.
        """
        self.folder = Path(folder)
        path = self.folder / INFO_FILE
        if not path.is_file():
            raise ValleError(
                f"{self.folder} is not a packed dataset: it has no {INFO_FILE}; make one with `valle prepare`"
            )
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ValleError(
                f"{path} has the format {values.get('format')!r}; this program reads {FORMAT}: build it again"
            )
        self.info = from_dict(PackInfo, values, str(path))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits it holds."""
        return tuple(dict.fromkeys(shard.split for shard in self.info.shards))

    def split(self, name: str) -> PackSplit:
        """The utterances of a split.

        Raises:
            ValleError: the pack has no such split, or lacks one of its files.
        """
        if name not in self.splits:
            raise ValleError(f"the pack {self.folder} has no split {name!r}; it has {', '.join(self.splits) or 'none'}")
        return PackSplit(self.info, [self.folder / s.file for s in self.info.shards if s.split == name])

    def require(self, *, codec_fingerprint: str | None = None, inventory_version: str | None = None) -> None:
        """Refuse to go on when the pack was made with another codec or phoneme inventory than those given.

        Raises:
            ValleError: naming both.
        """
        for what, have, need in (
            ("codec", self.info.codec_fingerprint, codec_fingerprint),
            ("phoneme inventory", self.info.inventory_version, inventory_version),
        ):
            if need is not None and have != need:
                raise ValleError(
                    f"the pack {self.folder} was made with the {what} {have}, but {need} is needed; "
                    f"build the pack again with that {what}"
                )


@dataclass(frozen=True)
class PackedUtterance:
    """What a pack holds of one utterance."""

    id: str
    """As in the manifest."""
    phonemes: Tensor
    """[S] ids, of any integer type."""
    codes: Tensor
    """[8, T], of any integer type."""
    speaker: int = -1
    """Index into ``PackInfo.speakers``, -1 when not known."""
    durations: Tensor | None = None
    """[S] frames of each phoneme, of any integer type; needed where ``PackInfo.aligned``."""


def write_shard(
    path: Path,
    utterances: Sequence[PackedUtterance],
    info: PackInfo,
    *,
    compact: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file of a pack, whole or not at all, ``metadata`` beside the ids; equal input gives equal bytes."""
    from safetensors.torch import save

    codes = torch.cat(
        [u.codes.to(torch.int16) for u in utterances] or [torch.zeros(info.n_quantizers, 0).short()], dim=1
    )
    phonemes = torch.cat([u.phonemes.to(torch.int16) for u in utterances] or [torch.zeros(0).short()])
    tensors = {
        "codes_10bit" if compact else "codes": pack_bits(codes) if compact else codes.contiguous(),
        "code_offsets": torch.tensor([0, *(u.codes.shape[1] for u in utterances)]).cumsum(0),
        "phonemes": phonemes,
        "phoneme_offsets": torch.tensor([0, *(len(u.phonemes) for u in utterances)]).cumsum(0),
        "speakers": torch.tensor([u.speaker for u in utterances], dtype=torch.int32),
    }
    if info.aligned:
        durations = [u.durations for u in utterances if u.durations is not None]
        assert len(durations) == len(utterances), "an aligned pack needs durations of every utterance"
        tensors["durations"] = torch.cat([d.to(torch.int16) for d in durations] or [torch.zeros(0).short()])
        assert len(tensors["durations"]) == len(phonemes), "a duration for each phoneme"
    ids = json.dumps([u.id for u in utterances])
    write_atomic(path, _ordered(save(tensors, metadata={"ids": ids, **(metadata or {})})))


def _ordered(data: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order: the library writes it in another one each time."""
    n_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_bytes])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + n_bytes :]


def write_info(folder: Path, info: PackInfo) -> None:
    """Write ``dataset.json``; do it last, since a folder without it is no pack."""
    write_atomic(folder / INFO_FILE, (json.dumps(to_dict(info), indent=1, ensure_ascii=False) + "\n").encode())


def pack_bits(codes: Tensor) -> Tensor:
    """codes [8, T] below 1024 -> uint8 [T, 10]: eight 10-bit numbers a frame, the first in the lowest bits."""
    assert codes.shape[0] == 8, "the compact form is for eight codebooks"
    fours = codes.t().reshape(-1, 2, 4).long()  # [T, 2, 4]
    shifts = torch.arange(0, 40, 10)
    words = (fours << shifts).sum(-1)  # [T, 2], 40 bits each
    octets = (words.unsqueeze(-1) >> torch.arange(0, 40, 8)) & 0xFF  # [T, 2, 5]
    return octets.reshape(-1, 10).to(torch.uint8)


def unpack_bits(octets: Tensor) -> Tensor:
    """uint8 [T, 10] -> codes int16 [8, T]; undoes ``pack_bits``."""
    words = (octets.view(-1, 2, 5).long() << torch.arange(0, 40, 8)).sum(-1)  # [T, 2]
    codes = (words.unsqueeze(-1) >> torch.arange(0, 40, 10)) & 0x3FF  # [T, 2, 4]
    return codes.reshape(-1, 8).t().contiguous().to(torch.int16)
