"""Published corpora by lhotse's recipes, and data sets of Hugging Face, as sources (``valle.data.sources``).

lhotse tells which recordings a corpus has, who speaks and what; its manifests stay in memory, and what is kept of them
is an ``Utterance`` each.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle.data.corpus import Utterance
from valle.data.sources import SourceConfig, duration_s, need
from valle.data.tables import AUDIO_SUFFIXES, COLUMNS, split_name
from valle.errors import ValleError
from valle.files import write_atomic


@dataclass(frozen=True)
class Recipe:
    """What has to be known of a published corpus besides lhotse's recipe."""

    folders: tuple[str, ...]
    """What its folder may be called, as its archives unpack it."""
    sign: str
    """The file by which it is known: in its folder, or a pattern in each of its parts."""
    licence: str
    """Of the recordings."""
    speakers: str
    """Prefix of its speakers; corpora read by the same people share it."""
    parts: tuple[str, ...] = ()
    """Sub-folders of the corpus, where it has parts."""


_LIBRI = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other")
_MINI = ("train-clean-5", "dev-clean-2")
_SIZES = ("small", "medium", "large")
RECIPES = {
    "librispeech": Recipe(("LibriSpeech",), "*/*/*.trans.txt", "CC BY 4.0", "librivox", (*_LIBRI, *_MINI)),
    "libritts": Recipe(("LibriTTS", "LibriTTS_R"), "*/*/*.trans.tsv", "CC BY 4.0", "librivox", _LIBRI),
    "librilight": Recipe(("librilight",), "*/*/*.json", "public domain", "librivox", _SIZES),
    "vctk": Recipe(("VCTK-Corpus", "VCTK-Corpus-0.92"), "speaker-info.txt", "CC BY 4.0", "vctk"),
    "ljspeech": Recipe(("LJSpeech-1.1",), "metadata.csv", "public domain", "ljspeech"),
}
"""kind -> corpus."""


def holds(folder: Path, pattern: str) -> bool:
    """Whether a folder has anything of such a name; it is searched no further than to the first."""
    with contextlib.closing(folder.glob(pattern)) as found:
        return next(found, None) is not None


def guess_recipe(path: Path) -> str:
    """The kind of the corpus in a folder, as it looks; empty when it looks like none."""
    path = path.resolve()
    for kind, recipe in RECIPES.items():
        if recipe.sign.startswith("*"):  # in its parts
            parents = [path.parent] if path.name in recipe.parts else []
            folders = [root / part for root in _roots(path, recipe) + parents for part in recipe.parts]
            if any(holds(folder, recipe.sign) for folder in folders):
                return kind
        elif any(
            (root / recipe.sign).is_file()
            for root in _roots(path, recipe)
            if kind != "ljspeech" or root.name in recipe.folders
        ):
            return kind
    return ""


def read_recipe(kind: str, path: Path, config: SourceConfig) -> Iterator[Utterance]:
    """The utterances of the corpus ``kind`` in the order of their ids, part by part.

    Raises:
        ValleError: no such corpus there, lhotse is missing or finds something wrong, or what is asked for cannot be
            downloaded.
    """
    recipe = RECIPES[kind]
    module = need(f"lhotse.recipes.{kind}", f"the source {kind}:{path}", "sources")
    wanted = config.parts
    if path.name in recipe.parts:
        path, wanted = path.parent, wanted or (path.name,)
    root, present = _find(path, recipe)
    missing = [part for part in wanted or recipe.parts if part not in present]
    if config.download and (root is None or missing):
        # Nobody who wants everything wants the small parts again, whose recordings the others have too.
        missing = [part for part in missing if part in wanted or part not in _MINI]
        _download(module, kind, path if root is None else root.parent, missing)
        root, present = _find(path, recipe)
    if root is None:
        needed = f"none of the folders {', '.join(recipe.parts)}" if recipe.parts else f"no {recipe.sign}"
        raise ValleError(f"{path} holds no {kind}: it has {needed}; give the folder {recipe.folders[0]} of the corpus")
    if set(wanted) - set(present):
        missing = [part for part in wanted if part not in present]
        raise ValleError(f"{root} has no part {', '.join(missing)}; it has {', '.join(present) or 'no parts'}")
    return _recipe_utterances(module, kind, root, [p for p in present if not wanted or p in wanted], config)


def _roots(path: Path, recipe: Recipe) -> list[Path]:
    """Folders that may be the corpus's."""
    return [path, *(path / folder for folder in recipe.folders)]


def _find(path: Path, recipe: Recipe) -> tuple[Path | None, list[str]]:
    """The corpus's folder, None where there is none, and the parts that are in it."""
    for root in _roots(path, recipe):
        present = [part for part in recipe.parts if (root / part).is_dir()]
        if present or (not recipe.parts and (root / recipe.sign).is_file()):
            return root, present
    return None, []


def _download(module: Any, kind: str, path: Path, parts: list[str]) -> None:
    """Let lhotse fetch the parts that are not there; it would delete and replace those that are."""
    fetch = getattr(module, f"download_{kind}", None)
    if fetch is None:
        raise ValleError(
            f"{kind} is not downloaded by lhotse, for its size; unpack its archives into {path} and read it from there"
        )
    try:
        fetch(path, **({"dataset_parts": parts} if parts else {}))
    except Exception as error:
        raise ValleError(
            f"{kind} could not be downloaded into {path}: {error}; try again, or unpack its archive there"
        ) from error


def _recipe_utterances(
    module: Any, kind: str, root: Path, parts: list[str], config: SourceConfig
) -> Iterator[Utterance]:
    name, recipe = config.name or kind, RECIPES[kind]
    for part in parts or [""]:
        try:
            recordings, supervisions = _manifests(module, kind, root, part, config)
        except Exception as error:
            raise ValleError(
                f"lhotse's recipe for {kind} cannot read {root / part}: {type(error).__name__}: {error}; see that the "
                f"corpus is whole, or give its recordings as folder:{root / part}"
            ) from error
        spoken = {s.recording_id: s for s in supervisions}  # of a chapter with many pieces, the last
        split = split_name(part.partition("-")[0]) if kind in ("librispeech", "libritts") else ""
        for recording in sorted(recordings, key=lambda r: str(r.id)):
            segment = spoken[recording.id]
            text = (segment.custom or {}).get("normalized_text") or segment.text
            speaker = segment.speaker or kind if kind == "ljspeech" else segment.speaker
            yield Utterance(
                id=f"{name}-{recording.id}",
                path=Path(recording.sources[0].source),
                seconds=float(recording.duration),
                split=split,
                text=" ".join(text.split()) if text else None,
                speaker=None if speaker is None else f"{recipe.speakers}/{speaker}",
                lang="en",
                dataset=name,
                licence=recipe.licence,
            )


def _manifests(module: Any, kind: str, root: Path, part: str, config: SourceConfig) -> tuple[Any, Any]:
    """lhotse's recordings and supervisions of one part of a corpus."""
    if kind == "librilight":  # its recipe knows only all parts at once
        return module._prepare_subset(part, root, config.n_jobs)  # type: ignore[no-any-return]
    prepare = getattr(module, f"prepare_{kind}")
    if kind == "vctk":
        made = prepare(root, use_edinburgh_vctk_url=(root / "wav48_silence_trimmed").is_dir())
    elif kind == "ljspeech":
        made = prepare(root)
    else:
        made = prepare(root, dataset_parts=[part], num_jobs=config.n_jobs)[part]
    return made["recordings"], made["supervisions"]


# --- Hugging Face ------------------------------------------------------------------------------------------------


def read_hub(source: str, config: SourceConfig) -> Iterator[Utterance]:
    """The utterances of a data set: a folder that ``save_to_disk`` wrote, parquet files, or a name, which is streamed.

    Sound that the data set holds inside is written into ``config.cache`` as it is, so that it has a path.

    Raises:
        ValleError: the package ``datasets`` is missing, there is no such data set, or none of its columns is audio.
    """
    datasets = need("datasets", f"the source hf:{source}", "sources")
    path = Path(source)
    here = path.resolve()
    called = (here.stem if here.is_file() else here.name) if path.exists() else source.split("/")[:2][-1]
    name = config.name or called
    try:
        splits = _load_splits(datasets, path, source)
    except Exception as error:
        raise ValleError(
            f"the data set {source} cannot be opened: {type(error).__name__}: {error}; give hf:PATH of a folder that "
            "save_to_disk wrote, of parquet files, or hf:ORGANISATION/NAME[/CONFIG]"
        ) from error
    wanted = set(config.parts) or set(splits)
    if wanted - set(splits):
        missing, have = ", ".join(sorted(wanted - set(splits))), ", ".join(splits)
        raise ValleError(f"the data set {source} has no split {missing}; it has {have}")
    return _hub_utterances({s: rows for s, rows in splits.items() if s in wanted}, source, name, config)


def _load_splits(datasets: Any, path: Path, source: str) -> dict[str, Any]:
    """split -> rows with undecoded audio, one after the other; the only split of a data set without any is ''."""
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        loaded = datasets.load_from_disk(str(path))
        parts = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
        parts = {split: rows.to_iterable_dataset() for split, rows in parts.items()}
    elif path.exists():
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError("it has no parquet files and no state.json")
        by_split: dict[str, list[str]] = {}
        for file in files:  # the hub's form: train-00000-of-00002.parquet
            by_split.setdefault(re.split(r"[-.]", file.name)[0], []).append(str(file))
        if not all(split_name(split) in ("train", "dev", "test") for split in by_split):
            by_split = {"train": [str(file) for file in files]}
        parts = dict(datasets.load_dataset("parquet", data_files=by_split, streaming=True))
        if len(parts) == 1:
            parts = {"": next(iter(parts.values()))}
    else:
        owner, _, rest = source.partition("/")
        repository, _, configuration = rest.partition("/")
        parts = dict(
            datasets.load_dataset("/".join(filter(None, (owner, repository))), configuration or None, streaming=True)
        )
        if list(parts) == ["train"]:  # the hub's word for all
            parts = {"": parts["train"]}
    return {split: rows.decode(False) if rows.features else rows for split, rows in parts.items()}


def _hub_utterances(splits: dict[str, Any], source: str, name: str, config: SourceConfig) -> Iterator[Utterance]:
    seen: set[str] = set()
    for split, rows in splits.items():
        names: dict[str, str | None] | None = None
        for i, row in enumerate(rows):
            if names is None:
                names = {c: next((n for n in COLUMNS[c] if n in row), None) for c in COLUMNS}
                names["path"] = _audio_column(row, rows) or names["path"]
                if names["path"] is None:
                    raise ValleError(
                        f"the data set {source} has no audio among its columns {', '.join(row)}; one must be called "
                        "audio"
                    )
            values = {c: None if n is None else row[n] for c, n in names.items()}
            called = f"{split or 'all'}-{i:08d}" if values["id"] is None else str(values["id"])
            if called in seen:
                raise ValleError(f"the data set {source} has the id {called!r} twice; its ids must differ")
            seen.add(called)
            path = _audio_path(values["path"], f"{name}-{called}", source, name, config)
            yield Utterance(
                id=f"{name}-{called}",
                path=path,
                seconds=_number(values["seconds"]) or duration_s(path),
                split=split_name(str(values["split"] or split)),
                text=" ".join(str(values["text"] or "").split()) or None,
                speaker=None if values["speaker"] is None else f"{name}/{values['speaker']}",
                lang=str(values["lang"] or config.lang),
                dataset=name,
            )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _audio_column(row: dict[str, Any], rows: Any) -> str | None:
    """The column that is audio, by its type or by what it holds."""
    typed = [n for n, feature in (rows.features or {}).items() if type(feature).__name__ == "Audio"]
    held = [n for n, v in row.items() if isinstance(v, dict) and ({"bytes", "path"} <= set(v) or "array" in v)]
    return next(iter(typed + held), None)


def _audio_path(audio: Any, id: str, source: str, name: str, config: SourceConfig) -> Path:
    """Where the sound of a row lies, or is put."""
    if isinstance(audio, str):
        return (Path(source) if Path(source).is_dir() else Path(source).parent) / audio
    audio = audio or {}
    data, written = audio.get("bytes"), audio.get("path")
    if data is None and written and Path(written).is_file():
        return Path(written)
    if config.cache is None:
        raise ValleError(
            f"the data set {source} holds its recordings inside; give a folder where they can be put (cache, --cache)"
        )
    if data is None and "array" in audio:
        import numpy as np
        import soundfile

        out = io.BytesIO()
        soundfile.write(out, np.asarray(audio["array"], np.float32), int(audio["sampling_rate"]), format="FLAC")
        data = out.getvalue()
    suffix = Path(written or "").suffix.lower()
    if suffix not in AUDIO_SUFFIXES:
        suffix = _suffix(data or b"")
    file = re.sub(r"[^A-Za-z0-9._-]", "_", id)[:100]
    if file != id:  # two ids may look the same now
        file += "-" + hashlib.sha256(id.encode()).hexdigest()[:8]
    path = config.cache / re.sub(r"[^A-Za-z0-9._-]", "_", name) / f"{file}{suffix}"
    if data is not None and not (path.is_file() and path.stat().st_size == len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return path


def _suffix(data: bytes) -> str:
    known = ((b"RIFF", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"))
    return next((suffix for start, suffix in known if data.startswith(start)), ".mp3")
