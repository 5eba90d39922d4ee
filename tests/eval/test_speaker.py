"""The speaker network's front end on a tiny network made here, cosines, and the equal error rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from eval_helpers import speechlike

from valle.errors import ValleError
from valle.eval.speaker import OnnxSpeaker, cosine, equal_error_rate


def _varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def _field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _value(name: str, dims: list[int | str]) -> bytes:
    shape = b"".join(_field(1, _field(1, d) if isinstance(d, int) else _field(2, d)) for d in dims)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))


def write_network(path: Path, n_bands: int = 80) -> Path:
    """An ONNX network of two operators: features [B, T, n_bands] -> their mean square over time [B, n_bands]."""
    square = _field(1, "x") + _field(1, "x") + _field(2, "y") + _field(4, "Mul")
    axes = _field(1, "axes") + _field(8, 1) + _field(20, 7)
    keep = _field(1, "keepdims") + _field(3, 0) + _field(20, 2)
    mean = _field(1, "y") + _field(2, "z") + _field(4, "ReduceMean") + _field(5, axes) + _field(5, keep)
    graph = _field(1, square) + _field(1, mean) + _field(2, "g")
    graph += _field(11, _value("x", ["B", "T", n_bands])) + _field(12, _value("z", ["B", n_bands]))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(2, 13)))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> OnnxSpeaker:
    return OnnxSpeaker(write_network(tmp_path_factory.mktemp("onnx") / "tiny.onnx"), threads=1)


def test_embedding_has_unit_length_whatever_the_rate(network: OnnxSpeaker) -> None:
    at_24k = network.embed(speechlike(2.0), 24000)
    at_16k = network.embed(speechlike(2.0, rate=16000), 16000)
    assert at_24k.shape == (80,)
    assert np.linalg.norm(at_24k) == pytest.approx(1)
    assert cosine(at_24k, at_16k) > 0.95


def test_features_are_kaldis(network: OnnxSpeaker) -> None:
    wav = speechlike(1.0, rate=16000)
    features = network._features(wav)
    assert features.shape == (1 + (16000 - 400) // 160, 80)  # whole windows of 25 ms every 10 ms
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-4)
    np.testing.assert_array_equal(features, network._features(wav))  # no dither
    # The logarithm makes a gain an offset, which the mean takes away.
    np.testing.assert_allclose(features, network._features(0.5 * wav), atol=1e-2)


def test_same_voice_is_nearer_than_another(network: OnnxSpeaker) -> None:
    a, again, other = (
        network.embed(speechlike(2.0, pitch, seed), 24000) for pitch, seed in ((100, 0), (100, 1), (400, 2))
    )
    assert cosine(a, again) > cosine(a, other) + 0.1


def test_cosine_by_hand() -> None:
    a, b = np.array([3.0, 0.0], np.float32), np.array([1.0, 1.0], np.float32)
    assert cosine(a, a) == pytest.approx(1)
    assert cosine(a, -a) == pytest.approx(-1)
    assert cosine(a, b) == pytest.approx(0.5**0.5)


def test_too_little_sound_is_refused(network: OnnxSpeaker) -> None:
    with pytest.raises(ValleError, match=r"0\.05 s; at least 0\.1 s"):
        network.embed(np.zeros(1200, np.float32), 24000)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValleError, match="there is no speaker network"):
        OnnxSpeaker(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValleError, match="not a readable ONNX file"):
        OnnxSpeaker(tmp_path / "text.onnx")
    with pytest.raises(ValleError, match=r"\[B, T, 80\] are needed"):
        OnnxSpeaker(write_network(tmp_path / "narrow.onnx", n_bands=40))


def test_equal_error_rate_by_hand() -> None:
    rate, threshold = equal_error_rate([0.9, 0.8, 0.7], [0.1, 0.2, 0.3])
    assert rate == 0
    assert 0.3 < threshold <= 0.7
    # One of four on the wrong side, both ways.
    rate, _ = equal_error_rate([0.9, 0.8, 0.7, 0.2], [0.1, 0.15, 0.3, 0.75])
    assert rate == pytest.approx(0.25)
    rate, _ = equal_error_rate([0.1, 0.2], [0.8, 0.9])
    assert rate == 1


def test_equal_error_rate_of_a_known_distribution() -> None:
    rng = np.random.default_rng(0)
    rate, threshold = equal_error_rate(rng.normal(1, 0.5, 4000).tolist(), rng.normal(0, 0.5, 4000).tolist())
    assert rate == pytest.approx(0.1587, abs=0.01)  # one standard deviation from either mean
    assert threshold == pytest.approx(0.5, abs=0.05)
