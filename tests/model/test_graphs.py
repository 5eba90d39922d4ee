"""A decoder for CUDA graphs, its steps run one by one on the CPU: as the plain one. With a GPU, recorded too."""

import gc
from dataclasses import replace

import pytest
import torch

from valle.model import graphs
from valle.model.ar import AR, ARConfig
from valle.model.decoder import Decoder
from valle.model.graphs import GraphDecoder
from valle.model.sampling import SamplingConfig
from valle.model.transformer import KVCache, Transformer, TransformerConfig, padding_mask

TINY = TransformerConfig(dim=32, n_layers=2, n_heads=4, ff_dim=64)
SHAPES = [TINY, replace(TINY, norm="post", activation="relu"), replace(TINY, n_kv_heads=2)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def begin(config, device, n=300, lens=(300, 7, 290)):
    torch.manual_seed(0)
    transformer = Transformer(config).eval().to(device)
    x = torch.randn(len(lens), n, config.dim, device=device)
    cache = KVCache(config, len(lens), n, like=x)
    with torch.no_grad():
        transformer(x, causal=True, cache=cache)
    return transformer, cache, torch.tensor(lens, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("n_copies", [1, 3])
def test_columns_are_those_of_the_plain_decoder(config, n_copies, device):
    """Across the border between two sizes (at 512 columns), and after all but one candidate are dropped."""
    transformer, cache, lens = begin(config, device)
    plain = Decoder(transformer, cache, 260, n_copies, padding_mask(lens, 300))
    graph = GraphDecoder(transformer, cache, lens, 260, n_copies, torch.float32)
    kept = torch.tensor([0, n_copies - 1, n_copies // 2], device=device)
    with torch.no_grad():
        for n in range(260):
            if n == 230:
                plain.keep(kept)
                graph.keep(kept)
            x = torch.randn(3 * (n_copies if n < 230 else 1), config.dim, device=device)
            torch.testing.assert_close(graph.step(x), plain.step(x), atol=2e-5, rtol=2e-4)
        with pytest.raises(AssertionError, match="room for 260 more columns"):
            graph.step(x)


def test_in_bfloat16_it_is_near():
    transformer, cache, lens = begin(TINY, "cpu")
    plain = Decoder(transformer, cache, 20, 1, padding_mask(lens, 300))
    graph = GraphDecoder(transformer, cache, lens, 20, 1, torch.bfloat16)
    with torch.no_grad():
        for _ in range(20):
            x = torch.randn(3, 32)
            ours, theirs = graph.step(x), plain.step(x)
            assert ours.dtype == torch.float32
            assert (ours - theirs).std() < 0.05 * theirs.std()


def test_buffers_serve_one_utterance_after_the_other():
    """What an earlier one left in them is not seen, and two at a time have their own."""
    transformer, cache, lens = begin(TINY, "cpu")
    x = torch.randn(10, 3, 32)

    def speak():
        decoder = GraphDecoder(transformer, cache, lens, 20, 1, torch.float32)
        with torch.inference_mode():
            return decoder, torch.stack([decoder.step(row) for row in x])

    one, first = speak()
    other, second = speak()
    assert one._recorded is not other._recorded
    assert torch.equal(first, second)
    used = one._recorded
    del one
    gc.collect()
    again, third = speak()
    assert again._recorded is used
    assert torch.equal(first, third)


def test_a_model_that_is_gone_leaves_nothing():
    transformer, cache, lens = begin(TINY, "cpu")
    GraphDecoder(transformer, cache, lens, 5, 1, torch.float32)
    gc.collect()
    before = len(graphs._free)
    del transformer
    gc.collect()
    assert len(graphs._free) == before - 1


@pytest.mark.parametrize("device", DEVICES)
def test_the_ar_speaks_the_same_by_it(device):
    torch.manual_seed(0)
    config = ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY, text_dropout=0.2, local_layers=1)
    model = AR(config).eval().to(device)

    def speak():
        result = model.generate(
            torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(1)).to(device),
            torch.tensor([6, 3], device=device), torch.zeros(2, 5, dtype=torch.int64, device=device),
            torch.tensor([5, 2], device=device), sampling=SamplingConfig(guidance=2.0), max_frames=30, min_frames=30,
            candidates=2, choose_after=8, with_gains=True,
            generators=[torch.Generator().manual_seed(i) for i in range(4)],
        )  # fmt: skip
        return [codes.tolist() for codes in result.codes]

    plain = speak()
    model.transformer.graph_dtype = torch.float32
    assert speak() == plain
