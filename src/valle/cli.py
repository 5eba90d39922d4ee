"""The door for people: `valle COMMAND`. Nothing is imported before a command is known, so `--help` answers at once.

What a user got wrong becomes one sentence and exit code 2; a traceback is a defect of the program.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

COMMANDS = {
    "say": ("[TEXT...] [-r REF.wav -s REF_TEXT]", "speak a text, in the voice of a recording"),
    "voice add": ("NAME REF.wav -s REF_TEXT", "keep a voice under a name, for `say --voice NAME`"),
    "voice list": ("", "the voices there are"),
    "voice rm": ("NAME", "delete a voice that was added"),
    "codec encode": ("IN.wav OUT.npz", "speech to codes"),
    "codec decode": ("IN.npz OUT.wav", "codes to speech"),
    "codec train": ("CONFIG [--resume]", "train a codec"),
    "codec eval": ("...", "measure a codec"),
    "asr train-aligner": ("SOURCE --out DIR", "learn when phonemes are spoken"),
    "asr train": ("CONFIG [--resume]", "train the hybrid recogniser"),
    "asr transcribe": ("AUDIO... --model DIR", "write down what is said"),
    "asr align": ("AUDIO --text T [--aligner DIR]", "when each phoneme is spoken"),
    "prepare": ("SOURCE --out DIR ...", "recordings to training data"),
    "prepare inspect": ("PACK [--codec DIR]", "look at training data and listen to it"),
    "prepare to-shar": ("PACK --out DIR [--texts FILE]", "training data for lhotse"),
    "prepare from-shar": ("DIR --out PACK", "training data from lhotse's form again"),
    "train": ("ar|nar CONFIG [--resume]", "train a language model"),
    "train plan": ("CONFIG --gpus N --device NAME", "what a training takes: time, memory, energy"),
    "export": ("--ar RUN --nar RUN ...", "trained runs to a model that `say` can use"),
    "eval": ("...", "measure a model"),
    "eval report": ("DIR", "write the report of a measurement again"),
    "eval compare": ("A B", "how far two measurements on the same trials differ"),
    "eval publish": ("DIR --name NAME", "put the figures of a measurement into docs/results"),
    "eval readme": ("--check|--write", "the README's tables from docs/results"),
    "eval samples": ("DIR --manifest FILE", "a page of samples from a measurement"),
    "eval listening": ("build|serve|report ...", "ask people how it sounds"),
    "bench": ("...", "measure its speed on this machine"),
    "bench train": ("...", "measure how fast it trains on this machine"),
    "info": ("[MODEL|FILE]", "what a model is, or how a sound file was made"),
}
"""Every command, its arguments and what it does."""

_PASSED_ON = {  # commands that read their own arguments
    "asr train-aligner": "valle.asr.train_aligner",
    "asr train": "valle.asr.hybrid.train",
    "asr transcribe": "valle.asr.hybrid.transcribe",
    "prepare": "valle.data.prepare",
    "prepare inspect": "valle.data.inspect",
    "prepare to-shar": "valle.data.shar",
    "prepare from-shar": "valle.data.shar",
    "train plan": "valle.train.plan",
    "export": "valle.train.export",
    "eval": "valle.eval.report",
    "eval report": "valle.eval.report_page",
    "eval compare": "valle.eval.compare",
    "eval publish": "valle.eval.publish",
    "eval readme": "valle.eval.readme",
    "eval samples": "valle.eval.samples",
    "eval listening": "valle.eval.listening.command",
    "codec eval": "valle.eval.codec_table",
    "bench": "valle.bench.speak",
    "bench train": "valle.bench.train",
}


def enter() -> NoReturn:
    """``valle`` in a shell: run the command that was typed and leave with its exit code.

    Who has spoken leaves at once: torch and its models would be taken apart for half a second that somebody waits for.
    What was registered for the end of the program runs first, espeak's files are put away.
    """
    code = main()
    if sys.argv[1:2] == ["say"]:
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 2 for what the user got wrong, 130 when interrupted."""
    from valle.errors import ValleError

    # The hundreds of thousands of objects that `import torch` makes all stay: looking for garbage among them takes a
    # tenth of its time.
    gc.set_threshold(200_000, 20, 100)
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, where a reader that has gone is noticed
        return code
    except ValleError as error:
        print(f"valle: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "valle":
            raise
        extras = "install valle with its extras: pip install 'valle[train,eval,prepare]'"
        print(f"valle: error: this command needs the Python package {error.name}; {extras}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("valle: interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:  # help and errors of the argument parser
        return end.code if isinstance(end.code, int) else 0


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from valle import __version__

        print(f"valle {__version__}")
        return 0
    name = next((n for n in (" ".join(args[:2]), args[0]) if n in COMMANDS), None)
    if name is None:
        group = args[0] if any(n.startswith(f"{args[0]} ") for n in COMMANDS) else ""
        if group and args[1:2] in ([], ["-h"], ["--help"]):
            print(_help(group), file=sys.stdout if args[1:] else sys.stderr)
            return 0 if args[1:] else 2
        import difflib

        from valle.errors import ValleError

        given = " ".join(args[:2]) if group else args[0]
        near = difflib.get_close_matches(given, COMMANDS, n=1)
        hint = f"did you mean `valle {near[0]}`?" if near else "`valle --help` lists them"
        raise ValleError(f"there is no command `valle {given}`; {hint}")
    rest = args[len(name.split()) :]
    if name in ("prepare to-shar", "prepare from-shar"):  # one module for both
        rest.insert(0, name.split()[1].removesuffix("-shar"))
    if name in _PASSED_ON:
        from importlib import import_module

        code: int | None = import_module(_PASSED_ON[name]).main(rest)
        return code or 0
    from valle.commands import run

    return run(name, rest)


def _help(group: str = "") -> str:
    lines = [
        f"  {f'valle {name} {arguments}':<46} {what}"
        for name, (arguments, what) in COMMANDS.items()
        if name.startswith(group)
    ]
    lines.append("\n`valle COMMAND --help` tells the options of a command; `valle --version` the version.")
    return "\n".join(["VALL-E: text and three seconds of a voice in, that voice speaking the text out.\n", *lines])


if __name__ == "__main__":
    sys.exit(main())
