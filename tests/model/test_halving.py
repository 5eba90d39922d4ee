"""Weights in half precision: the same results, and only where nothing is lost."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from valle.model.halving import FrameConv, Linear, can_halve, halve
from valle.model.transformer import Embedding

LAYERS = [lambda: Linear(7, 5), lambda: FrameConv(3, 5, 7), lambda: Embedding(5, 21)]


def make(layer, is_half=True):
    torch.manual_seed(0)
    layer = layer().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(p.half() if is_half else p + torch.pi * 1e-5)
    return layer


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(6,), (2, 9)])
def test_halved_weights_give_the_same(layer, shape):
    layer = make(layer)
    x = torch.randn(*shape, layer.weight[0].numel())
    exact = layer.multiplier()(x)
    torch.testing.assert_close(exact, F.linear(x, layer.weight.flatten(1), getattr(layer, "bias", None)))
    halve(layer)
    assert (layer.halved is not None) == can_halve()
    with torch.no_grad():
        torch.testing.assert_close(layer.multiplier()(x), exact, atol=1e-6, rtol=1e-5)
        if isinstance(layer, Linear):
            torch.testing.assert_close(layer(x), exact, atol=1e-6, rtol=1e-5)


def test_a_frame_of_a_convolution_is_its_multiplier():
    conv, window = make(LAYERS[1]), torch.randn(4, 3, 7)
    torch.testing.assert_close(conv.multiplier()(window.flatten(1)), conv(window).squeeze(2))


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_that_would_lose_stay_as_they_are(layer):
    layer = make(layer, is_half=False)
    halve(layer)
    assert layer.halved is None


def test_training_uses_the_weights_themselves():
    layer = make(LAYERS[0])
    halve(nn.Sequential(layer))
    layer.train()
    layer(torch.randn(2, 7)).sum().backward()
    assert layer.weight.grad is not None


def test_this_machine_halves_where_it_can():
    """When torch drops the functions, models here become slow without a word; this test says so."""
    assert can_halve() == ("fbgemm" in torch.backends.quantized.supported_engines)
