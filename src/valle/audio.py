"""Sound files in and out, and the care that a reference needs before it may become a voice (paper §4.4).

Files are read and written by libsndfile (wav, flac, mp3, opus, and more to read), rates are changed by soxr: no ffmpeg.
A file is encoded in memory and put in its place by one rename; what was generated is marked as such (``provenance``).
"""

from __future__ import annotations

import io
import math
import os
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from valle import provenance
from valle.errors import ValleError
from valle.files import FORMATS, format_of, write_atomic

Source = Union[str, "os.PathLike[str]", BinaryIO]

SAMPLE_RATE = 24000
"""Samples a second of everything this project trains on and generates."""

LOUDNESS_DB = -23.0
"""Level of generated speech: of its sounding parts, in dB relative to full scale."""

REFERENCE_LEVELS_DB = (-32.0, -16.0)
"""A reference outside is brought to the nearer edge: nine tenths of recorded speech lies between, hardly any beyond."""

_PEAK = 0.89  # -1 dB: room for what a codec adds
_FRAME_S = 0.02  # over which levels are measured
_SILENCE_DB = -60.0  # a recording that never gets louder than this is silent

_BLOCK = 1 << 20  # samples that are written at once
_CONTAINERS = {  # format -> libsndfile's container and encoding
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "pcm": ("RAW", "PCM_16"),
}
_LOSSY_RATES = (8000, 12000, 16000, 24000, 48000)  # that both opus and mp3 know


@dataclass(frozen=True)
class Audio:
    """A wave, and where it came from."""

    waveform: Tensor
    """wav [1, N] float32, nominally in [-1, 1]."""
    sample_rate: int
    """Samples a second."""
    codes: Tensor | None = None
    """codes [8, T] int64 that the wave was decoded from; for long texts, those of its pieces in a row."""
    info: dict[str, Any] = field(default_factory=dict)
    """How it was made: model, seed, why it stopped ...; empty for a recording."""

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.waveform.shape[-1] / self.sample_rate

    def to_bytes(self, format: str = "wav") -> bytes:
        """The whole file: "wav", "flac", "mp3", "opus", or "pcm" (16-bit little-endian samples without a header)."""
        if format not in _CONTAINERS:
            raise ValleError(f"the audio format {format!r} is not known; choose one of {', '.join(FORMATS)}")
        rate, wav = self.sample_rate, self.waveform
        if format in ("mp3", "opus") and rate not in _LOSSY_RATES:
            wav, rate = resample(wav, rate, 48000), 48000
        container, encoding = _CONTAINERS[format]
        endian = "LITTLE" if format == "pcm" else "FILE"
        out = io.BytesIO()
        with soundfile.SoundFile(out, "w", rate, 1, format=container, subtype=encoding, endian=endian) as file:
            if format != "pcm":
                for name, value in provenance.tags(self.info).items():
                    setattr(file, name, value)
            for part in torch.split(wav[0], _BLOCK):  # a long wave is not copied as a whole
                file.write(part.clamp(-1, 1).cpu().numpy())
        return _pin_ogg_serial(out.getvalue()) if format == "opus" else out.getvalue()

    def save(self, path: Source, format: str | None = None) -> None:
        """Write to a file, ``"-"`` (standard output) or an open binary file.

        Args:
            path: a file appears whole or not at all.
            format: of ``to_bytes``; None takes it from the file's suffix, and wav where there is none.

        Raises:
            ValleError: unknown format, or the place cannot be written.
        """
        data = self.to_bytes(format or format_of(path))
        if path == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif isinstance(path, str | os.PathLike):
            write_atomic(Path(path), data)
        else:
            path.write(data)


def load(source: Source, sample_rate: int | None = None, *, max_s: float = math.inf, what: str = "recording") -> Audio:
    """Read a sound file of any format that libsndfile knows; channels are averaged.

    Args:
        source: a path or an open binary file.
        sample_rate: resample to it; None keeps the file's own.
        max_s: a longer one is refused before it is read.
        what: the noun by which errors call it.

    Returns:
        Audio of at least one sample, all finite.

    Raises:
        ValleError: no such file, a folder, empty, not audio, no samples, NaN or infinite samples, a senseless rate, or
            too long.
    """
    name = _name(source)
    with open_audio(source, what=what) as file:
        if file.frames > max_s * file.samplerate:
            raise _too_long(f"the {what} {name}", file.frames / file.samplerate, max_s)
        try:
            samples = file.read(dtype="float32", always_2d=True)  # [N, channels]
        except soundfile.SoundFileError as error:
            raise ValleError(f"the {what} {name} is damaged ({_reason(error)}); export it again") from error
        rate = file.samplerate
    if not len(samples):
        raise ValleError(f"the {what} {name} holds no samples; record it again")
    if not np.isfinite(samples).all():
        raise ValleError(f"the {what} {name} holds samples that are not numbers (NaN or infinite); export it again")
    if not 4000 <= rate <= 768000:
        raise ValleError(f"the {what} {name} has {rate} samples a second; between 4000 and 768000 are needed")
    wav = torch.from_numpy(samples.mean(1)).unsqueeze(0)  # [1, N]
    if sample_rate is not None and sample_rate != rate:
        wav, rate = resample(wav, rate, sample_rate), sample_rate
    return Audio(wav, rate)


def open_audio(source: Source, *, what: str = "recording") -> soundfile.SoundFile:
    """Open a sound file for reading.

    Raises:
        ValleError: no such file, a folder, empty, or not audio.
    """
    name = _name(source)
    try:
        if not isinstance(source, str | os.PathLike):
            file: Any = io.BytesIO(source.read())
            empty = not file.getbuffer().nbytes
        elif Path(source).is_dir():
            raise ValleError(f"the {what} {name} is a folder; give a sound file (wav, flac, mp3, opus ...)")
        elif not Path(source).exists():
            raise ValleError(f"there is no {what} {name}; give the path of a sound file (wav, flac, mp3, opus ...)")
        elif not Path(source).is_file():  # a pipe
            return open_audio(io.BytesIO(Path(source).read_bytes()), what=what)
        else:
            Path(source).open("rb").close()  # so that the system says what is wrong, not libsndfile
            file, empty = name, not Path(source).stat().st_size
    except OSError as error:
        raise ValleError(f"the {what} {name} cannot be read: {error.strerror or error}") from error
    if empty:
        raise ValleError(f"the {what} {name} is empty; give a sound file (wav, flac, mp3, opus ...)")
    try:
        return soundfile.SoundFile(file)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: named .raw, which says nothing of its samples
        raise ValleError(
            f"the {what} {name} is not audio that can be read ({_reason(error)}); give a wav, flac, mp3 or opus file"
        ) from error


def load_reference(source: Source | Audio, *, min_s: float = 1.0, max_s: float = 15.0) -> Audio:
    """Read the recording of a voice and make it ready for the codec: 24 kHz mono, trimmed, at a usual level.

    Silence before and after the speech is cut to 0.1 s, since a prompt that ends in silence asks for more of it. A
    recording above ``max_s`` is refused rather than cut: nobody knows which words of the transcript would stay.

    Raises:
        ValleError: all of ``load``; silent, shorter than ``min_s`` or longer than ``max_s``.
    """
    if isinstance(source, Audio):
        name, rate, wav = "given", source.sample_rate, source.waveform.float()
        if wav.dim() != 2 or wav.shape[0] != 1 or not wav.shape[1]:
            raise ValleError(
                f"the reference has the shape {list(wav.shape)}; one channel of samples, [1, N], is needed"
            )
        if not torch.isfinite(wav).all():
            raise ValleError("the reference holds samples that are not numbers (NaN or infinite)")
        wav = resample(wav, rate, SAMPLE_RATE)
    else:
        name = _name(source)
        wav = load(source, SAMPLE_RATE, max_s=4 * max_s, what="reference").waveform  # some of it may be silence
    seconds = wav.shape[1] / SAMPLE_RATE
    if seconds < min_s:
        raise ValleError(
            f"the reference {name} is {seconds:.1f} s long; at least {min_s:g} s is needed, 3 s or more is best"
        )
    if loudest_db(wav, SAMPLE_RATE) < _SILENCE_DB:
        raise ValleError(f"the reference {name} is silent; record it again, closer to the microphone")
    wav = trim_silence(wav, SAMPLE_RATE)
    seconds = wav.shape[1] / SAMPLE_RATE
    if seconds < min_s:
        raise ValleError(
            f"the reference {name} holds only {seconds:.1f} s of sound, the rest is silence; "
            f"at least {min_s:g} s is needed, 3 s or more is best"
        )
    if seconds > max_s:
        raise _too_long(f"the reference {name}", seconds, max_s)
    low, high = REFERENCE_LEVELS_DB
    level = min(max(level_db(wav, SAMPLE_RATE), low), high)
    return Audio(wav * loudness_gain(wav, SAMPLE_RATE, level), SAMPLE_RATE)


def resample(wav: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """wav [1, N] -> [1, about N * to_rate / from_rate] (soxr, high quality)."""
    if from_rate == to_rate:
        return wav
    out = soxr.resample(wav[0].cpu().numpy(), from_rate, to_rate)
    return torch.from_numpy(np.ascontiguousarray(out, dtype=np.float32)).unsqueeze(0)


def level_db(wav: Tensor, sample_rate: int) -> float:
    """Level of the sounding parts of wav [1, N] in dB relative to full scale; minus infinity for digital silence.

    The root mean square over those 20 ms that are less than 30 dB below the loudest: a level, not a perceived loudness.
    """
    levels = _levels(wav, sample_rate)  # [frames]
    sounding = levels[levels > levels.max() * 10 ** (-30 / 20)]
    return 10 * math.log10(float(sounding.square().mean())) if len(sounding) else -math.inf


def loudness_gain(wav: Tensor, sample_rate: int, loudness_db: float = LOUDNESS_DB) -> float:
    """The factor that brings wav [1, N] to ``loudness_db``, or less where its peak would pass -1 dB; 1 for silence."""
    level, peak = level_db(wav, sample_rate), float(wav.abs().max())
    return 1.0 if level == -math.inf else min(10 ** ((loudness_db - level) / 20), _PEAK / peak)


def normalise_loudness(wav: Tensor, sample_rate: int, loudness_db: float = LOUDNESS_DB) -> Tensor:
    """wav [1, N] -> the same at ``loudness_db``; it never clips, see ``loudness_gain``."""
    return wav * loudness_gain(wav, sample_rate, loudness_db)


def trim_silence(wav: Tensor, sample_rate: int, keep_s: float = 0.1, below_db: float = 40.0) -> Tensor:
    """Cut what is ``below_db`` softer than the loudest 20 ms off both ends of wav [1, N], all but ``keep_s`` of it."""
    levels = _levels(wav, sample_rate)  # [frames]
    sounding = (levels > levels.max() * 10 ** (-below_db / 20)).nonzero()
    if not len(sounding):
        return wav
    frame, keep = round(_FRAME_S * sample_rate), round(keep_s * sample_rate)
    return wav[:, max(0, int(sounding[0]) * frame - keep) : (int(sounding[-1]) + 1) * frame + keep]


def loudest_db(wav: Tensor, sample_rate: int) -> float:
    """Level of the loudest 20 ms of wav [1, N], in dB below full scale; minus infinity for digital silence."""
    level = float(_levels(wav, sample_rate).max())
    return 20 * math.log10(level) if level > 0 else -math.inf


def _levels(wav: Tensor, sample_rate: int) -> Tensor:
    """Root mean square of each 20 ms: wav [1, N] -> [frames], at least one."""
    frame = round(_FRAME_S * sample_rate)
    padded = torch.nn.functional.pad(wav[0], (0, -wav.shape[1] % frame))
    return padded.view(-1, frame).square().mean(1).sqrt()


def _name(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", "given"))


def _too_long(what: str, seconds: float, max_s: float) -> ValleError:
    return ValleError(
        f"{what} is {seconds:.1f} s long; at most {max_s:g} s can be used: "
        "cut it to 3 to 10 s, and its transcript to the words that remain"
    )


def _reason(error: soundfile.SoundFileError) -> str:
    """libsndfile's own words, without the object they are about."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _pin_ogg_serial(data: bytes, serial: bytes = b"vall") -> bytes:
    """Give every page of an Ogg stream the same number: libsndfile draws it at random, and one seed is to be one file.

    The checksum of a page (RFC 3533 §6) is that of zlib on mirrored bits, without its inversions.
    """
    out, start = bytearray(data), 0
    while start < len(out):
        n_segments = out[start + 26]
        end = start + 27 + n_segments + sum(out[start + 27 : start + 27 + n_segments])
        out[start + 14 : start + 18] = serial
        out[start + 22 : start + 26] = bytes(4)
        mirrored = zlib.crc32(bytes(out[start:end]).translate(_BITS_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        out[start + 22 : start + 26] = int(f"{mirrored:032b}"[::-1], 2).to_bytes(4, "little")
        start = end
    return bytes(out)
