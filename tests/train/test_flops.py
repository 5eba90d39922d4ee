"""The closed form of a step's operations agrees with what torch counts as it computes one."""

import pytest
import torch
from small_models import MODELS, a_batch, a_task, shape_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from valle.model.ar import ARConfig
from valle.model.nar import NARConfig
from valle.train.flops import BatchShape, forward_flops, training_flops


def counted(task, batch) -> tuple[int, int]:
    """Operations of the forward and of the backward pass, as torch counts them."""
    with sdpa_kernel(SDPBackend.MATH):  # torch does not know those of the CPU's own attention kernel
        with FlopCounterMode(display=False) as forward:
            loss, _ = task.loss(batch, torch.device("cpu"))
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_closed_form_is_what_torch_counts(name):
    task = a_task(name)
    batch = a_batch(task)
    forward, backward = counted(task, batch)
    shape = shape_of(task, batch)
    assert forward_flops(task.model.config, shape) == pytest.approx(forward, rel=0.005)
    assert training_flops(task.model.config, shape) == pytest.approx(forward + backward, rel=0.02)


def test_the_papers_size_by_hand():
    """6 N a token and 12 n_layers D L for attention, as in PaLM's appendix."""
    ar, nar = ARConfig(100), NARConfig(100)
    shape = BatchShape(4, 300, 1500)
    n_weights = 12 * 12 * 1024**2
    by_hand = 4 * 1801 * (6 * n_weights + 12 * 12 * 1024 * 1801) + 6 * 4 * 1501 * 1024 * 1025
    assert training_flops(ar, shape) == by_hand
    assert training_flops(nar, BatchShape(4, 300, 1500, 225)) == pytest.approx(
        4 * 2025 * (6 * n_weights + 12 * 12 * 1024 * 2025) + 6 * 4 * 1500 * 1024 * 1024, rel=1e-4
    )
