"""The two language models on held-out recordings, teacher-forced: how well each next code is foretold (paper §4.2).

Every utterance alone, so that an interval can be taken over utterances. What is asked of the models is what the
training's validation asks: the AR model reads an utterance from its beginning, the NAR model gets a prompt out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from valle.data.batches import collate
from valle.data.pack import Pack, PackSplit
from valle.eval import progress
from valle.eval.bootstrap import Estimate, ratio_interval
from valle.eval.results import Column, table
from valle.pretrained import Pretrained
from valle.train.tasks import ALL_STAGES, ARTask, NARTask

COLUMNS = (
    Column("loss", "loss, nats ↓", 3),
    Column("top1", "top-1 % ↑", 1, percent=True),
    Column("top10", "top-10 % ↑", 1, percent=True),
)
_Sums = dict[str, list[float]]  # by metric, one number an utterance


def measure_lm(
    model: Pretrained, pack: Pack, split: str, *, max_utterances: int | None = None
) -> tuple[dict[str, Any], str]:
    """Measure both models on a split of a pack: results ready for JSON, and markdown.

    Args:
        model: whose AR and NAR.
        pack: codes and phonemes, made with the model's codec and inventory.
        split: of the pack.
        max_utterances: so many, evenly over the split; None for all.

    Raises:
        ValleError: the pack belongs to another codec or inventory, or has no such split.
    """
    pack.require(codec_fingerprint=model.info.codec_fingerprint, inventory_version=model.info.inventory_version)
    data = pack.split(split)
    n = len(data) if max_utterances is None else min(max_utterances, len(data))
    chosen = [i * len(data) // n for i in range(n)]
    measured = {"codebook 1 (AR)": _ar(model, data, chosen), **_nar(model, data, chosen)}
    rows: dict[str, Mapping[str, Estimate | float | None]] = {name: _row(sums) for name, sums in measured.items()}
    seconds = float(data.n_frames[chosen].sum()) / pack.info.frame_rate
    results = {"rows": rows, "n_utterances": n, "seconds": seconds}
    return results, describe_lm(results)


def describe_lm(results: Mapping[str, Any]) -> str:
    """The results of ``measure_lm`` as markdown."""
    told = f"{results['n_utterances']} utterances, {results['seconds'] / 60:.0f} minutes"
    return f"{told}; mean over tokens and 95 % interval.\n\n" + table("", results["rows"], COLUMNS)


@torch.inference_mode()
def _ar(model: Pretrained, data: PackSplit, chosen: list[int]) -> _Sums:
    task = ARTask(model.ar.config_dict(), data.info)
    task.model = model.ar
    sums: _Sums = {}
    for i in progress(chosen, "AR", "utterance"):
        for batch in task.validation_batches(collate(data, [(i,)]), torch.Generator().manual_seed(0)):
            _add(sums, task.loss(batch, model.device)[1])
    return sums


@torch.inference_mode()
def _nar(model: Pretrained, data: PackSplit, chosen: list[int]) -> dict[str, _Sums]:
    task = NARTask(model.nar.config_dict(), data.info)
    task.model = model.nar
    generator = torch.Generator().manual_seed(0)
    sums: dict[str, _Sums] = {f"codebook {stage} (NAR)": {} for stage in model.nar.stages}
    for i in progress(chosen, "NAR", "utterance"):
        for batch, stage in task.validation_batches(collate(data, [(i,)]), generator):
            for one in model.nar.stages if stage == ALL_STAGES else [stage]:
                _add(sums[f"codebook {one} (NAR)"], task.loss((batch, one), model.device)[1])
    return sums


def _add(sums: _Sums, metrics: Mapping[str, torch.Tensor]) -> None:
    """Append one utterance's sums over its tokens."""
    n = float(metrics["n_tokens"])
    if n:
        for column in COLUMNS:
            sums.setdefault(column.key, []).append(float(metrics[column.key]) * n)
        sums.setdefault("n_tokens", []).append(n)


def _row(sums: _Sums) -> dict[str, Estimate | float | None]:
    return {c.key: ratio_interval(sums.get(c.key, []), sums.get("n_tokens", [])) for c in COLUMNS}
