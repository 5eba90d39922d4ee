"""Drawing tokens: examples computed by hand, frequencies, and what may never happen."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valle.errors import ValleError
from valle.model.sampling import SamplingConfig, filter_logits, sample

PROBS = torch.tensor([[0.1, 0.5, 0.05, 0.3, 0.05]])


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def kept(config, probs=PROBS):
    return filter_logits(probs.log(), config)[0].isfinite().nonzero().flatten().tolist()


def frequencies(logits, config, recent=None, n=20_000):
    """How often each token is drawn, [V]."""
    recent = None if recent is None else recent.expand(n, -1)
    tokens = sample(logits.expand(n, -1), config, generators(0) * n, recent)
    return torch.bincount(tokens, minlength=logits.shape[1]) / n


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"ras_window": 0},
        {"ras_threshold": -0.1},
        {"ras_threshold": 1.5},
    ],
)
def test_impossible_values_are_named(values):
    with pytest.raises(ValleError, match=next(iter(values))):
        SamplingConfig(**values)


def test_defaults_leave_the_distribution_as_it_is():
    torch.testing.assert_close(filter_logits(PROBS.log(), SamplingConfig()), PROBS.log())


def test_filters_by_hand():
    assert kept(SamplingConfig(top_k=1)) == [1]
    assert kept(SamplingConfig(top_k=2)) == [1, 3]
    assert kept(SamplingConfig(top_k=99)) == [0, 1, 2, 3, 4]
    assert kept(SamplingConfig(top_p=0.01)) == [1]
    assert kept(SamplingConfig(top_p=0.6)) == [1, 3]  # 0.5 does not reach 0.6, 0.8 does
    assert kept(SamplingConfig(top_p=0.85)) == [0, 1, 3]
    # Among the two that top-k leaves, token 1 has 0.5 / 0.8 = 0.625.
    assert kept(SamplingConfig(top_k=2, top_p=0.6)) == [1]
    assert kept(SamplingConfig(top_k=2, top_p=0.65)) == [1, 3]
    # At temperature 0.5 probabilities are squared: token 1 has 0.25 / 0.355 = 0.704.
    assert kept(SamplingConfig(temperature=0.5, top_p=0.7)) == [1]
    assert kept(SamplingConfig(temperature=0.5, top_p=0.71)) == [1, 3]


def test_filters_treat_rows_apart():
    logits = torch.randn(6, 20)
    config = SamplingConfig(temperature=0.7, top_k=9, top_p=0.8)
    rows = torch.cat([filter_logits(row.unsqueeze(0), config) for row in logits])
    torch.testing.assert_close(filter_logits(logits, config), rows)


def test_temperature_zero_is_arg_max_and_draws_nothing():
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    logits = torch.randn(4, 9)
    assert torch.equal(sample(logits, SamplingConfig(temperature=0), [generator] * 4), logits.argmax(-1))
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SamplingConfig(), PROBS),
        (SamplingConfig(temperature=0.5), PROBS**2 / (PROBS**2).sum()),
        (SamplingConfig(top_k=2), torch.tensor([[0, 0.625, 0, 0.375, 0]])),
    ],
)
def test_frequencies(config, expected):
    torch.testing.assert_close(frequencies(PROBS.log(), config), expected[0], atol=0.015, rtol=0)


def test_one_seed_one_token_whatever_the_neighbours():
    logits, config = torch.randn(3, 50), SamplingConfig(top_p=0.9)
    together = sample(logits, config, generators(1, 2, 3))
    assert torch.equal(together, sample(logits, config, generators(1, 2, 3)))
    alone = torch.cat([sample(logits[i : i + 1], config, generators(i + 1)) for i in range(3)])
    assert torch.equal(together, alone)


def test_repetition_aware_redraws_only_above_the_threshold():
    # top_k = 1 always proposes token 1, the likeliest; a redraw is from all tokens.
    config = SamplingConfig(top_k=1, repetition_aware=True)
    once = torch.tensor([[-1] * 8 + [1, 3]])  # 1 of 10 is not more than 0.1
    assert frequencies(PROBS.log(), config, once, n=500)[1] == 1
    twice = torch.tensor([[1, 1] + [3] * 8])
    torch.testing.assert_close(frequencies(PROBS.log(), config, twice), PROBS[0], atol=0.015, rtol=0)
    others = torch.full((1, 10), 3)  # repetitions of another token do not matter
    assert frequencies(PROBS.log(), config, others, n=500)[1] == 1


def test_repetition_aware_redraw_is_from_the_models_own_distribution():
    looping = torch.full((1, 10), 1)
    for config in (
        SamplingConfig(temperature=0, repetition_aware=True),
        SamplingConfig(temperature=0.01, repetition_aware=True),
    ):
        torch.testing.assert_close(frequencies(PROBS.log(), config, looping), PROBS[0], atol=0.015, rtol=0)
    excluded = PROBS.log().clone()
    excluded[0, 3] = -torch.inf
    assert frequencies(excluded, SamplingConfig(top_k=1, repetition_aware=True), looping)[3] == 0


def test_repetition_aware_window_and_threshold():
    config = SamplingConfig(top_k=1, repetition_aware=True, ras_window=3, ras_threshold=0.67)
    assert frequencies(PROBS.log(), config, torch.tensor([[1, 1, 0]]), n=500)[1] == 1
    assert frequencies(PROBS.log(), config, torch.tensor([[1, 1, 1]]), n=500)[1] < 0.7
    with pytest.raises(AssertionError, match="ras_window"):
        sample(PROBS.log(), config, generators(0), torch.zeros(1, 10, dtype=torch.long))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    n_excluded=st.integers(0, 15),
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 20),
    top_p=st.floats(0.001, 1.0),
    repetition_aware=st.booleans(),
)
def test_whatever_the_options_something_allowed_is_drawn(
    seed, scale, n_excluded, temperature, top_k, top_p, repetition_aware
):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 16, generator=random) * scale
    allowed = torch.rand(4, 16, generator=random).argsort(-1) >= n_excluded  # at least one a row
    logits = logits.masked_fill(~allowed, -torch.inf)
    before = logits.clone()
    config = SamplingConfig(temperature, top_k, top_p, repetition_aware)
    tokens = sample(logits, config, [random] * 4, torch.randint(-1, 16, (4, 10), generator=random))
    assert allowed.gather(1, tokens.unsqueeze(1)).all()
    assert torch.equal(logits, before)
    filtered = filter_logits(logits, config)
    n_kept = filtered.isfinite().sum(-1)
    assert (n_kept >= 1).all()
    if top_k:
        assert (n_kept <= top_k).all()
    # What stays is likelier than what goes.
    assert (
        logits.masked_fill(filtered.isfinite(), -torch.inf).amax(-1)
        <= logits.masked_fill(~filtered.isfinite(), torch.inf).amin(-1)
    ).all()
