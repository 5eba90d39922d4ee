"""Voices by name: kept whole, found again, replaced only on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sounds import voiced
from valle import voices
from valle.audio import load, load_reference
from valle.errors import ValleError
from valle.voices import add_voice, find_voice, home, list_voices, remove_voice


@pytest.fixture
def built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two built-in voices, of which the second is the default."""
    folder = tmp_path / "assets"
    folder.mkdir()
    for name in ("anna", "berta"):
        soundfile.write(folder / f"{name}.flac", voiced(2.0), 24000)
        values = {"text": f"I am {name}.", "source": "made for this test", "licence": "CC0"}
        (folder / f"{name}.json").write_text(json.dumps(values))
    (folder / "default.json").write_text('{"voice": "berta"}')
    monkeypatch.setattr(voices, "BUILT_IN", folder)
    return folder


def test_the_voices_that_come_along_are_fit_to_use() -> None:
    assert find_voice().built_in
    for voice in list_voices():
        assert voice.text
        assert voice.source
        assert voice.licence
        assert 2 < load_reference(voice.path).seconds < 10


@pytest.mark.usefixtures("built_in")
def test_a_voice_is_added_found_listed_and_removed(reference: Path) -> None:
    added = add_voice("Zoë-2", str(reference), "  What I say.  ")
    assert [v.name for v in list_voices()] == ["anna", "berta", "Zoë-2"]
    found = find_voice("Zoë-2")
    assert found == added
    assert found.text == "What I say."
    assert not found.built_in
    expected, stored = load_reference(reference).waveform, load(found.path).waveform
    assert stored.shape == expected.shape
    assert (stored - expected).abs().max() < 1e-4  # 16 bits
    remove_voice("Zoë-2")
    with pytest.raises(ValleError, match="no voice 'Zoë-2'"):
        find_voice("Zoë-2")
    assert list((home() / "voices").iterdir()) == []


def test_the_default_voice(built_in: Path) -> None:
    assert find_voice().name == "berta"
    (built_in / "default.json").unlink()
    default = find_voice()
    assert (default.name, default.text, default.licence, default.built_in) == ("anna", "I am anna.", "CC0", True)


def test_without_built_in_voices_a_recording_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "BUILT_IN", tmp_path / "nothing")
    with pytest.raises(ValleError, match="no built-in voice; give a recording"):
        find_voice()


@pytest.mark.usefixtures("built_in")
def test_an_unknown_voice_is_told_which_there_are() -> None:
    with pytest.raises(ValleError, match=r"did you mean anna\?"):
        find_voice("ana")
    with pytest.raises(ValleError, match="there are: anna, berta"):
        find_voice("quite another")


@pytest.mark.usefixtures("built_in")
def test_a_voice_is_replaced_only_on_purpose(reference: Path) -> None:
    add_voice("me", reference, "First.")
    with pytest.raises(ValleError, match="--force"):
        add_voice("me", reference, "Second.")
    assert find_voice("me").text == "First."
    add_voice("me", reference, "Second.", force=True)
    assert find_voice("me").text == "Second."
    for action in (lambda: add_voice("anna", reference, force=True), lambda: remove_voice("anna")):
        with pytest.raises(ValleError, match="built in"):
            action()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../me", ".hidden", "a\\b", "me.", "a b", "x" * 65, "con", "a\n"]
)
def test_names_that_could_be_paths_are_refused(name: str, reference: Path, own_home: Path) -> None:
    with pytest.raises(ValleError, match="cannot be the name of a voice"):
        add_voice(name, reference)
    assert not own_home.exists()


def test_a_bad_recording_adds_nothing(tmp_path: Path, own_home: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(48000), 24000)
    with pytest.raises(ValleError, match="silent"):
        add_voice("me", tmp_path / "silent.wav", "Nothing.")
    with pytest.raises(ValleError, match="there is no reference"):
        add_voice("me", tmp_path / "missing.wav", "Nothing.")
    assert not own_home.exists()


def test_a_failed_add_leaves_nothing_and_keeps_the_old(
    reference: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_voice("me", reference, "First.")

    def full(_path: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValleError, match=r"No space left on device; set VALLE_HOME"):
        add_voice("me", reference, "Second.", force=True)
    assert find_voice("me").text == "First."
    assert [p.name for p in (own_home / "voices").iterdir()] == ["me"]


def test_a_damaged_voice_does_not_hide_the_others(reference: Path, own_home: Path) -> None:
    add_voice("good", reference, "Good.")
    add_voice("bad", reference, "Bad.")
    (own_home / "voices" / "bad" / "voice.json").write_text("not JSON")
    assert find_voice("good").text == "Good."
    with pytest.raises(ValleError, match="no voice 'bad'"):
        find_voice("bad")


def test_the_home_of_each_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VALLE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    for platform, expected in {
        "linux": tmp_path / "xdg" / "valle",
        "darwin": Path.home() / "Library" / "Application Support" / "valle",
        "win32": tmp_path / "local" / "valle",
    }.items():
        monkeypatch.setattr("valle.voices.sys.platform", platform)
        assert home() == expected
