"""Long recordings into pieces to train on: 10 to 20 s each, cut in pauses where the paper crops at random (§5.1).

A detector tells for every 32 ms how likely they hold speech; only these numbers and their levels are kept, so that a
recording of eight hours is read in blocks and takes some megabytes. The pieces are then chosen over the whole.

The detector is Silero VAD (MIT) in onnxruntime, without its Python code, which wants torchaudio in some versions:
``pip install onnxruntime`` and ``pip install --no-deps silero-vad`` are all it needs. Where it is not installed a
detector by level takes its place, which takes whatever is loud for speech.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from valle.errors import ValleError

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000
"""Of what a detector hears."""
FRAME = 512
"""Samples that a detector judges together, 32 ms."""
FRAME_S = FRAME / SAMPLE_RATE

_BLOCK_S = 30.0  # of sound in memory at a time
_FAINTEST_DB = -100.0
_SILERO = "silero_vad_16k_sequence.onnx"


@dataclass(frozen=True)
class SegmentConfig:
    """Where to cut."""

    min_s: float = 10.0
    """A piece is at least as long, unless there is too little speech between two long pauses; half as long where speech
    had to be cut otherwise."""
    target_s: float = 15.0
    """Of the pauses that would do, the one that makes a piece nearest to this length is taken."""
    max_s: float = 20.0
    """No piece is longer; where no pause comes in time, speech is cut at its quietest place."""
    max_pause_s: float = 2.0
    """Longer pauses always end a piece and belong to none."""
    min_pause_s: float = 0.16
    """Shorter ones are no pauses: a stop consonant is as silent."""
    pad_s: float = 0.2
    """Kept before and after the speech of a piece, where the pause has room for it."""
    min_speech_s: float = 0.25
    """Shorter speech is noise."""
    shortest_s: float = 1.0
    """Speech that is shorter and has no other near it is dropped."""
    threshold: float = 0.5
    """Probability from which on a frame begins speech; it ends at 0.15 less."""

    def __post_init__(self) -> None:
        if not 0 < self.min_s <= self.target_s <= self.max_s or self.max_s < 2 * self.min_s:
            raise ValleError(
                f"pieces of {self.min_s:g} s at least, {self.target_s:g} s at best and {self.max_s:g} s at most cannot "
                "be had; these must be in order, and the longest at least twice the shortest"
            )
        if self.threshold <= 0.15 or self.threshold >= 1:
            raise ValleError(f"the threshold is {self.threshold:g}; it must lie between 0.15 and 1")


@dataclass(frozen=True)
class Segment:
    """A piece of a recording."""

    start_s: float
    """Where it begins."""
    end_s: float
    """Where it ends."""
    speech_share: float
    """The part of it that is speech, 0 to 1."""
    whole: bool = True
    """False where a cut went through speech: a word at that end may be half."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


class SpeechDetector(Protocol):
    """Judges a recording from beginning to end; it may remember what it heard."""

    name: str
    """Belongs to what a cached result was made by."""

    def reset(self) -> None:
        """Another recording begins."""

    def __call__(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next frames [n, FRAME] at 16 kHz, n at least 1 -> probability of speech [n], 0 to 1."""


class SileroDetector:
    """Silero VAD v6, the network that takes many frames in one call, on one core."""

    name = "silero-vad"

    def __init__(self, path: str | Path | None = None) -> None:
        """
        Args:
            path: ``silero_vad_16k_sequence.onnx``; by default that of the package silero-vad.

        Raises:
            ValleError: there is no such file, or it is another network.
            ModuleNotFoundError: onnxruntime or, without a path, silero-vad is not installed.
        """
        import onnxruntime

        path = Path(path) if path is not None else _find_silero()
        if not path.is_file():
            raise ValleError(f"there is no speech detector {path}; it is the {_SILERO} of silero-vad 6.2.3 or newer")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception of its own for each way in which a file can be wrong
            raise ValleError(f"the speech detector {path} is not a readable ONNX file: {error}") from error
        names = {x.name for x in self._session.get_inputs()}
        if names != {"input", "h", "c"}:
            raise ValleError(f"the speech detector {path} takes {sorted(names)}; {_SILERO} is needed")
        self.reset()

    def reset(self) -> None:
        """Another recording begins."""
        self._h = self._c = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros((1, 64), np.float32)

    def __call__(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """frames [n, 512] -> [n]. Each is seen with the 64 samples before it."""
        before = np.concatenate([self._context, frames[:-1, -64:]])
        self._context = frames[-1:, -64:].copy()
        probability, self._h, self._c = self._session.run(
            ["speech_probs", "hn", "cn"],
            {"input": np.concatenate([before, frames], 1), "h": self._h, "c": self._c},  # [n, 576]
        )
        return np.asarray(probability, np.float32).reshape(-1)


class EnergyDetector:
    """Speech is what is louder than the quiet of the last half minute or so: half as likely as not at 9 dB above it.

    The quiet is the tenth percentile of the levels in this call and the one before, so calls of 10 s and more are best.
    """

    name = "level"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Another recording begins."""
        self._before: NDArray[np.float32] = np.zeros(0, np.float32)

    def __call__(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """frames [n, 512] -> [n]."""
        levels = _levels_db(frames)  # [n]
        quiet = max(float(np.percentile(np.concatenate([self._before, levels]), 10)), -60.0)
        self._before = levels
        return np.asarray(1 / (1 + np.exp(-(levels - quiet - 9) / 2)), np.float32)


def load_detector(path: str | Path | None = None) -> SpeechDetector:
    """Silero, or the detector by level with a warning where it is not installed.

    Raises:
        ValleError: ``path`` is given and is not its network.
    """
    try:
        return SileroDetector(path)
    except ModuleNotFoundError as error:
        logger.warning(
            "warning: %s is not installed, so speech is told by its level alone and noise will be taken for it; "
            "pip install onnxruntime, then pip install --no-deps silero-vad",
            error.name,
        )
        return EnergyDetector()


def _find_silero() -> Path:
    spec = importlib.util.find_spec("silero_vad")  # does not import it, nor its torchaudio
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("silero-vad is not installed", name="silero-vad")
    return Path(next(iter(spec.submodule_search_locations))) / "data" / _SILERO


@dataclass(frozen=True)
class Activity:
    """What is kept of a recording to cut it by."""

    probability: NDArray[np.float32]
    """[n] of speech in each frame of 32 ms."""
    level_db: NDArray[np.float32]
    """[n] level of each frame, in dB relative to full scale, -100 at least."""


def detect(path: str | Path, detector: SpeechDetector) -> Activity:
    """Listen to a recording of any length, rate and number of channels, block by block.

    Raises:
        ValleError: it cannot be opened or decoded; ``valle.data.probe`` tells so beforehand.
    """
    detector.reset()
    parts = [(detector(frames), _levels_db(frames)) for frames in _frames(path)]
    if not parts:
        return Activity(np.zeros(0, np.float32), np.zeros(0, np.float32))
    return Activity(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def segment(
    path: str | Path, detector: SpeechDetector | None = None, config: SegmentConfig | None = None
) -> list[Segment]:
    """The pieces of a recording in order; none where there is no speech.

    Raises:
        ValleError: all of ``detect``.
    """
    return cut(detect(path, detector or load_detector()), config)


def cut(activity: Activity, config: SegmentConfig | None = None) -> list[Segment]:
    """Pieces by what was heard: ``min_s`` to ``max_s`` long, cut in pauses wherever there are any.

    From the beginning of what is left until its end: if it is too long for one piece, it is to become as many pieces of
    equal length as come nearest to ``target_s``, and the pause nearest to the end of the first of them is taken.
    """
    config = config or SegmentConfig()
    runs = _speech_runs(activity.probability, config)
    is_speech = np.zeros(len(activity.probability) + 1, np.int64)
    for start, stop in runs:
        is_speech[start + 1 : stop + 1] = 1
    n_speech = is_speech.cumsum()  # [n + 1], frames of speech before each
    pieces: list[Segment] = []
    for island in _islands(runs, config):
        for start, stop, whole in _cut_island(island, activity, config):
            share = float(n_speech[stop] - n_speech[start]) / (stop - start)
            pieces.append(Segment(round(start * FRAME_S, 3), round(stop * FRAME_S, 3), round(share, 3), whole))
    return pieces


def read_segment(path: str | Path, piece: Segment, sample_rate: int | None = None) -> tuple[NDArray[np.float32], int]:
    """The sound of a piece alone, mixed to one channel: wav [N] and its rate, the file's own by default.

    Raises:
        ValleError: it cannot be opened or decoded, or nothing is there.
    """
    import soundfile
    import soxr

    from valle.audio import open_audio

    with open_audio(path) as file:
        rate: int = file.samplerate
        start, stop = round(piece.start_s * rate), round(piece.end_s * rate)
        try:
            file.seek(min(start, file.frames))
            wav = file.read(stop - start, dtype="float32", always_2d=True).mean(1)  # [N]
        except soundfile.SoundFileError as error:
            raise ValleError(f"the recording {path} is damaged; export it again") from error
    if not len(wav):
        raise ValleError(f"the recording {path} has nothing at {piece.start_s:g} s; it was longer when it was cut")
    if sample_rate is not None and sample_rate != rate:
        wav, rate = soxr.resample(wav, rate, sample_rate), sample_rate
    return np.asarray(wav, np.float32), rate


def _frames(path: str | Path) -> Iterator[NDArray[np.float32]]:
    """Blocks of whole frames [n, FRAME] at 16 kHz; the last frame is filled up with zeros."""
    import soxr

    from valle.audio import open_audio

    with open_audio(path) as file:
        resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
        left = np.zeros(0, np.float32)
        for block, is_last in _blocks(file, path):
            if file.samplerate != SAMPLE_RATE:
                block = resampler.resample_chunk(block, last=is_last)
            left = np.concatenate([left, np.asarray(block, np.float32)])
            if is_last:
                left = np.pad(left, (0, -len(left) % FRAME))
            n = len(left) // FRAME * FRAME
            if n:
                yield left[:n].reshape(-1, FRAME)
            left = left[n:]


def _blocks(file: Any, path: str | Path) -> Iterator[tuple[NDArray[np.float32], bool]]:
    """Mixed blocks of a file, and whether each is the last: the lengths that files tell are not to be trusted."""
    import soundfile

    size = round(_BLOCK_S * file.samplerate)
    try:
        block = file.read(size, dtype="float32", always_2d=True)  # [n, channels]
        while len(block):
            following = file.read(size, dtype="float32", always_2d=True)
            yield block.mean(1), not len(following)
            block = following
    except soundfile.SoundFileError as error:
        raise ValleError(f"the recording {path} is damaged; export it again") from error


def _levels_db(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """frames [n, FRAME] -> [n]."""
    power = np.square(frames, dtype=np.float64).mean(1)
    return np.asarray(10 * np.log10(np.maximum(power, 10 ** (_FAINTEST_DB / 10))), np.float32)


def _speech_runs(probability: NDArray[np.float32], config: SegmentConfig) -> list[tuple[int, int]]:
    """First frame and the one after the last, of each stretch of speech between two pauses."""
    sure, maybe = probability >= config.threshold, probability >= config.threshold - 0.15
    edges = np.flatnonzero(np.diff(np.concatenate([[False], maybe, [False]]).astype(np.int8)))
    n_sure = np.concatenate([[0], sure.cumsum()])
    runs: list[tuple[int, int]] = []
    for start, stop in edges.reshape(-1, 2).tolist():
        if n_sure[stop] == n_sure[start]:
            continue
        start += int(sure[start:stop].argmax())  # speech begins where it is sure and ends where it may be over
        if runs and (start - runs[-1][1]) * FRAME_S < config.min_pause_s:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    return [(start, stop) for start, stop in runs if (stop - start) * FRAME_S >= config.min_speech_s]


@dataclass(frozen=True)
class _Island:
    """Speech without a long pause in it. Frames."""

    start: int
    stop: int
    pauses: list[tuple[int, int]]
    """First frame and the one after the last of each."""


def _islands(runs: list[tuple[int, int]], config: SegmentConfig) -> Iterator[_Island]:
    """Islands with their padding, of which two neighbours share a pause equally when it is short."""
    groups: list[list[tuple[int, int]]] = []
    for run in runs:
        if groups and (run[0] - groups[-1][-1][1]) * FRAME_S <= config.max_pause_s:
            groups[-1].append(run)
        else:
            groups.append([run])
    pad = round(config.pad_s / FRAME_S)
    for i, group in enumerate(groups):
        start, stop = group[0][0], group[-1][1]
        if (stop - start) * FRAME_S < config.shortest_s:
            continue
        before = groups[i - 1][-1][1] if i else 0
        after = groups[i + 1][0][0] if i + 1 < len(groups) else stop + 2 * pad
        pauses = [(a[1], b[0]) for a, b in itertools.pairwise(group)]
        yield _Island(
            max(start - pad, (before + start) // 2 if i else 0), min(stop + pad, (stop + after + 1) // 2), pauses
        )


def _cut_island(island: _Island, activity: Activity, config: SegmentConfig) -> Iterator[tuple[int, int, bool]]:
    """First frame and the one after the last, and whether both ends lie in pauses, of each piece."""
    least, most = int(np.ceil(config.min_s / FRAME_S)), int(config.max_s / FRAME_S)
    pad = round(config.pad_s / FRAME_S)
    # Of each pause: where the piece before it ends, and where the one after it begins.
    gaps = [(min(a + pad, (a + b) // 2), max(b - pad, (a + b) // 2)) for a, b in island.pauses]
    ends = [stop for stop, _ in gaps]
    end = min(island.stop, len(activity.level_db))
    start, start_whole = island.start, True
    while (left := end - start) > most:
        aim = start + left / max(round(left * FRAME_S / config.target_s), -(-left // most), 2)
        stop = None
        for short in (least, least // 2):
            first, last = bisect_left(ends, start + short), bisect_right(ends, start + most)
            if near := [gap for gap in gaps[first:last] if end - gap[1] >= short]:
                stop, following = min(near, key=lambda gap: abs(gap[0] - aim))
                break
        whole = stop is not None
        if stop is None:  # what remains must be long enough for a piece too
            low, high = start + least, max(start + least, min(start + most, end - least))
            stop = following = low + _quietest(activity.level_db[low : high + 1])
        yield start, stop, start_whole and whole
        start, start_whole = following, whole
    yield start, end, start_whole


def _quietest(levels: NDArray[np.float32]) -> int:
    """Where 0.1 s are the softest: levels [n] -> index."""
    window = np.ones(3) / 3
    padded = np.pad(levels, 1, mode="edge")
    return int(np.convolve(padded, window, mode="valid").argmin())
