"""Small models of both kinds in many forms, and batches for them: for the tests of what a step costs."""

from __future__ import annotations

import torch

from valle.data.pack import PackInfo
from valle.train.flops import BatchShape
from valle.train.tasks import ALL_STAGES, ARTask, NARTask, make_task

SIZE = {"dim": 48, "n_layers": 3, "n_heads": 4, "ff_dim": 160, "dropout": 0.1}
V4_AR = {"alignment": True, "code_noise": 0.15, "text_dropout": 0.1, "local_layers": 2}
V4_NAR = {"prompt_mode": "prefix", "alignment": True, "prompt_summary": True, "one_pass": True, "local_layers": 2}
V4_NAR |= {"codebook_dim": 20, "vector_weight": 2.0}

MODELS = {
    "ar paper": ("ar", {}),
    "ar v4": ("ar", V4_AR),
    "ar post": ("ar", {"transformer": {**SIZE, "norm": "post", "activation": "relu"}, "tie_weights": False}),
    "ar full": ("ar", {"phoneme_attention": "full"}),
    "nar paper": ("nar", {"prompt_frames": 20}),
    "nar default": ("nar", {"prompt_mode": "prefix", "prompt_frames": 20}),
    "nar v4": ("nar", V4_NAR | {"prompt_frames": 20}),
    "nar look-up": ("nar", V4_NAR | {"prompt_frames": 20, "prompt_heads": 4, "codebook_dim": 0}),
    "nar post": ("nar", {"transformer": {**SIZE, "norm": "post"}, "tie_weights": False, "prompt_frames": 20}),
}
"""Name -> kind and the fields of its configuration."""

N_FRAMES, N_PHONEMES, N_ROWS = 90, 18, 3


def a_task(name: str) -> ARTask | NARTask:
    """A task with one of ``MODELS``, of random weights."""
    kind, values = MODELS[name]
    kinds = (2,) + (0,) * 11
    info = PackInfo(
        "c", "1", n_phonemes=12, separator_id=0, frame_rate=75.0, codebook_size=64, phoneme_kinds=kinds, aligned=True
    )
    torch.manual_seed(0)
    task = make_task(kind, {"transformer": SIZE, **values}, info)
    if kind == "nar" and values.get("codebook_dim"):
        task.model.set_codebooks(torch.randn(8, 64, values["codebook_dim"]))
    return task.model.train() and task


def a_batch(task: ARTask | NARTask, n_frames: int = N_FRAMES):
    """A batch of rows of different lengths, the first full; the NAR's at stage 3."""
    from valle.data.batches import Rows

    generator = torch.Generator().manual_seed(1)
    code_lens = torch.tensor([n_frames, n_frames - 7, n_frames // 2])
    phoneme_lens = torch.tensor([N_PHONEMES, N_PHONEMES - 2, N_PHONEMES // 2])
    phonemes = torch.randint(1, 12, (N_ROWS, N_PHONEMES), generator=generator)
    codes = torch.randint(64, (N_ROWS, 8, n_frames), generator=generator)
    durations = torch.zeros(N_ROWS, N_PHONEMES, dtype=torch.int64)
    for row, n, s in zip(durations, code_lens.tolist(), phoneme_lens.tolist(), strict=True):
        row[:s] = n // s
        row[0] += n % s
    batch = task.make_batch(Rows(phonemes, phoneme_lens, codes, code_lens, durations), generator)
    if task.kind == "nar" and batch[1] != ALL_STAGES:
        return batch[0], 3
    return batch


def shape_of(task: ARTask | NARTask, batch) -> BatchShape:
    """Its padded sizes, found independently of the task's own."""
    if task.kind == "ar":
        most = max(s + t for s, t in zip(batch.phoneme_lens.tolist(), batch.code_lens.tolist(), strict=True))
        return BatchShape(len(batch.codes), batch.phonemes.shape[1], batch.codes.shape[1], 0, most)
    rows = batch[0]
    lens = (rows.phoneme_lens.tolist(), rows.prompt_lens.tolist(), rows.code_lens.tolist())
    most = max(map(sum, zip(*lens, strict=True)))
    return BatchShape(len(rows.codes), rows.phonemes.shape[1], rows.codes.shape[2], rows.prompt_codes.shape[2], most)
