"""Weights in half precision: the same results, and only where nothing is lost. In 8 bits: nearly the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from valle.errors import ValleError
from valle.model.narrow import FrameConv, Linear, can_halve, can_int8, narrow
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
    narrow(layer)
    assert (layer.narrowed is not None) == can_halve()
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
    narrow(layer)
    assert layer.narrowed is None


def test_training_uses_the_weights_themselves():
    layer = make(LAYERS[0])
    narrow(nn.Sequential(layer))
    layer.train()
    layer(torch.randn(2, 7)).sum().backward()
    assert layer.weight.grad is not None


def test_this_machine_halves_where_it_can():
    """When torch drops the functions, models here become slow without a word; this test says so."""
    assert can_halve() == ("fbgemm" in torch.backends.quantized.supported_engines)


needs_int8 = pytest.mark.skipif(not can_int8(), reason="no 8-bit products on this machine")


def int8_layer(n=96, m=256):
    torch.manual_seed(0)
    layer = Linear(m, n).eval()
    narrow(layer, "int8")
    return layer


@needs_int8
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 70)])
def test_8_bits_are_near(shape):
    """Rounding to 1/127 of the largest and 1/63: about 2 % of a product of Gaussian numbers."""
    layer = int8_layer()
    x = torch.randn(*shape, layer.in_features)
    with torch.no_grad():
        exact = F.linear(x, layer.weight, layer.bias)
        for y in (layer(x), layer.multiplier()(x)):
            error = (y - exact).norm(dim=-1) / exact.norm(dim=-1)
            assert error.max() < 0.04


@needs_int8
def test_8_bits_do_not_overflow():
    """All numbers the largest that there are: AVX2 adds in 16 bits, and would stop at their end without a word."""
    layer = Linear(512, 8).eval()
    with torch.no_grad():
        layer.weight.fill_(0.3)
        layer.bias.fill_(1.0)
        narrow(layer, "int8")
        x = torch.cat([torch.ones(1, 512), -torch.ones(1, 512)])
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-3, atol=1e-3)


@needs_int8
def test_rows_in_8_bits_know_nothing_of_each_other():
    layer = int8_layer()
    x = torch.randn(5, layer.in_features)
    x[2] *= 1000
    with torch.no_grad():
        together, alone = layer(x), torch.cat([layer(row.unsqueeze(0)) for row in x])
    assert torch.equal(together, alone)


@needs_int8
def test_silent_rows_and_channels_in_8_bits_are_the_bias():
    layer = Linear(64, 4).eval()
    with torch.no_grad():
        layer.weight[1] = 0
        narrow(layer, "int8")
        assert torch.equal(layer(torch.zeros(2, 64)), layer.bias.expand(2, -1))
        assert layer(torch.randn(1, 64))[0, 1] == layer.bias[1]


@needs_int8
def test_in_8_bits_tables_and_convolutions_are_halved():
    for make_layer in LAYERS[1:]:
        layer = make(make_layer)
        layer.narrow("int8")
        assert layer.precision == "fp16"
        assert (layer.narrowed is not None) == can_halve()


def test_without_8_bits_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr("valle.model.narrow.can_int8", lambda: False)
    with pytest.raises(ValleError, match="leave weights auto"):
        narrow(Linear(4, 4), "int8")
