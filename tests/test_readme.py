"""What the README tells people to type works as it stands there, with a tiny random model as the embedded one."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from valle import cli, pretrained

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell_lines() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [part.strip() for line in lines if line for part in line.split(" && ")]


@pytest.fixture
def desk(tmp_path: Path, tiny_model_dir: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the files that the README's reader has, and the tiny model as the embedded one."""
    monkeypatch.setattr(pretrained, "EMBEDDED", tiny_model_dir)
    folder = tmp_path / "desk"
    folder.mkdir()
    shutil.copy(reference, folder / "me.wav")
    shutil.copytree(tiny_model_dir, folder / "model")
    (folder / "chapter.txt").write_text("One. Two.")
    monkeypatch.chdir(folder)
    return folder


def test_the_say_lines_speak(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in shell_lines() if "valle say" in line or line.startswith("valle voice")]
    assert len(lines) >= 6
    for line in lines:
        command, _, rest = line.partition(" | ")
        if command.startswith("echo "):  # a pipe into valle, and one out of it
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Piped.\n")))
            command = rest.split(" | ")[0]
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        arguments = shlex.split(command)[1:]
        extra = ["--max-seconds", "1"] if arguments[0] == "say" else []
        assert cli.main(arguments + extra) == 0, line
    assert (desk / "out.wav").is_file()
    assert (desk / "chapter.opus").is_file()


def test_the_python_block_runs(desk: Path) -> None:
    assert cli.main(["voice", "add", "me", "me.wav", "-s", "What I say in it."]) == 0
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    assert (desk / "out.wav").is_file()


def test_the_training_lines_name_what_there_is() -> None:
    """They take hours; that their commands, options and files exist can be known at once."""
    lines = [line for line in shell_lines() if re.match(r"valle (codec train|asr|prepare|train|export)", line)]
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line)
        for config in (w for w in words if w.startswith("configs/")):
            assert (ROOT / config).is_file(), config
        name = " ".join(words[1:3]) if words[1] in ("codec", "asr") else words[1]
        assert name in cli.COMMANDS


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    assert {"say", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_in_the_map_exists() -> None:
    table = README.split("## What is where")[1]
    folder = ""
    for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for path in re.findall(r"`([^`]+)`", cell):
            found = ROOT / path if path.startswith("src/") else ROOT / folder / path
            assert found.exists(), path
            folder = str(Path(path).parent) if path.startswith("src/") else folder


def test_make_say_passes_any_text_on_as_it_is(tmp_path: Path) -> None:
    """With an environment whose `valle` tells what it was given."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "valle"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (tmp_path / ".installed").touch()
    text, words = """He said: "it's $5, $(or) `so`" \\ -- 100 %""", 'It\'s "me".'
    done = subprocess.run(
        ["make", "-s", "say", f"VENV={tmp_path}", f"TEXT={text}", "REF=a b.wav", f"REF_TEXT={words}", "OUT=x.wav"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["say", "-r", "a b.wav", "-s", words, "-o", "x.wav", "--", text]
