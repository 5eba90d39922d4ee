"""Modules without random weights: nothing is drawn, what is computed stays, and afterwards all is as it was."""

import torch
from torch import nn

from valle.blank import blank
from valle.model.ar import AR, ARConfig
from valle.model.transformer import TransformerConfig


def make() -> AR:
    return AR(ARConfig(9, 16, TransformerConfig(16, 1, 2, 32)))


def test_nothing_is_drawn() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with blank():
        make()
        nn.init.trunc_normal_(nn.Linear(3, 3).weight, std=0.02)
        nn.init.normal_(tensor=torch.empty(3))
    assert torch.equal(torch.rand(3), expected)
    assert make().code_emb.weight.std() > 0


def test_filled_it_is_what_was_stored() -> None:
    given = make().eval()
    with blank():
        model = make()
    model.load_state_dict(given.state_dict())
    model.eval()
    assert torch.equal(model.positions(7), given.positions(7)), "a table that is not stored is computed"
    assert all(p.requires_grad for p in model.parameters())
    x = torch.randn(1, 5, 16)
    assert torch.equal(model.transformer(x), given.transformer(x))
