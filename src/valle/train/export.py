"""From runs to a model folder: ``python -m valle.train.export --ar RUN --nar RUN --codec DIR --out DIR --name NAME``.

Takes the weights that were best on dev, the codec and the phoneme inventory they were trained on, for models with
alignment also the aligner (``--aligner DIR``), checks that they
belong together, and writes what ``VALLE.from_pretrained`` reads, with the figures of the training in ``valle.json``.
With ``--like MODEL`` all that is not given is taken from that model: its codec and aligner, and how it samples; without
``--ar`` or ``--nar`` that part as well. So a model is made of what was trained on with one's own voice.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from valle.data.pack import PHONEMES_FILE
from valle.errors import ValleError
from valle.model.ar import AR
from valle.model.nar import NAR
from valle.model.sampling import SamplingConfig
from valle.train.config import Kind
from valle.train.weights import load_weights

logger = logging.getLogger(__name__)

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def export(
    ar_run: str | Path,
    nar_run: str | Path,
    codec_folder: str | Path,
    out: str | Path,
    *,
    name: str,
    version: str = "0",
    dtype: Literal["fp16", "fp32"] = "fp16",
    aligner_folder: str | Path | None = None,
    sampling: SamplingConfig | None = None,
    nar_temperature: float = 0.0,
    nar_guidance: float = 1.0,
    num_candidates: int = 1,
    complete_by: Literal["codes", "vectors", "prompt"] | None = None,
) -> Path:
    """Assemble a model folder.

    Args:
        ar_run: a run's folder (``runs/NAME/ar``), its ``best/``, or a model.
        nar_run: likewise.
        codec_folder: the codec that made the pack of both, or a model that has it.
        out: the model folder; files of a model already there are replaced.
        name: goes into the metadata of every file that the model speaks.
        version: of the model.
        dtype: of the weights on disk.
        aligner_folder: the aligner that aligned the pack; needed for models with alignment, left out otherwise.
        sampling: how the model samples when the caller does not say; what was best on dev.
        nar_temperature, nar_guidance: likewise for the NAR.
        num_candidates: likewise how often each piece is spoken.
        complete_by: how a NAR that foretells vectors speaks (``NARConfig.complete_by``); None: as its run says.

    Raises:
        ValleError: a run without best weights, or parts that do not belong together.
    """
    from valle.codec.base import load_codec
    from valle.pretrained import ModelInfo, part_of, save_pretrained
    from valle.text import PhonemeInventory

    trained = {"ar": find_trained(ar_run, "ar"), "nar": find_trained(nar_run, "nar")}
    notes = {kind: t.notes for kind, t in trained.items()}
    codec = load_codec(part_of(codec_folder, "codec"))
    for kind, kept in notes.items():
        if kept["codec_fingerprint"] != codec.fingerprint():
            raise ValleError(
                f"the {kind.upper()} run was trained on codes of the codec {kept['codec_fingerprint']}, but "
                f"{codec_folder} is {codec.fingerprint()}; give the codec that made its pack"
            )
    if notes["ar"]["inventory_version"] != notes["nar"]["inventory_version"]:
        raise ValleError(
            f"the AR was trained on the phoneme inventory {notes['ar']['inventory_version']}, the NAR on "
            f"{notes['nar']['inventory_version']}; train both on one pack"
        )
    ar, nar = load_weights("ar", trained["ar"].folder), load_weights("nar", trained["nar"].folder)
    assert isinstance(ar, AR)
    assert isinstance(nar, NAR)
    if complete_by is not None:
        nar.config = replace(nar.config, complete_by=complete_by)
    aligner = None
    if ar.config.alignment or nar.config.alignment:
        from valle.asr.aligner import Aligner

        if aligner_folder is None:
            raise ValleError("these runs learnt with an alignment; give the aligner of their pack with --aligner DIR")
        aligner = Aligner.load(part_of(aligner_folder, "aligner"))
        for kind, kept in notes.items():
            if kept.get("aligner") and kept["aligner"] != aligner.fingerprint():
                raise ValleError(
                    f"the {kind.upper()} run learnt with the aligner {kept['aligner']}, but {aligner_folder} is "
                    f"{aligner.fingerprint()}; give that of its pack"
                )
    sampling = sampling or SamplingConfig()
    ar.check_guidance(sampling.guidance)
    nar.check_guidance(nar_guidance)
    inventory = PhonemeInventory.load(trained["ar"].phonemes)
    info = ModelInfo(
        name=name,
        codec_fingerprint=codec.fingerprint(),
        inventory_version=inventory.version,
        version=version,
        max_seconds=min(n["max_seconds"] for n in notes.values()),
        sampling=sampling,
        nar_temperature=nar_temperature,
        nar_guidance=nar_guidance,
        num_candidates=num_candidates,
        training=notes,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_pretrained(
        out, ar=ar, nar=nar, codec=codec, inventory=inventory, info=info, aligner=aligner, dtype=DTYPES[dtype]
    )
    return out


class Trained(NamedTuple):
    """One of the two language models as it was trained."""

    folder: Path
    """With its weights and configuration."""
    notes: dict[str, Any]
    """Of its training."""
    phonemes: Path
    """The inventory that it reads."""


def find_trained(run: str | Path, kind: Kind) -> Trained:
    """The best weights of a run, or what a model has."""
    from valle.pretrained import part_of, read_info

    run = Path(run)
    for folder in (run / "best", run):
        if (folder / "training.json").is_file():
            notes: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
            return Trained(folder, notes, folder / PHONEMES_FILE)
    folder = part_of(run, kind)
    if folder == run:
        raise ValleError(
            f"{run} holds no best weights of the {kind.upper()}; give a run that was validated, or a model"
        )
    info = read_info(folder.parent)
    known = {
        "codec_fingerprint": info.codec_fingerprint,
        "inventory_version": info.inventory_version,
        "max_seconds": info.max_seconds,
    }
    return Trained(folder, known | info.training.get(kind, {}), folder.parent / PHONEMES_FILE)


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``python -m valle.train.export``."""
    parser = argparse.ArgumentParser(prog="python -m valle.train.export", description="Assemble a model from runs.")
    parser.add_argument("--ar", metavar="RUN", help="folder of the AR run")
    parser.add_argument("--nar", metavar="RUN", help="folder of the NAR run")
    parser.add_argument("--codec", metavar="DIR", help="the codec that made their pack")
    parser.add_argument("--aligner", metavar="DIR", help="the aligner of their pack, for models with alignment")
    parser.add_argument(
        "--like", metavar="MODEL", help="what is not given is taken from this model: a folder, or embedded"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the model folder")
    parser.add_argument("--name", help="name of the model (that of its folder)")
    parser.add_argument("--version", default="0", help="version of the model")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16", help="of the weights on disk")
    parser.add_argument("--temperature", type=float, help="of its sampling, unless the caller says (1)")
    parser.add_argument("--top-p", type=float, help="likewise (1)")
    parser.add_argument("--nar-temperature", type=float, help="likewise, of codebooks 2 to 8 (0)")
    parser.add_argument("--guidance", type=float, help="likewise, of the AR by the text (1: off)")
    parser.add_argument("--voice-guidance", type=float, help="likewise, of the AR by the voice (1: off)")
    parser.add_argument("--nar-guidance", type=float, help="likewise, of the NAR by the voice (1: off)")
    parser.add_argument("--candidates", type=int, help="how often it speaks each piece, to keep the best (1)")
    parser.add_argument(
        "--complete-by", choices=("codes", "vectors", "prompt"), help="how a NAR with codebook_dim speaks"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _export(args)
    except ValleError as error:
        logger.error("error: %s", error)
        return 2
    return 0


def _export(args: argparse.Namespace) -> None:
    from valle.pretrained import EMBEDDED, find_model, read_info

    like = args.like and find_model(None if args.like == "embedded" else args.like)
    info = read_info(like) if like else None
    parts = {part: getattr(args, part) or like for part in ("ar", "nar", "codec", "aligner")}
    missing = [f"--{part}" for part in ("ar", "nar", "codec") if parts[part] is None]
    if missing:
        raise ValleError(f"{' and '.join(missing)} must be given, or --like with a model that has what is not new")
    if like and (Path(args.out).resolve() in (like.resolve(), EMBEDDED.resolve())):
        raise ValleError(f"{args.out} is the model to be like; give another folder with --out")
    named = {"temperature": args.temperature, "top_p": args.top_p, "guidance": args.guidance}
    named["voice_guidance"] = args.voice_guidance
    sampling = replace(info.sampling if info else SamplingConfig(), **{k: v for k, v in named.items() if v is not None})

    def chosen(given: Any, name: str, default: Any) -> Any:
        return given if given is not None else getattr(info, name, default)

    export(
        parts["ar"],
        parts["nar"],
        parts["codec"],
        args.out,
        name=args.name or Path(args.out).resolve().name,
        version=args.version,
        dtype=args.dtype,
        aligner_folder=parts["aligner"],
        sampling=sampling,
        nar_temperature=chosen(args.nar_temperature, "nar_temperature", 0.0),
        nar_guidance=chosen(args.nar_guidance, "nar_guidance", 1.0),
        num_candidates=chosen(args.candidates, "num_candidates", 1),
        complete_by=args.complete_by,
    )


if __name__ == "__main__":
    sys.exit(main())
