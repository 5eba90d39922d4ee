"""Whether a recording can be used at all: each file is decoded from end to end, a broken one gets a reason.

A decoder alone does not tell. libsndfile shortens a wav whose header promises more than there is without a word, leaves
out damaged pages of Ogg, and gives NaN as it found it; so its log, the pages of Ogg (RFC 3533) and the samples are
looked at too. What a file is, is told by its content, never by its name: a flac called ``.wav`` is accepted.

Not noticed: an mp3 that was cut and has no Xing header (nothing in it says how long it was), and changed bits inside an
mp3 frame or an uncompressed file.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MISSING = "no such file"
NOT_A_FILE = "not a file"
NO_ACCESS = "cannot be opened"
EMPTY = "empty file"
NOT_AUDIO = "not audio that can be read"
TRUNCATED = "less audio than its header promises"
DAMAGED = "damaged audio"
NO_SAMPLES = "no samples"
NOT_NUMBERS = "samples that are not numbers"
BEYOND_SCALE = "samples far beyond full scale"
SAMPLE_RATE = "senseless sample rate"
CHANNELS = "too many channels"
TOO_SHORT = "hardly any audio"
SILENT = "silent audio"

REASONS = (
    MISSING,
    NOT_A_FILE,
    NO_ACCESS,
    EMPTY,
    NOT_AUDIO,
    TRUNCATED,
    DAMAGED,
    NO_SAMPLES,
    NOT_NUMBERS,
    BEYOND_SCALE,
    SAMPLE_RATE,
    CHANNELS,
    TOO_SHORT,
    SILENT,
)
"""Every reason that a ``BadAudio`` can have."""

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8000, 192000
"""Telephone, and four times the studio's 48 kHz: what lies outside is a wrong header."""
MAX_CHANNELS = 2
"""More are several microphones or a film's sound: which of them speaks is not known."""
MIN_SECONDS = 0.1
"""Less holds no word."""
MAX_PEAK = 16.0
"""24 dB above full scale: samples stored as floats of another scale, such as 16-bit numbers."""
SILENCE_PEAK = 1e-3
"""A mix of the channels that stays within this distance of its middle, -60 dBFS, is silence."""

_BLOCK = 1 << 18  # samples decoded at a time
_UNKNOWN_FRAMES = 1 << 60  # libsndfile's way to say that a stream does not tell its length
_MP3_SLACK = 2304  # samples, two frames: what decoders disagree about at an mp3's ends
_SIZES = re.compile(r"^\s*([A-Za-z][\w ]*?)\s*:\s*(0x[0-9A-Fa-f]+|\d+) \(should be (\d+)\)", re.MULTILINE)
_STREAMED = (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)  # sizes by which writers to a pipe say that they do not know
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Probe:
    """A recording that can be used."""

    seconds: float
    """Its length as decoded."""
    sample_rate: int
    """Samples a second."""
    channels: int
    """One or two."""
    format: str
    """Container and encoding as libsndfile names them, such as ``FLAC/PCM_16``."""


class BadAudio(Exception):
    """A recording that cannot be used. ``reason`` is one of ``REASONS``, ``str()`` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in REASONS
        super().__init__(detail or reason)
        self.reason = reason
        """One of ``REASONS``, to be counted."""


def probe(path: str | Path) -> Probe:
    """Decode a file from end to end, block by block: an hour of it needs no more memory than a second.

    Raises:
        BadAudio: it cannot be used; nothing else is raised for whatever the file holds.
    """
    path = Path(path)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
            raise BadAudio(NOT_A_FILE, "a folder" if stat.S_ISDIR(info.st_mode) else "a device or a pipe")
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadAudio(MISSING, str(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise BadAudio(NO_ACCESS, getattr(error, "strerror", None) or str(error)) from error
    try:
        if not info.st_size:
            raise BadAudio(EMPTY)
        return _probe(path, fd, info.st_size)
    finally:
        os.close(fd)


def try_probe(path: str | Path) -> Probe | BadAudio:
    """``probe`` whose refusal is returned, for ``map`` and threads."""
    try:
        return probe(path)
    except BadAudio as error:
        return error


def _probe(path: Path, fd: int, size: int) -> Probe:
    import soundfile

    try:
        # NOTE A number has no suffix, so that the content alone decides.
        file = soundfile.SoundFile(fd, closefd=False)
    except (soundfile.SoundFileError, TypeError, ValueError, OverflowError) as error:
        reason = _why_unopened(path, fd, size)
        raise BadAudio(reason, _words(error)) from error
    with file:
        if file.channels > MAX_CHANNELS:
            raise BadAudio(CHANNELS, f"{file.channels} channels; at most {MAX_CHANNELS}")
        rate = file.samplerate
        if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
            raise BadAudio(SAMPLE_RATE, f"{rate} a second; {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} are known")
        _check_sizes(file)
        if file.format == "OGG":
            _check_ogg(path)
        n = _read(file, fd, size)
        return Probe(n / rate, rate, file.channels, f"{file.format}/{file.subtype}")


def _read(file: Any, fd: int, size: int) -> int:
    """Decode all; the number of samples of one channel."""
    import soundfile

    promised, rate, n = file.frames, file.samplerate, 0
    low, high = np.inf, -np.inf
    while True:
        try:
            block = file.read(_BLOCK // file.channels, dtype="float32", always_2d=True)  # [n, channels]
        except (soundfile.SoundFileError, MemoryError) as error:
            raise BadAudio(_where_it_broke(fd, size), f"after {n / rate:.1f} s: {_words(error)}") from error
        if not len(block):
            break
        n += len(block)
        if not np.isfinite(block).all():
            raise BadAudio(NOT_NUMBERS, f"NaN or infinite within {n / rate:.1f} s")
        if (peak := float(np.abs(block).max())) > MAX_PEAK:
            raise BadAudio(BEYOND_SCALE, f"a peak of {peak:.4g}; full scale is 1")
        mix = block.mean(1)
        low, high = min(low, float(mix.min())), max(high, float(mix.max()))
    if promised < _UNKNOWN_FRAMES and n < promised - (_MP3_SLACK if file.format == "MP3" else 0):
        raise BadAudio(TRUNCATED, f"{n / rate:.1f} s of {promised / rate:.1f} s")
    if not n:
        raise BadAudio(NO_SAMPLES)
    if n < MIN_SECONDS * rate:
        raise BadAudio(TOO_SHORT, f"{n} samples, {n / rate:.3f} s; at least {MIN_SECONDS:g} s")
    if high - low < 2 * SILENCE_PEAK:
        raise BadAudio(SILENT, f"it stays within {(high - low) / 2:.2g} of its middle")
    return n


def _check_sizes(file: Any) -> None:
    """Compare the size that a header of an uncompressed file tells with what is there, as libsndfile logs it.

    Raises:
        BadAudio: less is there. A wrong size of a whole wav or aiff does no harm, only that of its samples does; the
            other two say nothing of the samples.
    """
    sizes = {"data", "ssnd", "data size"} | ({"riff", "riff size"} if file.format in ("W64", "RF64") else set())
    for name, told, there in _SIZES.findall(file.extra_info):
        n_told, n_there = int(told, 0), int(there)
        if name.lower() in sizes and n_told > n_there and n_told not in _STREAMED:
            raise BadAudio(TRUNCATED, f"{n_there} bytes of {n_told}")


def _check_ogg(path: Path) -> None:
    """Walk the pages of an Ogg file: in a row, none missing, each with its checksum, the last one marked as last.

    Raises:
        BadAudio: they are not.
    """
    last: dict[bytes, int] = {}  # stream -> number of its last page
    open_streams: set[bytes] = set()
    with path.open("rb") as file:
        while header := file.read(27):
            if not header.startswith(b"OggS"[: len(header)]):
                if not open_streams:
                    return  # something after the end, such as tags
                raise BadAudio(DAMAGED, f"no page where one must begin, at byte {file.tell() - len(header)}")
            lacing = file.read(header[26]) if len(header) == 27 else b""
            body = file.read(sum(lacing))
            if len(header) < 27 or len(lacing) < header[26] or len(body) < sum(lacing):
                raise BadAudio(TRUNCATED, "the last page of Ogg is not whole")
            page = header[:22] + bytes(4) + header[26:] + lacing + body
            # The checksum is that of zlib on mirrored bits, without its inversions.
            mirrored = zlib.crc32(page.translate(_BITS_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
            stream, number = header[14:18], int.from_bytes(header[18:22], "little")
            if int(f"{mirrored:032b}"[::-1], 2) != int.from_bytes(header[22:26], "little"):
                raise BadAudio(DAMAGED, f"page {number} of Ogg has a wrong checksum")
            if stream in open_streams and number != last[stream] + 1:
                raise BadAudio(DAMAGED, f"page {last[stream] + 1} of Ogg is missing")
            last[stream] = number
            (open_streams.discard if header[5] & 4 else open_streams.add)(stream)
    if open_streams:
        raise BadAudio(TRUNCATED, "Ogg without its last page")


def _why_unopened(path: Path, fd: int, size: int) -> str:
    """The reason for a file that libsndfile does not open."""
    with path.open("rb") as file:
        head = file.read(12)
    if head.startswith(b"OggS"):
        try:
            _check_ogg(path)
        except BadAudio as error:
            return error.reason
    if head.startswith(b"fLaC"):
        return _where_it_broke(fd, size)
    if head[:4] in (b"RIFF", b"FORM"):
        told = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        if told not in _STREAMED and told + 8 > size:
            return TRUNCATED
    return NOT_AUDIO


def _where_it_broke(fd: int, size: int) -> str:
    """A decoder that gave up at the end of the file missed something; one that gave up before met damage."""
    return TRUNCATED if os.lseek(fd, 0, os.SEEK_CUR) >= size else DAMAGED


def _words(error: BaseException) -> str:
    """libsndfile's own words, without the object they are about."""
    return str(getattr(error, "error_string", error)).strip().removeprefix("Error : ").rstrip(".")
