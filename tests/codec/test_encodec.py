"""EnCodec equals the published model's code, streams exactly, trains, is stored and read, and refuses bad input."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from valle.codec.base import load_codec
from valle.codec.encodec import EnCodec, EnCodecConfig
from valle.errors import ValleError

SMALL = EnCodecConfig(
    dim=16, n_filters=4, ratios=(4, 3, 2), n_residual_layers=2, n_lstm_layers=1, n_quantizers=4, codebook_size=32
)
# The same in the words of transformers. 1000 frames a second of 5-bit codes: 20 kbit/s are 4 codebooks, 30 are 6.
SMALL_PUBLISHED = {
    "hidden_size": 16,
    "num_filters": 4,
    "upsampling_ratios": [4, 3, 2],
    "num_residual_layers": 2,
    "num_lstm_layers": 1,
    "codebook_size": 32,
    "target_bandwidths": [20.0, 30.0],
}
GOLDEN = Path(__file__).parent / "golden" / "encodec"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(0.3).clamp(-1, 1)


def liven(encoder: torch.nn.Module, layers: list[Tensor]) -> None:
    """Give the codebooks entries near what the encoder makes of noise, so that codes differ from frame to frame."""
    residual = encoder(noise(1, 1, 24000))[0].t()  # [T, D]
    spread = residual.std(0)
    for embed in layers:
        spread = 0.8 * spread  # slower than the residual shrinks, so that no two entries come close to a tie
        picks = residual[torch.randint(len(residual), (len(embed),))]
        embed.copy_(picks + spread * torch.randn_like(picks))
        residual = residual - embed[torch.cdist(residual, embed).argmin(1)]


@torch.no_grad()
def published_model(**sizes: object) -> transformers.EncodecModel:
    """A ``transformers.EncodecModel`` with random weights in which every part has a say in the result."""
    torch.manual_seed(0)
    model = transformers.EncodecModel(transformers.EncodecConfig(**sizes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("original0"):  # lengths that are not those of the directions
            parameter.mul_(1.2 + torch.rand_like(parameter))
    liven(model.encoder, [layer.codebook.embed for layer in model.quantizer.layers])
    return model


@pytest.fixture(scope="module")
def small_published(tmp_path_factory: pytest.TempPathFactory) -> tuple[transformers.EncodecModel, Path]:
    folder = tmp_path_factory.mktemp("small")
    model = published_model(**SMALL_PUBLISHED)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def full_published(tmp_path_factory: pytest.TempPathFactory) -> tuple[transformers.EncodecModel, Path]:
    folder = tmp_path_factory.mktemp("full")
    model = published_model()
    model.save_pretrained(folder)
    return model, folder


@functools.cache
def shared_codec(config: EnCodecConfig = SMALL) -> EnCodec:
    """For tests that only read it."""
    return small_codec(config)


@pytest.fixture(scope="module")
def full_codec(full_published: tuple[transformers.EncodecModel, Path]) -> EnCodec:
    return EnCodec.from_huggingface(full_published[1])


@torch.no_grad()
def small_codec(config: EnCodecConfig = SMALL) -> EnCodec:
    torch.manual_seed(1)
    codec = EnCodec(config).eval()
    for name, parameter in codec.named_parameters():
        if name.endswith(("original0", "conv.weight")):
            parameter.mul_(1.6)
    liven(codec.encoder, [codec.get_buffer(f"quantizer.layers.{k}.embed") for k in range(config.n_quantizers)])
    return codec


def assert_same_as_published(
    codec: EnCodec, model: transformers.EncodecModel, wav: Tensor, bandwidth: float, n_quantizers: int
) -> None:
    with torch.no_grad():
        codes = model.encode(wav, bandwidth=bandwidth).audio_codes[0]  # [B, K, T]
        decoded = model.decode(codes[None], [None]).audio_values  # [B, 1, T * hop]
    n_frames = -(-wav.shape[2] // codec.hop_length)
    ours = codec.encode(wav, n_quantizers)
    assert ours.shape == (len(wav), n_quantizers, n_frames)
    assert ours.dtype == torch.int64
    torch.testing.assert_close(ours, codes, rtol=0, atol=0)
    assert codec.decode(ours).shape == (len(wav), 1, n_frames * codec.hop_length)
    torch.testing.assert_close(codec.decode(ours), decoded, rtol=0, atol=1e-5)


# -- the published model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [1, 5, 319, 320, 321, 5000, 24007])
def test_published_size_gives_the_same_codes_and_wave(
    full_published: tuple[transformers.EncodecModel, Path], full_codec: EnCodec, n_samples: int
) -> None:
    assert_same_as_published(full_codec, full_published[0], noise(1, 1, n_samples), 6.0, 8)


def test_the_comparison_is_not_idle(full_codec: EnCodec) -> None:
    """Codes vary between frames, and the wave depends on every codebook."""
    codec = full_codec
    assert codec.config == EnCodecConfig(weight_norm=False)
    assert (codec.sample_rate, codec.hop_length, codec.frame_rate) == (24000, 320, 75.0)
    codes = codec.encode(noise(1, 1, 24000))
    assert codes[0, 0].unique().numel() > 20
    wav = codec.decode(codes)
    for k in range(8):
        other = codes.clone()
        other[:, k] = other[:, k].roll(7)
        assert (codec.decode(other) - wav).abs().max() > 1e-2


@pytest.mark.parametrize("n_quantizers", [1, 4, 32])
def test_any_number_of_published_codebooks(
    full_published: tuple[transformers.EncodecModel, Path], n_quantizers: int
) -> None:
    model, folder = full_published
    codec = EnCodec.from_huggingface(folder, n_quantizers)
    assert codec.n_quantizers == n_quantizers
    wav = noise(1, 1, 3000)
    with torch.no_grad():
        codes = model.encode(wav, bandwidth=24.0).audio_codes[0, :, :n_quantizers]
    assert torch.equal(codec.encode(wav), codes)


@pytest.mark.parametrize("n_samples", [1, 23, 24, 25, 160, 2401])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"use_conv_shortcut": False},
        {"kernel_size": 5, "last_kernel_size": 3, "residual_kernel_size": 5, "dilation_growth_rate": 3, "compress": 4},
    ],
    ids=["plain", "identity-shortcut", "other-kernels"],
)
def test_small_sizes_give_the_same_codes_and_wave(tmp_path: Path, change: dict[str, object], n_samples: int) -> None:
    model = published_model(**{**SMALL_PUBLISHED, **change})
    model.save_pretrained(tmp_path)
    codec = EnCodec.from_huggingface(tmp_path, n_quantizers=6)
    assert_same_as_published(codec, model, noise(2, 1, n_samples), 20.0, 4)


def test_both_ways_of_storing_the_weight_norm(
    small_published: tuple[transformers.EncodecModel, Path], tmp_path: Path
) -> None:
    _, folder = small_published
    stored = load_file(folder / "model.safetensors")
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in stored.items()
    }
    assert any(key.endswith("weight_g") for key in old)
    assert not any("parametrizations" in key for key in old)
    save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    new, codec = EnCodec.from_huggingface(folder, 4), EnCodec.from_huggingface(tmp_path, 4)
    assert codec.state_dict().keys() == new.state_dict().keys()
    for name, value in codec.state_dict().items():
        if "ema_" not in name:
            assert torch.equal(value, new.state_dict()[name]), name


@pytest.mark.parametrize("grad", [True, False])
def test_read_weights_are_plain_and_trainable(
    small_published: tuple[transformers.EncodecModel, Path], grad: bool
) -> None:
    with torch.set_grad_enabled(grad):
        codec = EnCodec.from_huggingface(small_published[1], 4)
    assert not codec.training
    names = {name for name, parameter in codec.named_parameters() if parameter.requires_grad}
    assert {"encoder.0.conv.weight", "decoder.0.conv.weight", "encoder.1.block.1.conv.weight"} <= names
    assert not any("parametrizations" in name for name in codec.state_dict())
    codec.train()(noise(1, 1, 480)).wav.pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in codec.parameters())


def test_load_codec_reads_the_published_layout(full_published: tuple[transformers.EncodecModel, Path]) -> None:
    codec = load_codec(full_published[1])
    assert isinstance(codec, EnCodec)
    assert codec.n_quantizers == 8


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"audio_channels": 2}, "audio_channels 2"),
        ({"use_causal_conv": False}, "use_causal_conv False"),
        ({"norm_type": "time_group_norm"}, "time_group_norm"),
        ({"normalize": True}, "normalize True"),
        ({"chunk_length_s": 1.0}, "chunk_length_s 1.0"),
        ({"pad_mode": "constant"}, "pad_mode 'constant'"),
        ({"trim_right_ratio": 0.5}, "trim_right_ratio 0.5"),
        ({"codebook_dim": 8}, "codebook_dim 8"),
        ({"model_type": "dac"}, "'dac'"),
        ({"num_filters": 8}, "size mismatch for encoder"),
        ({"num_lstm_layers": 2}, "missing ['encoder"),
        ({"num_filters": "many"}, "'many'"),
    ],
)
def test_a_published_model_of_another_kind_is_refused(
    small_published: tuple[transformers.EncodecModel, Path], tmp_path: Path, change: dict[str, object], named: str
) -> None:
    _, folder = small_published
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValleError) as caught:
        EnCodec.from_huggingface(tmp_path, 4)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_codebooks_than_stored_are_refused(small_published: tuple[transformers.EncodecModel, Path]) -> None:
    with pytest.raises(ValleError, match="has 6 codebooks, but 8 are wanted"):
        EnCodec.from_huggingface(small_published[1])


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValleError, match="there is no folder"):
        EnCodec.from_huggingface(tmp_path / "nowhere")
    with pytest.raises(ValleError, match=r"has no config\.json"):
        EnCodec.from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValleError, match=r"has no model\.safetensors"):
        EnCodec.from_huggingface(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValleError, match="cannot be read"):
        EnCodec.from_huggingface(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValleError, match="cannot be read"):
        EnCodec.from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValleError, match="an EnCodec is needed"):
        EnCodec.from_huggingface(tmp_path)


def test_a_hub_id_is_fetched(
    small_published: tuple[transformers.EncodecModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        return str(small_published[1] / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert EnCodec.from_huggingface("someone/some-codec", 4).n_quantizers == 4
    assert asked == [("someone/some-codec", "config.json"), ("someone/some-codec", "model.safetensors")]


@pytest.mark.parametrize("error", [huggingface_hub.errors.LocalEntryNotFoundError, RuntimeError])
def test_a_hub_id_that_cannot_be_fetched_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fetch(repo_id: str, filename: str) -> str:
        raise error("several\nlines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(ValleError, match="someone/some-codec is not a folder, and could not be fetched") as caught:
        EnCodec.from_huggingface("someone/some-codec")
    assert "\n" not in str(caught.value)


# -- streaming ----------------------------------------------------------------------------------------------------


def streamed(codec: EnCodec, codes: Tensor, sizes: list[int]) -> Tensor:
    """Decode in chunks of ``sizes`` frames, what is left in a last one."""
    stream = codec.stream_decoder()
    rest = codes.shape[2] - sum(sizes)
    return torch.cat([*(stream.push(chunk) for chunk in codes.split([*sizes, rest], dim=2)), stream.finish()], dim=2)


@pytest.mark.parametrize("n_frames", [1, 2, 6, 7, 8, 20])
@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_streaming_gives_the_same_samples(full_codec: EnCodec, n_frames: int, size: int) -> None:
    codes = full_codec.encode(noise(1, 1, n_frames * 320))
    wav = full_codec.decode(codes)
    assert wav.std() > 0.1
    torch.testing.assert_close(streamed(full_codec, codes, [size] * (n_frames // size)), wav, rtol=0, atol=5e-6)


CODECS = {
    "plain": SMALL,
    "identity-shortcut": EnCodecConfig(**{**vars(SMALL), "conv_shortcut": False, "weight_norm": False}),
    "no-lstm-long-kernels": EnCodecConfig(
        **{**vars(SMALL), "n_lstm_layers": 0, "residual_kernel_size": 7, "last_kernel_size": 15, "ratios": (2, 2)}
    ),
}


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(0, 9), max_size=8), rest=st.integers(1, 9), n_quantizers=st.integers(1, 4))
def test_streaming_in_any_chunks(name: str, sizes: list[int], rest: int, n_quantizers: int) -> None:
    codec = shared_codec(CODECS[name])
    n_frames = sum(sizes) + rest
    codes = torch.randint(32, (1, n_quantizers, n_frames), generator=torch.Generator().manual_seed(n_frames))
    torch.testing.assert_close(streamed(codec, codes, sizes), codec.decode(codes), rtol=0, atol=2e-6)


def test_a_stream_lags_only_at_the_start() -> None:
    codec = shared_codec()
    codes = torch.randint(32, (1, 4, 9))
    stream = codec.stream_decoder()
    n_samples = [stream.push(codes[..., t : t + 1]).shape[2] for t in range(9)]
    assert n_samples == [0] * 6 + [7 * 24, 24, 24]
    assert stream.finish().shape == (1, 1, 0)


def test_two_streams_do_not_mix() -> None:
    codec = shared_codec()
    codes = torch.randint(32, (2, 4, 30), generator=torch.Generator().manual_seed(0))
    streams = [codec.stream_decoder(), codec.stream_decoder()]
    parts: list[list[Tensor]] = [[], []]
    for chunk in codes.split(4, dim=2):
        for i in range(2):
            parts[i].append(streams[i].push(chunk[i : i + 1]))
    for i in range(2):
        wav = torch.cat([*parts[i], streams[i].finish()], dim=2)
        torch.testing.assert_close(wav, codec.decode(codes[i : i + 1]), rtol=0, atol=2e-6)


def test_a_stream_of_nothing_and_a_finished_stream() -> None:
    stream = shared_codec().stream_decoder()
    assert stream.push(torch.zeros(1, 4, 0, dtype=torch.int64)).shape == (1, 1, 0)
    assert stream.finish().shape == (1, 1, 0)
    with pytest.raises(ValueError, match="finished"):
        stream.push(torch.zeros(1, 4, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[2, 4, 1\]"):
        shared_codec().stream_decoder().push(torch.zeros(2, 4, 1, dtype=torch.int64))


# -- codes and waves ----------------------------------------------------------------------------------------------


def test_a_batch_is_one_by_one() -> None:
    codec = shared_codec()
    wav = noise(3, 1, 1000)
    codes = codec.encode(wav)
    assert torch.equal(codes, torch.cat([codec.encode(w[None]) for w in wav]))
    one_by_one = torch.cat([codec.decode(c[None]) for c in codes])
    torch.testing.assert_close(codec.decode(codes), one_by_one, rtol=0, atol=2e-6)


def test_fewer_codebooks_are_the_first_ones() -> None:
    codec = shared_codec()
    wav = noise(1, 1, 1000)
    codes = codec.encode(wav)
    assert torch.equal(codec.encode(wav, 2), codes[:, :2])
    assert not torch.allclose(codec.decode(codes[:, :2]), codec.decode(codes), atol=1e-3)


def test_decoding_is_causal_but_for_the_start() -> None:
    """Changing frame t changes no sample before it, once past the reflection."""
    codec = shared_codec()
    codes = torch.randint(32, (1, 4, 30))
    other = codes.clone()
    other[..., 20] = (other[..., 20] + 1) % 32
    same = (codec.decode(codes) == codec.decode(other))[0, 0]
    assert same[: 20 * 24].all()
    assert not same[20 * 24 : 21 * 24].all()


# -- training -----------------------------------------------------------------------------------------------------


def test_a_few_steps_bring_the_wave_nearer() -> None:
    torch.manual_seed(0)
    codec = EnCodec(SMALL).train()
    time = torch.arange(24 * 40) / 24000
    wav = torch.stack([(2 * torch.pi * hz * time).sin() * 0.5 for hz in (300.0, 500.0)])[:, None]  # [2, 1, N]
    codec.quantizer.initialise(codec.latents(wav))
    optimiser = torch.optim.Adam(codec.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        output = codec(wav, generator=generator)
        assert output.wav.shape == wav.shape
        assert output.codes.shape == (2, 4, 40)
        loss = (output.wav - wav).pow(2).mean()
        optimiser.zero_grad()
        (loss + 0.1 * output.commitment_loss).backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_forward_reconstructs_what_encode_and_decode_do() -> None:
    codec = shared_codec()
    wav = noise(2, 1, 1001)  # not a multiple of the hop: cut to what came in
    with torch.no_grad():
        output = codec(wav)
    assert output.wav.shape == wav.shape
    assert torch.equal(output.codes, codec.encode(wav))
    torch.testing.assert_close(output.wav, codec.decode(output.codes)[..., :1001], rtol=0, atol=1e-5)
    with torch.no_grad():
        fewer = codec(wav, torch.tensor([4, 2]))
    torch.testing.assert_close(fewer.wav[0], output.wav[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(fewer.wav[1:], codec.decode(output.codes[1:, :2])[..., :1001], rtol=0, atol=1e-5)


def test_every_parameter_learns() -> None:
    codec = small_codec().train()
    output = codec(noise(2, 1, 480))
    (output.wav.pow(2).mean() + output.commitment_loss).backward()
    for name, parameter in codec.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# -- on disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_save_and_load(tmp_path: Path, dtype: torch.dtype, weight_norm: bool) -> None:
    codec = small_codec()
    if not weight_norm:
        codec.fold_weight_norm()
    codec.save(tmp_path, dtype)
    loaded = load_codec(tmp_path)
    assert isinstance(loaded, EnCodec)
    assert loaded.config == codec.config
    assert loaded.config.weight_norm == weight_norm
    assert not loaded.training
    assert loaded.fingerprint() == codec.fingerprint()
    codes = torch.randint(32, (1, 4, 20))
    atol = 0 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(loaded.decode(codes), codec.decode(codes), rtol=0, atol=atol)
    if dtype == torch.float32:
        wav = noise(1, 1, 999)
        assert torch.equal(loaded.encode(wav), codec.encode(wav))


def test_the_fingerprint_follows_what_decides_the_codes() -> None:
    codec = small_codec()
    before = codec.fingerprint()
    with torch.no_grad():
        codec.decoder[0].conv.bias.add_(1)
    assert codec.fingerprint() == before
    with torch.no_grad():
        codec.encoder[0].conv.bias.add_(1)
    assert codec.fingerprint() != before


def test_folding_the_weight_norm_changes_no_sample() -> None:
    codec, folded = small_codec(), small_codec()
    folded.fold_weight_norm()
    wav = noise(1, 1, 999)
    codes = codec.encode(wav)
    assert torch.equal(folded.encode(wav), codes)
    assert torch.equal(folded.decode(codes), codec.decode(codes))
    assert not any("parametrizations" in name for name in folded.state_dict())


def test_a_stored_codec_still_gives_what_it_gave() -> None:
    """The golden file: tests/codec/golden/encodec holds a codec, a wave, its codes and what they decode to."""
    expected = load_file(GOLDEN / "expected.safetensors")
    codec = load_codec(GOLDEN)
    assert torch.equal(codec.encode(expected["wav"]), expected["codes"])
    torch.testing.assert_close(codec.decode(expected["codes"]), expected["decoded"], rtol=0, atol=1e-5)


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (torch.zeros(100), r"\[100\]; \[B, 1, N\] is needed"),
        (torch.zeros(1, 100), r"\[1, 100\]"),
        (torch.zeros(1, 2, 100), r"\[1, 2, 100\]"),
        (torch.zeros(1, 1, 0), r"\[1, 1, 0\]"),
        (torch.zeros(1, 1, 100, dtype=torch.int16), r"torch\.int16; torch\.float32"),
        (torch.zeros(1, 1, 100, dtype=torch.float64), r"torch\.float64; torch\.float32"),
        (torch.full((1, 1, 100), torch.nan), "NaN"),
        (torch.full((1, 1, 100), torch.inf), "infinite"),
    ],
)
def test_a_bad_wav_is_refused(wav: Tensor, message: str) -> None:
    codec = shared_codec()
    with pytest.raises(ValueError, match=message):
        codec.encode(wav)
    if wav.isfinite().all():
        with pytest.raises(ValueError, match=message):
            codec(wav)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), r"\[4, 3\]; \[B, K, T\] is needed, K 1 to 4"),
        (torch.zeros(1, 5, 3, dtype=torch.int64), r"\[1, 5, 3\]"),
        (torch.zeros(1, 0, 3, dtype=torch.int64), r"\[1, 0, 3\]"),
        (torch.zeros(1, 4, 0, dtype=torch.int64), "at least one frame"),
        (torch.zeros(1, 4, 3), r"torch\.float32; torch\.int64"),
        (torch.full((1, 4, 3), 32), "32 to 32; 0 to 31"),
        (torch.full((1, 4, 3), -1), "-1 to -1; 0 to 31"),
    ],
)
def test_bad_codes_are_refused(codes: Tensor, message: str) -> None:
    codec = shared_codec()
    with pytest.raises(ValueError, match=message):
        codec.decode(codes)
    if codes.shape[-1]:
        with pytest.raises(ValueError, match=message):
            codec.stream_decoder().push(codes)


@pytest.mark.parametrize("n_quantizers", [-1, 0, 5])
def test_a_number_of_codebooks_out_of_range_is_refused(n_quantizers: int) -> None:
    with pytest.raises(ValueError, match=f"n_quantizers is {n_quantizers}; this codec has 1 to 4"):
        shared_codec().encode(noise(1, 1, 100), n_quantizers)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_filter": 4}, "unknown key 'n_filter'"),
        ({"ratios": []}, "ratios is empty"),
        ({"ratios": [2, 0]}, "ratios is 0"),
        ({"codebook_size": 0}, "codebook_size is 0"),
        ({"n_lstm_layers": -1}, "n_lstm_layers is -1"),
        ({"dim": "wide"}, "'wide'"),
    ],
)
def test_a_bad_configuration_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValleError, match=message):
        EnCodec.from_config(values)
