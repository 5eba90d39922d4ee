"""A pack as lhotse Shar and back, for those whose training reads lhotse's cuts (the pack itself: ``valle.data.pack``).

``write_shar`` makes a folder with

- ``dataset.json``: hours, speakers, the codec's fingerprint, the inventory's version, settings, how many utterances
  were rejected and why, and what else a pack says of itself;
- ``phonemes.json``, and ``rejected.jsonl`` where the pack has one;
- ``<split>/``: a Shar folder, for ``CutSet.from_shar(in_dir=...)``, with a shard for each of the pack's:
  ``cuts.000000.jsonl.gz``, ``codes.000000.tar``, ``phonemes.000000.tar`` and, of an aligned pack,
  ``durations.000000.tar``.

A cut is an utterance. ``cut.load_codes()`` is int16 [8, T], ``cut.load_phonemes()`` int16 [S] ids,
``cut.load_durations()`` int16 [S] frames of each phoneme. Its one supervision has the speaker, the transcript where it
is known, ``split``, ``ipa`` (the phonemes as text) and the alignment ``"phone"``: symbol, start and duration in seconds
of each phoneme that has frames, as multiples of 1 / frame_rate.

NOTE cuts have no recording: a pack holds no sound, only its codes. What lhotse does to recordings (resampling, speeds,
``load_audio``) it cannot do to them, and arrays stay whole when a cut is truncated.

``read_shar`` makes the pack again, with exactly the same tensors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from valle.config import from_dict, to_dict
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
from valle.data.shards import metadata_of
from valle.data.sources import need
from valle.errors import ValleError
from valle.files import write_atomic
from valle.text.inventory import PhonemeInventory

KIND = "valle-shar"
FORMAT = 1
REJECTED_FILE = "rejected.jsonl"

_TOP = ("codec_fingerprint", "inventory_version", "speakers", "rejected")
"""Fields of ``PackInfo`` that stand by themselves in ``dataset.json``; all others but the shards are its settings."""


def write_shar(pack: Pack, out: str | Path, *, texts: Mapping[str, str] | None = None) -> None:
    """Write a pack as Shar, whole or not at all.

    Args:
        pack: the pack.
        out: a folder that is not there yet, or is empty.
        texts: id -> transcript, as far as they are known; virtual voices say what their utterance says.

    Raises:
        ValleError: lhotse is not installed, ``out`` holds something, the pack's inventory is missing or another's, or
            an id cannot be a name in an archive.
    """
    need("lhotse", "Shar", "sources")
    info = pack.info
    inventory = PhonemeInventory.load(pack.folder / PHONEMES_FILE)
    if (inventory.version, len(inventory)) != (info.inventory_version, info.n_phonemes):
        raise ValleError(
            f"{pack.folder / PHONEMES_FILE} is the inventory {inventory.version} of {len(inventory)} phonemes, but the "
            f"pack was made with {info.inventory_version} of {info.n_phonemes}; build it again"
        )
    with _folder(Path(out)) as folder:
        told: list[dict[str, Any]] = []
        for split in pack.splits:
            (folder / split).mkdir()
            utterances, first = pack.split(split), 0
            for number, shard in enumerate(s for s in info.shards if s.split == split):
                rows = range(first, first + shard.utterances)
                first = rows.stop
                writer = _Writer(folder / split, number, split, info, inventory)
                with writer:
                    for i in rows:
                        writer.write(utterances, i, texts or {})
                metadata = {k: v for k, v in metadata_of(pack.folder / shard.file).items() if k != "ids"}
                compact = _is_compact(pack.folder / shard.file)
                told.append({**to_dict(shard), "compact": compact, "metadata": metadata})
        for name in (PHONEMES_FILE, REJECTED_FILE):
            if (pack.folder / name).is_file():
                shutil.copyfile(pack.folder / name, folder / name)
        values = to_dict(info)
        body = {
            "kind": KIND,
            "format": FORMAT,
            "hours": {split: round(info.hours(split), 4) for split in pack.splits},
            "utterances": {s: sum(x.utterances for x in info.shards if x.split == s) for s in pack.splits},
            **{name: values[name] for name in _TOP},
            "settings": {k: v for k, v in values.items() if k not in (*_TOP, "shards", "format")},
            "shards": told,
        }
        write_atomic(folder / INFO_FILE, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())


def read_shar(folder: str | Path, out: str | Path) -> PackInfo:
    """Make the pack that ``write_shar`` was given, whole or not at all.

    Args:
        folder: what it wrote.
        out: a folder that is not there yet, or is empty.

    Returns:
        What ``dataset.json`` of the pack says.

    Raises:
        ValleError: lhotse is not installed, ``folder`` is no such Shar, does not tell its codec, or is not whole, or
            ``out`` holds something.
    """
    folder = Path(folder)
    info, extras = _read_info(folder)
    need("lhotse", "Shar", "sources")
    with _folder(Path(out)) as made:
        numbers: dict[str, int] = {}
        for shard, extra in zip(info.shards, extras, strict=True):
            number = numbers.get(shard.split, 0)
            numbers[shard.split] = number + 1
            utterances = _read_shard(folder / shard.split, number, shard, info)
            write_shard(made / shard.file, utterances, info, compact=extra["compact"], metadata=extra["metadata"])
        for name in (PHONEMES_FILE, REJECTED_FILE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, made / name)
        write_info(made, info)
    return info


class _Writer:
    """One shard of Shar."""

    def __init__(self, folder: Path, number: int, split: str, info: PackInfo, inventory: PhonemeInventory) -> None:
        writers = need("lhotse.shar.writers", "Shar", "sources")
        self.split, self.info, self.inventory = split, info, inventory
        self._array = need("lhotse.array", "Shar", "sources").Array
        place = str(folder).replace("%", "%%")  # lhotse puts the shard's number into the whole path
        one = {"shard_size": sys.maxsize, "shard_offset": number}
        self._cuts = writers.JsonlShardWriter(f"{place}/cuts.%06d.jsonl.gz", **one)
        self._arrays = {name: writers.ArrayTarWriter(f"{place}/{name}.%06d.tar", **one) for name in _fields(info)}

    def __enter__(self) -> None:
        self._open = ExitStack()
        for writer in (self._cuts, *self._arrays.values()):
            self._open.enter_context(writer)

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def write(self, utterances: PackSplit, i: int, texts: Mapping[str, str]) -> None:
        """Add utterance i of the split."""
        name, number = utterances.ids[i], int(utterances.speakers[i])
        tensors = {"codes": utterances.codes(i), "phonemes": utterances.phonemes(i)}
        if self.info.aligned:
            tensors["durations"] = utterances.durations(i)
        path = Path(f"{name}.npy")
        if not name or "\0" in name or str(path.parent / path.stem) != name:  # as lhotse compares them
            raise ValleError(
                f"the id {name!r} cannot be the name of a file in an archive, which Shar needs; give the recording "
                "another and prepare it again"
            )
        custom = {}
        for field, tensor in tensors.items():
            value = tensor.to(torch.int16).numpy()
            custom[field] = self._array("shar", "", "", list(value.shape))  # "shar": in the archive of this name
            self._arrays[field].write(name, value, custom[field])
        lhotse = need("lhotse", "Shar", "sources")
        symbols = self.inventory.decode(tensors["phonemes"].tolist())
        seconds = tensors["codes"].shape[1] / self.info.frame_rate
        supervision = lhotse.SupervisionSegment(
            id=name,
            recording_id=name,
            start=0.0,
            duration=seconds,
            text=texts.get(name, texts.get(name.rpartition("~")[0]) if self.info.augment else None),
            speaker=None if number < 0 else self.info.speakers[number],
            alignment=self._alignment(symbols, tensors["durations"]) if self.info.aligned else None,
            custom={"split": self.split, "ipa": "".join(symbols)},
        )
        self._cuts.write(lhotse.MonoCut(name, 0.0, seconds, 0, supervisions=[supervision], custom=custom))

    def _alignment(self, symbols: list[str], durations: Tensor) -> dict[str, list[Any]]:
        """Symbols and their durations [S] in frames, in lhotse's words and seconds."""
        item = need("lhotse.supervision", "Shar", "sources").AlignmentItem
        rate, ends = self.info.frame_rate, durations.cumsum(0).tolist()
        return {
            "phone": [
                item(symbol, round((end - n) / rate, 8), round(n / rate, 8))
                for symbol, n, end in zip(symbols, durations.tolist(), ends, strict=True)
                if n
            ]
        }


def _read_shard(folder: Path, number: int, shard: ShardInfo, info: PackInfo) -> list[PackedUtterance]:
    """The utterances of one shard of Shar.

    Raises:
        ValleError: it is damaged, or is not what ``dataset.json`` says.
    """
    if not shard.utterances:
        return []  # no file was written
    cut_set = need("lhotse", "Shar", "sources").CutSet
    fields = {"cuts": [folder / f"cuts.{number:06d}.jsonl.gz"]}
    fields |= {name: [folder / f"{name}.{number:06d}.tar"] for name in _fields(info)}
    for path in (paths[0] for paths in fields.values()):
        if not path.is_file():
            raise ValleError(f"the Shar folder lacks its file {path}; write it again with `valle prepare to-shar`")
    speakers = {name: i for i, name in enumerate(info.speakers)}
    try:
        utterances = [_utterance(cut, info, speakers) for cut in cut_set.from_shar(fields=fields)]
    except Exception as error:  # lhotse's readers raise whatever comes
        raise ValleError(
            f"shard {number} in {folder} is damaged or not from `valle prepare to-shar`, which can write it again: "
            f"{type(error).__name__}: {error}"
        ) from error
    if len(utterances) != shard.utterances:
        raise ValleError(
            f"shard {number} in {folder} holds {len(utterances)} cuts, but {INFO_FILE} says {shard.utterances}; write "
            "it again with `valle prepare to-shar`"
        )
    return utterances


def _utterance(cut: Any, info: PackInfo, speakers: Mapping[str, int]) -> PackedUtterance:
    """A cut as its pack had it."""
    arrays = {name: torch.from_numpy(cut.load_custom(name)) for name in _fields(info)}
    codes, phonemes, durations = arrays["codes"], arrays["phonemes"], arrays.get("durations")
    if codes.ndim != 2 or len(codes) != info.n_quantizers or any(a.dtype != torch.int16 for a in arrays.values()):
        raise ValueError(f"the codes of {cut.id} are {list(codes.shape)}, not int16 [{info.n_quantizers}, T]")
    if durations is not None and (durations.shape != phonemes.shape or int(durations.sum()) != codes.shape[1]):
        raise ValueError(f"the durations of {cut.id} are not those of its codes and phonemes")
    speaker = cut.supervisions[0].speaker
    return PackedUtterance(cut.id, phonemes, codes, -1 if speaker is None else speakers[speaker], durations)


def _read_info(folder: Path) -> tuple[PackInfo, list[dict[str, Any]]]:
    """What ``dataset.json`` says of the pack, and for each of its shards ``compact`` and ``metadata``.

    Raises:
        ValleError: there is none, it is not that of a Shar, or it lacks something.
    """
    path = folder / INFO_FILE
    if not path.is_file():
        raise ValleError(
            f"{folder} is no Shar folder of `valle prepare to-shar`: it has no {INFO_FILE} (the folders of its splits "
            "have none; give the one above them)"
        )
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValleError(f"{path} is no JSON: {error}") from error
    if not isinstance(body, dict) or body.get("kind") != KIND:
        is_pack = isinstance(body, dict) and "codec_fingerprint" in body
        raise ValleError(
            f"{folder} is {'a pack' if is_pack else 'something else'} and no Shar folder; give what "
            "`valle prepare to-shar` wrote"
        )
    if body.get("format") != FORMAT:
        raise ValleError(f"{path} has the format {body.get('format')!r}; this program reads {FORMAT}: write it again")
    if not body.get("codec_fingerprint"):
        raise ValleError(
            f"{path} does not tell the fingerprint of the codec that made the codes, without which nothing can be "
            "trained on them; write it again with `valle prepare to-shar`"
        )
    try:
        extras = [{name: shard.pop(name) for name in ("compact", "metadata")} for shard in body["shards"]]
        values = {name: body[name] for name in _TOP} | body["settings"] | {"shards": body["shards"]}
        for shard in body["shards"]:
            for name in ("file", "split"):
                if Path(shard[name]).name != shard[name]:
                    raise ValueError(f"{shard[name]!r} is no plain name")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValleError(f"{path} lacks or garbles {error}; write it again with `valle prepare to-shar`") from error
    return from_dict(PackInfo, values, str(path)), extras


def _fields(info: PackInfo) -> tuple[str, ...]:
    """The arrays of a cut."""
    return ("codes", "phonemes", "durations") if info.aligned else ("codes", "phonemes")


def _is_compact(path: Path) -> bool:
    """Whether a shard of a pack holds ten bits a code."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return "codes_10bit" in file.keys()  # noqa: SIM118


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when all went well.

    Raises:
        ValleError: ``out`` holds something, or cannot be made.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValleError(f"{out} is there already; give a new folder with --out, or delete it first")
    made = out.with_name(f".{out.name}.part")  # what an interrupted run left is written anew
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        yield made
        made.replace(out)
    except OSError as error:
        raise ValleError(f"{out} cannot be written: {error.strerror or error}; choose another place") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def read_texts(path: str | Path) -> dict[str, str]:
    """id -> transcript, from a file with a JSON object a line: a ``manifest.jsonl`` or a pack's ``transcripts.jsonl``.

    Raises:
        ValleError: there is no such file, or a line is something else.
    """
    path, texts = Path(path), {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValleError(f"the texts {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name, text = record["id"], record.get("text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValleError(
                f'{path}, line {number}, is no object like {{"id": "a1", "text": "What is said."}}; correct or '
                "remove the line"
            ) from error
        if text:
            texts[str(name)] = str(text)
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    """The commands ``python -m valle.data.shar to|from``."""
    parser = argparse.ArgumentParser(prog="python -m valle.data.shar", description="Packs as lhotse Shar, and back.")
    commands = parser.add_subparsers(dest="command", required=True)
    to = commands.add_parser("to", prog="valle prepare to-shar", description="A pack to lhotse Shar.")
    to.add_argument("pack", metavar="PACK", help="the packed dataset")
    to.add_argument("--out", required=True, metavar="DIR", help="where the Shar folder goes")
    to.add_argument(
        "--texts",
        metavar="FILE",
        help="transcripts, as a manifest.jsonl has them (transcripts.jsonl of the pack, where there is one)",
    )
    back = commands.add_parser("from", prog="valle prepare from-shar", description="The pack again, just as it was.")
    back.add_argument("folder", metavar="DIR", help="what to-shar wrote")
    back.add_argument("--out", required=True, metavar="PACK", help="where the packed dataset goes")
    args = parser.parse_args(argv)
    if args.command == "to":
        pack = Pack(args.pack)
        own = pack.folder / "transcripts.jsonl"
        texts = read_texts(args.texts or own) if args.texts or own.is_file() else {}
        write_shar(pack, args.out, texts=texts)
        info = pack.info
    else:
        info = read_shar(args.folder, args.out)
    for split in dict.fromkeys(shard.split for shard in info.shards):
        n = sum(s.utterances for s in info.shards if s.split == split)
        tqdm.write(f"{split}: {n} utterances, {info.hours(split):.2f} h", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValleError as error:
        sys.exit(f"valle: error: {error}")
