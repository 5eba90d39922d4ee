"""The NAR model: what each stage reads and predicts, how training draws prompts, and generation in seven passes."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from valle.errors import ValleError
from valle.model.nar import NAR, NARBatch, NARConfig, draw_prompt, draw_stage
from valle.model.transformer import AdaptiveNorm, TransformerConfig, padding_mask, sinusoids

DIM, SIZE = 32, 24
TINY = TransformerConfig(dim=DIM, n_layers=2, n_heads=4, ff_dim=64)
VARIANTS = [
    NARConfig(n_phonemes=11, codebook_size=SIZE, transformer=TINY),
    NARConfig(n_phonemes=11, codebook_size=SIZE, transformer=TINY, tie_weights=False),
]


ONE_PASS = NARConfig(n_phonemes=11, codebook_size=SIZE, transformer=TINY, one_pass=True)
LOCAL = NARConfig(n_phonemes=11, codebook_size=SIZE, transformer=TINY, one_pass=True, local_layers=2)
LOOK_UP = dataclasses.replace(LOCAL, prompt_heads=2, prompt_summary=True, prompt_dropout=0.5)


def make(config=VARIANTS[0]):
    """A NAR model with random weights whose stages differ, as they do after the first step of training."""
    torch.manual_seed(0)
    model = NAR(config).eval()
    for module in model.modules():
        if isinstance(module, AdaptiveNorm):
            torch.nn.init.normal_(module.project.weight, std=0.5)
    return model


def make_batch(padding=0, n_phonemes=6, n_prompt=5):
    """Three utterances of different lengths; each of phonemes, prompts and targets has another row as its longest."""
    random = torch.Generator().manual_seed(1)
    phonemes = torch.randint(0, 11, (3, 6), generator=random)[:, :n_phonemes]
    codes = torch.randint(0, SIZE, (3, 8, 9), generator=random)
    prompt = torch.randint(0, SIZE, (3, 8, 5), generator=random)[:, :, :n_prompt]
    phoneme_lens = torch.tensor([6, 2, 4]).clamp(max=n_phonemes)
    prompt_lens = torch.tensor([0, 5, 3]).clamp(max=n_prompt)
    code_lens = torch.tensor([5, 1, 9])
    phonemes[~padding_mask(phoneme_lens, n_phonemes)] = padding
    codes[~padding_mask(code_lens, 9).unsqueeze(1).expand(-1, 8, -1)] = padding
    prompt[~padding_mask(prompt_lens, n_prompt).unsqueeze(1).expand(-1, 8, -1)] = padding
    return NARBatch(phonemes, phoneme_lens, codes, code_lens, prompt, prompt_lens, padding_mask(code_lens, 9))


def row(batch, i):
    """Utterance i alone, without padding."""
    s, t, p = batch.phoneme_lens[i], batch.code_lens[i], batch.prompt_lens[i]
    one = NARBatch(*(x[i : i + 1] for x in batch[:7]))
    return one._replace(
        phonemes=one.phonemes[:, :s],
        codes=one.codes[:, :, :t],
        prompt_codes=one.prompt_codes[:, :, :p],
        in_loss=one.in_loss[:, :t],
    )


@jaxtyped(typechecker=beartype)
def call(
    model, batch: NARBatch, codes: Int[Tensor, "B 8 T"], prompt: Int[Tensor, "B 8 P"], stage: int
) -> Float[Tensor, "B T 24"]:
    with torch.no_grad():
        return model(batch._replace(codes=codes, prompt_codes=prompt), stage)


def logits_of(model, batch, stage):
    return call(model, batch, batch.codes, batch.prompt_codes, stage)


def captured(model, batch, stage):
    """What the transformer is given and what it returns for a batch, [B, L, D] each."""
    seen = {}
    handle = model.transformer.register_forward_hook(lambda _, args, out: seen.update(x=args[0], h=out))
    logits_of(model, batch, stage)
    handle.remove()
    return seen["x"], seen["h"]


def tables(model):
    """The embedding tables, [8, codebook_size, D]."""
    return model.code_emb.weight.view(8, SIZE, DIM)


# Reading


@pytest.mark.parametrize("config", [*VARIANTS, LOCAL, LOOK_UP])
@pytest.mark.parametrize("padding", [0, -100, 10**6])
@pytest.mark.parametrize("stage", [2, 5, 8])
def test_padding_does_not_change_logits(config, padding, stage):
    model, batch = make(config), make_batch(padding)
    before = [x.clone() for x in batch[:7]]
    logits = logits_of(model, batch, stage)
    for i in range(3):
        alone = logits_of(model, row(batch, i), stage)
        torch.testing.assert_close(logits[i : i + 1, : alone.shape[1]], alone, atol=1e-5, rtol=0)
    assert all(torch.equal(x, y) for x, y in zip(before, batch[:7], strict=True))  # inputs are left as they were


@pytest.mark.parametrize("stage", range(2, 9))
def test_the_sequence_is_phonemes_prompt_target_with_positions_from_0_each(stage):
    model, batch = make(), row(make_batch(), 2)  # 4 phonemes, a prompt of 3 frames, a target of 9
    x, _ = captured(model, batch, stage)
    position = sinusoids(9, DIM)
    prompt = sum(tables(model)[k][batch.prompt_codes[0, k]] for k in range(8))
    target = sum(tables(model)[k][batch.codes[0, k]] for k in range(stage - 1))
    torch.testing.assert_close(x[0, :4], model.phoneme_emb(batch.phonemes[0]) + position[:4])
    torch.testing.assert_close(x[0, 4:7], prompt + position[:3])
    torch.testing.assert_close(x[0, 7:], target + position)


@pytest.mark.parametrize("stage", range(2, 9))
def test_output_of_a_stage_is_the_table_of_its_codebook(stage):
    model, batch = make(), row(make_batch(), 2)
    _, h = captured(model, batch, stage)
    torch.testing.assert_close(logits_of(model, batch, stage)[0], h[0, 7:] @ tables(model)[stage - 1].T)
    assert model.output_weight(stage).data_ptr() == tables(model)[stage - 1].data_ptr()
    assert not [name for name in model.state_dict() if "output" in name]
    untied = make(VARIANTS[1])
    assert untied.n_parameters - model.n_parameters == 7 * SIZE * DIM
    assert untied.output_weight(stage).data_ptr() == untied.output_emb.weight.view(7, SIZE, DIM)[stage - 2].data_ptr()


@pytest.mark.parametrize("stage", [2, 5, 8])
def test_a_stage_reads_only_the_codebooks_before_it_and_looks_both_ways(stage):
    model, batch = make(), make_batch()
    before = logits_of(model, batch, stage)
    codes = batch.codes.clone()
    codes[:, stage - 1 :] = (codes[:, stage - 1 :] + 1) % SIZE
    torch.testing.assert_close(logits_of(model, batch._replace(codes=codes), stage), before, atol=0, rtol=0)
    codes = batch.codes.clone()
    codes[2, stage - 2, 4] = (codes[2, stage - 2, 4] + 1) % SIZE
    after = logits_of(model, batch._replace(codes=codes), stage)
    assert ((after - before)[2].abs().amax(-1) > 1e-5).all()  # the frames before it, too
    torch.testing.assert_close(after[:2], before[:2])


def test_every_codebook_of_the_prompt_is_read():
    model, batch = make(), make_batch()
    before = logits_of(model, batch, 2)
    for k in range(8):
        prompt = batch.prompt_codes.clone()
        prompt[1, k, 0] = (prompt[1, k, 0] + 1) % SIZE
        assert (logits_of(model, batch._replace(prompt_codes=prompt), 2) - before)[1, 0].abs().max() > 1e-4
    with pytest.raises(AssertionError, match="7 codebooks"):
        model(batch._replace(prompt_codes=batch.prompt_codes[:, :7]), 2)


def test_the_stage_enters_through_the_norms():
    model, batch = make(), make_batch()
    before = captured(model, batch, 3)[1]
    model.stage_emb.weight.data[3 - 2] += 0.3
    assert (captured(model, batch, 3)[1] - before).abs().max() > 1e-2
    for stage in (1, 9):
        with pytest.raises(AssertionError, match=f"stage is {stage}"):
            model(batch, stage)


@pytest.mark.parametrize(("n_phonemes", "n_prompt"), [(6, 0), (0, 5), (0, 0)])
def test_ablations_without_prompt_or_phonemes(n_phonemes, n_prompt):
    model, batch = make(), make_batch(n_phonemes=n_phonemes, n_prompt=n_prompt)
    for i in range(3):
        alone = logits_of(model, row(batch, i), 4)
        torch.testing.assert_close(logits_of(model, batch, 4)[i, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)
    loss, _ = model.loss(model(batch, 4), batch, 4)
    loss.backward()
    assert model.code_emb.weight.grad.isfinite().all()


# Learning


@pytest.mark.parametrize("base", [VARIANTS[0], ONE_PASS])
@pytest.mark.parametrize(("prompts", "n_phonemes"), [("phonemes", 6), ("none", 0)])
def test_an_ablated_model_reads_what_is_left_and_nothing_else(base, prompts, n_phonemes):
    model = make(dataclasses.replace(base, prompts=prompts))
    left = logits_of(make(base), make_batch(n_phonemes=n_phonemes, n_prompt=0), 4)
    torch.testing.assert_close(logits_of(model, make_batch(), 4), left, atol=1e-5, rtol=1e-4)


def test_ablations_exclude_what_reads_the_rest():
    with pytest.raises(ValleError, match="prompt_summary"):
        dataclasses.replace(VARIANTS[0], prompts="phonemes", prompt_summary=True)
    with pytest.raises(ValleError, match="alignment = false"):
        dataclasses.replace(VARIANTS[0], prompts="none", alignment=True)


def test_loss_is_on_the_chosen_frames_of_the_target_alone():
    model = make()
    batch = make_batch(padding=-100)
    in_loss = batch.in_loss.clone()
    in_loss[2, 3:5] = False
    batch = batch._replace(in_loss=in_loss)
    loss, metrics = model.loss(model(batch, 3), batch, 3)
    assert metrics["n_tokens"].item() == 5 + 1 + 7
    total = 0.0
    for i in range(3):
        alone = row(batch, i)
        losses = F.cross_entropy(logits_of(model, alone, 3)[0], alone.codes[0, 2], reduction="none")
        total += losses[alone.in_loss[0]].sum().item()
    assert loss.item() == pytest.approx(total / 13, abs=1e-5)


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("stage", [2, 8])
def test_every_parameter_learns_at_every_stage(config, stage):
    model, batch = make(config), make_batch(n_prompt=0)
    model.loss(model(batch, stage), batch, stage)[0].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_the_same_weights_give_the_same_loss_for_ever():
    """A checkpoint of today means the same tomorrow: names, layout and arithmetic are pinned."""
    model, batch = NAR(VARIANTS[0]).eval(), make_batch()
    with torch.no_grad():
        for i, (_, p) in enumerate(sorted(model.named_parameters())):
            p.copy_((torch.arange(p.numel()) * 0.37 + i).sin().view_as(p) * 0.5)
    losses = [model.loss(model(batch, stage), batch, stage)[0].item() for stage in (2, 8)]
    assert losses == pytest.approx([6.36645, 8.12294], abs=1e-4)


def test_the_loss_starts_near_that_of_a_guess():
    torch.manual_seed(0)
    model = NAR(NARConfig(n_phonemes=50, transformer=TransformerConfig(dim=128, n_layers=4, n_heads=4, ff_dim=512)))
    lens = torch.tensor([60, 60])
    batch = draw_prompt(torch.zeros(2, 60, dtype=torch.long), lens, torch.randint(0, 1024, (2, 8, 60)), lens)
    for stage in model.stages:
        assert 6.9 < model.loss(model(batch, stage), batch, stage)[0].item() < 7.8  # log(1024) = 6.93


def test_compiles_as_one_graph():
    model, batch = make(), make_batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch, 3), model(batch, 3))


def test_autocast_trains():
    model, batch = make(), make_batch()
    exact, _ = model.loss(model(batch, 3), batch, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(model(batch, 3), batch, 3)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=0.05)


def test_overfits_two_utterances_and_completes_them():
    torch.manual_seed(0)
    size = TransformerConfig(dim=64, n_layers=2, n_heads=4, ff_dim=128, dropout=0.0)
    model = NAR(NARConfig(n_phonemes=11, codebook_size=SIZE, transformer=size, prompt_mode="prefix"))
    random = torch.Generator().manual_seed(0)
    phonemes, phoneme_lens = torch.randint(0, 11, (2, 8), generator=random), torch.tensor([8, 6])
    codes, code_lens = torch.randint(0, SIZE, (2, 8, 24), generator=random), torch.tensor([24, 17])
    batch = draw_prompt(phonemes, phoneme_lens, codes, code_lens, prompt_frames=6, mode="prefix")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(600):
        stage = draw_stage(generator=random)
        loss, _ = model.loss(model(batch, stage), batch, stage)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    said = model.generate(
        batch.phonemes, batch.phoneme_lens, batch.prompt_codes, batch.prompt_lens, batch.codes[:, 0], batch.code_lens
    )
    assert torch.equal(said[0], codes[0, :, 6:])
    assert torch.equal(said[1, :, :11], codes[1, :, 6:17])


# Drawing stages and prompts


def test_stages_are_equally_likely_and_repeatable():
    random = torch.Generator().manual_seed(0)
    stages = [draw_stage(generator=random) for _ in range(1400)]
    counts = [stages.count(stage) for stage in range(10)]
    assert counts[0] == counts[1] == counts[9] == 0
    assert all(150 < n < 250 for n in counts[2:9])
    random.manual_seed(0)
    assert stages[:20] == [draw_stage(generator=random) for _ in range(20)]
    assert {draw_stage(4) for _ in range(100)} == {2, 3, 4}


def numbered(lens, n_frames):
    """Codes that tell row, codebook and frame."""
    codes = torch.arange(len(lens) * 8 * n_frames).view(len(lens), 8, n_frames)
    phonemes, phoneme_lens = torch.zeros(len(lens), 3, dtype=torch.long), torch.full((len(lens),), 3)
    return phonemes, phoneme_lens, codes, torch.tensor(lens)


@settings(max_examples=60, deadline=None)
@given(
    lens=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    extra=st.integers(0, 3),
    prompt_frames=st.integers(0, 25),
    mode=st.sampled_from(["segment", "prefix"]),
    seed=st.integers(0, 1000),
)
def test_prompts_are_segments_of_their_utterance(lens, extra, prompt_frames, mode, seed):
    phonemes, phoneme_lens, codes, code_lens = numbered(lens, max(lens) + extra)
    batch = draw_prompt(
        phonemes, phoneme_lens, codes, code_lens,
        prompt_frames=prompt_frames, mode=mode, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    for i, n in enumerate(lens):
        n_prompt = min(prompt_frames, n // 2)
        assert batch.prompt_lens[i] == n_prompt
        prompt = batch.prompt_codes[i, :, :n_prompt]
        target = batch.codes[i, :, : batch.code_lens[i]]
        if mode == "prefix":
            assert torch.equal(torch.cat([prompt, target], dim=1), codes[i, :, :n])
            assert torch.equal(batch.in_loss[i].nonzero().flatten(), torch.arange(n - n_prompt))
        else:
            assert torch.equal(target, codes[i, :, :n])
            # Prompt and frames in the loss share nothing, and together they are the utterance.
            learnt = codes[i][:, batch.in_loss[i]]
            assert torch.equal(torch.cat([prompt, learnt], dim=1).sort(dim=1).values, codes[i, :, :n])
            assert (prompt.diff(dim=1) == 1).all()


def test_every_segment_can_be_drawn_and_repeated():
    batch = numbered([10] * 500, 10)
    draws = [draw_prompt(*batch, prompt_frames=3, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    begins = draws[0].prompt_codes[:, 0, 0] % 80
    assert set(begins.tolist()) == set(range(8))
    assert torch.bincount(begins).min() > 35  # 500 / 8 = 62
    assert torch.equal(draws[0].prompt_codes, draws[1].prompt_codes)
    assert not torch.equal(draws[0].prompt_codes, draws[2].prompt_codes)


def test_the_papers_prompt_is_three_seconds():
    batch = draw_prompt(*numbered([750, 300], 750))
    assert batch.prompt_lens.tolist() == [225, 150]
    assert batch.in_loss.sum(1).tolist() == [525, 150]


# Speaking


@pytest.mark.parametrize("config", [*VARIANTS, ONE_PASS, LOCAL, LOOK_UP])
def test_generation_is_the_arg_max_stage_by_stage(config):
    model, batch = make(config), make_batch()
    said = model.generate(*batch[:2], *batch[4:6], batch.codes[:, 0], batch.code_lens)
    assert said.shape == (3, 8, 9)
    assert torch.equal(said[2, 0], batch.codes[2, 0])
    for stage in range(2, 9):
        logits = logits_of(model, batch._replace(codes=said), stage)
        assert torch.equal(logits.argmax(-1)[batch.in_loss], said[:, stage - 1][batch.in_loss])
    assert len(said.unique()) > 8


@pytest.mark.parametrize("config", [*VARIANTS, ONE_PASS, LOCAL, LOOK_UP])
def test_a_batch_equals_one_by_one(config):
    model, batch = make(config), make_batch(padding=-1)
    said = model.generate(*batch[:2], *batch[4:6], batch.codes[:, 0], batch.code_lens)
    assert (said[~batch.in_loss.unsqueeze(1).expand_as(said)] == 0).all()
    for i in range(3):
        one = row(batch, i)
        alone = model.generate(*one[:2], *one[4:6], one.codes[:, 0], one.code_lens)
        assert torch.equal(alone[0], said[i, :, : alone.shape[2]])


def test_speaking_with_dropout_is_refused():
    batch = make_batch()
    with pytest.raises(AssertionError, match="eval"):
        make().train().generate(*batch[:2], *batch[4:6], batch.codes[:, 0], batch.code_lens)


# Configuration


def test_configuration_round_trip():
    for config in VARIANTS:
        model = make(config)
        again = NAR.from_config(json.loads(json.dumps(model.config_dict())))
        assert again.config == config
        again.load_state_dict(model.state_dict())
    with pytest.raises(ValleError, match="prompt_mode"):
        NAR.from_config({"n_phonemes": 5, "prompt_mode": "suffix"})
    for values in ({"n_phonemes": 0}, {"codebook_size": 0}, {"n_quantizers": 1}, {"prompt_frames": -1}):
        with pytest.raises(ValleError, match=next(iter(values))):
            NARConfig(**{"n_phonemes": 5} | values)


def test_defaults_are_the_papers():
    with torch.device("meta"):
        model = NAR(NARConfig(n_phonemes=100))
    assert model.config.transformer == TransformerConfig(1024, 12, 16, 4096, 0.1)
    assert model.config.tie_weights
    assert model.config.prompt_mode == "segment"
    assert model.config.prompt_frames == 225
    assert list(model.stages) == [2, 3, 4, 5, 6, 7, 8]


# One pass, a departure


def test_one_pass_says_at_every_stage_what_it_says_at_each():
    model, batch = make(ONE_PASS), make_batch()
    with torch.no_grad():
        together = model.all_stages(batch).logits
    for stage, logits in zip(range(2, 9), together, strict=True):
        assert torch.equal(logits, logits_of(model, batch, stage))


def test_one_pass_reads_the_codebooks_before_a_stage_and_of_these_frames_only():
    model, batch = make(ONE_PASS), make_batch()
    stage = 5
    before = logits_of(model, batch, stage)
    for k in range(8):
        codes = batch.codes.clone()
        codes[2, k, 4] = (codes[2, k, 4] + 1) % SIZE
        changed = (logits_of(model, batch._replace(codes=codes), stage) != before).any(-1)
        if k == 0:
            assert changed[2, :9].all(), "the transformer reads codebook 1 and looks both ways"
        else:
            assert changed.nonzero().tolist() == ([[2, 4]] if k < stage - 1 else [])


def test_one_pass_learns_all_stages_at_once():
    model = make(ONE_PASS).train()
    batch = make_batch()
    together = zip(model.all_stages(batch).logits, range(2, 9), strict=True)
    loss = sum(model.loss(logits, batch, stage)[0] for logits, stage in together)
    loss.backward()
    assert all(p.grad is not None for p in model.heads.parameters())
    assert model.code_emb.weight.grad is not None
    assert (model.code_emb.weight.grad.view(8, SIZE, DIM).abs().sum((1, 2)) > 0).all()


def test_vectors_are_the_sum_of_the_codes_and_lead_back_to_them():
    config = dataclasses.replace(ONE_PASS, codebook_dim=12, complete_by="vectors")
    model, batch = make(config), make_batch()
    random = torch.Generator().manual_seed(2)
    codebooks = torch.randn(8, SIZE, 12, generator=random) * 0.4 ** torch.arange(8).view(-1, 1, 1)
    model.begin_with(codebooks)
    model.set_codebooks(codebooks)
    assert torch.equal(model.codebooks, codebooks)
    with pytest.raises(ValleError, match="codebook_dim"):
        model.set_codebooks(codebooks[:, :, :5])
    truth = sum(codebooks[k][batch.codes[:, k]] for k in range(1, 8))  # [3, 9, 12]
    assert float(model.vector_loss(truth, batch)) == pytest.approx(0, abs=1e-6)
    assert float(model.vector_loss(torch.zeros_like(truth), batch)) == pytest.approx(1, abs=0.5)
    again = sum(codebooks[k + 1][codes] for k, codes in enumerate(model._quantise(truth).unbind(1)))
    assert (again - truth).square().mean() < 0.01 * truth.square().mean()
    said = model.generate(*batch[:2], *batch[4:6], batch.codes[:, 0], batch.code_lens)
    with torch.no_grad():
        expected = model._quantise(model.all_stages(batch).vectors)
    assert torch.equal(said[:, 1:].where(batch.in_loss.unsqueeze(1), 0), expected.where(batch.in_loss.unsqueeze(1), 0))
    with pytest.raises(ValleError, match="one_pass"):
        dataclasses.replace(VARIANTS[0], codebook_dim=12)
    with pytest.raises(ValleError, match="codebook_dim"):
        dataclasses.replace(ONE_PASS, complete_by="vectors")


@pytest.mark.parametrize("tie", [True, False])
def test_beginning_with_the_codebooks_keeps_their_geometry(tie):
    model = make(NARConfig(n_phonemes=11, codebook_size=SIZE, transformer=TINY, tie_weights=tie))
    codebooks = torch.randn(8, SIZE, 12) * 5 + 3
    model.begin_with(codebooks)
    inputs = model.code_emb.weight.detach().view(8, SIZE, DIM)[1:]
    outputs = torch.stack([model.output_weight(stage).detach() for stage in range(2, 9)])
    for table in (inputs, outputs):  # [7, SIZE, DIM]
        assert float(table.square().sum(-1).mean()) == pytest.approx(1, rel=1e-4)
        before, after = torch.cdist(codebooks[1:], codebooks[1:]), torch.cdist(table, table)
        for k in range(7):  # all distances shrink alike
            torch.testing.assert_close(after[k] / after[k].mean(), before[k] / before[k].mean(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("config", [VARIANTS[0], LOCAL, LOOK_UP])
def test_nothing_to_complete_is_nothing(config):
    model, batch = make(config), make_batch()
    said = model.generate(*batch[:2], *batch[4:6], batch.codes[:, 0, :0], torch.zeros(3, dtype=torch.int64))
    assert said.shape == (3, 8, 0)


@pytest.mark.parametrize("config", [VARIANTS[0], LOCAL, LOOK_UP])
def test_drawing_follows_the_seeds_and_not_the_batch(config):
    model, batch = make(config), make_batch()

    def say(b, seeds, temperature):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        args = (*b[:2], *b[4:6], b.codes[:, 0], b.code_lens)
        return model.generate(*args, temperature=temperature, generators=generators)

    drawn = say(batch, (1, 2, 3), 1.0)
    assert torch.equal(drawn, say(batch, (1, 2, 3), 1.0))
    assert not torch.equal(drawn, say(batch, (4, 5, 6), 1.0))
    alone = say(row(batch, 2), (3,), 1.0)
    assert torch.equal(alone[0], drawn[2, :, : alone.shape[2]])
    greedy = say(batch, (1, 2, 3), 0.0)
    assert torch.equal(greedy, say(batch, (1, 2, 3), 1e-4))


def test_the_look_up_finds_what_a_like_frame_of_the_prompt_holds():
    """Trained on codes that follow from nothing but the prompt, it foretells them for voices it never heard."""
    torch.manual_seed(0)
    config = dataclasses.replace(LOOK_UP, prompt_dropout=0.0, n_quantizers=2, prompt_summary=False)
    model = NAR(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def draw():
        voice = torch.stack([torch.randperm(SIZE) for _ in range(16)])  # which codebook 2 goes with which codebook 1
        first = torch.stack([torch.randperm(SIZE) for _ in range(16)])
        target = torch.randint(0, SIZE, (16, 12))
        prompt, codes = (torch.stack([x, voice.gather(1, x)], dim=1) for x in (first, target))
        lens = [torch.full((16,), n) for n in (0, 12, SIZE)]
        phonemes = torch.zeros(16, 0, dtype=torch.int64)
        return NARBatch(phonemes, lens[0], codes, lens[1], prompt, lens[2], torch.ones(16, 12, dtype=torch.bool))

    for _ in range(400):
        batch = draw()
        optimiser.zero_grad()
        loss, metrics = model.loss(model(batch, 2), batch, 2)
        loss.backward()
        optimiser.step()
    assert metrics["top1"] > 0.8


def test_guidance_is_the_prompt_taken_further():
    model, batch = make(LOOK_UP), make_batch()
    args = (*batch[:2], *batch[4:6], batch.codes[:, 0], batch.code_lens)
    guided, plain = model.generate(*args, guidance=3.0), model.generate(*args)
    assert not torch.equal(guided[1:], plain[1:])
    assert torch.equal(guided[0], plain[0])  # it has no prompt
    alone = batch._replace(prompt_lens=torch.zeros(3, dtype=torch.int64), codes=guided)
    for stage in range(2, 9):
        told, untold = (logits_of(model, b, stage) for b in (batch._replace(codes=guided), alone))
        said = (untold + 3 * (told - untold)).argmax(-1)
        assert torch.equal(said[batch.in_loss], guided[:, stage - 1][batch.in_loss])
    with pytest.raises(ValleError, match="prompt_dropout"):
        make(LOCAL).generate(*args, guidance=2.0)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_heads": 3},
        {"prompt_heads": 2, "local_layers": 0},
        {"prompt_heads": 2, "one_pass": False},
        {"prompt_heads": 2, "codebook_dim": 12, "complete_by": "prompt"},
        {"prompt_dropout": 1.0},
    ],
)
def test_a_look_up_that_cannot_be_is_refused(options):
    with pytest.raises(ValleError, match=next(iter(options))):
        dataclasses.replace(LOCAL, **options)


def test_prompts_are_kept_from_rows_in_training_only():
    still = dataclasses.replace(TINY, dropout=0.0)
    config = dataclasses.replace(LOOK_UP, transformer=still, prompt_dropout=0.99)
    model, batch = make(config), make_batch()
    alone = batch._replace(prompt_lens=torch.zeros(3, dtype=torch.int64))
    told, untold = (logits_of(model, b, 3)[batch.in_loss] for b in (batch, alone))
    assert not torch.allclose(told, untold)
    torch.manual_seed(0)
    torch.testing.assert_close(logits_of(model.train(), batch, 3)[batch.in_loss], untold, atol=1e-5, rtol=0)


def test_what_is_thought_of_a_prompt_can_be_told(monkeypatch):
    """Computed once or on the way, with the same phonemes it completes the same; and it does matter."""
    config = dataclasses.replace(ONE_PASS, codebook_dim=12, complete_by="prompt")
    model, batch = make(config), make_batch()
    torch.manual_seed(1)
    model.set_codebooks(torch.randn(8, SIZE, 12))
    args = (
        batch.phonemes,
        batch.phoneme_lens,
        batch.prompt_codes,
        batch.prompt_lens,
        batch.codes[:, 0],
        batch.code_lens,
    )
    assert model.completes_by_prompt
    assert not make(ONE_PASS).completes_by_prompt
    plain = model.generate(*args)
    foretold = model.foretell_prompt(*args[:4])
    assert foretold.shape == (3, 5, 12)
    monkeypatch.setattr(model, "_foretell_prompt", None)
    assert torch.equal(model.generate(*args, prompt_foretold=foretold), plain)
    other = model.generate(*args, prompt_foretold=foretold + torch.randn_like(foretold))
    assert not torch.equal(other[1:], plain[1:])
    assert torch.equal(other[0], plain[0]), "it has no prompt"
