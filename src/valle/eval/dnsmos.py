"""DNSMOS: what listeners would say of the sound, as Microsoft's networks guess it (P.835 and P.808).

They were trained on noisy and denoised speech, and are used far from it here; they hear noise and distortion, not
whether the words or the voice are right. The networks come with the package ``speechmos`` (MIT), whose own code is not
used: it needs librosa. What is done here is the same: 16 kHz, windows of 9.01 s every second, a short wave repeated.

Sources: Reddy et al., "DNSMOS P.835", ICASSP 2022; "DNSMOS", ICASSP 2021; the polynomials are the package's.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from valle.errors import ValleError
from valle.eval.journal import digest

RATE = 16000
"""Samples a second that the networks take."""
_N_SAMPLES = int(9.01 * RATE)
_N_FFT, _HOP, _N_MELS = 321, 160, 120
_TO_MOS = {  # of what the P.835 network says, in the order of its outputs
    "dnsmos_sig": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos_bak": (-0.13166888, 1.60915514, -0.39604546),
    "dnsmos": (-0.06766283, 1.11546468, 0.04602535),
}


class Dnsmos:
    """Both networks."""

    def __init__(self, *, threads: int = 0) -> None:
        """
        Raises:
            ValleError: the package speechmos or onnxruntime is not installed.
        """
        found = find_spec("speechmos")
        if found is None or not found.submodule_search_locations or find_spec("onnxruntime") is None:
            raise ValleError("--quality needs the networks of the package speechmos: pip install 'valle[eval]'")
        import onnxruntime

        folder = Path(next(iter(found.submodule_search_locations))) / "dnsmos_models"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        paths = folder / "sig_bak_ovr.onnx", folder / "model_v8.onnx"
        self._p835, self._p808 = (
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in paths
        )
        self.name = f"DNSMOS ({', '.join(digest(path) for path in paths)})"

    def __call__(self, wav: NDArray[np.float32], sample_rate: int) -> dict[str, float | None]:
        """wav [N] -> ``dnsmos`` (overall), ``dnsmos_sig``, ``dnsmos_bak``, ``dnsmos_p808``: 1 to 5; None: silence."""
        if not wav.any():
            return dict.fromkeys([*_TO_MOS, "dnsmos_p808"])
        x = np.clip(soxr.resample(wav, sample_rate, RATE), -1, 1).astype(np.float32)
        while len(x) < _N_SAMPLES:
            x = np.concatenate([x, x])
        said = []
        for second in range(max(len(x) // RATE - 10, 0) + 1):
            window = x[second * RATE :][:_N_SAMPLES]
            raw = self._p835.run(None, {"input_1": window[None]})[0][0]  # [3]
            scores = [float(np.polyval(_TO_MOS[name], value)) for name, value in zip(_TO_MOS, raw, strict=True)]
            said.append([*scores, float(self._p808.run(None, {"input_1": log_mel(window[:-160])[None]})[0][0][0])])
        means = np.mean(said, 0).tolist()
        return dict(zip([*_TO_MOS, "dnsmos_p808"], means, strict=True))


def log_mel(wav: NDArray[np.float32]) -> NDArray[np.float32]:
    """wav [N] at 16 kHz -> [T, 120], 0 dB being the loudest: (dB + 40) / 40, at most 80 dB below."""
    padded = np.pad(wav.astype(np.float64), _N_FFT // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_N_FFT) / _N_FFT)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP] * window  # [T, 321]
    power = np.square(np.abs(np.fft.rfft(frames))) @ _mel_bands().T  # [T, 120]
    db = 10 * np.log10(np.maximum(power, 1e-10) / max(power.max(), 1e-10))
    scaled: NDArray[np.float32] = ((np.maximum(db, db.max() - 80) + 40) / 40).astype(np.float32)
    return scaled


@cache
def _mel_bands() -> NDArray[np.float64]:
    """[120, 161]: triangles of equal area, even in Slaney's mel up to 8 kHz."""
    linear, log_start, log_step = 200 / 3, 1000.0, np.log(6.4) / 27
    top = log_start / linear + np.log(RATE / 2 / log_start) / log_step
    mels = np.linspace(0, top, _N_MELS + 2)
    curved = log_start * np.exp(log_step * (mels - log_start / linear))
    edges = np.where(mels < log_start / linear, linear * mels, curved)  # [122] Hz
    bins = np.arange(_N_FFT // 2 + 1) * RATE / _N_FFT  # [161] Hz; NOTE an odd window has none at 8 kHz
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    bands: NDArray[np.float64] = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return bands
