"""What the NAR misses, looked up in the prompt."""

import dataclasses
import itertools

import pytest
import torch

from valle.model.nar import NAR, NARConfig
from valle.model.retrieval import PHONEME_COST, cheapest_path, frame_distances
from valle.model.transformer import TransformerConfig

CONFIG = NARConfig(
    n_phonemes=11,
    codebook_size=24,
    n_quantizers=4,
    transformer=TransformerConfig(dim=32, n_layers=2, n_heads=4, ff_dim=64),
    alignment=True,
    one_pass=True,
    codebook_dim=12,
    complete_by="prompt",
)


@pytest.mark.parametrize("costs", [(0.0, 0.0), (0.3, 0.1), (5.0, 1.0)])
def test_the_path_is_the_cheapest_of_all(costs):
    distances = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    join, stay = costs

    def cost(path):
        total = sum(distances[t, j] for t, j in enumerate(path))
        for before, after in itertools.pairwise(path):
            total += min(join, stay if after == before else join, 0.0 if after == before + 1 else join)
        return float(total)

    found = cheapest_path(distances, join, stay).tolist()
    assert cost(found) == pytest.approx(min(cost(p) for p in itertools.product(range(4), repeat=5)), abs=1e-5)


def test_a_frame_is_nearest_to_itself_and_another_phoneme_costs():
    first, foretold = torch.randn(9, 12), torch.randn(9, 12)
    phonemes = torch.arange(9)
    plain = frame_distances(first, foretold, None, first, foretold, None)
    told = frame_distances(first, foretold, phonemes, first, foretold, phonemes)
    assert plain.argmin(dim=1).tolist() == list(range(9))
    torch.testing.assert_close(told - plain, PHONEME_COST * (1 - torch.eye(9)))


def rows(n_prompt=(9, 5), n_target=(7, 9)):
    random = torch.Generator().manual_seed(1)
    phonemes = torch.randint(0, 11, (2, 6), generator=random)
    prompt = torch.randint(0, 24, (2, 4, max(n_prompt)), generator=random)
    codes = torch.randint(0, 24, (2, max(n_target)), generator=random)
    prompt_index = torch.arange(max(n_prompt)).expand(2, -1).clamp(max=3)
    index = 3 + torch.arange(max(n_target)).expand(2, -1).clamp(max=2)
    lens = torch.tensor([6, 6]), torch.tensor(n_prompt), torch.tensor(n_target)
    return phonemes, lens[0], prompt, lens[1], codes, lens[2], index, prompt_index


def make(config=CONFIG):
    torch.manual_seed(0)
    model = NAR(config).eval()
    model.set_codebooks(torch.randn(4, 24, 12))
    return model


def test_what_the_prompt_says_comes_back():
    """A target that is the prompt gets the prompt's own sum of codebooks 2 to 4, so that nothing is missed."""
    model = make()
    phonemes, lens, prompt, prompt_lens, *_ = rows()
    index = torch.arange(9).expand(2, -1).clamp(max=3)
    said = model.generate(phonemes, lens, prompt, prompt_lens, prompt[:, 0], prompt_lens, index, index)
    for i, n in enumerate(prompt_lens.tolist()):
        truth = model._look_up(prompt[i : i + 1, 1:, :n], model.codebooks[1:])
        assert torch.equal(said[i, 1:, :n], model._quantise(truth)[0])


def test_a_batch_equals_one_by_one_and_padding_is_silent():
    model, batch = make(), rows()
    together = model.generate(*batch)
    for i in range(2):
        n_prompt, n = int(batch[3][i]), int(batch[5][i])
        phonemes, lens, prompt, prompt_lens, codes, code_lens, index, prompt_index = (x[i : i + 1] for x in batch)
        alone = model.generate(
            phonemes, lens, prompt[:, :, :n_prompt], prompt_lens, codes[:, :n], code_lens, index[:, :n],
            prompt_index[:, :n_prompt],
        )  # fmt: skip
        assert torch.equal(together[i, :, :n], alone[0])
    assert not together[0, :, 7:].any()


def test_without_a_prompt_it_is_the_vectors_alone():
    phonemes, lens, prompt, _, codes, code_lens, index, prompt_index = rows()
    nothing = (phonemes, lens, prompt[:, :, :0], torch.zeros(2, dtype=torch.int64), codes, code_lens, index)
    model = make()
    said = model.generate(*nothing, prompt_index[:, :0])
    model.config = dataclasses.replace(CONFIG, complete_by="vectors")
    assert torch.equal(said, model.generate(*nothing, prompt_index[:, :0]))
