"""The optimiser: the paper's schedule, decay of matrices only; the moving average forgets its beginning."""

import pytest
import torch
from torch import nn

from valle.train.ema import MovingAverage
from valle.train.optimiser import OptimiserConfig, lr_at, make_optimiser


def test_schedule_of_the_paper():
    config = OptimiserConfig()
    rates = [lr_at(step, 800_000, config) for step in (0, 15_999, 31_999, 32_000, 416_000, 799_999, 800_000)]
    assert rates == pytest.approx([5e-4 / 32_000, 2.5e-4, 5e-4, 5e-4, 2.5e-4, 5e-4 / 768_000, 0])


def test_only_matrices_decay():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 3))
    decayed, others = make_optimiser(model, OptimiserConfig(weight_decay=0.3)).param_groups
    assert decayed["weight_decay"] == 0.3
    assert [p is q for p, q in zip(decayed["params"], [model[1].weight, model[3].weight], strict=True)] == [True, True]
    assert others["weight_decay"] == 0
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_moving_average_follows_and_steps_aside():
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, 0.9)
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(5.0 if step < 100 else 7.0)
        average.update()
    assert float(average.weights["weight"]) == pytest.approx(7 - 2 * 0.9**100, abs=1e-4)
    with average.in_place():
        assert model.weight.item() == float(average.weights["weight"])
    assert model.weight.item() == 7.0
