"""Checkpoints: whole or not at all, and a resumed optimiser and random state are the ones that were saved."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from valle.errors import ValleError
from valle.train import checkpoint
from valle.train.checkpoint import (
    CheckpointWriter,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from valle.train.distributed import Ranks


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.emb.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.emb(ids))


def test_round_trip_with_tied_tensors_and_views(tmp_path):
    model = Tied()
    buffer = torch.arange(6.0)
    views = {"head": buffer[:4], "tail": buffer[3:], "turned": torch.arange(6.0).view(2, 3).t()}
    path = save_checkpoint(tmp_path, tensors={"model": model.state_dict(), "views": views}, state={"step": 3, "x": 0.1})
    loaded = load_checkpoint(tmp_path)
    assert loaded.path == path
    assert loaded.step == 3
    assert loaded.state == {"step": 3, "x": 0.1}
    assert set(loaded.tensors["model"]) == {"emb.weight", "out.weight", "out.bias"}
    assert loaded.tensors["model"]["emb.weight"] is loaded.tensors["model"]["out.weight"]
    for name, tensor in {**model.state_dict()}.items():
        assert torch.equal(loaded.tensors["model"][name], tensor)
    for name, tensor in views.items():
        assert torch.equal(loaded.tensors["views"][name], tensor)


def test_keeps_the_newest_and_takes_no_half_written_one(tmp_path):
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, tensors={"a": {"x": torch.full((2,), float(step))}}, state={"step": step}, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    (tmp_path / ".step-00000200.tmp").mkdir()  # a run killed while writing
    (tmp_path / "step-00000300").mkdir()  # a copy broken off before its state.json
    assert load_checkpoint(tmp_path).step == 100
    save_checkpoint(tmp_path, tensors={"a": {"x": torch.zeros(2)}}, state={"step": 100}, keep=1)  # the same step again
    assert torch.equal(load_checkpoint(tmp_path).tensors["a"]["x"], torch.zeros(2))
    assert not list(tmp_path.glob(".*"))


def test_interrupted_save_leaves_the_one_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, tensors={"a": {"x": torch.ones(2)}}, state={"step": 1})
    import valle.train.checkpoint as module

    def fail(path, data):
        path.write_bytes(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "_write", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, tensors={"a": {"x": torch.zeros(2)}}, state={"step": 2})
    assert load_checkpoint(tmp_path).step == 1


def test_errors_name_the_remedy(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None
    with pytest.raises(ValleError, match="without --resume"):
        load_checkpoint(tmp_path)
    path = save_checkpoint(tmp_path, tensors={"a": {"x": torch.ones(2)}}, state={"step": 1})
    (path / "a.safetensors").write_bytes(b"broken")
    with pytest.raises(ValleError, match="damaged"):
        load_checkpoint(tmp_path)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        model(torch.randint(5, (7,))).logsumexp(-1).sum().backward()
        optimizer.step()


def test_optimizer_resumes_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.95))
    steps(model, optimizer, 3)
    tensors, state = optimizer_tensors(optimizer)
    groups = {"model": model.state_dict(), "optimizer": tensors, "rng": rng_state()}
    save_checkpoint(tmp_path, tensors=groups, state={"step": 3, "optimizer": state})
    steps(model, optimizer, 3)

    other = Tied()
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    loaded = load_checkpoint(tmp_path)
    other.load_state_dict(loaded.tensors["model"])
    restore_optimizer(other_optimizer, loaded.tensors["optimizer"], loaded.state["optimizer"])
    restore_rng(loaded.tensors["rng"])
    assert other_optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    steps(other, other_optimizer, 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizers_kernels_are_those_of_the_device_that_resumes(fused):
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), fused=not fused)
    steps(model, optimizer, 1)
    other = torch.optim.AdamW(model.parameters(), fused=fused)
    restore_optimizer(other, *optimizer_tensors(optimizer))
    assert other.param_groups[0]["fused"] is fused
    steps(model, other, 1)


def test_optimizer_of_another_model_is_refused():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = optimizer_tensors(optimizer)
    with pytest.raises(ValleError, match="fits no parameter"):
        restore_optimizer(torch.optim.AdamW(nn.Linear(3, 2).parameters()), *saved)


def test_rng_round_trip():
    generator = torch.Generator().manual_seed(5)
    random.gauss(0, 1)  # leaves a second value waiting
    np.random.normal()  # noqa: NPY002

    def draw() -> list[float]:
        return [
            float(torch.rand(())),
            float(torch.rand((), generator=generator)),
            random.gauss(0, 1),
            random.random(),
            float(np.random.normal()),  # noqa: NPY002
            float(np.random.rand()),  # noqa: NPY002
        ]

    saved = rng_state(sampler=generator)
    first = draw()
    assert draw() != first
    restore_rng(saved, sampler=generator)
    assert draw() == first


def test_a_checkpoint_in_the_background_is_a_copy_and_tells_what_went_wrong(tmp_path, monkeypatch, caplog):
    writer = CheckpointWriter(tmp_path, Ranks(), keep=1)
    weight = torch.ones(3)
    writer.save({"model": {"w": weight}}, {"step": 1})
    weight.zero_()  # training goes on
    writer.wait()
    assert load_checkpoint(tmp_path).tensors["model"]["w"].tolist() == [1, 1, 1]

    original = checkpoint._write
    full = [True]

    def write(path, data):
        if full[0] and path.suffix == ".safetensors":
            raise OSError("No space left on device")
        original(path, data)

    monkeypatch.setattr(checkpoint, "_write", write)
    writer.save({"model": {"w": weight}}, {"step": 2})
    with pytest.raises(ValleError, match=r"could not be written \(No space left on device\)"):
        writer.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]  # whole, and nothing torn takes the room

    writer.save({"model": {"w": weight}}, {"step": 3})
    writer._thread.join()
    full[0] = False
    writer.save({"model": {"w": weight + 4}}, {"step": 4})  # there is room again: nothing of it is lost
    assert "could not be written" in caplog.text
    assert load_checkpoint(tmp_path).step == 4


def test_what_was_replaced_comes_back_where_its_successor_did_not_arrive(tmp_path):
    save_checkpoint(tmp_path, tensors={"model": {"w": torch.ones(1)}}, state={"step": 5}, keep=1)
    (tmp_path / "step-00000005").rename(tmp_path / ".step-00000005.old.tmp")  # killed between two renames
    save_checkpoint(tmp_path, tensors={"model": {"w": torch.ones(1)}}, state={"step": 6}, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000005", "step-00000006"]


def test_a_rank_that_could_not_write_is_told_to_the_main_rank_at_once(tmp_path):
    main, other = (CheckpointWriter(tmp_path, Ranks(rank, 2)) for rank in range(2))
    temporary = tmp_path / ".step-00000001.tmp"
    temporary.mkdir()
    pieces = {"model": {"w": torch.ones(1)}}
    main._start(temporary, lambda: main._write_piece(temporary, pieces, {}))

    def fail():
        raise OSError("No space left on device")

    other._start(temporary, fail)
    with pytest.raises(ValleError, match="rank 1 could not write its part"):
        main.wait()
    with pytest.raises(ValleError, match="No space left on device"):
        other.wait()
    assert list(tmp_path.iterdir()) == []
