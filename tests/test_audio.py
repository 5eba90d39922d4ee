"""Sound files: what goes in comes out, what is no sound is refused in one sentence, nothing is left half written."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sounds import voiced
from valle import audio as audio_module
from valle.audio import (
    FORMATS,
    LOUDNESS_DB,
    REFERENCE_LEVELS_DB,
    Audio,
    level_db,
    load,
    load_reference,
    normalise_loudness,
    resample,
    trim_silence,
)
from valle.errors import ValleError
from valle.files import check_writable, write_atomic
from valle.provenance import read_provenance, tags

INFO = {"synthetic": True, "model": "tiny; é=1", "model_version": "3", "codec": "0123456789ab", "seed": 42}


def speech(seconds: float = 2.0, rate: int = 24000, level: float = 0.1) -> torch.Tensor:
    return torch.from_numpy(voiced(seconds, rate, level)).unsqueeze(0)  # [1, N]


# Saving and loading


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus"])
def test_every_format_comes_back_with_its_sound_and_its_mark(format: str, tmp_path: Path) -> None:
    wav = speech()
    path = tmp_path / f"out.{format}"
    Audio(wav, 24000, info=INFO).save(path)
    back = load(path)
    assert back.sample_rate == 24000
    assert back.waveform.shape == wav.shape
    cosine = torch.nn.functional.cosine_similarity(back.waveform, wav).item()
    assert cosine > (0.9999 if format in ("wav", "flac") else 0.95)
    assert read_provenance(path) == {
        "synthetic": "true",
        "model": "tiny ? 1",
        "model_version": "3",
        "codec": "0123456789ab",
        "seed": "42",
        "software": tags(INFO)["software"],
    }


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_audio_gives_the_same_file(format: str) -> None:
    audio = Audio(speech(1.0), 24000, info=INFO)
    assert audio.to_bytes(format) == audio.to_bytes(format)


def test_a_recording_is_not_marked_as_synthetic(tmp_path: Path) -> None:
    Audio(speech(), 24000).save(tmp_path / "out.wav")
    assert read_provenance(tmp_path / "out.wav") is None
    assert tags({}) == {}


def test_pcm_is_little_endian_16_bit() -> None:
    data = Audio(torch.tensor([[0.0, 0.5, -0.5, 2.0, -2.0]]), 24000).to_bytes("pcm")
    # Louder than full scale is cut off, not wrapped around.
    np.testing.assert_allclose(np.frombuffer(data, "<i2"), [0, 16384, -16384, 32767, -32768], atol=1)


def test_lossy_formats_take_any_sample_rate() -> None:
    for format in ("mp3", "opus"):
        data = Audio(speech(1.0, 44100), 44100).to_bytes(format)
        back = load(io.BytesIO(data))
        assert back.sample_rate == 48000
        assert back.seconds == pytest.approx(1.0, abs=0.01)


def test_save_to_an_open_file_and_load_from_it() -> None:
    buffer = io.BytesIO()
    Audio(speech(), 24000).save(buffer, "flac")
    buffer.seek(0)
    assert load(buffer).waveform.shape == (1, 48000)


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValleError, match=r"suffix.*\.wav"):
        Audio(speech(), 24000).save(tmp_path / "out.aiff")
    with pytest.raises(ValleError, match="wav, flac, mp3, opus, pcm"):
        Audio(speech(), 24000).save(tmp_path / "out.wav", "aac")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "tolerance"),
    [
        (24000, 1, "PCM_U8", 0.02),
        (8000, 1, "ULAW", 0.05),
        (96000, 2, "PCM_24", 1e-3),
        (44100, 2, "PCM_32", 1e-3),
        (48000, 6, "FLOAT", 1e-3),
        (16000, 1, "DOUBLE", 1e-3),
    ],
)
def test_load_takes_any_width_rate_and_number_of_channels(
    rate: int, channels: int, subtype: str, tolerance: float, tmp_path: Path
) -> None:
    t = np.arange(rate) / rate
    x = 0.3 * np.sin(2 * np.pi * 440 * t)
    # Channels differ, and their mean is x.
    spread = np.linspace(-0.5, 0.5, channels) if channels > 1 else np.zeros(1)
    soundfile.write(tmp_path / "in.wav", x[:, None] * (1 + spread), rate, subtype=subtype)
    audio = load(tmp_path / "in.wav", 24000)
    assert audio.waveform.dtype == torch.float32
    assert audio.waveform.shape == (1, 24000)
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)
    inner = slice(500, -500)  # a resampler has no samples beyond the ends
    np.testing.assert_allclose(audio.waveform[0, inner].numpy(), expected[inner], atol=tolerance)


def test_resample_keeps_tones_and_length() -> None:
    wav = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000).unsqueeze(0)
    up = resample(wav, 16000, 24000)
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(24000) / 24000)
    assert up.shape == (1, 24000)
    torch.testing.assert_close(up[0, 500:-500], expected[500:-500], atol=1e-3, rtol=0)
    assert resample(wav, 16000, 16000) is wav


# What is no sound


def write(path: Path, samples: np.ndarray, rate: int = 24000, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def test_bad_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no sound at all, " * 50)
    (tmp_path / "samples.raw").write_bytes(b"\0" * 1000)
    nan = voiced(2.0)
    nan[100] = np.nan
    infinite = voiced(2.0)
    infinite[100] = np.inf
    cases = {
        tmp_path / "missing.wav": "there is no recording",
        tmp_path: "is a folder",
        tmp_path / "empty.wav": "is empty",
        tmp_path / "text.wav": "is not audio",
        tmp_path / "samples.raw": "is not audio",
        write(tmp_path / "none.wav", np.zeros(0)): "holds no samples",
        write(tmp_path / "nan.wav", nan): "not numbers",
        write(tmp_path / "inf.wav", infinite): "not numbers",
        write(tmp_path / "slow.wav", voiced(1.0), 100): "100 samples a second",
    }
    for path, sentence in cases.items():
        with pytest.raises(ValleError, match=sentence) as error:
            load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_pipe_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    data = Audio(speech(0.5), 24000).to_bytes("wav")
    assert len(data) < 65536  # what a pipe holds without a reader
    os.write(writing, data)
    os.close(writing)
    try:
        assert load(f"/dev/fd/{reading}").waveform.shape == (1, 12000)
    finally:
        os.close(reading)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.sampled_from(["", "RIFF\x24\0\0\0WAVEfmt ", "fLaC", "OggS", "ID3"]))
def test_any_bytes_are_sound_or_one_sentence(data: bytes, head: str) -> None:
    try:
        audio = load(io.BytesIO(head.encode("latin1") + data), 24000)
    except ValleError:
        return
    assert torch.isfinite(audio.waveform).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=6), st.integers(20, 2000))
def test_a_damaged_file_is_sound_or_one_sentence(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(Audio(speech(0.1), 24000, info=INFO).to_bytes("wav"))
    for place, value in changes:
        data[place] = value
    try:
        audio = load(io.BytesIO(bytes(data[:length])), 24000, max_s=60)
    except ValleError:
        return
    assert torch.isfinite(audio.waveform).all()


# References


def test_a_reference_is_24_khz_trimmed_and_at_a_usual_level(tmp_path: Path) -> None:
    silence = np.zeros(44100)
    path = write(tmp_path / "in.wav", np.concatenate([silence, voiced(3.0, 44100, 0.005), silence]), 44100)
    reference = load_reference(path)
    assert reference.sample_rate == 24000
    assert reference.seconds == pytest.approx(3.2, abs=0.1)
    assert level_db(reference.waveform, 24000) == pytest.approx(REFERENCE_LEVELS_DB[0], abs=0.5)


def test_a_reference_at_a_usual_level_is_not_changed(tmp_path: Path) -> None:
    samples = voiced(3.0, level=0.1)
    assert REFERENCE_LEVELS_DB[0] < level_db(torch.from_numpy(samples).unsqueeze(0), 24000) < REFERENCE_LEVELS_DB[1]
    reference = load_reference(write(tmp_path / "in.wav", samples))
    torch.testing.assert_close(reference.waveform[0], torch.from_numpy(samples))


@pytest.mark.parametrize("level", [10.0, 30000.0])
def test_a_reference_beyond_full_scale_is_made_softer(level: float, tmp_path: Path) -> None:
    reference = load_reference(write(tmp_path / "in.wav", voiced(2.0, level=level)))
    assert 0.1 < reference.waveform.abs().max() < 0.9


def test_references_that_cannot_be_used(tmp_path: Path) -> None:
    mostly_silent = np.zeros(72000, dtype=np.float32)
    mostly_silent[24000:30000] = voiced(0.25)
    opposite = np.stack([voiced(2.0), -voiced(2.0)], axis=1)
    cases = {
        write(tmp_path / "zeros.wav", np.zeros(72000)): "is silent",
        write(tmp_path / "faint.wav", voiced(3.0, level=1e-5)): "is silent",
        write(tmp_path / "opposite.wav", opposite): "is silent",
        write(tmp_path / "short.wav", voiced(0.8)): "is 0.8 s long; at least 1 s",
        write(tmp_path / "mostly.wav", mostly_silent): "holds only 0.4 s of sound|holds only 0.5 s of sound",
        write(tmp_path / "long.wav", voiced(20.0)): "is 20.0 s long; at most 15 s",
        write(tmp_path / "hour.wav", np.zeros(8000 * 3600), 8000, "PCM_U8"): "is 3600.0 s long; at most",
        tmp_path / "missing.wav": "there is no reference",
    }
    for path, sentence in cases.items():
        with pytest.raises(ValleError, match=sentence) as error:
            load_reference(path)
        assert "\n" not in str(error.value)


def test_audio_in_memory_can_be_a_reference() -> None:
    reference = load_reference(Audio(speech(2.0, 48000), 48000))
    assert reference.waveform.shape == (1, 48000)
    with pytest.raises(ValleError, match=r"\[1, N\]"):
        load_reference(Audio(torch.zeros(2, 48000), 24000))
    with pytest.raises(ValleError, match="not numbers"):
        load_reference(Audio(torch.full((1, 48000), torch.nan), 24000))


def test_loudness_is_what_is_asked_for_and_never_clips() -> None:
    for level in (0.001, 0.05, 3.0):
        assert level_db(normalise_loudness(speech(level=level), 24000), 24000) == pytest.approx(LOUDNESS_DB, abs=0.01)
    click = torch.zeros(1, 24000)
    click[0, 12000] = 0.5
    assert normalise_loudness(click, 24000, 0.0).abs().max() <= 0.9
    silence = torch.zeros(1, 24000)
    assert torch.equal(normalise_loudness(silence, 24000), silence)


def test_trimming_keeps_all_of_the_sound() -> None:
    wav = torch.cat([torch.zeros(1, 24000), speech(1.0), torch.zeros(1, 12000)], dim=1)
    trimmed = trim_silence(wav, 24000)
    assert trimmed.shape[1] == pytest.approx(24000 + 2 * 2400, abs=480)
    torch.testing.assert_close(trimmed.abs().sum(), wav.abs().sum())


# Outputs are whole or not there


def test_outputs_that_cannot_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, sentence in {
        tmp_path: "is a folder",
        tmp_path / "no" / "out.wav": "there is no folder",
        tmp_path / "file" / "out.wav": "there is no folder",
    }.items():
        with pytest.raises(ValleError, match=sentence):
            check_writable(path)
    check_writable(tmp_path / "out.wav")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("valle.files.os.fsync", full)
    with pytest.raises(ValleError, match="No space left on device"):
        Audio(speech(), 24000).save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_old: object, _new: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("valle.files.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "out.wav", b"data")
    assert list(tmp_path.iterdir()) == []


def test_permissions_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")
    path.chmod(0o600)
    link = tmp_path / "link.wav"
    link.symlink_to(path)
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    before = Path("/dev/null").stat().st_rdev
    check_writable("/dev/null")
    write_atomic("/dev/null", b"data")
    assert Path("/dev/null").stat().st_rdev == before


def test_every_page_of_an_ogg_file_keeps_a_valid_checksum() -> None:
    # libogg drops pages whose checksum is wrong: the sound would come back shorter.
    data = Audio(speech(10.0), 24000, info=INFO).to_bytes("opus")
    assert data.count(b"OggS") > 5
    assert len(audio_module.load(io.BytesIO(data)).waveform[0]) == 240000
