"""The transformer alone: masks, cache, norms, positions, the loss over tokens."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from valle.errors import ValleError
from valle.model.transformer import (
    IGNORE_INDEX,
    AdaptiveNorm,
    KVCache,
    SinusoidalPositions,
    Transformer,
    TransformerConfig,
    padding_mask,
    sinusoids,
    token_loss,
)

CONFIG = TransformerConfig(dim=32, n_layers=2, n_heads=4, ff_dim=64)
POST = TransformerConfig(dim=32, n_layers=2, n_heads=4, ff_dim=64, norm="post", activation="relu")


def make(config=CONFIG, adaptive=False):
    torch.manual_seed(0)
    return Transformer(config, adaptive).eval()


@jaxtyped(typechecker=beartype)
def run(model, x: Float[Tensor, "B L D"], **kwargs) -> Float[Tensor, "B L D"]:
    with torch.no_grad():
        return model(x, **kwargs)


@pytest.mark.parametrize(
    "values",
    [
        {"dim": 30, "n_heads": 4},
        {"dim": 33, "n_heads": 3},
        {"n_layers": 0},
        {"ff_dim": 0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"n_kv_heads": 3},
        {"n_kv_heads": -1},
    ],
)
def test_impossible_sizes_are_named(values):
    with pytest.raises(ValleError, match=next(iter(values))):
        TransformerConfig(**values)


@pytest.mark.parametrize("causal", [False, True])
def test_shared_keys_and_values_are_those_of_several_heads(causal):
    """Grouped queries say what ordinary heads do whose keys and values are alike within each group."""
    grouped = make(replace(CONFIG, n_kv_heads=2))
    ordinary = make(CONFIG)
    state = grouped.state_dict()
    for name, x in state.items():
        if ".qkv." in name:
            q, k, v = (part.view(-1, 8, *x.shape[1:]) for part in x.split([32, 16, 16]))
            state[name] = torch.cat([q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]).flatten(0, 1)
    ordinary.load_state_dict(state)
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(run(grouped, x, causal=causal), run(ordinary, x, causal=causal))
    assert sum(p.numel() for p in ordinary.parameters()) - sum(p.numel() for p in grouped.parameters()) == 2 * 33 * 32
    assert KVCache(replace(CONFIG, n_kv_heads=2), 3, 9, like=x).keys[0].shape[1] == 2


@pytest.mark.parametrize("config", [CONFIG, POST])
def test_causal_sees_no_future(config):
    model, x = make(config), torch.randn(2, 7, 32)
    changed = x.clone()
    changed[:, 4] = torch.randn(32)
    before, after = run(model, x, causal=True), run(model, changed, causal=True)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert ((before[:, 4:] - after[:, 4:]).abs().amax(-1) > 1e-3).all()
    assert ((run(model, x) - run(model, changed)).abs().amax(-1) > 1e-4).all()  # not causal: all places change


@pytest.mark.parametrize("config", [CONFIG, POST])
def test_cached_equals_uncached(config):
    model, x = make(config), torch.randn(3, 9, 32)
    whole = run(model, x, causal=True)
    cache = KVCache(config, 3, 9, like=x)
    parts = [run(model, x[:, :5], causal=True, cache=cache)]
    parts += [run(model, x[:, i : i + 1], cache=cache) for i in range(5, 9)]
    assert cache.length == 9
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
    with pytest.raises(AssertionError, match="holds 9 columns, 10 are needed"):
        run(model, x[:, :1], cache=cache)


def test_masked_columns_do_not_exist():
    model, x = make(), torch.randn(2, 6, 32)
    lens = torch.tensor([6, 4])
    x[1, 4:] = 1e3
    out = run(model, x, mask=padding_mask(lens, 6)[:, None, None])
    torch.testing.assert_close(out[:1], run(model, x[:1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1:, :4], run(model, x[1:, :4]), atol=1e-5, rtol=0)


def test_causal_with_a_mask_or_a_past_is_refused():
    model, x = make(), torch.randn(1, 2, 32)
    with pytest.raises(AssertionError, match="exclude"):
        run(model, x, causal=True, mask=torch.ones(2, 2, dtype=torch.bool))
    cache = KVCache(CONFIG, 1, 4, like=x)
    run(model, x, causal=True, cache=cache)
    with pytest.raises(AssertionError, match="empty cache"):
        run(model, x, causal=True, cache=cache)


def test_dropout_only_in_training():
    model, x = make(), torch.randn(1, 5, 32)
    torch.testing.assert_close(run(model, x), run(model, x), atol=0, rtol=0)
    model.train()
    assert not torch.equal(run(model, x), run(model, x))


def test_adaptive_norm_is_the_formula_of_the_paper():
    norm = AdaptiveNorm(8)
    x, stage = torch.randn(2, 3, 8), torch.randn(8)
    a, b = norm.project(stage)[:8], norm.project(stage)[8:]
    torch.testing.assert_close(norm(x, stage), a * F.layer_norm(x, (8,)) + b)
    norm.initialise()
    torch.testing.assert_close(norm(x, stage), F.layer_norm(x, (8,)))


def test_adaptive_transformer_starts_plain_and_then_tells_stages_apart():
    model, x = make(adaptive=True), torch.randn(1, 4, 32)
    one, two = torch.randn(2, 32)
    torch.testing.assert_close(run(model, x, condition=one), run(model, x, condition=two))
    plain = make()
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(run(model, x, condition=one), run(plain, x), atol=1e-5, rtol=0)
    for norm in [m for m in model.modules() if isinstance(m, AdaptiveNorm)]:
        torch.nn.init.normal_(norm.project.weight, std=0.1)
        changed = run(model, x, condition=one)
        assert (changed - run(model, x, condition=two)).abs().max() > 1e-3
        norm.initialise()
    with pytest.raises(AssertionError, match="stage"):
        run(model, x)


def test_initialisation():
    model = Transformer(TransformerConfig(dim=256, n_layers=8, n_heads=4, ff_dim=1024))
    block = model.blocks[3]
    expected = {
        block.attention.qkv: 1 / 16,
        block.attention.out: 1 / 16 / 4,  # 4 = sqrt(2 * 8 layers)
        block.ff.up: 1 / 16,
        block.ff.out: 1 / 32 / 4,
    }
    for linear, std in expected.items():
        assert linear.weight.std().item() == pytest.approx(std, rel=0.02)
        assert linear.bias.abs().max() == 0


def test_sinusoids_by_hand():
    table = sinusoids(3, 4) * 2  # amplitude 1/sqrt(4)
    torch.testing.assert_close(table[0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(
        table[2], torch.tensor([math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]), atol=1e-6, rtol=0
    )


def test_positions_grow_are_not_stored_and_stay_trainable_with():
    positions = SinusoidalPositions(8, n=4)
    assert not positions.state_dict()
    with torch.inference_mode():
        torch.testing.assert_close(positions(11), sinusoids(11, 8))
    assert positions(3).shape == (3, 8)
    scale = torch.ones(1, requires_grad=True)
    (scale * positions(5)).sum().backward()  # an inference tensor would raise here
    assert scale.grad is not None


def test_token_loss_by_hand():
    logits = torch.zeros(1, 4, 12)
    logits[0, 0, 3] = 5.0  # certain, right
    logits[0, 1, 3] = 5.0  # certain, wrong: the target is the second guess
    logits[0, 1, 7] = 4.0
    logits[0, 2] = torch.arange(12.0)  # the target is the last of twelve guesses
    logits[0, 3] = torch.nan  # not in the loss
    targets = torch.tensor([[3, 7, 0, IGNORE_INDEX]])
    loss, metrics = token_loss(logits, targets)
    log_probs = logits[0, :3].log_softmax(-1)
    assert loss.item() == pytest.approx(-(log_probs[0, 3] + log_probs[1, 7] + log_probs[2, 0]).item() / 3, abs=1e-5)
    assert metrics["loss"].item() == loss.item()
    assert not metrics["loss"].requires_grad
    assert metrics["n_tokens"].item() == 3
    assert metrics["top1"].item() == pytest.approx(1 / 3)
    assert metrics["top10"].item() == pytest.approx(2 / 3)


def test_fewer_tokens_than_ten():
    _, metrics = token_loss(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
    assert metrics["top10"].item() == 1


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
# What the compiler itself looks at on its way.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_blocks_compile_once_for_all_layers_and_lengths(adaptive, checkpointing):
    compiler = CompileCounter()  # counts graphs, and runs them as they are
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(16, 3, 2, 32, dropout=0.0), adaptive=adaptive)
    plain = copy.deepcopy(model)
    model.compile_blocks(compiler)
    model.checkpointing = checkpointing
    condition = torch.randn(16) if adaptive else None
    for n_rows, length in ((2, 5), (3, 9), (4, 17), (2, 30), (7, 8)):
        x = torch.randn(n_rows, length, 16)
        mask = torch.rand(n_rows, 1, 1, length) < 0.8 if adaptive else None
        for one in (model, plain):
            one.zero_grad()
            one(x, mask=mask, causal=not adaptive, condition=condition).square().mean().backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)
    assert compiler.frame_count <= 2  # of the first layer, whose input needs no gradient, and of the others
    model.eval()
    with torch.no_grad():
        model(torch.randn(1, 6, 16), mask=None, causal=not adaptive, condition=condition)
    assert compiler.frame_count <= 2  # what speaks is not compiled
