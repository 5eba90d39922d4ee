"""The AR model: what it reads, what it learns from, and that speaking is the same cached or not, batched or not."""

import dataclasses
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from valle.errors import ValleError
from valle.model.ar import AR, ARBatch, ARConfig
from valle.model.narrow import narrow
from valle.model.sampling import SamplingConfig
from valle.model.transformer import TransformerConfig, sinusoids

DIM = 32
TINY = TransformerConfig(dim=DIM, n_layers=2, n_heads=4, ff_dim=64)
VARIANTS = [
    ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY),
    ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY, tie_weights=False, phoneme_attention="full"),
    ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY, local_layers=2),
    ARConfig(n_phonemes=11, codebook_size=24, transformer=replace(TINY, n_kv_heads=2)),
]
GREEDY = SamplingConfig(temperature=0)
OPTIONS = [GREEDY, SamplingConfig(), SamplingConfig(temperature=0.9, top_p=0.8, repetition_aware=True, ras_window=4)]


def make(config=VARIANTS[0]):
    """An AR model with random weights, its attention made sharp: else it would say one code over and over."""
    torch.manual_seed(0)
    model = AR(config).eval()
    with torch.no_grad():
        for block in model.transformer.blocks:
            block.attention.qkv.weight.mul_(3)
            block.attention.out.weight.mul_(4)
    return model


def make_batch(padding=0):
    """Three utterances of different lengths, the first with the most phonemes, the last with the most codes."""
    random = torch.Generator().manual_seed(1)
    phonemes = torch.randint(0, 11, (3, 6), generator=random)
    codes = torch.randint(0, 24, (3, 9), generator=random)
    phoneme_lens, code_lens = torch.tensor([6, 2, 4]), torch.tensor([5, 0, 9])
    phonemes[torch.arange(6) >= phoneme_lens.unsqueeze(1)] = padding
    codes[torch.arange(9) >= code_lens.unsqueeze(1)] = padding
    return ARBatch(phonemes, phoneme_lens, codes, code_lens)


def row(batch, i):
    """Utterance i alone, without padding."""
    n_phonemes, n_codes = batch.phoneme_lens[i], batch.code_lens[i]
    return ARBatch(
        batch.phonemes[i : i + 1, :n_phonemes],
        batch.phoneme_lens[i : i + 1],
        batch.codes[i : i + 1, :n_codes],
        batch.code_lens[i : i + 1],
    )


@jaxtyped(typechecker=beartype)
def logits_of(
    model,
    phonemes: Int[Tensor, "B S"],
    phoneme_lens: Int[Tensor, " B"],
    codes: Int[Tensor, "B T"],
    code_lens: Int[Tensor, " B"],
) -> Float[Tensor, "B T+1 25"]:
    with torch.no_grad():
        return model(ARBatch(phonemes, phoneme_lens, codes, code_lens))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def captured(model, batch):
    """What the transformer is given and what it returns for a batch, [B, L, D] each."""
    seen = {}
    handle = model.transformer.register_forward_hook(lambda _, args, out: seen.update(x=args[0], h=out))
    logits_of(model, *batch[:4])
    handle.remove()
    return seen["x"], seen["h"]


# Reading


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("padding", [0, 10, -100, 10**6])
def test_padding_does_not_change_logits(config, padding):
    model, batch = make(config), make_batch(padding)
    before = [x.clone() for x in batch[:4]]
    logits = logits_of(model, *batch[:4])
    for i in range(3):
        alone = logits_of(model, *row(batch, i)[:4])
        torch.testing.assert_close(logits[i : i + 1, : alone.shape[1]], alone, atol=1e-5, rtol=0)
    assert all(torch.equal(x, y) for x, y in zip(before, batch[:4], strict=True))  # inputs are left as they were


@pytest.mark.parametrize("config", VARIANTS)
def test_a_code_changes_only_what_follows(config):
    model, batch = make(config), make_batch()
    codes = batch.codes.clone()
    codes[2, 5] = (codes[2, 5] + 1) % 24
    before, after = logits_of(model, *batch[:4])[2], logits_of(model, *batch._replace(codes=codes)[:4])[2]
    torch.testing.assert_close(before[:6], after[:6], atol=1e-6, rtol=0)
    assert ((before[6:] - after[6:]).abs().amax(-1) > 1e-3).all()


def test_phonemes_see_the_phonemes_after_them_only_if_asked():
    for config, does_see in zip(VARIANTS[:2], (False, True), strict=True):
        model, batch = make(config), make_batch()
        changed = batch.phonemes.clone()
        changed[0, 3] = (changed[0, 3] + 1) % 11
        before, after = captured(model, batch)[1][0], captured(model, batch._replace(phonemes=changed))[1][0]
        assert bool((before[:3] - after[:3]).abs().max() > 1e-4) is does_see
        # Phonemes never see codes.
        changed = (batch.codes + 1) % 24
        after = captured(model, batch._replace(codes=changed))[1][0]
        torch.testing.assert_close(before[:7], after[:7])


def test_the_sequence_is_phonemes_eos_codes_with_positions_from_0_each():
    model, batch = make(), make_batch()
    x, _ = captured(model, batch)
    table = sinusoids(20, DIM)
    for i in range(3):
        n, t = int(batch.phoneme_lens[i]), int(batch.code_lens[i])
        text = torch.cat([batch.phonemes[i, :n], torch.tensor([model.phoneme_eos_id])])
        torch.testing.assert_close(x[i, : n + 1], model.phoneme_emb(text) + table[: n + 1])
        torch.testing.assert_close(x[i, n + 1 : n + 1 + t], model.code_emb(batch.codes[i, :t]) + table[:t])


def test_tied_weights():
    model, batch = make(), make_batch()
    _, h = captured(model, batch)
    logits = logits_of(model, *batch[:4])
    torch.testing.assert_close(logits[2], h[2, 4:14] @ model.code_emb.weight.T)  # from the phonemes' <eos> on
    assert not [name for name in model.state_dict() if "output" in name]
    untied = make(VARIANTS[1])
    assert untied.n_parameters - model.n_parameters == 25 * DIM
    untied.code_emb.weight.data[model.eos_id] += 1  # never read, and no output here
    torch.testing.assert_close(logits_of(untied, *batch[:4]), logits_of(make(VARIANTS[1]), *batch[:4]))


def test_the_same_weights_give_the_same_loss_for_ever():
    """A checkpoint of today means the same tomorrow: names, layout and arithmetic are pinned."""
    model, batch = AR(VARIANTS[0]).eval(), make_batch()
    with torch.no_grad():
        for i, (_, p) in enumerate(sorted(model.named_parameters())):
            p.copy_((torch.arange(p.numel()) * 0.37 + i).sin().view_as(p) * 0.5)
    assert model.loss(model(batch), batch)[0].item() == pytest.approx(6.91042, abs=1e-4)


def test_the_loss_starts_near_that_of_a_guess():
    torch.manual_seed(0)
    model = AR(ARConfig(n_phonemes=50, transformer=TransformerConfig(dim=128, n_layers=4, n_heads=4, ff_dim=512)))
    codes = torch.randint(0, 1024, (2, 100))
    batch = ARBatch(torch.randint(0, 50, (2, 30)), torch.tensor([30, 30]), codes, torch.tensor([100, 100]))
    loss, _ = model.loss(model(batch), batch)
    assert 6.9 < loss.item() < 7.6  # log(1025) = 6.93


# Learning


def test_loss_is_on_codes_and_one_eos_a_row():
    model = make()
    losses = {}
    for padding in (0, model.eos_id, -100):
        batch = make_batch(padding)
        loss, metrics = model.loss(model(batch), batch)
        losses[padding] = loss.item()
        assert metrics["n_tokens"].item() == 14 + 3
    assert losses[0] == pytest.approx(losses[model.eos_id], abs=1e-6)
    assert losses[0] == pytest.approx(losses[-100], abs=1e-6)
    total = 0.0
    for i in range(3):
        alone = row(make_batch(), i)
        targets = torch.cat([alone.codes[0], torch.tensor([model.eos_id])])
        total += F.cross_entropy(logits_of(model, *alone[:4])[0], targets, reduction="sum").item()
    assert losses[0] == pytest.approx(total / 17, abs=1e-5)


@pytest.mark.parametrize("config", VARIANTS)
def test_every_parameter_learns_at_every_step(config):
    model, batch = make(config), make_batch()
    model.loss(model(batch), batch)[0].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("config", VARIANTS)
def test_compiles_as_one_graph(config):
    model, batch = make(config), make_batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), model(batch))


def test_autocast_trains_and_speaks():
    model, batch = make(), make_batch()
    exact, _ = model.loss(model(batch), batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(model(batch), batch)
        said = model.generate(*batch[:4], sampling=GREEDY, max_frames=3, min_frames=3)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=0.05)
    assert [len(codes) for codes in said.codes] == [3, 3, 3]


def test_overfits_two_utterances_and_speaks_them():
    torch.manual_seed(0)
    size = TransformerConfig(dim=64, n_layers=2, n_heads=4, ff_dim=128, dropout=0.0)
    model = AR(ARConfig(n_phonemes=11, codebook_size=24, transformer=size))
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 24, (2, 40), generator=random)
    batch = ARBatch(torch.randint(0, 11, (2, 8), generator=random), torch.tensor([8, 6]), codes, torch.tensor([40, 31]))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss, metrics = model.loss(model(batch), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    assert metrics["top1"].item() == 1
    model.eval()
    # From nothing, and as VALL-E-continual: from the first frames and all phonemes.
    for n_prompt in (0, 12):
        result = model.generate(
            batch.phonemes,
            batch.phoneme_lens,
            codes[:, :n_prompt],
            torch.tensor([n_prompt, n_prompt]),
            sampling=GREEDY,
            max_frames=60,
        )
        assert result.stop_reasons == ["eos", "eos"]
        assert result.codes[0].tolist() == codes[0, n_prompt:].tolist()
        assert result.codes[1].tolist() == codes[1, n_prompt:31].tolist()
        assert (result.log_probs > -0.1).all()


# Speaking


@pytest.mark.parametrize("config", VARIANTS)
def test_cached_equals_uncached(config):
    """Continuing a prompt of any length gives the logits of reading everything at once; batched, and with gaps."""
    model, batch = make(config), make_batch(padding=-1)
    more = torch.randint(0, 24, (3, 6))
    with torch.no_grad():
        logits, state = model.prefill(*batch[:4], max_frames=6)
        steps = [logits]
        steps += [model.decode(more[:, t], state) for t in range(6)]
    for i in range(3):
        alone = row(batch, i)
        codes = torch.cat([alone.codes, more[i : i + 1]], dim=1)
        whole = logits_of(model, *alone._replace(codes=codes, code_lens=alone.code_lens + 6)[:4])
        torch.testing.assert_close(torch.stack([s[i] for s in steps]), whole[0, -7:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", VARIANTS)
def test_greedy_generation_equals_reading_again_at_every_step(config):
    model, batch = make(config), make_batch()
    result = model.generate(*batch[:4], sampling=GREEDY, max_frames=12)
    assert max(len(set(codes.tolist())) for codes in result.codes) > 5, "a loop proves little"
    for i in range(3):
        alone = row(batch, i)
        codes, log_probs = alone.codes, []
        while len(log_probs) < 12:
            logits = logits_of(model, *alone._replace(codes=codes, code_lens=torch.tensor([codes.shape[1]]))[:4])[0, -1]
            code = int(logits.argmax())
            log_probs.append(logits.log_softmax(-1)[code])
            if code == model.eos_id:
                break
            codes = torch.cat([codes, torch.tensor([[code]])], dim=1)
        assert result.codes[i].tolist() == codes[0, alone.codes.shape[1] :].tolist()
        assert result.log_probs[i].item() == pytest.approx(torch.stack(log_probs).mean().item(), abs=1e-5)


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("sampling", OPTIONS)
def test_a_batch_equals_one_by_one(config, sampling):
    model, batch = make(config), make_batch(padding=-1)
    most, least = torch.tensor([30, 12, 20]), torch.tensor([0, 12, 3])
    together = model.generate(
        *batch[:4], sampling=sampling, min_frames=least, max_frames=most, generators=generators(7, 8, 9)
    )
    assert len({len(codes) for codes in together.codes}) > 1, "rows of one length prove little"
    for i in range(3):
        alone = model.generate(
            *row(batch, i)[:4],
            sampling=sampling,
            min_frames=int(least[i]),
            max_frames=int(most[i]),
            generators=generators(7 + i),
        )
        assert torch.equal(alone.codes[0], together.codes[i])
        assert alone.stop_reasons[0] == together.stop_reasons[i]
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[i], atol=1e-5, rtol=0)


ALIGNED = ARConfig(
    n_phonemes=11, codebook_size=24, transformer=TINY, text_dropout=0.2, local_layers=2, alignment=True,
    phoneme_kinds=(0,) * 11,
)  # fmt: skip
POST = dataclasses.replace(TINY, norm="post", activation="relu")


@pytest.mark.parametrize(
    "config", [*VARIANTS, ARConfig(n_phonemes=11, codebook_size=24, transformer=POST, text_dropout=0.2), ALIGNED]
)
def test_candidates_are_rows_that_begin_alike(config):
    """Candidates together, which keep their beginning once, say what each says as a row of its own; halved too."""
    model, batch = make(config), make_batch(padding=-1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half())
    durations = torch.tensor([[1, 2, 2, 0, 0, 0], [0] * 6, [3, 3, 3, 0, 0, 0]])
    guided = config.text_dropout > 0
    options = {"sampling": SamplingConfig(guidance=2.0 if guided else 1.0, repetition_aware=True), "with_gains": guided}
    limits = torch.tensor([30, 12, 20])
    for _ in range(2):
        together = model.generate(
            *batch[:4], durations, **options, max_frames=limits, candidates=2, generators=generators(*range(6))
        )
        for n in range(6):
            i = n // 2
            lens = int(batch.phoneme_lens[i])
            alone = model.generate(
                *row(batch, i)[:4],
                durations[i : i + 1, :lens],
                **options,
                max_frames=int(limits[i]),
                generators=generators(n),
            )
            assert torch.equal(alone.codes[0], together.codes[n])
            assert alone.stop_reasons[0] == together.stop_reasons[n]
            torch.testing.assert_close(alone.log_probs[0], together.log_probs[n], atol=1e-5, rtol=0)
        assert not torch.equal(together.codes[0], together.codes[1])
        pair = model.generate(
            *row(batch, 0)[:4], durations[:1], **options, max_frames=30, candidates=2, generators=generators(0, 1)
        )
        assert all(torch.equal(pair.codes[c], together.codes[c]) for c in range(2))
        narrow(model)


def test_one_seed_one_utterance():
    model, alone = make(), row(make_batch(), 0)
    said = []
    for seed in (1, 1, 2):
        one = model.generate(*alone[:4], sampling=SamplingConfig(), max_frames=20, generators=generators(seed))
        said.append(one.codes[0].tolist())
    assert said[0] == said[1] != said[2]
    torch.manual_seed(5)
    first = model.generate(*alone[:4], sampling=SamplingConfig(), max_frames=20)
    torch.manual_seed(5)
    assert torch.equal(first.codes[0], model.generate(*alone[:4], sampling=SamplingConfig(), max_frames=20).codes[0])


class Fixed(AR):
    """An AR model with one distribution for ever: <eos>, code 3, and what is left for the others."""

    def __init__(self, p_eos, p_3=None):
        super().__init__(VARIANTS[0])
        p_3 = 1 - p_eos if p_3 is None else p_3
        probs = torch.full((25,), (1 - p_eos - p_3) / 23)
        probs[self.eos_id] = p_eos
        probs[3] = p_3
        self.fixed = probs.clamp(min=1e-9).log()
        self.eval()

    def _logits(self, h):
        return self.fixed.expand(*h.shape[:-1], -1).clone()

    def say(self, n=1, prompt=(), **kwargs):
        lens = torch.full((n,), 2), torch.full((n,), len(prompt))
        prompt = torch.tensor(prompt, dtype=torch.long).expand(n, -1)
        kwargs = {"sampling": SamplingConfig(), "max_frames": 50, "generators": generators(*range(n))} | kwargs
        return self.generate(torch.zeros(n, 2, dtype=torch.long), lens[0], prompt, lens[1], **kwargs)


def test_only_a_sampled_eos_stops():
    # <eos> is the arg-max of every step, yet an utterance goes on until it is drawn: 0.4 / 0.6 frames on average.
    result = Fixed(0.6).say(n=300)
    lengths = torch.tensor([len(codes) for codes in result.codes]).float()
    assert lengths.mean().item() == pytest.approx(2 / 3, abs=0.2)
    assert lengths.max() >= 3
    # It is never the arg-max, yet it ends what it is drawn in.
    result = Fixed(0.2).say(n=100)
    assert set(result.stop_reasons) == {"eos"}
    assert len({len(codes) for codes in result.codes}) > 5


def test_least_and_most_frames():
    result = Fixed(0.999).say(n=3, min_frames=torch.tensor([0, 4, 9]))
    assert [len(codes) for codes in result.codes] == [0, 4, 9]
    assert result.stop_reasons == ["eos"] * 3
    assert result.log_probs[0].item() == pytest.approx(0, abs=0.1)
    assert result.log_probs[1].item() < -4  # what was forced was unlikely
    result = Fixed(1e-9).say(n=3, max_frames=torch.tensor([1, 7, 3]))
    assert [len(codes) for codes in result.codes] == [1, 7, 3]
    assert result.stop_reasons == ["max_frames"] * 3


@pytest.mark.parametrize(("least", "most"), [(5, 4), (0, 0), (0, -1)])
def test_impossible_lengths_are_named(least, most):
    with pytest.raises(ValleError, match=f"max_frames is {most}"):
        Fixed(0.5).say(min_frames=least, max_frames=most)


def test_repetition_aware_sampling_ends_a_loop():
    model = Fixed(0, p_3=0.6)  # the nucleus of 0.5 is code 3 alone
    assert set(model.say(sampling=SamplingConfig(top_p=0.5)).codes[0].tolist()) == {3}
    aware = SamplingConfig(top_p=0.5, repetition_aware=True)
    codes = torch.stack(model.say(n=100, sampling=aware, max_frames=10).codes)  # [100, 10]
    assert (codes[:, :2] == 3).all()  # once in the last ten is allowed
    assert (codes[:, 2:] == 3).float().mean().item() == pytest.approx(0.6, abs=0.1)
    # A loop that began in the prompt goes no further either.
    codes = torch.stack(model.say(n=100, sampling=aware, max_frames=2, prompt=[5, 3, 3]).codes)
    assert (codes == 3).float().mean().item() == pytest.approx(0.6, abs=0.15)


def test_steps_are_the_utterance_frame_by_frame():
    model, batch = make(), make_batch()
    options = {"sampling": SamplingConfig(), "max_frames": torch.tensor([4, 30, 9])}
    counted = []
    result = model.generate(*batch[:4], **options, generators=generators(1, 2, 3), on_frame=counted.append)
    steps = list(model.steps(*batch[:4], **options, generators=generators(1, 2, 3)))
    for i in range(3):
        assert [s.codes[i] for s in steps if s.codes[i] is not None] == result.codes[i].tolist()
        ended = [s.stop_reasons[i] for s in steps].index(result.stop_reasons[i])
        assert all(s.codes[i] is None for s in steps[ended + 1 :])
    assert counted == list(range(1, len(steps) + 1))
    assert None not in steps[-1].stop_reasons
    assert None in steps[-2].stop_reasons


def test_ablations_without_prompt_or_phonemes():
    model, none, zero = make(), torch.zeros(1, 0, dtype=torch.long), torch.tensor([0])
    result = model.generate(none, zero, none, zero, sampling=GREEDY, max_frames=3, min_frames=3)
    assert len(result.codes[0]) == 3


def test_speaking_with_dropout_is_refused():
    model = make().train()
    with pytest.raises(AssertionError, match="eval"):
        model.generate(*row(make_batch(), 0)[:4], sampling=GREEDY, max_frames=3)


# Configuration


def test_configuration_round_trip():
    for config in VARIANTS:
        model = make(config)
        again = AR.from_config(json.loads(json.dumps(model.config_dict())))
        assert again.config == config
        again.load_state_dict(model.state_dict())
    with pytest.raises(ValleError, match="group_size"):
        AR.from_config({"n_phonemes": 5, "group_size": 2})
    with pytest.raises(ValleError, match="n_phonemes"):
        ARConfig(n_phonemes=0)


def test_defaults_are_the_papers():
    with torch.device("meta"):
        model = AR(ARConfig(n_phonemes=100))
    assert model.config.transformer == TransformerConfig(1024, 12, 16, 4096, 0.1)
    assert model.config.tie_weights
    assert model.config.phoneme_attention == "causal"
    assert 150e6 < model.n_parameters < 155e6


def test_wrong_codes_are_read_in_training_only_and_never_asked_for():
    config = ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY, code_noise=0.5)
    model, batch = make(config), make_batch()
    model.transformer.dropout.p = 0.0
    exact = make(ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY))(batch)
    assert torch.equal(model(batch), exact)
    model.train()
    noisy = model(batch)
    assert not torch.equal(noisy[:, 1:], exact[:, 1:])
    assert batch.codes.equal(make_batch().codes)
    with pytest.raises(ValleError, match="code_noise"):
        ARConfig(n_phonemes=11, code_noise=1.0)


def test_guidance_is_the_text_taken_further():
    """Logits with guidance g are those without a text, plus g times what the text changes; rows do not mix."""
    config = ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY, text_dropout=0.2)
    model, batch = make(config), make_batch()
    silent = batch._replace(phonemes=torch.full_like(batch.phonemes, model.phoneme_eos_id))
    guided = SamplingConfig(temperature=0, guidance=2.5)
    said = model.generate(*batch[:4], sampling=guided, max_frames=8)
    plain = model.generate(*batch[:4], sampling=GREEDY, max_frames=8)
    assert any(not torch.equal(a, b) for a, b in zip(said.codes, plain.codes, strict=True))
    for i in range(3):
        codes = row(batch, i).codes
        for code in said.codes[i]:
            told, untold = (
                logits_of(model, *row(b, i)._replace(codes=codes, code_lens=torch.tensor([codes.shape[1]]))[:4])[0, -1]
                for b in (batch, silent)
            )
            assert int((untold + 2.5 * (told - untold)).argmax()) == int(code)
            codes = torch.cat([codes, code.view(1, 1)], dim=1)
        alone = model.generate(*row(batch, i)[:4], sampling=guided, max_frames=8)
        assert torch.equal(alone.codes[0], said.codes[i])
        torch.testing.assert_close(alone.log_probs[0], said.log_probs[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_guidance_by_the_voice_is_the_prompt_taken_further(guidance):
    """To the logits is added what reading the prompt changes; without it there are the text and the new codes alone."""
    config = ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY, text_dropout=0.2)
    model, batch = make(config), make_batch()
    starts = torch.tensor([1, 0, 2])
    sampling = SamplingConfig(temperature=0, guidance=guidance, voice_guidance=3.0)
    said = model.generate(*batch[:4], sampling=sampling, max_frames=8, text_starts=starts)
    plain = model.generate(*batch[:4], sampling=dataclasses.replace(sampling, voice_guidance=1.0), max_frames=8)
    assert any(not torch.equal(a, b) for a, b in zip(said.codes, plain.codes, strict=True))
    silent = batch._replace(phonemes=torch.full_like(batch.phonemes, model.phoneme_eos_id))
    for i in range(3):
        codes = torch.zeros(1, 0, dtype=torch.int64)
        for code in said.codes[i]:
            told, untold = (
                logits_of(
                    model,
                    row(b, i).phonemes,
                    row(b, i).phoneme_lens,
                    (both := torch.cat([row(b, i).codes, codes], dim=1)),
                    torch.tensor([both.shape[1]]),
                )[0, -1]
                for b in (batch, silent)
            )
            text = row(batch, i).phonemes[:, int(starts[i]) :]
            lens = [torch.tensor([x.shape[1]]) for x in (text, codes)]
            alone = logits_of(model, text, lens[0], codes, lens[1])[0, -1]
            assert int((untold + guidance * (told - untold) + 2.0 * (told - alone)).argmax()) == int(code)
            codes = torch.cat([codes, code.view(1, 1)], dim=1)


@torch.no_grad()
def test_guidance_by_the_voice_with_alignment():
    """The reading without the prompt is at the same phoneme of the text."""
    config = ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY, alignment=True, phoneme_kinds=(0,) * 11)
    model = make(config)
    phonemes = torch.tensor([[3, 5, 2, 7, 1, 9, 4]])
    prompt, durations = torch.tensor([[4, 8, 15, 16]]), torch.tensor([[2, 2, 0, 0, 0, 0, 0]])
    lens, prompt_lens, start = torch.tensor([7]), torch.tensor([4]), 2
    sampling = SamplingConfig(temperature=0, voice_guidance=4.0)
    said = model.generate(
        phonemes, lens, prompt, prompt_lens, durations, sampling=sampling, max_frames=30,
        text_starts=torch.tensor([start]),
    )  # fmt: skip
    assert said.index is not None
    assert int(said.index[0].max()) > start
    told, state = model.prefill(phonemes, lens, prompt, prompt_lens, durations, max_frames=30)
    text, nothing = phonemes[:, start:], torch.zeros(1, 0, dtype=torch.int64)
    alone, state_alone = model.prefill(
        text, lens - start, nothing, torch.tensor([0]), torch.zeros_like(text), max_frames=30
    )
    ages = [0]
    for before, now in zip(said.index[0].tolist(), said.index[0].tolist()[1:], strict=False):
        ages.append(ages[-1] + 1 if now == before else 0)
    for n, code in enumerate(said.codes[0]):
        guided = (told + 3.0 * (told - alone))[0, : model.eos_id]
        assert int(guided.argmax()) == int(code)
        if n + 1 < len(said.codes[0]):
            at, age = said.index[0][n + 1 : n + 2], torch.tensor([ages[n + 1]])
            told = model.decode(code.view(1), state, at, age)
            alone = model.decode(code.view(1), state_alone, at - start, age)


def test_gains_are_what_the_text_added():
    config = ARConfig(n_phonemes=11, codebook_size=24, transformer=TINY, text_dropout=0.2)
    model, batch = make(config), make_batch()
    said = model.generate(*batch[:4], sampling=GREEDY, max_frames=8, with_gains=True)
    plain = model.generate(*batch[:4], sampling=GREEDY, max_frames=8)
    assert plain.gains is None
    silent = batch._replace(phonemes=torch.full_like(batch.phonemes, model.phoneme_eos_id))
    for i in range(3):
        assert torch.equal(said.codes[i], plain.codes[i])
        gains = []
        n_prompt, n = int(batch.code_lens[i]), len(said.codes[i])
        codes = torch.cat([row(batch, i).codes, said.codes[i].unsqueeze(0)], dim=1)
        for b in (batch, silent):
            one = row(b, i)._replace(codes=codes, code_lens=torch.tensor([codes.shape[1]]))
            log_probs = logits_of(model, *one[:4])[0, n_prompt:].log_softmax(-1)  # [n + 1, 25]
            gains.append(log_probs[:n].gather(1, said.codes[i].unsqueeze(1)).sum())
            if said.stop_reasons[i] == "eos":
                gains[-1] += log_probs[n, model.eos_id]
        n_drawn = n + (said.stop_reasons[i] == "eos")
        assert float(said.gains[i]) == pytest.approx(float(gains[0] - gains[1]) / n_drawn, abs=1e-4)


def test_the_best_candidate_goes_on_alone_as_if_the_others_had_never_been():
    grouped = replace(TINY, n_kv_heads=2)
    config = ARConfig(n_phonemes=11, codebook_size=24, transformer=grouped, text_dropout=0.2, local_layers=1)
    model, batch = make(config), make_batch()
    sampling = SamplingConfig(guidance=2.0, repetition_aware=True)

    def steps(**options):
        generators = [torch.Generator().manual_seed(i) for i in range(9)]
        return list(
            model.steps(
                *batch[:4], sampling=sampling, max_frames=14, min_frames=14, with_gains=True, candidates=3,
                generators=generators, **options,
            )
        )  # fmt: skip

    every, chosen = steps(), steps(choose_after=6)
    gains = torch.tensor([step.gains for step in every[:6]]).sum(0).view(3, 3)  # [B, candidates]
    kept = (gains.argmax(1) + 3 * torch.arange(3)).tolist()
    assert [step.kept for step in chosen if step.kept] == [kept]
    for n, (one, other) in enumerate(zip(every, chosen, strict=True)):
        rows = range(9) if n < 6 else kept
        assert [one.codes[i] for i in rows] == other.codes
        assert [one.gains[i] for i in rows] == pytest.approx(other.gains, abs=1e-4)
        assert [one.stop_reasons[i] for i in rows] == other.stop_reasons


@pytest.mark.parametrize("seed", range(4))
def test_of_candidates_that_have_not_ended_one_goes_on(seed):
    """Row by row: those that ended before stay as they are, of the others the likeliest goes on, whatever the batch."""
    model, batch = make(), make_batch()
    with torch.no_grad():  # ends come early enough for some, and too late for others
        model.code_emb.weight[model.eos_id] *= 1.5

    def speak(rows, **options):
        seeds = [100 * seed + i for row in rows for i in range(3 * row, 3 * row + 3)]
        return model.generate(
            *(x[rows] for x in batch[:4]), sampling=SamplingConfig(), max_frames=40, candidates=3,
            generators=[torch.Generator().manual_seed(i) for i in seeds], **options,
        )  # fmt: skip

    every, chosen = speak([0, 1, 2]), speak([0, 1, 2], choose_after=3)
    for row in range(3):
        own = range(3 * row, 3 * row + 3)
        went_on = [i for i in own if len(chosen.codes[i]) > 3]
        assert len(went_on) <= 1
        for i in own:
            if chosen.stop_reasons[i] == "dropped":
                assert torch.equal(chosen.codes[i], every.codes[i][:3])
            else:
                assert torch.equal(chosen.codes[i], every.codes[i])
                assert chosen.stop_reasons[i] == every.stop_reasons[i]
        alone = speak([row], choose_after=3)
        assert alone.stop_reasons == [chosen.stop_reasons[i] for i in own]
        assert all(torch.equal(a, chosen.codes[i]) for a, i in zip(alone.codes, own, strict=True))
    assert "dropped" in chosen.stop_reasons


def test_guidance_with_alignment_hides_the_phoneme_of_every_frame_too():
    config = ARConfig(
        n_phonemes=11, codebook_size=24, transformer=TINY, text_dropout=0.2, alignment=True, phoneme_kinds=(0,) * 11
    )
    model, batch = make(config), make_batch()
    durations = torch.tensor([[1, 2, 2, 0, 0, 0], [0] * 6, [3, 3, 3, 0, 0, 0]])
    blind = torch.tensor([True, False, True])
    other = batch._replace(phonemes=(batch.phonemes + 3) % 11)
    with torch.no_grad():
        runs = []
        for b in (batch, other):
            logits, state = model.prefill(*b[:4], durations, max_frames=2, blind=blind)
            index = torch.tensor([3, 0, 3])
            runs.append((logits, model.decode(torch.tensor([1, 2, 3]), state, index, torch.zeros_like(index))))
    for ours, theirs in zip(*runs, strict=True):
        same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True)]
        assert same == [True, False, True]


def test_guidance_needs_a_model_that_knows_speech_without_text():
    with pytest.raises(ValleError, match="text_dropout"):
        make().generate(*make_batch()[:4], sampling=SamplingConfig(guidance=2), max_frames=3)
    with pytest.raises(ValleError, match="text_dropout"):
        ARConfig(n_phonemes=11, text_dropout=1.0)


def test_phonemes_are_kept_from_rows_in_training_only():
    still = dataclasses.replace(TINY, dropout=0.0)
    config = ARConfig(n_phonemes=11, codebook_size=24, transformer=still, text_dropout=0.99)
    model, batch = make(config), make_batch()
    exact = make(VARIANTS[0])(batch)
    assert torch.equal(model(batch), exact)
    torch.manual_seed(0)
    untold = model.train()(batch)
    silent = batch._replace(phonemes=torch.full_like(batch.phonemes, model.phoneme_eos_id))
    torch.testing.assert_close(untold, make(VARIANTS[0])(silent), atol=1e-5, rtol=0)
