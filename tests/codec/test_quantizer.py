"""The residual vector quantiser: codes and sums of entries, moving averages, revival, k-means, straight-through."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

from valle.codec.quantizer import Codebook, ResidualVectorQuantizer, kmeans, nearest

DIM, N_QUANTIZERS, SIZE = 6, 4, 16


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def quantizer() -> ResidualVectorQuantizer:
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(DIM, N_QUANTIZERS, SIZE)
    quantizer.initialise(randn(4, DIM, 100), generator=generator())
    return quantizer.eval()


def error(quantizer: ResidualVectorQuantizer, z: Tensor, n_quantizers: int | None = None) -> float:
    """Mean squared distance between z [B, D, T] and what its codes stand for."""
    return (quantizer.decode(quantizer.encode(z, n_quantizers)) - z).pow(2).mean().item()


# -- encode and decode --------------------------------------------------------------------------------------------


def test_nearest_is_the_nearest() -> None:
    x, embed = randn(200, DIM), randn(SIZE, DIM, seed=1)
    assert torch.equal(nearest(x, embed), torch.cdist(x, embed).argmin(1))


def test_codes_are_those_of_transformers(quantizer: ResidualVectorQuantizer) -> None:
    # 1000 frames a second of 4-bit codes: 16 kbit/s are 4 codebooks, 8 are 2.
    config = transformers.EncodecConfig(
        hidden_size=DIM, codebook_size=SIZE, upsampling_ratios=[4, 3, 2], target_bandwidths=[8.0, 16.0]
    )
    published = EncodecResidualVectorQuantizer(config)
    for k, layer in enumerate(published.layers):
        layer.codebook.embed.copy_(quantizer.get_buffer(f"layers.{k}.embed"))
    z = randn(3, DIM, 50, seed=2)
    for bandwidth, n_quantizers in ((8.0, 2), (16.0, 4)):
        codes = published.encode(z, bandwidth)  # [K, B, T]
        assert len(codes) == n_quantizers
        ours = quantizer.encode(z, n_quantizers)
        assert torch.equal(ours, codes.transpose(0, 1))
        torch.testing.assert_close(quantizer.decode(ours), published.decode(codes), rtol=0, atol=1e-6)


def test_decode_sums_the_entries(quantizer: ResidualVectorQuantizer) -> None:
    codes = torch.randint(SIZE, (2, 3, 5), generator=generator())
    z = quantizer.decode(codes)
    assert z.shape == (2, DIM, 5)
    expected = sum(quantizer.get_buffer(f"layers.{k}.embed")[codes[1, k, 4]] for k in range(3))
    torch.testing.assert_close(z[1, :, 4], expected)


def test_a_code_book_entry_is_its_own_code(quantizer: ResidualVectorQuantizer) -> None:
    entries = quantizer.get_buffer("layers.0.embed")  # [C, D]
    codes = quantizer.encode(entries.t()[None], 1)
    assert torch.equal(codes[0, 0], torch.arange(SIZE))
    torch.testing.assert_close(quantizer.decode(codes)[0].t(), entries)


def test_fewer_codebooks_are_the_first_ones_and_lose_more(quantizer: ResidualVectorQuantizer) -> None:
    z = randn(2, DIM, 60, seed=3)
    codes = quantizer.encode(z)
    assert codes.shape == (2, N_QUANTIZERS, 60)
    assert codes.dtype == torch.int64
    errors = []
    for k in range(1, N_QUANTIZERS + 1):
        assert torch.equal(quantizer.encode(z, k), codes[:, :k])
        errors.append(error(quantizer, z, k))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_a_frame_is_coded_without_its_neighbours(quantizer: ResidualVectorQuantizer) -> None:
    """So padding at the end of a batch changes no code, and a batch is one by one."""
    z = randn(3, DIM, 40, seed=4)
    padded = torch.cat([z, torch.full((3, DIM, 9), 7.0)], dim=2)
    assert torch.equal(quantizer.encode(padded)[..., :40], quantizer.encode(z))
    assert torch.equal(quantizer.encode(z), torch.cat([quantizer.encode(one[None]) for one in z]))


def test_more_codebooks_than_there_are_is_refused(quantizer: ResidualVectorQuantizer) -> None:
    with pytest.raises(ValueError, match="codes have 5 codebooks, but this quantizer has 4"):
        quantizer.decode(torch.zeros(1, 5, 3, dtype=torch.int64))


# -- k-means ------------------------------------------------------------------------------------------------------


def test_kmeans_finds_clusters_that_are_there() -> None:
    centres = 10 * torch.eye(4, DIM)
    x = (centres[:, None] + 0.1 * randn(4, 50, DIM)).reshape(-1, DIM)
    # From one start two of four centroids may share a cluster for ever; from several, one start is good.
    found = min(
        (kmeans(x, 4, 20, generator(seed)) for seed in range(8)), key=lambda c: torch.cdist(x, c).min(1)[0].sum()
    )
    distances = torch.cdist(centres, found).min(1).values
    assert (distances < 0.2).all()


def test_more_iterations_bring_the_centroids_nearer() -> None:
    x = randn(500, DIM)
    loss = [torch.cdist(x, kmeans(x, SIZE, n, generator())).min(1).values.pow(2).sum().item() for n in (0, 1, 10)]
    assert loss[0] > loss[1] > loss[2]


def test_kmeans_with_fewer_points_than_clusters() -> None:
    x = randn(5, DIM)
    centroids = kmeans(x, SIZE, 10, generator())
    assert centroids.shape == (SIZE, DIM)
    assert torch.cdist(x, centroids).min(1).values.max() < 1e-2


def test_initialising_by_kmeans_reduces_the_error() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(DIM, N_QUANTIZERS, SIZE)
    z = 3 + 2 * randn(4, DIM, 200)
    before = error(quantizer, z)
    quantizer.initialise(z, generator=generator())
    assert error(quantizer, z) < 0.1 * before
    for k in range(N_QUANTIZERS):
        assert quantizer.encode(z)[:, k].unique().numel() == SIZE


def test_the_generator_decides() -> None:
    def run(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        quantizer = ResidualVectorQuantizer(DIM, N_QUANTIZERS, SIZE).train()
        random = generator(seed)
        quantizer.initialise(randn(2, DIM, 60), generator=random)
        torch.manual_seed(seed + 7)  # the global state has no say
        for step in range(5):
            quantizer(randn(2, DIM, 8, seed=step), dead_below=1.0, generator=random)
        return quantizer.state_dict()

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.embed"], other["layers.0.embed"])


# -- training -----------------------------------------------------------------------------------------------------


def test_the_gradient_goes_straight_through(quantizer: ResidualVectorQuantizer) -> None:
    z = randn(2, DIM, 20).requires_grad_()
    quantized = quantizer(z)
    torch.testing.assert_close(quantized.z, quantizer.decode(quantized.codes), rtol=0, atol=1e-6)
    assert torch.equal(quantized.codes, quantizer.encode(z))
    weight = randn(2, DIM, 20, seed=1)
    (gradient,) = torch.autograd.grad((quantized.z * weight).sum(), z)
    torch.testing.assert_close(gradient, weight)


def test_the_commitment_loss_pulls_to_the_entries(quantizer: ResidualVectorQuantizer) -> None:
    z = randn(2, DIM, 20).requires_grad_()
    loss = quantizer(z).commitment_loss
    (gradient,) = torch.autograd.grad(loss, z)
    assert quantizer(z - 10 * gradient).commitment_loss < loss
    exact = quantizer.decode(torch.zeros(1, N_QUANTIZERS, 1, dtype=torch.int64))
    assert error(quantizer, exact) < error(quantizer, exact + 0.3)


def test_each_item_uses_as_many_codebooks_as_it_is_told(quantizer: ResidualVectorQuantizer) -> None:
    z = randn(3, DIM, 20)
    quantized = quantizer(z, torch.tensor([1, 3, 4]))
    for i, n_quantizers in enumerate((1, 3, 4)):
        expected = quantizer.decode(quantized.codes[i : i + 1, :n_quantizers])
        torch.testing.assert_close(quantized.z[i : i + 1], expected, rtol=0, atol=1e-6)


def test_only_the_items_that_use_a_codebook_move_it(quantizer: ResidualVectorQuantizer) -> None:
    quantizer.train()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(randn(2, DIM, 40, seed=5), torch.tensor([2, 1]), dead_below=0.0)
    moved = [
        not torch.equal(quantizer.state_dict()[f"layers.{k}.embed"], before[f"layers.{k}.embed"]) for k in range(4)
    ]
    assert moved == [True, True, False, False]


def test_evaluation_moves_nothing(quantizer: ResidualVectorQuantizer) -> None:
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(randn(2, DIM, 40, seed=5))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_moving_averages_bring_an_entry_to_the_mean_of_its_vectors() -> None:
    codebook = Codebook(DIM, 2)
    codebook.initialise(torch.cat([torch.zeros(20, DIM), torch.ones(20, DIM)]), 5, generator())
    low = int(codebook.encode(torch.zeros(1, DIM)))
    x = torch.cat([torch.full((20, DIM), 0.3), torch.ones(20, DIM)])
    codebook.update(x, codebook.encode(x), 0.9, 0.0, None)
    # Twenty vectors before, twenty now: a tenth of the way.
    torch.testing.assert_close(codebook.embed[low], torch.full((DIM,), 0.03))
    torch.testing.assert_close(codebook.embed[1 - low], torch.ones(DIM))
    for _ in range(100):
        codebook.update(x, codebook.encode(x), 0.9, 0.0, None)
    torch.testing.assert_close(codebook.embed[low], torch.full((DIM,), 0.3), rtol=0, atol=1e-4)


def test_training_follows_a_drift(quantizer: ResidualVectorQuantizer) -> None:
    z = 1.5 * randn(4, DIM, 100) + 1
    before = error(quantizer, z)
    quantizer.train()
    for _ in range(60):
        quantizer(z, decay=0.9, generator=generator())
    assert error(quantizer, z) < 0.7 * before


def test_dead_entries_are_moved_onto_live_vectors() -> None:
    codebook = Codebook(DIM, SIZE)
    codebook.initialise(randn(400, DIM), 10, generator())
    codebook.embed[3:] = 100.0 + torch.arange(SIZE - 3)[:, None]  # nobody is near
    codebook.ema_sum.copy_(codebook.embed * codebook.ema_count[:, None])
    live = codebook.embed[:3].clone()
    x = randn(400, DIM, seed=1)
    random = generator()
    n_steps = 0
    while codebook.encode(x).unique().numel() < SIZE:
        codebook.update(x, codebook.encode(x), 0.5, 0.1, random)
        n_steps += 1
        assert n_steps < 30, "dead entries stay dead"
    assert n_steps > 1, "entries must fall out of use before they are replaced"
    assert codebook.embed.abs().max() < 10
    assert torch.cdist(live, codebook.embed).min(1).values.max() < 3
    # Alive, they stay: one more step replaces nothing by a vector of the batch.
    codebook.update(x, codebook.encode(x), 0.5, 0.1, random)
    assert torch.cdist(codebook.embed, x).min(1).values.gt(1e-6).sum() > SIZE // 2


def test_without_a_threshold_nothing_is_revived() -> None:
    codebook = Codebook(DIM, SIZE)
    codebook.initialise(randn(400, DIM), 10, generator())
    codebook.embed[5] = 100.0
    codebook.ema_sum.copy_(codebook.embed * codebook.ema_count[:, None])
    x = randn(400, DIM, seed=1)
    for _ in range(20):
        codebook.update(x, codebook.encode(x), 0.5, 0.0, None)
    torch.testing.assert_close(codebook.embed[5], torch.full((DIM,), 100.0))


def test_stored_without_training_state_it_goes_on_from_its_entries(quantizer: ResidualVectorQuantizer) -> None:
    """The moving averages are not stored; training must begin at the stored entries all the same."""
    stored = {name: value for name, value in quantizer.state_dict().items() if "ema_" not in name}
    loaded = ResidualVectorQuantizer(DIM, N_QUANTIZERS, SIZE)
    loaded.load_state_dict(stored, strict=False)
    loaded.train()(randn(1, DIM, 10, seed=6), generator=generator())  # fewer vectors than entries
    for k in range(N_QUANTIZERS):
        moved = (loaded.get_buffer(f"layers.{k}.embed") - stored[f"layers.{k}.embed"]).norm(dim=1)
        assert moved.max() < 0.1, k


def test_autocast_changes_no_code(quantizer: ResidualVectorQuantizer) -> None:
    z = randn(2, DIM, 300, seed=7)
    codes = quantizer.encode(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z), codes)
        assert torch.equal(quantizer(z).codes, codes)


def test_it_trains_on_what_an_encoder_gives_under_autocast(quantizer: ResidualVectorQuantizer) -> None:
    z = randn(2, DIM, 50, seed=7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        quantizer.train()(z, generator=generator())
    assert quantizer.get_buffer("layers.0.embed").isfinite().all()
