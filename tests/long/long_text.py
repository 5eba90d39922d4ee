"""Ten thousand characters by `valle say`: how long it takes, and how much memory beside that of a fifth of them.

    python tests/long/long_text.py [--characters 10000] [--model DIR] [--candidates N]

Checked are that all of it is spoken and that memory stays bounded. Times belong to the machine (docs/performance.md).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import soundfile

MB_A_SECOND = 1.5
"""Memory that a second more of speech may take; measured: 0.9 (docs/performance.md)."""

WHO = ("The old captain", "My sister", "A tall stranger", "The baker's son", "Nobody in the village", "The teacher")
DID = ("waited for", "remembered", "wrote about", "was afraid of", "never spoke of", "laughed at", "dreamt of")
WHAT = (
    "the long winter",
    "a letter from home",
    "the bridge across the river",
    "the sound of the bells",
    "a broken cup",
)
WHEN = ("before the rain began", "when the lamps were lit", "until the summer ended", "every evening after supper")


class Run(NamedTuple):
    """One `valle say`."""

    elapsed_s: float
    speech_s: float
    peak_mb: float
    pieces: int


def make_text(n_characters: int, seed: int = 0) -> str:
    """Plain sentences, cut behind the last whole one."""
    draw = random.Random(seed)
    text = ""
    while len(text) < n_characters:
        text += f"{draw.choice(WHO)} {draw.choice(DID)} {draw.choice(WHAT)} {draw.choice(WHEN)}. "
    return text[: text.rindex(".", 0, n_characters) + 1]


def say(text: str, folder: Path, args: argparse.Namespace) -> Run:
    """Speak a text in a process of its own."""
    source, out = folder / "text.txt", folder / "out.wav"
    source.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "valle", "say", "-f", str(source), "-o", str(out), "--seed", "0", "--json"]
    command += ["--model", args.model] if args.model else []
    command += ["--num-candidates", str(args.candidates)] if args.candidates else []
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"valle say failed with {process.returncode}")
    info = json.loads(told)
    return Run(time.monotonic() - began, soundfile.info(out).duration, usage.ru_maxrss / 1024, len(info["pieces"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--characters", type=int, default=10_000, help="of the text (%(default)s)")
    parser.add_argument("--model", help="folder of a model (the embedded one)")
    parser.add_argument("--candidates", type=int, default=0, help="of each sentence (the model's choice)")
    args = parser.parse_args()
    text = make_text(args.characters)
    with tempfile.TemporaryDirectory() as folder:
        short = say(make_text(args.characters // 5), Path(folder), args)
        long = say(text, Path(folder), args)
    for n, run in ((len(make_text(args.characters // 5)), short), (len(text), long)):
        sys.stdout.write(
            f"{n} characters: {run.pieces} pieces, {run.speech_s:.1f} s of speech in {run.elapsed_s:.1f} s "
            f"({run.elapsed_s / run.speech_s:.2f}), peak memory {run.peak_mb:.0f} MB\n"
        )
    assert long.pieces == text.count("."), f"{long.pieces} pieces were spoken of {text.count('.')}"
    more_mb = MB_A_SECOND * (long.speech_s - short.speech_s)
    assert long.peak_mb < short.peak_mb + more_mb, f"memory grows by more than {more_mb:.0f} MB"
    return 0


if __name__ == "__main__":
    sys.exit(main())
