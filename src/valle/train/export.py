"""From runs to a model folder: ``python -m valle.train.export --ar RUN --nar RUN --codec DIR --out DIR --name NAME``.

Takes the weights that were best on dev, the codec and the phoneme inventory they were trained on, for models with
alignment also the aligner (``--aligner DIR``), checks that they
belong together, and writes what ``VALLE.from_pretrained`` reads, with the figures of the training in ``valle.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from valle.data.pack import PHONEMES_FILE
from valle.errors import ValleError
from valle.model.ar import AR
from valle.model.nar import NAR
from valle.model.sampling import SamplingConfig
from valle.train.config import Kind
from valle.train.tasks import load_weights

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
        ar_run: a run's folder (``runs/NAME/ar``), or its ``best/``.
        nar_run: likewise.
        codec_folder: the codec that made the pack of both.
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
    from valle.pretrained import ModelInfo, save_pretrained
    from valle.text import PhonemeInventory

    ar_best, nar_best = _best(ar_run, "ar"), _best(nar_run, "nar")
    notes = {"ar": _notes(ar_best), "nar": _notes(nar_best)}
    codec = load_codec(codec_folder)
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
    ar, nar = load_weights("ar", ar_best), load_weights("nar", nar_best)
    assert isinstance(ar, AR)
    assert isinstance(nar, NAR)
    if complete_by is not None:
        nar.config = replace(nar.config, complete_by=complete_by)
    aligner = None
    if ar.config.alignment or nar.config.alignment:
        from valle.asr.aligner import Aligner

        if aligner_folder is None:
            raise ValleError("these runs learnt with an alignment; give the aligner of their pack with --aligner DIR")
        aligner = Aligner.load(aligner_folder)
        for kind, kept in notes.items():
            if kept.get("aligner") and kept["aligner"] != aligner.fingerprint():
                raise ValleError(
                    f"the {kind.upper()} run learnt with the aligner {kept['aligner']}, but {aligner_folder} is "
                    f"{aligner.fingerprint()}; give that of its pack"
                )
    sampling = sampling or SamplingConfig()
    ar.check_guidance(sampling.guidance)
    nar.check_guidance(nar_guidance)
    inventory = PhonemeInventory.load(ar_best / PHONEMES_FILE)
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


def _best(run: str | Path, kind: Kind) -> Path:
    """The folder with a run's best weights."""
    run = Path(run)
    for folder in (run / "best", run):
        if (folder / "training.json").is_file():
            return folder
    raise ValleError(f"{run} holds no best weights of the {kind.upper()}; give the folder of a run that was validated")


def _notes(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``python -m valle.train.export``."""
    parser = argparse.ArgumentParser(prog="python -m valle.train.export", description="Assemble a model from runs.")
    parser.add_argument("--ar", required=True, metavar="RUN", help="folder of the AR run")
    parser.add_argument("--nar", required=True, metavar="RUN", help="folder of the NAR run")
    parser.add_argument("--codec", required=True, metavar="DIR", help="the codec that made their pack")
    parser.add_argument("--aligner", metavar="DIR", help="the aligner of their pack, for models with alignment")
    parser.add_argument("--out", required=True, metavar="DIR", help="the model folder")
    parser.add_argument("--name", help="name of the model (that of its folder)")
    parser.add_argument("--version", default="0", help="version of the model")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16", help="of the weights on disk")
    parser.add_argument("--temperature", type=float, default=1.0, help="of its sampling, unless the caller says (1)")
    parser.add_argument("--top-p", type=float, default=1.0, help="likewise (1)")
    parser.add_argument("--nar-temperature", type=float, default=0.0, help="likewise, of codebooks 2 to 8 (0)")
    parser.add_argument("--guidance", type=float, default=1.0, help="likewise, of the AR by the text (1: off)")
    parser.add_argument("--voice-guidance", type=float, default=1.0, help="likewise, of the AR by the voice (1: off)")
    parser.add_argument("--nar-guidance", type=float, default=1.0, help="likewise, of the NAR by the voice (1: off)")
    parser.add_argument(
        "--candidates", type=int, default=1, help="how often it speaks each piece, to keep the best (1)"
    )
    parser.add_argument(
        "--complete-by", choices=("codes", "vectors", "prompt"), help="how a NAR with codebook_dim speaks"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        export(
            args.ar,
            args.nar,
            args.codec,
            args.out,
            name=args.name or Path(args.out).resolve().name,
            version=args.version,
            dtype=args.dtype,
            aligner_folder=args.aligner,
            sampling=SamplingConfig(
                temperature=args.temperature,
                top_p=args.top_p,
                guidance=args.guidance,
                voice_guidance=args.voice_guidance,
            ),
            nar_temperature=args.nar_temperature,
            nar_guidance=args.nar_guidance,
            num_candidates=args.candidates,
            complete_by=args.complete_by,
        )
    except ValleError as error:
        logger.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
