"""The embedded codec: shapes, streaming, storage, fewer codebooks."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valle.codec.base import load_codec
from valle.codec.frames import FrameConv, InverseSTFT, mel_filterbank
from valle.codec.spectral import SpectralCodec, SpectralCodecConfig

SMALL = SpectralCodecConfig(
    encoder_dim=24, encoder_layers=2, decoder_dim=32, decoder_layers=3, codebook_dim=12, codebook_size=32
)


@pytest.fixture(scope="module")
def codec() -> SpectralCodec:
    torch.manual_seed(0)
    return SpectralCodec(SMALL).eval()


def test_shapes(codec: SpectralCodec) -> None:
    for n_samples in (1, 319, 320, 321, 4000):
        codes = codec.encode(torch.randn(2, 1, n_samples) * 0.1)
        n_frames = -(-n_samples // 320)
        assert codes.shape == (2, 8, n_frames)
        assert codes.dtype == torch.int64
        assert codec.decode(codes).shape == (2, 1, n_frames * 320)


def test_fewer_codebooks_are_the_first_ones(codec: SpectralCodec) -> None:
    wav = torch.randn(1, 1, 6400) * 0.1
    codes = codec.encode(wav)
    assert torch.equal(codec.encode(wav, 3), codes[:, :3])
    assert not torch.equal(codec.decode(codes[:, :3]), codec.decode(codes))


def test_padding_in_a_batch_changes_only_the_edge(codec: SpectralCodec) -> None:
    """What stands after an utterance in a batch reaches back no further than the encoder's receptive field."""
    wav = torch.randn(1, 1, 320 * 60) * 0.1
    alone = codec.encode(wav)
    padded = codec.encode(torch.nn.functional.pad(wav, (0, 320 * 20)))
    field = 3 + 3 * SMALL.encoder_layers + 2  # convolutions, and the analysis window's overhang
    assert torch.equal(alone[:, :, :-field], padded[:, :, : 60 - field])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 8), st.sampled_from(["fourier", "harmonic"])
)
def test_streaming_equals_decoding_at_once(
    chunks: list[int], n_quantizers: int, decoder: Literal["fourier", "harmonic"]
) -> None:
    torch.manual_seed(1)
    codec = SpectralCodec(replace(SMALL, decoder=decoder)).eval()
    codes = torch.randint(0, 32, (1, n_quantizers, sum(chunks)))
    stream = codec.stream_decoder()
    parts = [stream.push(part) for part in codes.split(chunks, dim=2)] + [stream.finish()]
    torch.testing.assert_close(torch.cat(parts, dim=2), codec.decode(codes), atol=1e-6, rtol=0)


@pytest.mark.parametrize("decoder", ["fourier", "harmonic"])
def test_a_decoder_is_told_a_voice(decoder: Literal["fourier", "harmonic"], tmp_path) -> None:
    torch.manual_seed(1)
    codec = SpectralCodec(replace(SMALL, decoder=decoder, voice_dim=6)).eval()
    codes, speech = torch.randint(0, 32, (2, 8, 20)), torch.randint(0, 32, (2, 8, 30))
    voice = codec.voice(speech)
    assert voice is not None
    assert voice.shape == (2, 6)
    torch.testing.assert_close(codec.voice(speech[1:]), voice[1:])
    assert torch.equal(codec.decode(codes, voice), codec.decode(codes))  # untrained, it changes nothing
    for block in codec.decoder.backbone.blocks:
        torch.nn.init.normal_(block.film.weight, std=0.5)
    told, silent = codec.decode(codes, voice), codec.decode(codes)
    assert not torch.equal(told, silent)
    assert torch.equal(codec.decode(codes, torch.zeros_like(voice)), silent)
    torch.testing.assert_close(codec.decode(codes[:1], voice[:1]), told[:1], atol=1e-6, rtol=0)
    stream = codec.stream_decoder(voice[:1])
    parts = [stream.push(part) for part in codes[:1].split([3, 1, 9, 7], dim=2)] + [stream.finish()]
    torch.testing.assert_close(torch.cat(parts, dim=2), told[:1], atol=1e-6, rtol=0)
    codec.save(tmp_path)
    loaded = load_codec(tmp_path)
    assert torch.equal(loaded.decode(codes, loaded.voice(speech)), told)
    assert loaded.fingerprint() == codec.fingerprint()


def test_a_codec_that_is_told_no_voice_says_so(codec: SpectralCodec) -> None:
    assert codec.voice(torch.zeros(1, 8, 10, dtype=torch.int64)) is None


def test_streaming_waits_no_longer_than_the_lookahead(codec: SpectralCodec) -> None:
    stream = codec.stream_decoder()
    n_samples = sum(stream.push(torch.zeros(1, 8, 1, dtype=torch.int64)).shape[2] for _ in range(20))
    assert n_samples == (20 - SMALL.lookahead) * 320 - stream.overlap.istft.side


def test_an_empty_stream_ends_in_silence(codec: SpectralCodec) -> None:
    assert codec.stream_decoder().finish().shape == (1, 1, 0)


def test_inverse_stft_inverts() -> None:
    istft = InverseSTFT(320, 1280)
    wav = torch.randn(1, 320 * 12)
    frames = torch.nn.functional.pad(wav, (480, 480)).unfold(1, 1280, 320)
    back = istft(torch.fft.rfft(frames * istft.window))
    torch.testing.assert_close(back[:, 0], wav, atol=1e-5, rtol=0)


def test_mel_filters_cover_every_band() -> None:
    filters = mel_filterbank(24000, 1280, 100)
    assert filters.shape == (641, 100)
    torch.testing.assert_close(filters.sum(0), torch.ones(100))
    centres = filters.argmax(0)
    assert (centres[1:] >= centres[:-1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_storage(codec: SpectralCodec, tmp_path, dtype: torch.dtype) -> None:
    codec.save(tmp_path, dtype)
    loaded = load_codec(tmp_path)
    assert loaded.fingerprint() == codec.fingerprint()
    codes = codec.encode(torch.randn(1, 1, 3200) * 0.1)
    torch.testing.assert_close(
        loaded.decode(codes), codec.decode(codes), atol=1e-7 if dtype == torch.float32 else 2e-3, rtol=0
    )


def test_the_fingerprint_follows_the_encoder_and_not_the_decoder(codec: SpectralCodec, tmp_path) -> None:
    codec.save(tmp_path)
    other = load_codec(tmp_path)
    with torch.no_grad():
        other.decoder.head.bias += 1
    assert other.fingerprint() == codec.fingerprint()
    with torch.no_grad():
        other.project.bias += 1
    assert other.fingerprint() != codec.fingerprint()


@pytest.mark.parametrize(
    "wav", [torch.zeros(320), torch.zeros(1, 2, 320), torch.zeros(1, 1, 0), torch.zeros(1, 1, 320, dtype=torch.int16)]
)
def test_wrong_waves_are_named(codec: SpectralCodec, wav: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"float samples of shape \[B, 1, N\]"):
        codec.encode(wav)


def test_an_impossible_window_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of twice the hop"):
        SpectralCodecConfig(n_fft=1000)


@pytest.mark.parametrize("groups", [1, 12])
@pytest.mark.parametrize("n_frames", [1, 5, 40, 80])
def test_few_frames_are_convolved_by_other_means_to_the_same(groups: int, n_frames: int) -> None:
    torch.manual_seed(0)
    conv = FrameConv(12, 24 if groups == 1 else 12, left=4, right=2, groups=groups)
    x, past = torch.randn(2, n_frames, 12), torch.randn(2, 6, 12)
    for before, last in ((None, True), (past, True), (past, False)):
        expected = conv(x, before, last)
        with torch.no_grad():
            y = conv(x, before, last)
        torch.testing.assert_close(y, expected.detach(), atol=1e-5, rtol=1e-4)
