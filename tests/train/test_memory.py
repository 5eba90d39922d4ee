"""What training keeps for the gradient is as much as the formula says."""

import dataclasses

import pytest
import torch
from small_models import MODELS, a_batch, a_task, shape_of

from valle.train.memory import activation_bytes, training_memory, weight_copy_bytes


def saved_bytes(task, batch, precision: str) -> int:
    """Memory behind all tensors saved for the gradient, each counted once; parameters and buffers are there anyway."""
    own = {t.untyped_storage().data_ptr() for t in (*task.model.parameters(), *task.model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        task.loss(batch, torch.device("cpu"))
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_activations_are_what_torch_saves(name, precision):
    task = a_task(name)
    batch = a_batch(task, n_frames=180)
    n_multiplying = sum(p.numel() for n, p in task.model.named_parameters() if "emb" not in n)
    expected = activation_bytes(task.model.config, shape_of(task, batch), precision, on_cpu=True)
    expected += weight_copy_bytes(n_multiplying, precision)
    assert expected == pytest.approx(saved_bytes(task, batch, precision), rel=0.15)


@pytest.mark.parametrize("name", ["ar paper", "nar v4"])
def test_checkpointing_keeps_the_inputs_of_blocks(name):
    task = a_task(name)
    batch = a_batch(task, n_frames=180)
    config, shape = task.model.config, shape_of(task, batch)
    whole = saved_bytes(task, batch, "fp32")
    task.model.transformer.checkpointing = True
    kept = saved_bytes(task, batch, "fp32")
    assert kept < 0.6 * whole
    shorter = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, n_layers=2))
    block = activation_bytes(config, shape, "fp32", on_cpu=True) - activation_bytes(shorter, shape, "fp32", on_cpu=True)
    # The formula has one block that is being computed again; here none is yet.
    expected = activation_bytes(config, shape, "fp32", on_cpu=True, checkpointing=True) - block
    assert expected == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("name", ["ar v4", "nar paper", "nar v4"])
def test_checkpointing_changes_no_number(name):
    task = a_task(name)
    batch = a_batch(task)
    results = []
    for checkpointing in (False, True):
        task.model.transformer.checkpointing = checkpointing
        task.model.zero_grad()
        torch.manual_seed(3)  # dropout, and the codes that are replaced
        loss, _ = task.loss(batch, torch.device("cpu"))
        loss.backward()
        results.append((loss, [p.grad for p in task.model.parameters() if p.grad is not None], torch.rand(1)))
    (loss, grads, after), (loss_again, grads_again, after_again) = results
    assert torch.equal(loss, loss_again)
    assert len(grads) == len(grads_again) > 20
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
    assert torch.equal(after, after_again)


def test_weights_gradients_moments_and_average():
    memory = training_memory(1000, 50, has_average=True)
    assert memory == (4000, 4000, 8000, 4000, 50, 0)
    assert memory.total == 20050
    assert training_memory(1000, 50).total == 16050
    shared_out = training_memory(1000, 50, has_average=True, n_shares=3, n_gathered=100)
    assert shared_out.total == 5 * 4 * 334 + 50 + 400
