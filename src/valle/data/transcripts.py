"""What recognisers have understood: the protocol before them, and transcripts that outlive a run that is stopped.

A text with the times of its words and how sure each is (paper §4.1); kept in a file, one recording a line. The
recognisers themselves are in ``valle.data.recognise``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from valle.data.corpus import Utterance, load_wav
from valle.errors import ValleError

SAMPLE_RATE = 16000
"""Samples a second that recognisers have learned from."""

_log = logging.getLogger(__name__)


class Word(NamedTuple):
    """A word that was understood."""

    word: str
    """As the recogniser writes it."""
    start_s: float
    """Where it begins in the recording."""
    end_s: float
    """Where it ends."""
    confidence: float
    """How sure the recogniser is, 0 to 1."""


@dataclass(frozen=True)
class Transcript:
    """What a recogniser has understood."""

    text: str
    """The words as the recogniser writes them; empty when nothing was understood."""
    words: tuple[Word, ...] = ()
    """The same with their times, in their order."""
    confidence: float = 0.0
    """The mean of the words' confidences, 0 to 1; 0 without words."""


class Recogniser(Protocol):
    """Speech to text."""

    @property
    def name(self) -> str:
        """Which recogniser it is; transcripts are kept under it."""

    def transcribe(self, wav: NDArray[np.float32], sample_rate: int) -> Transcript:
        """wav [N] in [-1, 1], mono -> what is said. May be called from several threads."""


Key = tuple[str, str, int]
"""Recogniser, id of the recording, bytes of its file."""


class _Places:
    """Where in a file the line of a key begins: 16 bytes a line, for files of millions of them.

    Keys are kept as hashes of 64 bits, so what is found by one is a candidate, to be compared with the line itself.
    """

    def __init__(self, lines: Iterable[tuple[Key, int]] = ()) -> None:
        """``lines``: keys and places of those that are in the file already."""
        hashes, offsets = array("Q"), array("Q")
        for key, offset in lines:
            hashes.append(_hash(key))
            offsets.append(offset)
        order = np.argsort(np.frombuffer(hashes or b"", np.uint64), kind="stable")
        self._hashes = np.frombuffer(hashes or b"", np.uint64)[order]
        self._offsets = np.frombuffer(offsets or b"", np.uint64)[order]
        self._new: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(set(self._hashes.tolist()) | self._new.keys())

    def add(self, key: Key, offset: int) -> None:
        """A line has been appended."""
        self._new.setdefault(_hash(key), []).append(offset)

    def of(self, key: Key) -> list[int]:
        """Where the key's line may begin, the newest first."""
        wanted = _hash(key)
        low, high = (int(np.searchsorted(self._hashes, np.uint64(wanted), side)) for side in ("left", "right"))
        return [*reversed(self._new.get(wanted, [])), *self._offsets[low:high][::-1].tolist()]


class TranscriptCache:
    """Transcripts on disk: one JSON object a line, found by recogniser, id and size of the recording's file.

    A line is appended at once and whole; one that was torn by a crash is ignored and its recording transcribed again.
    Only the places of the lines are held in memory. One process writes a file: several that work together write one
    each over a common ``base``, and ``merge_transcripts`` joins them when they have gone.
    """

    def __init__(self, path: str | Path, base: TranscriptCache | None = None) -> None:
        """
        Args:
            path: the file; made if it is not there.
            base: asked for what this one does not have, never written.

        Raises:
            ValleError: the file cannot be read or written.
        """
        self.path, self._base = Path(path), base
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise ValleError(
                f"the transcripts {self.path} cannot be kept: {error.strerror or error}; give a file in a folder that "
                "exists and can be written"
            ) from error
        self._places = _Places(self._lines())
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":  # torn
            os.write(self._file, b"\n")

    def __len__(self) -> int:
        return len(self._places)

    def get(self, recogniser: str, utterance: Utterance) -> Transcript | None:
        """What was kept of this recording."""
        record = self._find((recogniser, utterance.id, _size(utterance)))
        if record is None:
            return None if self._base is None else self._base.get(recogniser, utterance)
        return Transcript(record["text"], tuple(Word(*word) for word in record["words"]), record["confidence"])

    def put(self, recogniser: str, utterance: Utterance, transcript: Transcript) -> None:
        """Keep."""
        size = _size(utterance)
        record = {"id": utterance.id, "recogniser": recogniser, "bytes": size, **asdict(transcript)}
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        self._append((recogniser, utterance.id, size), line)

    def close(self) -> None:
        """Free the file."""
        os.close(self._file)

    def take(self, path: Path) -> None:
        """Append the transcripts of another file that are not here; torn lines stay behind.

        Raises:
            ValleError: the other file cannot be read, or the disk is full.
        """
        try:
            with path.open("rb") as file:
                for line in file:
                    key = _line_key(line)
                    if key is None or self._find(key) is not None:
                        continue
                    self._append(key, line if line.endswith(b"\n") else line + b"\n")
        except OSError as error:
            raise ValleError(
                f"the transcripts {path} cannot be read: {error.strerror or error}; delete them"
            ) from error
        os.fsync(self._file)

    def _lines(self) -> Iterator[tuple[Key, int]]:
        """Key and place of each whole line."""
        place = 0
        with self.path.open("rb") as file:
            for line in file:
                key = _line_key(line)
                if key is not None:
                    yield key, place
                place += len(line)

    def _find(self, key: Key) -> dict[str, Any] | None:
        """The newest line of a key."""
        for place in self._places.of(key):
            with self.path.open("rb") as file:
                file.seek(place)
                line = file.readline()
            if _line_key(line) == key:
                record: dict[str, Any] = json.loads(line)
                return record
        return None

    def _append(self, key: Key, line: bytes) -> None:
        if os.write(self._file, line) != len(line):
            raise ValleError(f"the transcripts {self.path} cannot be kept: the disk is full; free some of it")
        self._places.add(key, os.lseek(self._file, 0, os.SEEK_CUR) - len(line))


def parts_folder(path: Path) -> Path:
    """Where several processes that work together keep their transcripts until they are merged into ``path``."""
    return path.with_name(path.name + ".parts")


def merge_transcripts(path: Path) -> None:
    """Append to ``path`` what is in its ``parts_folder``, and remove that; safe to repeat if it was stopped.

    Raises:
        ValleError: a file cannot be read or written.
    """
    folder = parts_folder(path)
    if not folder.is_dir():
        return
    cache = TranscriptCache(path)
    try:
        for part in sorted(folder.glob("*.jsonl")):
            cache.take(part)
            part.unlink(missing_ok=True)
    finally:
        cache.close()
    with contextlib.suppress(OSError):  # something of another's is in it
        folder.rmdir()


def transcribe_all(
    utterances: Iterable[Utterance],
    recogniser: Recogniser,
    cache: str | Path | TranscriptCache | None,
    *,
    threads: int = 1,
) -> Iterator[tuple[Utterance, Transcript | None]]:
    """Every utterance with what is said in it, in their order; None where the recording cannot be read.

    Args:
        utterances: with or without text, which is not looked at.
        recogniser: transcribes those that the cache does not have.
        cache: the file of ``TranscriptCache``, or one that is open and stays so; None keeps nothing.
        threads: recordings at a time.

    Raises:
        ValleError: the cache cannot be read or written.
    """
    from valle.data.ahead import ahead

    kept = cache if cache is None or isinstance(cache, TranscriptCache) else TranscriptCache(cache)

    def work(utterance: Utterance) -> tuple[Utterance, Transcript | None, bool]:
        known = None if kept is None else kept.get(recogniser.name, utterance)
        if known is not None:
            return utterance, known, False
        try:
            wav = load_wav(utterance, SAMPLE_RATE)[0].numpy()  # [N]
        except ValleError as error:
            _log.warning("%s is left out: %s", utterance.id, error)
            return utterance, None, False
        return utterance, recogniser.transcribe(wav, SAMPLE_RATE), True

    try:
        for utterance, transcript, is_new in ahead(work, utterances, n_threads=threads, depth=2 * threads):
            if kept is not None and transcript is not None and is_new:
                kept.put(recogniser.name, utterance, transcript)
            yield utterance, transcript
    finally:
        if kept is not None and kept is not cache:
            kept.close()


def fill_texts(
    utterances: Iterable[Utterance],
    recogniser: Recogniser,
    cache: str | Path | TranscriptCache | None,
    *,
    min_confidence: float = 0.0,
    threads: int = 1,
) -> Iterator[Utterance]:
    """The utterances, each without text given the one that is understood, in their order; those that have a text keep
    it, and those that are understood with less than ``min_confidence`` stay without.

    Raises:
        ValleError: the cache cannot be read or written.
    """
    given = list(utterances)
    bare = [u for u in given if not (u.text or "").strip()]
    heard = transcribe_all(bare, recogniser, cache, threads=threads)
    for utterance in given:
        if (utterance.text or "").strip():
            yield utterance
            continue
        _, transcript = next(heard)
        if transcript is None or not transcript.text or transcript.confidence < min_confidence:
            yield utterance
        else:
            yield replace(utterance, text=transcript.text)


def _hash(key: Key) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest(), "little")


def _line_key(line: bytes) -> Key | None:
    """What a line of the cache is found by; None for one that is torn."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if (
        not isinstance(record, dict)
        or not {"recogniser", "id", "bytes", "text", "words", "confidence"} <= record.keys()
    ):
        return None
    return record["recogniser"], record["id"], record["bytes"]


def _size(utterance: Utterance) -> int:
    """Bytes of the recording's file: another size is another recording."""
    try:
        return utterance.path.stat().st_size
    except OSError:
        return 0
