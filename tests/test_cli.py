"""The command line: right results, or one sentence and exit code 2; never a traceback, never half a file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sounds import voiced
from valle import cli
from valle.audio import Audio, load
from valle.provenance import read_provenance

TEXT = "What I say in it, word by word, is this and not much more."


class Run:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def valle(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a command in this process, in an empty folder and at a terminal that says nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def run(*args: object) -> Run:
        code = cli.main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture
def say(valle, tiny_model_dir: Path, reference: Path):
    """`valle say` with the tiny model and a reference, unless others are given."""

    def run(*args: object, ref: bool = True) -> Run:
        given = ["-r", reference, "-s", TEXT] if ref else []
        return valle("say", *args, *given, "-m", tiny_model_dir)

    return run


def shell(*args: object, **kwargs: object) -> subprocess.CompletedProcess[bytes]:
    """Run the installed command as a user does."""
    command = [sys.executable, "-m", "valle", *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **kwargs)


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# Help, imports, codes


def test_help_is_fast_and_names_every_command() -> None:
    times = []
    for _ in range(5):
        before = os.times()
        done = shell("--help")
        after = os.times()  # processor time: how busy the machine is does not count
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert done.returncode == 0
    assert min(times) < 0.3
    for name in cli.COMMANDS:
        assert f"valle {name} " in done.stdout.decode()


@pytest.mark.parametrize(
    "code",
    [
        "import valle; valle.__version__",
        "from valle.cli import main; main(['--help'])",
        "from valle.cli import main; main(['--version'])",
        "from valle.cli import main; main(['voice', 'list'])",
        "from valle.cli import main; main(['say', '--help'])",
        "from valle.cli import main; main(['say', '-f', 'missing.txt'])",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nsys.exit('torch' in sys.modules)"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", [n for n in cli.COMMANDS if n not in cli._PASSED_ON])
def test_every_command_has_help(valle, name: str) -> None:
    done = valle(*name.split(), "--help")
    assert done.code == 0
    assert f"usage: valle {name}" in done.out


def test_every_command_of_the_contract_has_its_options(valle) -> None:
    text = valle("say", "--help").out
    for option in (
        "-f", "-r", "-s", "--voice", "-m", "-o", "--format", "--temperature", "--top-p", "--top-k", "--num-candidates",
        "--max-seconds", "--seed", "--device", "--continue", "--json", "--ref-audio", "--ref-text",
    ):  # fmt: skip
        assert f"{option} " in text, option


def test_wrong_commands_and_options(valle) -> None:
    assert valle("sy", "Hello").err == ("valle: error: there is no command `valle sy`; did you mean `valle say`?\n")
    assert "did you mean `valle voice list`?" in valle("voice", "lst").err
    for args in (
        ["sy"],
        ["voice", "lst"],
        ["voice"],
        [],
        ["say", "--nope"],
        ["say", "Hi", "--seed", "x"],
        ["train", "x"],
    ):
        assert valle(*args).code == 2, args


def test_commands_of_other_modules_get_their_arguments(valle, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import types

    got = []
    module = types.SimpleNamespace(main=lambda argv: got.append(argv))
    names = []
    monkeypatch.setattr(importlib, "import_module", lambda name: names.append(name) or module)
    for name in cli._PASSED_ON:
        assert valle(*name.split(), "--a", "b").code == 0
    assert names == list(cli._PASSED_ON.values())
    which = {"prepare to-shar": ["to"], "prepare from-shar": ["from"]}  # one module for both
    assert got == [[*which.get(name, []), "--a", "b"] for name in cli._PASSED_ON]


def test_a_missing_extra_is_named(valle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str, _args: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'jiwer'", name="jiwer")

    monkeypatch.setattr("valle.commands.run", missing)
    done = valle("info")
    assert done.code == 2
    assert "needs the Python package jiwer" in done.err


def test_an_interrupt_is_130_without_a_traceback(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("valle.model.ar.AR.generate", interrupt)
    done = say("Hi.", "-o", "out.wav")
    assert (done.code, done.err) == (130, "valle: interrupted\n")
    assert not (tmp_path / "out.wav").exists()


def test_a_defect_keeps_its_traceback(say, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("valle.model.ar.AR.generate", defect)
    with pytest.raises(RuntimeError, match="a defect"):
        say("Hi.")


# Say


def test_say_writes_and_tells(say, tmp_path: Path) -> None:
    done = say("Hi", "there.", "--seed", 3, "-o", "out.wav")
    assert done.code == 0
    assert done.out.startswith("out.wav: ")
    for part in ("s of speech in", "real-time factor", "voice me.wav", "seed 3", "stopped at the"):
        assert part in done.out
    assert load(tmp_path / "out.wav").seconds > 0.1
    made = read_provenance(tmp_path / "out.wav")
    assert made is not None
    assert (made["synthetic"], made["model"], made["seed"]) == ("true", "tiny-random", "3")


def test_one_seed_one_file(say, tmp_path: Path) -> None:
    for name in ("a.opus", "b.opus"):
        assert say("Hi.", "--seed", 3, "--max-seconds", 0.3, "-o", name).code == 0
    assert (tmp_path / "a.opus").read_bytes() == (tmp_path / "b.opus").read_bytes()


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "pcm"])
def test_every_format_by_suffix_and_by_name(say, tmp_path: Path, format: str) -> None:
    args = ("Hi.", "--seed", 3, "--max-seconds", 0.3, "--json")
    by_suffix = json.loads(say(*args, "-o", f"a.{format}").out)
    by_name = json.loads(say(*args, "--format", format, "-o", "b").out)
    assert (tmp_path / f"a.{format}").read_bytes() == (tmp_path / "b").read_bytes()
    assert by_suffix["format"] == by_name["format"] == format
    assert by_suffix["marked"] == (format != "pcm")
    if format == "pcm":
        assert len((tmp_path / "b").read_bytes()) == 2 * 7200
    else:
        assert load(tmp_path / "b").seconds == pytest.approx(0.3, abs=0.01)


def test_underscores_and_long_names(valle, tiny_model_dir: Path, reference: Path, tmp_path: Path) -> None:
    common = ["say", "Hi.", "--model", tiny_model_dir, "--seed", 1, "--max_seconds", 0.2]
    first = valle(*common, "--ref_audio", reference, "--ref_text", TEXT, "--output", "a.wav", "--num_candidates", 2)
    second = valle(*common, "--ref-audio", reference, "--ref-text", TEXT, "-o", "b.wav", "--num-candidates", 2)
    assert (first.code, second.code) == (0, 0)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_json_is_one_line_and_nothing_else(say) -> None:
    done = say("Hi.", "--json", "--seed", 1, "--num-candidates", 2, "--max-seconds", 0.2)
    info = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert (info["output"], info["seed"], info["synthetic"]) == ("out.wav", 1, True)
    assert len(info["pieces"][0]["scores"]) == 2


def test_the_text_may_come_from_a_file_or_a_pipe(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_bytes("\ufeffHi.".encode())
    outputs = []
    for given, piped in ((["Hi."], None), (["-f", "text.txt"], None), (["-f", "-"], b"Hi."), ([], b"Hi.\n")):
        if piped is not None:
            pipe(monkeypatch, piped)
        assert say(*given, "--seed", 1, "--max-seconds", 0.2, "-o", "out.wav").code == 0
        outputs.append((tmp_path / "out.wav").read_bytes())
    assert outputs == [outputs[0]] * 4


def test_a_text_after_two_dashes_may_begin_with_one(valle, tiny_model_dir: Path, reference: Path) -> None:
    done = valle(
        "say",
        "-r",
        reference,
        "-s",
        TEXT,
        "-m",
        tiny_model_dir,
        "--json",
        "--max-seconds",
        0.2,
        "--",
        "-five",
        "degrees",
    )
    assert json.loads(done.out)["pieces"][0]["text"].endswith("five degrees")


def test_standard_output_holds_the_sound_and_nothing_else(
    tiny_model_dir: Path, reference: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, b"Hi.")
    args = ["say", "-r", reference, "-s", TEXT, "-m", tiny_model_dir, "--seed", 1, "--max-seconds", 0.2, "-o", "-"]
    assert cli.main([*map(str, args), "--json"]) == 0
    captured = capsysbinary.readouterr()
    assert load(io.BytesIO(captured.out)).seconds == pytest.approx(0.2, abs=1e-3)
    assert json.loads(captured.err.splitlines()[-1])["seed"] == 1


def test_raw_samples_are_written_as_they_are_spoken(
    tiny_model_dir: Path, reference: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from valle.tts import VALLE

    args = ["say", "Hi. You.", "-r", reference, "-s", TEXT, "-m", tiny_model_dir, "--seed", 1, "--format", "pcm"]
    written = []
    stream = VALLE.stream

    def watched(self: VALLE, *more: object, **options: Any) -> Iterator[Audio]:
        for chunk in stream(self, *more, **options):
            written.append(len(capsysbinary.readouterr().out))  # since the chunk before
            yield chunk

    monkeypatch.setattr(VALLE, "stream", watched)
    assert cli.main([*map(str, args), "-o", "-", "--json"]) == 0
    captured = capsysbinary.readouterr()
    assert len(written) > 2
    assert written[0] == 0
    assert min(written[1:]) > 0
    told = json.loads(captured.err.splitlines()[-1])
    assert (told["stop"], told["marked"], told["seed"]) == ("streamed", False, 1)
    assert sum(written) + len(captured.out) == round(told["seconds"] * 24000) * 2
    assert 0 < told["first_audio_s"] < told["elapsed_s"]


def test_a_terminal_gets_no_sound(say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    done = say("Hi.", "-o", "-")
    assert (done.code, done.out) == (2, "")
    assert "is a terminal" in done.err


def test_continue_needs_no_text(say, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", voiced(4.5), 24000)
    done = say("--continue", "-r", "long.wav", "-s", TEXT, "--json", "--seed", 1, ref=False)
    assert done.code == 0, done.err
    assert json.loads(done.out)["recorded_s"] == 3.0
    made = read_provenance(tmp_path / "out.wav")
    assert made is not None
    assert made["recorded_s"] == "3.0"


# What users get wrong


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of every kind, right and wrong."""
    folder = tmp_path_factory.mktemp("kinds")
    nan = voiced(2.0)
    nan[7] = np.nan
    soundfile.write(folder / "silent.wav", np.zeros(48000), 24000)
    soundfile.write(folder / "none.wav", np.zeros(0), 24000)
    soundfile.write(folder / "short.wav", voiced(0.5), 24000)
    soundfile.write(folder / "long.wav", voiced(30.0), 24000)
    soundfile.write(folder / "nan.wav", nan, 24000, subtype="FLOAT")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no sound")
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "8bit.wav", voiced(3.0), 24000, subtype="PCM_U8")
    soundfile.write(folder / "stereo.wav", np.stack([voiced(3.0), voiced(3.0)], axis=1), 24000)
    soundfile.write(folder / "96khz.flac", voiced(3.0, 96000), 96000)
    soundfile.write(folder / "voice.mp3", voiced(3.0), 24000)
    soundfile.write(folder / "voice.opus", voiced(3.0), 24000, format="OGG", subtype="OPUS")
    return folder


@pytest.mark.parametrize(
    ("name", "sentence"),
    {
        "missing.wav": "there is no reference",
        "folder.wav": "is a folder",
        "empty.wav": "is empty",
        "text.wav": "is not audio",
        "none.wav": "holds no samples",
        "silent.wav": "is silent",
        "nan.wav": "not numbers",
        "short.wav": "is 0.5 s long; at least 1 s is needed",
        "long.wav": "is 30.0 s long; at most 15 s",
    }.items(),
)
def test_bad_references(say, recordings: Path, tmp_path: Path, name: str, sentence: str) -> None:
    done = say("Hi.", "-r", recordings / name, "-s", TEXT, "-o", "out.wav", ref=False)
    assert done.code == 2
    assert done.err.startswith("valle: error: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize("name", ["8bit.wav", "stereo.wav", "96khz.flac", "voice.mp3", "voice.opus"])
def test_references_of_any_kind(say, recordings: Path, tmp_path: Path, name: str) -> None:
    done = say("Hi.", "-r", recordings / name, "-s", TEXT, "--max-seconds", 0.2, "--seed", 0, ref=False)
    assert done.code == 0, done.err
    assert 0.05 < load(tmp_path / "out.wav").seconds <= 0.2


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([""], "the text is empty"),
        ([], "the text is empty"),
        (["🙂🙂🙂"], "holds nothing that can be spoken"),
        (["Hi.", "-f", "text.txt"], "a text and a file"),
        (["-f", "missing.txt"], "missing.txt cannot be read: No such file"),
        (["-f", "latin1.txt"], "is not UTF-8"),
        (["Hi.", "-o", "missing/out.wav"], "there is no folder missing"),
        (["Hi.", "-o", "."], "suffix"),
        (["Hi.", "-o", "folder.wav"], "is a folder"),
        (["Hi.", "-o", "out.xyz"], "no suffix of a known format"),
        (["Hi.", "--voice", "nobody"], "give one of them"),
        (["Hi.", "--temperature", "-1"], "temperature is -1.0"),
        (["Hi.", "--top-p", "2"], "top_p is 2.0"),
        (["Hi.", "--num-candidates", "0"], "num_candidates is 0"),
        (["Hi.", "--max-seconds", "nan"], "max_seconds is nan"),
        (["Hi.", "--lang", "klingon"], "language 'klingon'"),
        (["Hi.", "--device", "abacus"], "device 'abacus'"),
    ],
)
def test_wrong_arguments(say, tmp_path: Path, args: list[str], sentence: str) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    (tmp_path / "folder.wav").mkdir()
    before = sorted(tmp_path.iterdir())
    done = say(*args)
    assert done.code == 2
    assert sentence in done.err
    assert (done.err.count("\n"), done.out) == (1, "")
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_voices(say, valle, tiny_model_dir: Path) -> None:
    assert "there is no voice 'nobody'" in say("Hi.", "--voice", "nobody", ref=False).err
    assert "no reference" in say("Hi.", "-s", TEXT, ref=False).err
    assert "there is no model missing" in valle("say", "Hi.", "-m", "missing").err
    assert "is not a model" in valle("say", "Hi.", "-m", tiny_model_dir / "ar").err


def test_a_full_disk_leaves_nothing(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("valle.files.os.fsync", full)
    done = say("Hi.", "-o", "out.wav", "--max-seconds", 0.2)
    assert done.code == 2
    assert "No space left on device" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission(tmp_path: Path, tiny_model_dir: Path, reference: Path) -> None:
    # Root may write anywhere, so the test must not be root: the kernel's own /proc refuses even it.
    folder = Path("/proc/1") if os.geteuid() == 0 else tmp_path / "locked"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o500)
    done = shell("say", "Hi.", "-r", reference, "-s", TEXT, "-m", tiny_model_dir, "-o", folder / "out.wav")
    assert done.returncode == 2
    assert b"cannot be written" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_stops_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "valle", "--help"], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


# Voices, codec, info


def test_voices_from_the_command_line(valle, say, reference: Path) -> None:
    assert valle("voice", "add", "me", reference, "-s", TEXT).code == 0
    assert f"me\tadded\t{TEXT}\n" in valle("voice", "list").out
    by_voice = say("Hi.", "--voice", "me", "--max-seconds", 0.2, "--json", ref=False)
    assert json.loads(by_voice.out)["voice"] == "me"
    again = valle("voice", "add", "me", reference)
    assert again.code == 2
    assert "--force" in again.err
    replaced = valle("voice", "add", "me", reference, "--force")
    assert replaced.code == 0
    assert "no transcript" in replaced.err
    assert "transcript of me is missing" in say("Hi.", "--voice", "me", ref=False).err
    assert valle("voice", "rm", "me").code == 0
    assert valle("voice", "rm", "me").code == 2


def test_the_codec_there_and_back(valle, tiny_model_dir: Path, reference: Path, tmp_path: Path) -> None:
    done = valle("codec", "encode", reference, "codes.npz", "-m", tiny_model_dir)
    assert done.code == 0, done.err
    assert done.out == "codes.npz: 8 x 225 codes, 6.0 kbit/s\n"
    with np.load("codes.npz", allow_pickle=False) as file:
        assert file["codes"].shape == (8, 225)
        assert file["codes"].dtype == np.int16
    # A codec's own folder does as well as the model's.
    for name, extra in (("a.wav", ["-m", tiny_model_dir]), ("b.wav", ["-m", tiny_model_dir / "codec"])):
        assert valle("codec", "decode", "codes.npz", name, *extra).code == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert load(tmp_path / "a.wav").waveform.shape == (1, 72000)
    assert read_provenance(tmp_path / "a.wav")["model"] == "codec reconstruction"
    assert valle("codec", "encode", reference, "two.npz", "--n-quantizers", 2, "-m", tiny_model_dir).code == 0
    assert valle("codec", "decode", "two.npz", "c.wav", "-m", tiny_model_dir).code == 0
    assert valle("codec", "decode", "codes.npz", "d.wav", "--n_quantizers", 2, "-m", tiny_model_dir).code == 0
    np.testing.assert_array_equal(load(tmp_path / "c.wav").waveform, load(tmp_path / "d.wav").waveform)


def test_wrong_codes(valle, tiny_model_dir: Path, reference: Path, tmp_path: Path) -> None:
    model = ("-m", tiny_model_dir)
    codec = json.loads((tiny_model_dir / "valle.json").read_text())["codec_fingerprint"]
    good = {"codec": codec, "n_samples": 320, "sample_rate": 24000}
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("no codes")
    np.savez(tmp_path / "pickle.npz", codes=np.array([{}], dtype=object), **good)
    np.savez(tmp_path / "other.npz", x=1)
    np.savez(tmp_path / "range.npz", codes=np.full((8, 1), 5000), **good)
    np.savez(tmp_path / "flat.npz", codes=np.zeros(8, dtype=int), **good)
    np.savez(tmp_path / "foreign.npz", codes=np.zeros((8, 1), dtype=int), **good | {"codec": "0" * 12})
    for name, sentence in {
        "missing.npz": "No such file",
        "empty.npz": "holds no codes",
        "text.npz": "holds no codes",
        "pickle.npz": "holds no codes",
        "other.npz": "holds no codes",
        "flat.npz": "holds no codes",
        "range.npz": "codes that this codec does not have",
        "foreign.npz": "was made by the codec 000000000000",
    }.items():
        done = valle("codec", "decode", name, "out.wav", *model)
        assert done.code == 2, name
        assert sentence in done.err, name
        assert not (tmp_path / "out.wav").exists()
    assert "1 to 8" in valle("codec", "encode", reference, "x.npz", "--n-quantizers", 9, *model).err
    assert "there is no recording" in valle("codec", "encode", "missing.wav", "x.npz", *model).err


def test_info_of_a_model_and_of_a_file(valle, say, tiny_model_dir: Path, reference: Path) -> None:
    told = json.loads(valle("info", tiny_model_dir, "--json").out)
    assert (told["name"], told["version"]) == ("tiny-random", "7")
    assert set(told["parts"]) == {"ar", "nar", "codec"}
    assert told["parts"]["ar"]["parameters"] > 1000
    assert told["bytes"] > sum(part["bytes"] for part in told["parts"].values())
    assert "codec_fingerprint: " + told["codec_fingerprint"] in valle("info", tiny_model_dir).out
    say("Hi.", "--seed", 3, "--max-seconds", 0.2)
    assert json.loads(valle("info", "out.wav", "--json").out)["model"] == "tiny-random"
    assert valle("info", reference).out == "synthetic: not marked as such\n"
    assert valle("info", "missing").code == 2


def test_training_commands_pass_their_arguments(valle, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    got = []
    loop = types.ModuleType("valle.train.loop")
    loop.train = lambda kind, config, *, resume, out, init, lora: got.append(
        (kind, str(config), resume, str(out), init, lora)
    )
    codec = types.ModuleType("valle.codec.train")
    codec.train_codec = lambda config, resume, out: got.append(("codec", str(config), resume, str(out)))
    monkeypatch.setitem(sys.modules, "valle.train.loop", loop)
    monkeypatch.setitem(sys.modules, "valle.codec.train", codec)
    assert valle("train", "ar", "a.toml", "--resume").code == 0
    assert valle("train", "nar", "b.toml", "--out", "runs/y", "--init", "embedded", "--lora", "16").code == 0
    assert valle("codec", "train", "c.toml", "--out", "runs/x").code == 0
    assert got == [
        ("ar", "a.toml", True, "None", None, None),
        ("nar", "b.toml", False, "runs/y", "embedded", 16),
        ("codec", "c.toml", False, "runs/x"),
    ]


@pytest.mark.parametrize("command", ["say", "info"])
def test_a_command_leaves_with_its_exit_code_and_puts_away_what_it_made(command: str) -> None:
    """Also `say`, which leaves without taking torch apart: what was written is out, what was registered has run."""
    code = (
        "import atexit, sys, valle.cli as cli; cli.main = lambda: print('said') or 3; "
        f"sys.argv = ['valle', {command!r}]; atexit.register(print, 'put away'); cli.enter()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\nput away\n", "")
