"""Draws in one compiled call are those of PyTorch, but for equal numbers and the last bit."""

import pytest
import torch

from valle.model.sampling import SamplingConfig, filter_logits, log_probs_of
from valle.native import library
from valle.native import sampling as native

pytestmark = pytest.mark.skipif(library() is None, reason="valle was installed without a C compiler, or no AVX2")


@pytest.mark.parametrize("n", [1, 7, 25, 1025])
@pytest.mark.parametrize(
    "options", [(1, 0, 1), (0.8, 0, 0.95), (0.8, 5, 1), (1.2, 20, 0.7), (0.5, 0, 0.3), (1, 1, 0.5)]
)
def test_draws_are_those_of_torch(n, options):
    temperature, top_k, top_p = options
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    torch.manual_seed(n)
    same = total = 0
    for _ in range(60):
        logits = torch.randn(5, n) * 4
        if n > 1:
            logits[:, n - 1] = -torch.inf
        noise = torch.empty(5, n).exponential_()
        kept = filter_logits(logits, config)
        ours = native.draw(logits, noise, temperature, top_k, top_p)
        same += int((ours == (kept - noise.log()).argmax(-1)).sum())
        total += 5
        assert kept.gather(1, ours.unsqueeze(1)).isfinite().float().mean() >= 0.8, "excluded tokens are never drawn"
    assert same >= total - 2, "a token whose probability just reaches top_p may fall either way"


def test_an_excluded_token_is_never_drawn():
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 4] = -50.0
    for _ in range(50):
        noise = torch.empty(1, 9).exponential_()
        assert native.draw(logits, noise, 1.0, 0, 1.0).item() == 4


def test_equal_numbers_are_kept_up_to_k():
    logits = torch.zeros(1, 10)
    drawn = {native.draw(logits, torch.empty(1, 10).exponential_(), 1.0, 3, 1.0).item() for _ in range(200)}
    assert len(drawn) == 3
    drawn = {native.draw(logits, torch.empty(1, 10).exponential_(), 1.0, 0, 0.45).item() for _ in range(200)}
    assert len(drawn) == 5, "a tenth each: the fifth reaches 0.45"


def test_log_probabilities():
    logits = torch.randn(6, 1025) * 5
    tokens = torch.randint(0, 1025, (6,))
    expected = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(native.log_probs(logits, tokens), expected, atol=3e-6, rtol=1e-5)
    part = torch.randn(6, 2000)[:, :1025]  # rows apart
    expected = part.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(log_probs_of(part, tokens), expected, atol=3e-6, rtol=1e-5)
