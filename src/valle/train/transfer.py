"""A model for the codes of one codec, made into one to begin with for those of another.

A new codec makes all codes new, but neither how phonemes are spoken nor how attention finds a voice changes with it.
Two packs of the same recordings tell what a new code stands for: the mean of what the old codes of the same frames
stood for. Codebook 1 takes the mean of the old vectors of codebook 1; each one after it takes what those before it
lack of the mean of the old sum, as residual quantisation does. All other weights are kept; layers that the old model
did not have begin at zero.

``python -m valle.train.transfer ar|nar CONFIG --model DIR --old-pack PACK --out DIR``; the new pack is the
configuration's. Then ``init = "DIR"`` in the configuration.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from valle.data.pack import Pack, PackSplit
from valle.errors import ValleError
from valle.model.ar import AR
from valle.train.config import Kind, TaskConfig, load_train_config
from valle.train.tasks import make_task
from valle.train.weights import load_weights

logger = logging.getLogger(__name__)

MAX_FRAMES = 400_000
"""Frames that tell what codes stand for: about 400 of each code, in half a gigabyte."""


def transfer(kind: Kind, config_path: str | Path, model: str | Path, old_pack: str | Path, out: str | Path) -> Path:
    """Write a model to begin with into ``out``.

    Args:
        kind: which of the two.
        config_path: the TOML file of the training to come; its pack is the new one.
        model: the old model, ``ar/`` or ``nar/`` of a model folder or ``best/`` of a run.
        old_pack: the pack that it learnt from, of the same recordings by name.
        out: folder for ``model.safetensors`` and ``config.json``.

    Raises:
        ValleError: no common recordings, or transformers of different sizes.
    """
    from safetensors.torch import save_file

    config = load_train_config(config_path)
    task_config: TaskConfig = getattr(config, kind)
    new_pack = Pack(config.pack)
    old = load_weights(kind, model)
    torch.manual_seed(config.seed)
    new = make_task(kind, task_config.model, new_pack.info).model
    if new.config.transformer != old.config.transformer:
        raise ValleError(
            f"the model {model} has the transformer {old.config.transformer}, [{kind}.model] another, "
            f"{new.config.transformer}; give both the same sizes"
        )
    given, state = old.state_dict(), new.state_dict()
    for name, tensor in state.items():
        if name in given and given[name].shape == tensor.shape:
            state[name] = given[name]
        elif name.startswith("local.") and not name.startswith("local.norm."):
            state[name] = torch.zeros_like(tensor)
    pairs = common_frames(Pack(old_pack).split(config.train_split), new_pack.split(config.train_split), MAX_FRAMES)
    size = new.config.codebook_size
    for name in ("code_emb.weight", "output_emb.weight"):
        if name not in state or name not in given:
            continue
        first = 0 if name == "code_emb.weight" else 1  # an AR has one codebook, a NAR's output layer none of the first
        if isinstance(new, AR):
            tables = given[name][:size].unsqueeze(0)
            state[name] = torch.cat([translate(tables, pairs[0][:1], pairs[1][:1], size)[0], given[name][size:]])
        else:
            tables = given[name].view(-1, old.config.codebook_size, given[name].shape[1])
            state[name] = translate(tables, pairs[0][first:], pairs[1][first:], size).flatten(0, 1)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(new.config_dict(), indent=2) + "\n", encoding="utf-8")
    return out


def translate(tables: Tensor, old: Tensor, new: Tensor, size: int) -> Tensor:
    """Vectors for new codes from those of old ones.

    Args:
        tables: [K, C, D] vectors of the old codes.
        old: [K, N] old codes of some frames.
        new: [K', N] new codes of the same frames, K' at most K.
        size: entries of a new codebook.

    Returns:
        [K', size, D]; a code that no frame has gets the mean.
    """
    first = tables[0][old[0]]  # [N, D]
    rest = torch.zeros_like(first)
    for table, codes in zip(tables[1:], old[1:], strict=True):
        rest += table[codes]
    made = []
    left = first
    for k, codes in enumerate(new):
        if k == 1:
            left = left + rest  # codebook 1 stands for codebook 1 alone, for that is all that a target holds at first
        made.append(class_means(left, codes, size))
        left = left - made[-1][codes]
    return torch.stack(made)


def class_means(x: Tensor, codes: Tensor, size: int) -> Tensor:
    """x [N, D] and codes [N] -> the mean of each code's vectors [size, D]; of all where a code has none."""
    counts = torch.bincount(codes, minlength=size).unsqueeze(1)  # [size, 1]
    sums = x.new_zeros(size, x.shape[1]).index_add_(0, codes, x)
    return torch.where(counts > 0, sums / counts.clamp(min=1), x.mean(0))


def common_frames(old: PackSplit, new: PackSplit, n_frames: int) -> tuple[Tensor, Tensor]:
    """Codes [K, N] and [K', N] of the same frames in both packs, evenly from all recordings, N about ``n_frames``.

    Raises:
        ValleError: no recording is in both.
    """
    places = {name: i for i, name in enumerate(old.ids)}
    common = [(places[name], i) for i, name in enumerate(new.ids) if name in places]
    every = max(1, sum(int(new.n_frames[i]) for _, i in common) // n_frames)

    def codes() -> Iterator[tuple[Tensor, Tensor]]:
        for i, j in common[::every]:
            if old.n_frames[i] == new.n_frames[j]:
                yield old.codes(i), new.codes(j)

    pairs = list(codes())
    if not pairs:
        raise ValleError("the two packs have no recording in common; give the pack of the same corpus by the old codec")
    return torch.cat([a for a, _ in pairs], dim=1), torch.cat([b for _, b in pairs], dim=1)


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``python -m valle.train.transfer``."""
    parser = argparse.ArgumentParser(
        prog="python -m valle.train.transfer", description="Begin with a model of another codec."
    )
    parser.add_argument("kind", choices=("ar", "nar"))
    parser.add_argument("config", metavar="CONFIG", help="the TOML file of the training to come")
    parser.add_argument("--model", required=True, metavar="DIR", help="the model of the other codec")
    parser.add_argument("--old-pack", required=True, metavar="PACK", help="the pack that it learnt from")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the model to begin with goes")
    args: Any = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        transfer(args.kind, args.config, args.model, args.old_pack, args.out)
    except ValleError as error:
        logger.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
