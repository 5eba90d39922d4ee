"""Other systems: a command that copies, commands that fail, and espeak by its library."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from eval_helpers import KnownCodec, judges, write_corpus
from test_synthesis import Parrot

from valle.data.corpus import read_manifest
from valle.errors import ValleError
from valle.eval import systems
from valle.eval.journal import Journal
from valle.eval.synthesis import measure_speech
from valle.eval.systems import command_system, espeak_system, parse_systems
from valle.eval.trials import Trial, draw_trials
from valle.text import Phonemizer


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"ann": [1.0, 1.2], "bob": [1.1, 1.3]})


@pytest.fixture
def trials(manifest: Path) -> list[Trial]:
    return draw_trials(read_manifest(manifest), 2, folder=manifest.parent, seed=0)


def command(code: str, arguments: str) -> str:
    return f'{sys.executable} -S -c "{code}" {arguments}'


def test_a_command_gets_text_and_prompt_and_gives_a_wave(manifest: Path, trials: list[Trial]) -> None:
    trial = trials[0]
    code = f"import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2]); assert sys.argv[3:] == ['x {trial.text}']"
    system = command_system("copy", command(code, "{ref} {out} 'x {text}'"))
    audio = system.speak(trial, manifest.parent / trial.prompt)
    assert audio.seconds == pytest.approx(trial.prompt_s)
    assert audio.info == {"synthetic": True, "model": "copy", "seed": None, "stop": "ended"}
    assert not system.draws
    assert command_system("x", command(code, "{ref} {out} {text} {seed}")).draws


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('I cannot')", "failed with exit code 1: I cannot"),
        ("pass", r"wrote no \{out\}: no word why"),
        ("import sys; open(sys.argv[1], 'w').write('hello')", "is not audio that can be read"),
        ("import time; time.sleep(60)", "failed: .* timed out"),
    ],
)
def test_what_a_command_cannot_say(
    code: str, said: str, manifest: Path, trials: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in code:
        monkeypatch.setattr(systems, "TIMEOUT_S", 0.05)
    system = command_system("mute", command(code, "{out} {text}"))
    with pytest.raises(ValleError, match=said):
        system.speak(trials[0], manifest.parent / trials[0].prompt)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("f5", "is not known; give espeak, or name=command"),
        ("=x {text} {out}", "is not known"),
        ("f5=", "is not known"),
        ("f5=python {text}", r"lacks \{out\}; it may have \{text\}, \{ref\}, \{ref_text\}, \{seed\}, \{out\}"),
        ("f5=python {text} {out} {voice}", r"\{voice\} is not known"),
        ("f5=no-such-program {text} {out}", "there is no program no-such-program"),
        ("f5=sh '{text} {out}", "is not a command: No closing quotation"),
        ("parrot=sh {text} {out}", "another row has that name"),
    ],
)
def test_wrong_options_are_told_before_anything_is_spoken(option: str, said: str) -> None:
    with pytest.raises(ValleError, match=said):
        parse_systems([option], ["parrot"])


def test_espeak_speaks_the_same_every_time_beside_the_phonemizer(manifest: Path, trials: list[Trial]) -> None:
    (system,) = parse_systems(["espeak"], [])
    prompt = manifest.parent / trials[0].prompt
    phonemizer = Phonemizer("en-us")
    before = phonemizer("hello")
    a = system.speak(trials[0], prompt)
    assert phonemizer("hello") == before
    system.speak(trials[1], prompt)
    b = espeak_system().speak(trials[0], prompt)
    np.testing.assert_array_equal(a.waveform.numpy(), b.waveform.numpy())
    assert 1 < a.seconds < 6
    assert float(a.waveform.abs().max()) > 0.1
    assert a.info == {"synthetic": True, "model": "espeak", "seed": None, "stop": "ended"}
    assert system.identity.startswith("espeak: espeak-ng of espeakng-loader ")
    with pytest.raises(ValleError, match="espeak says nothing of this text"):
        system.speak(replace(trials[0], text=""), prompt)


def test_rows_of_other_systems(manifest: Path, trials: list[Trial], tmp_path: Path) -> None:
    code = "import shutil, sys; shutil.copy(*sys.argv[1:3])"
    log = tmp_path / "log"
    counted = code + f"; open('{log}', 'a').write('x')"
    options = ["espeak", "copy=" + command(counted, "{ref} {out} {text}")]

    def measure(some: list[str], parrot: Parrot) -> tuple[dict[str, object], str]:
        return measure_speech(
            parrot,
            KnownCodec(),
            trials,
            manifest.parent,
            judges(),
            Journal(tmp_path / "j.jsonl", {}),
            baselines=parse_systems(some, ["parrot"]),
            wavs=tmp_path / "wavs",
        )

    measure([], Parrot())
    parrot = Parrot()
    results, text = measure(options, parrot)
    assert parrot.n_spoken == 0  # another row does not measure the model anew
    assert list(results["rows"]) == ["recording", "codec round trip", "parrot", "espeak", "copy"]
    rows = results["rows"]
    assert rows["copy"]["sim_o"].mean > 0.99 > rows["espeak"]["sim_o"].mean
    assert results["stops_of_baselines"] == {"espeak": {"ended": 2}, "copy": {"ended": 2}}
    assert "The speech of espeak ended by: ended 2." in text
    names = {path.name.split("-", 3)[-1] for path in (tmp_path / "wavs").iterdir()}
    assert any(name.endswith("4-espeak.flac") for name in names)
    assert log.read_text() == "xx"
    measure(options, parrot)
    assert log.read_text() == "xx"
    # The same name with another command is measured anew.
    measure([options[1] + " again"], parrot)
    assert log.read_text() == "xxxx"


def test_reference_is_a_wav_whatever_the_corpus_holds(manifest: Path, trials: list[Trial], tmp_path: Path) -> None:
    wav, rate = soundfile.read(manifest.parent / trials[0].prompt)
    soundfile.write(tmp_path / "prompt.flac", wav, rate)
    code = "import sys; d = open(sys.argv[1], 'rb').read(); assert d[:4] == b'RIFF'; open(sys.argv[2], 'wb').write(d)"
    system = command_system("copy", command(code, "{ref} {out} {text}"))
    assert system.speak(trials[0], tmp_path / "prompt.flac").sample_rate == rate
