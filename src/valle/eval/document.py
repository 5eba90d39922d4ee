"""``report.md`` from results: their title, tables and sentences, and the data, judges and command they come from.

The same results give the same text, so that a finished folder can be written again without measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from valle.errors import ValleError

TRIALS_FILE = "trials.jsonl"


def markdown(results: Mapping[str, Any], body: str) -> str:
    """The whole report around ``body``, its tables and sentences."""
    return _title(results) + body + _systems(results) + _origin(results)


def body_of(results: Mapping[str, Any], folder: Path) -> str:
    """The tables and sentences of results that lie in a folder.

    Raises:
        ValleError: results of a kind that writes its report itself, or the list of trials is missing.
    """
    kind = results["kind"]
    if kind == "speech":
        from valle.eval.synthesis import describe_speech
        from valle.eval.trials import load_trials

        if not (folder / TRIALS_FILE).is_file():
            raise ValleError(f"there is no {folder / TRIALS_FILE}, the list of what was said; measure again")
        return describe_speech(results, load_trials(folder / TRIALS_FILE))
    if kind == "codec":
        from valle.eval.codec_table import describe_codec

        return describe_codec(results)
    if kind == "lm":
        from valle.eval.lm import describe_lm

        return describe_lm(results)
    if kind == "judges":
        from valle.eval.judges import describe_judges

        return describe_judges(results)
    raise ValleError(f"{folder} holds results of {kind}, whose report only `valle eval {kind}` writes")


def _title(results: Mapping[str, Any]) -> str:
    """Empty for kinds that bring their own."""
    model, kind = results.get("model", {}), results["kind"]
    if kind == "codec":
        codec = results["codec"]
        return f"# Codec {codec['fingerprint']}\n\n{codec['type']}, {codec['parameters'] / 1e6:.1f} M parameters. "
    if kind == "speech":
        return f"# Speech of {model['name']} ({model['digest']})\n\n"
    if kind == "lm":
        return f"# Language models of {model['name']} ({model['digest']})\n\n"
    return "# Judges\n\n" if kind == "judges" else ""


def _systems(results: Mapping[str, Any]) -> str:
    lines = [f"\nOther system: `{identity}`." for identity in results.get("systems", {}).values()]
    return "".join(lines) + "\n" if lines else ""


def _origin(results: Mapping[str, Any]) -> str:
    data, made = results["data"], results["made"]
    text = f"\nData: split `{data['split']}` of `{data['source']}`."
    if judges := results.get("judges"):
        text += f" Judges: {judges['recogniser']}; {judges['speaker']}."
        text += " Words are counted after Whisper's English normalisation of both sides."
    return text + f"\n\nMade by `{made['command']}` (valle {made['valle']}, torch {made['torch']}, {made['date']}).\n"
