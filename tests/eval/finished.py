"""Finished folders of measurements, as ``valle eval`` leaves them, made by systems that need no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from eval_helpers import RATE, FakeRecogniser, KnownCodec, judges, speechlike

from valle.audio import Audio, load
from valle.data.corpus import read_manifest
from valle.eval.codec_table import measure_codec
from valle.eval.document import markdown
from valle.eval.journal import Journal
from valle.eval.results import write_results
from valle.eval.synthesis import measure_speech
from valle.eval.trials import Trial, draw_trials, save_trials

MADE = {"command": "valle eval", "valle": "0", "torch": "2", "python": "3", "date": "2026-01-01"}


class Parrot:
    """Speaks in the prompt's own wave."""

    name = "parrot"

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        return replace(load(prompt, RATE), info={"stop": "eos", "synthetic": True, "model": "parrot", "seed": 7})


class Robot:
    """Another system, as ``--system`` makes it: known by its command."""

    name, identity, draws = "robot", "robot: /somewhere/bin/robot {text} {out}", False

    def speak(self, trial: Trial, prompt: Path) -> Audio:
        return Audio(torch.from_numpy(speechlike(1.0, pitch=500))[None], RATE, info={"stop": "ended"})


def speech_folder(
    out: Path, manifest: Path, *, n: int = 4, n_listen: int | None = None, runs: int = 1, baselines: Sequence[Any] = ()
) -> list[Trial]:
    """Measure ``Parrot`` on n trials of a corpus; gives them."""
    utterances = read_manifest(manifest)
    trials = draw_trials(utterances, n, folder=manifest.parent, seed=0)
    heard = {round(10 * u.seconds): u.text or "" for u in utterances}
    out.mkdir()
    save_trials(out / "trials.jsonl", trials)
    results, text = measure_speech(
        Parrot(),
        KnownCodec(),
        trials,
        manifest.parent,
        judges(FakeRecogniser(heard)),
        Journal(out / "utterances.jsonl", {}),
        baselines=baselines,
        runs=runs,
        n_listen=n_listen,
        wavs=None if n_listen == 0 else out / "wavs",
    )
    told: dict[str, Any] = {"kind": "speech", "made": MADE, "data": {"source": "corpus", "split": "test"}}
    told |= {"model": {"name": "parrot", "digest": "abc"}, "judges": {"recogniser": "r", "speaker": "s"}, "seed": 0}
    if baselines:
        told["systems"] = {b.name: "robot: robot {text} {out}" for b in baselines}
    values = told | results
    write_results(out, values, markdown(values, text))
    return trials


def codec_folder(out: Path, manifest: Path, *, n_listen: int = 2) -> None:
    """Measure ``KnownCodec`` on a corpus."""
    out.mkdir()
    results, text = measure_codec(
        KnownCodec(),
        read_manifest(manifest),
        judges(FakeRecogniser(default="this is <i>")),
        Journal(out / "utterances.jsonl", {}),
        n_quantizers=(3, 1),
        n_listen=n_listen,
        wavs=out / "wavs" if n_listen else None,
    )
    told = {"kind": "codec", "made": MADE, "data": {"source": "corpus", "split": "test"}}
    told |= {
        "codec": {"fingerprint": "abc", "type": "known", "parameters": 1},
        "judges": {"recogniser": "r", "speaker": "s"},
    }
    values = told | results
    write_results(out, values, markdown(values, text))


def with_field(manifest: Path, **values: Any) -> None:
    """Give every line of a manifest other values; a function is asked with the line."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        line |= {key: value(line) if callable(value) else value for key, value in values.items()}
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
