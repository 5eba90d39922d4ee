"""Speaker similarity: the cosine between the speaker embeddings of two recordings (paper §5.1).

The paper's network is WavLM-TDNN (``pretrained_judges`` has its family); here it is any ``SpeakerNetwork``, and cosines
of different networks do not compare.
The similarity to the original prompt is SIM-o, that to the prompt after the codec's round trip SIM-r (the paper's).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from valle.errors import ValleError

_RATE = 16000
_MIN_S = 0.1  # of speech that an embedding can be taken from


class SpeakerNetwork(Protocol):
    """A voice to a vector."""

    def embed(self, wav: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """wav [N] in [-1, 1], mono -> [D]."""


class OnnxSpeaker:
    """Any ONNX network from Kaldi filter banks [B, T, 80] to embeddings [B, D], such as WeSpeaker's.

    The front end is theirs: 16 kHz, 80 bands, Hamming window of 25 ms every 10 ms, no dither, samples as 16-bit
    numbers, minus the mean over the recording.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        """
        Raises:
            ValleError: no such file, or not a network of that kind.
        """
        path = Path(path)
        if not path.is_file():
            raise ValleError(
                f"there is no speaker network {path}; give --speaker an ONNX file that maps Kaldi filter banks "
                "[B, T, 80] to embeddings, such as WeSpeaker's voxceleb_resnet34.onnx (docs/evaluation.md)"
            )
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception of its own for each way in which a file can be wrong
            raise ValleError(f"the speaker network {path} is not a readable ONNX file: {error}") from error
        shape = self._session.get_inputs()[0].shape
        if len(shape) != 3 or shape[2] != 80:
            raise ValleError(f"the speaker network {path} takes {shape}; filter banks [B, T, 80] are needed")
        self._input = self._session.get_inputs()[0].name

    def embed(self, wav: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """wav [N] -> [D], of unit length.

        Raises:
            ValleError: less than 0.1 s of sound.
        """
        if len(wav) < _MIN_S * sample_rate:
            raise ValleError(
                f"a voice cannot be judged by {len(wav) / sample_rate:.2f} s; at least {_MIN_S} s is needed"
            )
        features = self._features(soxr.resample(wav, sample_rate, _RATE))  # [T, 80]
        embedding: NDArray[np.float32] = self._session.run(None, {self._input: features[None]})[0][0]  # [D]
        return np.asarray(embedding / np.linalg.norm(embedding), np.float32)

    def _features(self, wav: NDArray[np.float32]) -> NDArray[np.float32]:
        """wav [N] at 16 kHz -> [T, 80]."""
        from kaldi_native_fbank import FbankOptions, OnlineFbank

        options = FbankOptions()
        options.frame_opts.samp_freq = _RATE
        options.frame_opts.window_type = "hamming"
        options.frame_opts.dither = 0.0
        options.mel_opts.num_bins = 80
        bank = OnlineFbank(options)
        bank.accept_waveform(_RATE, (wav * 32768.0).tolist())
        bank.input_finished()
        frames = [bank.get_frame(t) for t in range(bank.num_frames_ready)]
        features: NDArray[np.float32] = np.stack(frames).astype(np.float32)  # [T, 80]
        features -= features.mean(0)
        return features


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """a, b [D], not zero -> from -1 to 1."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def equal_error_rate(same: Sequence[float], different: Sequence[float]) -> tuple[float, float]:
    """Where as many pairs of one speaker are rejected as pairs of two are accepted: that rate, and that cosine.

    Args:
        same: cosines of pairs of one speaker.
        different: cosines of pairs of two speakers.
    """
    a, b = np.asarray(same), np.asarray(different)
    thresholds = np.unique(np.concatenate([a, b]))
    rejected = (a[:, None] < thresholds).mean(0)  # [n] rises
    accepted = (b[:, None] >= thresholds).mean(0)  # [n] falls
    best = int(np.argmin(np.abs(rejected - accepted)))
    return float((rejected[best] + accepted[best]) / 2), float(thresholds[best])
