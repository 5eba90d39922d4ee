"""Where recordings come from: published corpora, plain folders, lists, and data sets, all as ``corpus.Utterance``.

A source is a path or ``kind:path``; the kind is guessed where none is given. Ids are made of the source's name and of
what its recordings are called in it, so that they are the same on every machine. A text that is not known is None and
waits to be transcribed (``valle.data.recognise``). Sources without splits of their own get them by a hash of the
speaker: nobody is in two of them, and who is where does not depend on the other recordings.

================  ====================================================================================================
kind              path
================  ====================================================================================================
``librispeech``   the corpus's folder, the one above it, or one of its parts (``/data/LibriSpeech/dev-clean``)
``libritts``      the same, of LibriTTS or LibriTTS-R
``librilight``    the same, of Libri-Light: whole chapters without text
``vctk``          ``VCTK-Corpus`` or version 0.92
``ljspeech``      ``LJSpeech-1.1``
``folder``        sound files, each with or without ``NAME.txt`` beside it, or a ``metadata.csv`` for all
``csv``           a list of recordings: columns separated by ``|``, ``,`` or tabs, or one JSON object a line
``manifest``      this project's ``manifest.jsonl``
``hf``            a data set of Hugging Face: a folder of ``save_to_disk`` or parquet files, or ``OWNER/NAME[/CONFIG]``
================  ====================================================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from valle.data.corpus import Utterance, read_manifest
from valle.data.tables import AUDIO_SUFFIXES, Row, read_rows, split_name
from valle.errors import ValleError

_PLACES = ("wav", "wavs", "audio", "clips", "flac", "mp3", "recordings")  # folders that are no speaker's
_HELD_OUT = ("train", "dev", "test")  # a speaker of two splits belongs to the later one


@dataclass(frozen=True)
class SourceConfig:
    """What a source does not tell itself."""

    name: str = ""
    """The data set's name, which its ids and speakers begin with; the corpus's or the folder's name by default."""
    dev_share: float = 0.02
    """Share of the speakers in ``dev``, where the source has no splits."""
    test_share: float = 0.0
    """Share of the speakers in ``test``, where the source has no splits."""
    split_by: Literal["speaker", "utterance"] = "speaker"
    """``utterance`` puts recordings of one speaker into several splits: for a voice of one's own, where nobody else is
    to be spoken. Recordings whose speaker is not known are always dealt out one by one."""
    lang: str = "en"
    """Language of recordings whose source does not tell it."""
    parts: tuple[str, ...] = ()
    """Only these parts of a corpus, such as ``dev-clean``, or these splits of a data set; all that are there by
    default."""
    download: bool = False
    """Fetch a published corpus into the folder first, where it is not there."""
    cache: Path | None = None
    """Folder for sound files that a data set holds inside; needed for such only."""
    n_jobs: int = 1
    """Threads that look into the files of a published corpus."""

    def __post_init__(self) -> None:
        if min(self.dev_share, self.test_share) < 0 or self.dev_share + self.test_share >= 1:
            raise ValleError(
                f"dev_share is {self.dev_share:g} and test_share {self.test_share:g}; they must be 0 or more and leave "
                "something to train on"
            )


Reader = Callable[[str, SourceConfig], Iterator[Utterance]]


def read_source(source: str | Path, config: SourceConfig | None = None) -> Iterator[Utterance]:
    """The utterances of a source, one after the other, always in the same order; ``seconds`` is 0 where a file cannot
    be read.

    Raises:
        ValleError: no such place or kind, a kind that cannot be guessed, a package that is not installed, or a list
            that cannot be understood. Later, while reading: what a recipe finds wrong with its corpus.
    """
    config = config or SourceConfig()
    return (_with_split(u, config, {}) for u in _open(source, config))


def read_split(source: str | Path, split: str, *, with_text: bool = True) -> list[Utterance]:
    """The utterances of a source in a split, or in several (``dev,test``), to measure something on.

    Args:
        with_text: only those whose text is known.

    Raises:
        ValleError: all of ``read_source``, or there are none.
    """
    splits = split.split(",")
    utterances = [u for u in read_source(source) if u.split in splits and ((u.text or "").strip() or not with_text)]
    if not utterances:
        what = "recording with a text" if with_text else "recording"
        raise ValleError(f"{source} has no {what} in the split {split!r}; give another --split")
    return utterances


def read_sources(sources: Iterable[str | Path], config: SourceConfig | None = None) -> list[Utterance]:
    """All utterances of several sources. A speaker whom one source has in a split of its own is in that split in all
    sources without splits: LibriVox's readers are in LibriSpeech, LibriTTS and Libri-Light.

    Raises:
        ValleError: all of ``read_source``; an id that two sources share.
    """
    config = config or SourceConfig()
    utterances: dict[str, Utterance] = {}
    for source in sources:
        for utterance in _open(source, config):
            if utterance.id in utterances:
                raise ValleError(
                    f"{source} has the id {utterance.id!r}, which a source before it has too; give each source once, "
                    "and folders different names"
                )
            utterances[utterance.id] = utterance
    known = _known_splits(utterances.values())
    return [_with_split(u, config, known) for u in utterances.values()]


def guess_kind(path: str | Path) -> str:
    """The kind of source that lies at ``path``.

    Raises:
        ValleError: nothing is there, or nothing that is known.
    """
    path = Path(path)
    kinds = ", ".join(_READERS)
    if path.is_file():
        if path.suffix == ".parquet":
            return "hf"
        if path.suffix in (".jsonl", ".json"):
            first = first_json(path)
            return "manifest" if {"id", "path", "seconds", "split"} <= first.keys() else "csv"
        if path.suffix in (".csv", ".tsv", ".psv", ".txt"):
            return "csv"
        raise ValleError(
            f"{path} is a file of no known kind of source; give a folder, a list (.csv, .tsv, .jsonl) or KIND:{path} "
            f"with one of the kinds {kinds}"
        )
    if not path.is_dir():
        raise ValleError(
            f"there is no source {path}; give a folder of recordings, a list of them (.csv, .jsonl), or KIND:PATH with "
            f"one of the kinds {kinds}"
        )
    if (path / "manifest.jsonl").is_file():
        return "manifest"
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "hf"
    from valle.data.recipes import guess_recipe, holds

    if any(holds(path, pattern) for pattern in ("*.parquet", "data/*.parquet")):
        return "hf"

    kind = guess_recipe(path)
    if kind:
        return kind
    if next(_sound_files(path), None):
        return "folder"
    raise ValleError(
        f"{path} holds no recordings ({', '.join(AUDIO_SUFFIXES)}) and no corpus that is known; give another folder, "
        f"or KIND:{path} with one of the kinds {kinds}"
    )


def hash_split(key: str, config: SourceConfig) -> str:
    """``train``, ``dev`` or ``test`` for a speaker or an id: the same on every machine and for every set of others."""
    share = int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12
    if share < config.test_share:
        return "test"
    return "dev" if share < config.test_share + config.dev_share else "train"


def duration_s(path: Path) -> float:
    """Length of a recording by its header; 0 where that cannot be read."""
    import soundfile

    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.SoundFileError, OSError, TypeError):
        return 0.0


def need(package: str, what: str, extra: str) -> Any:
    """The module ``package``, which comes with ``valle[extra]``.

    Raises:
        ValleError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package.partition(".")[0]:
            raise
        raise ValleError(missing_package(error.name, what, extra)) from error


def missing_package(package: str | None, what: str, extra: str) -> str:
    """What an error says when ``package`` of ``valle[extra]`` is not there."""
    return f"{what} needs the Python package {package}, which is not installed: pip install 'valle[{extra}]'"


def _open(source: str | Path, config: SourceConfig) -> Iterator[Utterance]:
    """Utterances as the source tells them; the split is empty where it tells none."""
    text = str(source)
    match = re.match(r"([A-Za-z_]{2,}):(.*)$", text)
    if match is None or Path(text).exists():
        return _READERS[guess_kind(text)](text, config)
    kind, path = match[1].lower(), match[2]
    if kind not in _READERS:
        raise ValleError(f"{text} names the kind {kind!r}, which is not known; the kinds are {', '.join(_READERS)}")
    if not path:
        raise ValleError(f"{text} names no place; give {kind}:PATH")
    if kind != "hf" and not Path(path).exists() and not config.download:
        raise ValleError(f"there is no {path}, which {text} names; give the path of what is there already")
    return _READERS[kind](path, config)


def _with_split(utterance: Utterance, config: SourceConfig, known: dict[str, str]) -> Utterance:
    if utterance.split:
        return utterance
    if utterance.speaker is None or config.split_by == "utterance":
        return dataclasses.replace(utterance, split=hash_split(utterance.id, config))
    split = known.get(utterance.speaker) or hash_split(utterance.speaker, config)
    return dataclasses.replace(utterance, split=split)


def _known_splits(utterances: Iterable[Utterance]) -> dict[str, str]:
    """speaker -> split, of those that a source has put into one."""
    known: dict[str, str] = {}
    for u in utterances:
        if u.speaker is not None and u.split in _HELD_OUT:
            known[u.speaker] = max(known.get(u.speaker, "train"), u.split, key=_HELD_OUT.index)
    return known


# --- folders -----------------------------------------------------------------------------------------------------


def _read_folder(source: str, config: SourceConfig) -> Iterator[Utterance]:
    root = Path(source)
    if not root.is_dir():
        raise ValleError(f"{root} is no folder; give folder:PATH of a folder of recordings, or csv:PATH of a list")
    if next(_sound_files(root), None) is None:
        raise ValleError(f"{root} holds no recordings ({', '.join(AUDIO_SUFFIXES)}); give another folder")
    texts = _metadata(root)
    return _folder_utterances(root, config, texts)


def _folder_utterances(root: Path, config: SourceConfig, texts: dict[str, Row] | None) -> Iterator[Utterance]:
    name = config.name or root.resolve().name
    for path in _sound_files(root):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        folders = [part for part in relative.parts[:-1] if part.lower() not in _PLACES]
        split = ""
        if folders and split_name(folders[0]) in _HELD_OUT:
            split = split_name(folders.pop(0))
        speaker = folders[0] if folders else None
        text, lang = None, config.lang
        if texts is None:
            beside = path.with_suffix(".txt")
            text = _read_text(beside) if beside.is_file() else None
        else:
            keys = (str(relative), str(relative.with_suffix("")), relative.name, relative.stem)
            row = next((texts[key] for key in keys if key in texts), None)
            if row is not None:
                text, lang, split = row.text, row.lang or lang, row.split or split
                speaker = row.speaker or speaker
        yield Utterance(
            id=f"{name}-{relative}",
            path=path,
            seconds=duration_s(path),
            split=split,
            text=text,
            speaker=None if speaker is None else f"{name}/{speaker}",
            lang=lang,
            dataset=name,
        )


def _sound_files(root: Path) -> Iterator[Path]:
    """Sound files below a folder in the order of their names, without hidden ones."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and file.lower().endswith(AUDIO_SUFFIXES):
                yield Path(folder) / file


def _metadata(root: Path) -> dict[str, Row] | None:
    """The rows of a folder's ``metadata.csv`` by what they call their recordings; None without one."""
    path = root / "metadata.csv"
    if not path.is_file():
        return None
    rows = {row.path or row.id: row for row in read_rows(path)}
    called = set(rows)
    for file in _sound_files(root):
        relative = file.relative_to(root)
        if called & {relative.as_posix(), relative.with_suffix("").as_posix(), file.name, file.stem}:
            return rows
    raise ValleError(
        f"{path} names no recording of its folder, its first is {next(iter(rows), '')!r}; it must have lines such as "
        "NAME|TEXT with the names of the files, or be moved away"
    )


def _read_text(path: Path) -> str | None:
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split()) or None
    except (OSError, UnicodeDecodeError) as error:
        raise ValleError(f"the text {path} cannot be read ({error}); save it as UTF-8") from error


# --- lists -------------------------------------------------------------------------------------------------------


def _read_table(source: str, config: SourceConfig) -> Iterator[Utterance]:
    path = Path(source)
    if not path.is_file():
        raise ValleError(f"{path} is no file; give csv:FILE with a list of recordings, or folder:{path}")
    rows = read_rows(path)
    name = config.name or (path.resolve().parent.name if path.stem in ("metadata", "manifest") else path.stem)
    files = [_locate(path.parent, row) for row in rows]
    if files and not any(file.is_file() for file in files[:20]):
        raise ValleError(
            f"{path} names recordings that are not there, such as {files[0]}; paths in it are relative to its folder"
        )
    absolute = [row.path for row in rows if Path(row.path).is_absolute()]
    shared = Path(os.path.commonpath([Path(p).parent for p in absolute])) if absolute else Path()
    utterances: dict[str, Utterance] = {}
    for row, file in zip(rows, files, strict=True):
        called = row.id or (file.relative_to(shared).as_posix() if Path(row.path).is_absolute() else row.path)
        id = f"{name}-{called}"
        if id in utterances:
            raise ValleError(f"{row.where}: the recording {called!r} was named before; each may be named once")
        utterances[id] = Utterance(
            id=id,
            path=file,
            seconds=row.seconds or duration_s(file),
            split=row.split,
            text=row.text,
            speaker=None if row.speaker is None else f"{name}/{row.speaker}",
            lang=row.lang or config.lang,
            dataset=name,
        )
    known = _known_splits(utterances.values()) if config.split_by == "speaker" else {}
    return (dataclasses.replace(u, split=u.split or known.get(u.speaker or "", "")) for u in list(utterances.values()))


def _locate(folder: Path, row: Row) -> Path:
    """The file of a row; a row without a path, as in LJSpeech's list, is called as its file."""
    if row.path:
        return folder / row.path
    places = [folder / "wavs" / f"{row.id}{suffix}" for suffix in AUDIO_SUFFIXES]
    places += [folder / f"{row.id}{suffix}" for suffix in AUDIO_SUFFIXES]
    return next((place for place in places if place.is_file()), places[0])


def first_json(path: Path) -> dict[str, Any]:
    """The first line of a file, where it is a JSON object."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = json.loads(next((line for line in file if line.strip()), "{}"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return first if isinstance(first, dict) else {}


# --- all kinds ---------------------------------------------------------------------------------------------------


def _read_manifest(source: str, config: SourceConfig) -> Iterator[Utterance]:
    return iter(read_manifest(source, config.parts or None))


def _recipe(kind: str) -> Reader:
    def read(source: str, config: SourceConfig) -> Iterator[Utterance]:
        from valle.data.recipes import read_recipe

        return read_recipe(kind, Path(source), config)

    return read


def _read_hub(source: str, config: SourceConfig) -> Iterator[Utterance]:
    from valle.data.recipes import read_hub

    return read_hub(source, config)


_READERS: dict[str, Reader] = {
    **{kind: _recipe(kind) for kind in ("librispeech", "libritts", "librilight", "vctk", "ljspeech")},
    "folder": _read_folder,
    "csv": _read_table,
    "manifest": _read_manifest,
    "hf": _read_hub,
}
