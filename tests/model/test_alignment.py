"""Alignment: which phoneme a frame belongs to, in training and when a pointer moves over the phonemes."""

import json

import pytest
import torch
import torch.nn.functional as F

from valle.errors import ValleError
from valle.model.alignment import (
    MARK,
    MAX_AGE,
    PAUSE,
    PHONE,
    PhonemeContext,
    Pointer,
    first_symbol,
    frame_age,
    frame_index,
    move_targets,
    next_symbols,
)
from valle.model.ar import AR, ARBatch, ARConfig
from valle.model.nar import NAR, NARBatch, NARConfig, draw_prompt, draw_stage
from valle.model.sampling import SamplingConfig
from valle.model.transformer import AdaptiveNorm, TransformerConfig, padding_mask
from valle.text import inventory

KINDS = (PAUSE, PAUSE, MARK, *[PHONE] * 8)  # " ", ".", "ˈ", then eight phones
SPACE, DOT, STRESS, A, B, C = range(6)
DIM, SIZE = 32, 24
TINY = TransformerConfig(dim=DIM, n_layers=2, n_heads=4, ff_dim=64)
AR_CONFIG = ARConfig(n_phonemes=11, codebook_size=SIZE, transformer=TINY, alignment=True, phoneme_kinds=KINDS)
AR_VARIANTS = [
    AR_CONFIG,
    ARConfig(11, SIZE, TINY, tie_weights=False, phoneme_attention="full", alignment=True, phoneme_kinds=KINDS),
    ARConfig(11, SIZE, TINY, alignment=True, phoneme_kinds=KINDS, local_layers=2),
]
NAR_CONFIG = NARConfig(11, SIZE, transformer=TINY, alignment=True, prompt_summary=True)
NAR_VARIANTS = [NAR_CONFIG, NARConfig(11, SIZE, transformer=TINY, alignment=True)]
GREEDY = SamplingConfig(temperature=0)
OPTIONS = [GREEDY, SamplingConfig(), SamplingConfig(temperature=0.9, top_p=0.8, repetition_aware=True, ras_window=4)]

PHONEMES = [
    [STRESS, A, B, SPACE, C, 6, DOT, SPACE, STRESS, 7, 8, DOT],
    [A, SPACE, B],
    [STRESS, A, B, DOT, SPACE, C, C],
]
DURATIONS = [
    [0, 3, 2, 0, 1, 4, 2, 0, 0, 2, 1, 1],
    [2, 1, 3],
    [0, 1, 1, 0, 0, 2, 5],
]
N_PROMPT = [6, 0, 2]  # symbols of the rows above that are the prompt's


def padded(rows, padding=0):
    width = max(map(len, rows))
    return torch.tensor([row + [padding] * (width - len(row)) for row in rows])


def make(cls, config):
    """A model with random weights: an AR whose attention is sharp, or a NAR whose stages differ."""
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for block in model.transformer.blocks if cls is AR else ():
            block.attention.qkv.weight.mul_(3)
            block.attention.out.weight.mul_(4)
        for module in model.modules():
            if isinstance(module, AdaptiveNorm):
                torch.nn.init.normal_(module.project.weight, std=0.5)
    return model


def ar_batch(padding=0):
    """Three utterances of different lengths."""
    lens = torch.tensor([sum(d) for d in DURATIONS])
    codes = torch.randint(0, SIZE, (3, int(lens.max())), generator=torch.Generator().manual_seed(1))
    codes[~padding_mask(lens, codes.shape[1])] = padding
    phoneme_lens = torch.tensor([len(p) for p in PHONEMES])
    return ARBatch(padded(PHONEMES, padding), phoneme_lens, codes, lens, padded(DURATIONS, padding))


def ar_prompt(padding=0):
    """The same texts, of which the beginning has been said."""
    durations = [d[:n] + [0] * (len(d) - n) for d, n in zip(DURATIONS, N_PROMPT, strict=True)]
    lens = torch.tensor([sum(d) for d in durations])
    batch = ar_batch()
    codes = batch.codes[:, : int(lens.max())].masked_fill(~padding_mask(lens, int(lens.max())), padding)
    return ARBatch(padded(PHONEMES, padding), batch.phoneme_lens, codes, lens, padded(durations, padding))


def ar_row(batch, i):
    """Utterance i alone, without padding."""
    s, t = batch.phoneme_lens[i], batch.code_lens[i]
    phonemes, phoneme_lens, codes, code_lens, durations = (x[i : i + 1] for x in batch[:5])
    return ARBatch(phonemes[:, :s], phoneme_lens, codes[:, :t], code_lens, durations[:, :s])


def nar_batch(padding=0):
    batch = ar_batch()
    random = torch.Generator().manual_seed(2)
    codes = torch.randint(0, SIZE, (3, 8, batch.codes.shape[1]), generator=random)
    prompt, prompt_lens = torch.randint(0, SIZE, (3, 8, 5), generator=random), torch.tensor([3, 0, 5])
    index = frame_index(batch.durations, batch.phoneme_lens, codes.shape[2])
    prompt_index = torch.tensor([[1, 1, 4, 0, 0], [0] * 5, [1, 2, 5, 5, 6]])
    in_loss, in_prompt = padding_mask(batch.code_lens, codes.shape[2]), padding_mask(prompt_lens, 5)
    return NARBatch(
        padded(PHONEMES, padding),
        batch.phoneme_lens,
        codes.masked_fill(~in_loss.unsqueeze(1), padding),
        batch.code_lens,
        prompt.masked_fill(~in_prompt.unsqueeze(1), padding),
        prompt_lens,
        in_loss,
        index.masked_fill(~in_loss, padding),
        prompt_index.masked_fill(~in_prompt, padding),
    )


def nar_row(batch, i):
    s, t, p = batch.phoneme_lens[i], batch.code_lens[i], batch.prompt_lens[i]
    one = NARBatch(*(x[i : i + 1] for x in batch[:9]))
    return one._replace(
        phonemes=one.phonemes[:, :s],
        codes=one.codes[:, :, :t],
        prompt_codes=one.prompt_codes[:, :, :p],
        in_loss=one.in_loss[:, :t],
        index=one.index[:, :t],
        prompt_index=one.prompt_index[:, :p],
    )


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# Frames and symbols


def test_the_kinds_are_those_of_the_inventory():
    assert (PHONE, MARK, PAUSE) == (inventory.PHONE, inventory.MARK, inventory.PAUSE)


def test_frames_belong_to_symbols_and_have_an_age():
    durations, lens = torch.tensor([[0, 2, 1, 0, 3], [1, 2, 99, -5, 7]]), torch.tensor([5, 2])
    index = frame_index(durations, lens, 8)
    assert index.tolist() == [[1, 1, 2, 4, 4, 4, 5, 5], [0, 1, 1, 2, 2, 2, 2, 2]]
    assert frame_age(durations, lens, index).tolist() == [[0, 1, 0, 0, 1, 2, 0, 1], [0, 0, 1, 0, 1, 2, 3, 4]]
    assert frame_index(torch.zeros(1, 0, dtype=torch.long), torch.tensor([0]), 2).tolist() == [[0, 0]]


def test_next_and_skip():
    #          0       1  2      3    4      5  6    7
    phonemes = [STRESS, A, SPACE, DOT, SPACE, B, DOT, C]
    batch = torch.tensor([phonemes, [A, SPACE, STRESS, B, DOT, 99, 99, 99]])
    following, skip = next_symbols(batch, torch.tensor([8, 5]), torch.tensor(KINDS))
    assert following[0].tolist() == [1, 2, 5, 5, 5, 6, 7, 8, 8]
    assert skip[0].tolist() == [1, 5, 5, 5, 5, 7, 7, 8, 8]
    # A mark is passed over, and behind a last pause is the end.
    assert following[1, :6].tolist() == [1, 3, 3, 4, 5, 5]
    assert skip[1, :6].tolist() == [3, 3, 3, 5, 5, 5]


def test_speech_begins_at_the_first_phone_after_the_prompt():
    phonemes = torch.tensor([[STRESS, A, DOT, SPACE, STRESS, B, C]] * 5)
    durations = torch.tensor(
        [[0] * 7, [0, 3, 0, 0, 0, 0, 0], [0, 3, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 2, 0], [0, 1, 0, 0, 0, 1, 1]]
    )
    lens, kinds = torch.tensor([7] * 5), torch.tensor(KINDS)
    assert first_symbol(phonemes, lens, durations, kinds).tolist() == [1, 5, 5, 6, 7]
    assert first_symbol(phonemes, lens - 1, durations, kinds).tolist() == [1, 5, 5, 6, 6]


def test_moves_are_stay_next_and_skip():
    phonemes, lens = torch.tensor([[A, SPACE, B, SPACE, C]]), torch.tensor([5])
    index = frame_index(torch.tensor([[2, 1, 1, 0, 2]]), lens, 7)  # 0 0 1 2 4 4 end
    following, _ = next_symbols(phonemes, lens, torch.tensor(KINDS))
    assert move_targets(index, following).tolist() == [[0, 1, 1, 2, 0, 1]]


@pytest.mark.parametrize("padding", [-7, 0, 10**6])
def test_context_sees_neighbours_and_no_padding(padding):
    torch.manual_seed(0)
    context, lens = PhonemeContext(11, DIM), torch.tensor([len(p) for p in PHONEMES])
    together = context(padded(PHONEMES, padding), lens)
    assert together.shape == (3, 13, DIM)
    for i, phonemes in enumerate(PHONEMES):
        alone = context(torch.tensor([phonemes]), lens[i : i + 1])
        torch.testing.assert_close(together[i, : len(phonemes) + 1], alone[0], atol=1e-6, rtol=0)
    changed = padded(PHONEMES)
    changed[0, 0] = A
    assert (context(changed, lens) - context(padded(PHONEMES), lens))[0, 1].abs().max() > 1e-3
    assert 0.5 < together[0].norm(dim=-1).mean() < 2  # the size of an embedding


# The AR model


@pytest.mark.parametrize("config", AR_VARIANTS)
@pytest.mark.parametrize("padding", [0, 10, -100, 10**6])
def test_padding_does_not_change_the_ar(config, padding):
    model, batch = make(AR, config), ar_batch(padding)
    with torch.no_grad():
        codes, moves = model.outputs(batch)
        loss, _ = model.loss(codes, batch, moves)
        plain = ar_batch()
        assert loss.item() == pytest.approx(model.loss(*_with_batch(model, plain))[0].item(), abs=1e-5)
        for i in range(3):
            alone = model.outputs(ar_row(batch, i))
            n = alone.codes.shape[1]
            torch.testing.assert_close(codes[i, :n], alone.codes[0], atol=2e-5, rtol=0)
            torch.testing.assert_close(moves[i, :n], alone.moves[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", AR_VARIANTS)
def test_rows_without_gaps_are_no_longer_than_the_longest_and_say_the_same_in_the_ar(config):
    model, batch = make(AR, config), ar_batch()
    most = int((batch.phoneme_lens + batch.code_lens).max())
    seen = []
    handle = model.transformer.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    with torch.no_grad():
        loose, tight = model.outputs(batch), model.outputs(batch._replace(max_places=most))
    handle.remove()
    assert seen == [batch.phonemes.shape[1] + 1 + batch.codes.shape[1], most + 2]
    for i, n in enumerate(batch.code_lens.tolist()):
        torch.testing.assert_close(loose.codes[i, : n + 1], tight.codes[i, : n + 1], atol=2e-5, rtol=0)
        torch.testing.assert_close(loose.moves[i, : n + 1], tight.moves[i, : n + 1], atol=2e-5, rtol=0)


def _with_batch(model, batch):
    outputs = model.outputs(batch)
    return outputs.codes, batch, outputs.moves


def test_a_place_is_told_the_phoneme_of_the_frame_that_it_foretells():
    model, batch = make(AR, AR_CONFIG), ar_row(ar_batch(), 2)
    seen = {}
    handle = model.transformer.register_forward_hook(lambda _, args, out: seen.update(x=args[0]))
    model(batch)
    told = seen["x"]
    plain = AR(ARConfig(11, SIZE, TINY)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    plain.transformer.register_forward_hook(lambda _, args, out: seen.update(x=args[0]))
    plain(ARBatch(*batch[:4]))
    handle.remove()
    context = model.context(batch.phonemes, batch.phoneme_lens)[0]
    added = (told - seen["x"])[0]
    assert (added[:7] == 0).all()  # the phonemes stay as they are; their <eos> in column 7 foretells the first frame
    index, age = [1, 2, 5, 5, 6, 6, 6, 6, 6, 7], [0, 0, 0, 1, 0, 1, 2, 3, 4, 0]
    torch.testing.assert_close(added[7:], context[index] + model.age_emb(torch.tensor(age)), atol=1e-5, rtol=0)


def test_the_loss_is_on_codes_and_moves():
    model, batch = make(AR, AR_CONFIG), ar_batch(padding=-100)
    loss, metrics = model.loss(*_with_batch(model, batch))
    codes = moves = 0.0
    for i in range(3):
        row = ar_row(batch, i)
        outputs = model.outputs(row)
        targets = torch.cat([row.codes[0], torch.tensor([model.eos_id])])
        codes += F.cross_entropy(outputs.codes[0], targets, reduction="sum").item()
        index = frame_index(row.durations, row.phoneme_lens, len(targets))
        wanted = move_targets(index, next_symbols(row.phonemes, row.phoneme_lens, model.kinds)[0])[0]
        moves += F.cross_entropy(outputs.moves[0, :-1], wanted, reduction="sum").item()
    n_frames = sum(map(sum, DURATIONS))
    assert metrics["n_tokens"].item() == n_frames + 3
    assert metrics["loss"].item() == pytest.approx(codes / (n_frames + 3), abs=1e-5)
    assert metrics["move_loss"].item() == pytest.approx(moves / n_frames, abs=1e-5)
    assert loss.item() == pytest.approx((codes + moves) / (n_frames + 3), abs=1e-5)


@pytest.mark.parametrize("config", AR_VARIANTS)
def test_every_parameter_of_the_ar_learns_and_it_compiles(config):
    model, batch = make(AR, config), ar_batch()
    model.loss(*_with_batch(model, batch))[0].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), model(batch))


def test_what_is_not_aligned_is_as_before():
    torch.manual_seed(3)
    plain = AR(ARConfig(11, SIZE, TINY))
    torch.manual_seed(3)
    aligned = AR(AR_CONFIG)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, aligned.state_dict()[name])
    assert "kinds" not in aligned.state_dict()


def test_overfits_two_utterances_and_speaks_them():
    torch.manual_seed(0)
    size = TransformerConfig(dim=64, n_layers=2, n_heads=4, ff_dim=128, dropout=0.0)
    model = AR(ARConfig(11, SIZE, size, alignment=True, phoneme_kinds=KINDS))
    phonemes, lens = padded([PHONEMES[0], PHONEMES[2]]), torch.tensor([12, 7])
    durations = padded([[0, 9, 4, 0, 5, 4, 6, 0, 0, 5, 3, 4], [0, 7, 6, 4, 0, 9, 5]])
    code_lens = durations.sum(1)  # 40, 31
    codes = torch.randint(0, SIZE, (2, 40), generator=torch.Generator().manual_seed(0))
    batch = ARBatch(phonemes, lens, codes, code_lens, durations)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss, metrics = model.loss(*_with_batch(model, batch))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert metrics["loss"].item() < 0.5
    assert metrics["move_top1"].item() > 0.95
    model.eval()
    said = model.generate(
        phonemes, lens, codes[:, :0], torch.tensor([0, 0]), durations * 0, sampling=GREEDY, max_frames=60
    )
    assert said.stop_reasons == ["eos", "eos"]
    for i in range(2):
        assert said.codes[i].tolist() == codes[i, : code_lens[i]].tolist()
        assert said.index[i].tolist() == frame_index(durations, lens, 40)[i, : code_lens[i]].tolist()


@pytest.mark.parametrize("config", AR_VARIANTS)
@pytest.mark.parametrize("sampling", OPTIONS)
def test_speaking_equals_reading(config, sampling):
    """What was spoken, read again with its alignment, gives the same logits and moves; batched, and with gaps."""
    model, batch = make(AR, config), ar_prompt(padding=-1)
    heard, moved = [], []
    foretell = model._foretell

    def listen(h, local, state):
        heard.append(foretell(h, local, state))
        moved.append(state.moves)
        return heard[-1].clone()

    model._foretell = listen
    said = model.generate(*batch[:5], sampling=sampling, max_frames=300, generators=generators(1, 2, 3))
    assert said.stop_reasons == ["eos"] * 3
    for i in range(3):
        row, n = ar_row(batch, i), len(said.codes[i])
        durations = row.durations[0] + torch.bincount(said.index[i], minlength=row.phonemes.shape[1])
        codes = torch.cat([row.codes[0], said.codes[i]])
        whole = ARBatch(row.phonemes, row.phoneme_lens, codes[None], torch.tensor([len(codes)]), durations[None])
        with torch.no_grad():
            logits, moves = model.outputs(whole)
        begin = int(row.code_lens)
        torch.testing.assert_close(torch.stack([x[i] for x in heard[:n]]), logits[0, begin:-1], atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.stack([x[i] for x in moved[:n]]), moves[0, begin:-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", AR_VARIANTS)
@pytest.mark.parametrize("sampling", OPTIONS)
def test_a_spoken_batch_equals_one_by_one(config, sampling):
    model, batch = make(AR, config), ar_prompt(padding=-1)
    most = torch.tensor([300, 300, 9])
    options = {"sampling": sampling, "max_frames": most}
    together = model.generate(*batch[:5], **options, generators=generators(7, 8, 9))
    for i in range(3):
        alone = model.generate(
            *ar_row(batch, i)[:5], sampling=sampling, max_frames=int(most[i]), generators=generators(7 + i)
        )
        assert torch.equal(alone.codes[0], together.codes[i])
        assert torch.equal(alone.index[0], together.index[i])
        assert alone.stop_reasons[0] == together.stop_reasons[i]
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[i], atol=1e-5, rtol=0)
    steps = list(model.steps(*batch[:5], **options, generators=generators(7, 8, 9)))
    for i in range(3):
        spoken = [(s.codes[i], s.index[i]) for s in steps if s.codes[i] is not None]
        assert spoken == list(zip(together.codes[i].tolist(), together.index[i].tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_the_pointer_visits_every_phone_in_order_and_ends(seed):
    torch.manual_seed(seed)
    model = AR(AR_CONFIG).eval()
    with torch.no_grad():
        model.move.weight.mul_(5)  # sure of itself, if wrong
    batch = ar_prompt()
    said = model.generate(*batch[:5], sampling=SamplingConfig(), max_frames=3000, generators=generators(1, 2, 3))
    assert said.stop_reasons == ["eos"] * 3
    for i, phonemes in enumerate(PHONEMES):
        index = said.index[i].tolist()
        assert index == sorted(index)
        assert max(index.count(j) for j in index) <= MAX_AGE
        first = int(first_symbol(*(x[i : i + 1] for x in (*batch[:2], batch.durations)), model.kinds))
        phones = [j for j in range(first, len(phonemes)) if KINDS[phonemes[j]] == PHONE]
        assert [j for j in dict.fromkeys(index) if KINDS[phonemes[j]] == PHONE] == phones
        assert all(KINDS[phonemes[j]] != MARK for j in index)
        assert len(said.codes[i]) == len(index)
        assert (said.codes[i] < SIZE).all()  # never <eos>


def test_a_pointer_that_would_stay_moves_in_the_end_and_a_pause_is_said_or_left_out():
    phonemes, lens = torch.tensor([[A, DOT, SPACE, B]]), torch.tensor([4])
    durations, kinds = torch.zeros(1, 4, dtype=torch.long), torch.tensor(KINDS)

    def walk(probabilities, generator=None):
        pointer = Pointer(phonemes, lens, durations, kinds, generator)
        visited = []
        while not pointer.is_over(0):
            visited.append(pointer.index[0])
            pointer.move(0, *probabilities)
        return visited

    assert walk((1.0, 0.0, 0.0)) == [0] * MAX_AGE + [1] * MAX_AGE + [3] * MAX_AGE
    assert walk((0.0, 0.6, 0.4)) == [0, 1, 3]
    assert walk((0.0, 0.4, 0.6)) == [0, 3]
    assert walk((0.8, 0.2, 0.0)) == [0] * 4 + [1] * 4 + [3] * 4  # 0.8^4 < 0.5
    lengths = {walk((0.8, 0.2, 0.0), generators(seed)).count(0) for seed in range(200)}
    assert lengths == {2, 3, 4, 5, 6}  # between 0.3 and 0.7


def test_what_cannot_last_and_what_has_nothing_to_say():
    model = make(AR, AR_CONFIG)
    batch = ar_prompt()
    said = model.generate(*batch[:5], sampling=GREEDY, max_frames=1, min_frames=1000)  # no least length here
    assert said.stop_reasons == ["max_frames"] * 3
    phonemes, lens, none = torch.tensor([[SPACE, DOT], [A, B]]), torch.tensor([2, 2]), torch.zeros(2, 0).long()
    said = model.generate(phonemes, lens, none, lens * 0, phonemes * 0, sampling=GREEDY, max_frames=300)
    assert said.stop_reasons == ["eos", "eos"]
    assert len(said.codes[0]) == 0 < len(said.codes[1])
    assert said.log_probs.isfinite().all()
    with pytest.raises(AssertionError, match="durations of the prompt"):
        model.generate(phonemes, lens, none, lens * 0, sampling=GREEDY, max_frames=3)


# The NAR model


@pytest.mark.parametrize("config", NAR_VARIANTS)
@pytest.mark.parametrize("padding", [0, -100, 10**6])
@pytest.mark.parametrize("stage", [2, 8])
def test_padding_does_not_change_the_nar(config, padding, stage):
    model, batch = make(NAR, config), nar_batch(padding)
    with torch.no_grad():
        logits = model(batch, stage)
        for i in range(3):
            alone = model(nar_row(batch, i), stage)
            torch.testing.assert_close(logits[i, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", NAR_VARIANTS)
def test_rows_without_gaps_are_no_longer_than_the_longest_and_say_the_same_in_the_nar(config):
    model, batch = make(NAR, config), nar_batch()
    most = int((batch.phoneme_lens + batch.prompt_lens + batch.code_lens).max())
    seen = []
    handle = model.transformer.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    with torch.no_grad():
        loose, tight = model(batch, 2), model(batch._replace(max_places=most), 2)
    handle.remove()
    assert seen == [batch.phonemes.shape[1] + 5 + batch.codes.shape[2], most]
    for i, n in enumerate(batch.code_lens.tolist()):
        torch.testing.assert_close(loose[i, :n], tight[i, :n], atol=2e-5, rtol=0)


def test_the_nar_reads_the_phoneme_of_each_frame():
    model, batch = make(NAR, NAR_CONFIG), nar_batch()
    before = model(batch, 2)
    for name in ("index", "prompt_index"):
        changed = getattr(batch, name).clone()
        changed[2, 3] = 1
        assert (model(batch._replace(**{name: changed}), 2) - before)[2].abs().max() > 1e-3
    with pytest.raises(AssertionError, match="phonemes of frames"):
        model(batch._replace(index=None), 2)


def test_the_summary_is_the_mean_of_the_prompt():
    config = NARConfig(11, SIZE, transformer=TINY, prompt_summary=True)
    model, batch = make(NAR, config), nar_batch(padding=7)
    added = model._read(batch).added  # [B, 1, D]
    tables = model.code_emb.weight.view(8, SIZE, DIM)
    for i, n in enumerate(batch.prompt_lens.tolist()):
        frames = sum(tables[k][batch.prompt_codes[i, k, :n]] for k in range(8))
        mean = frames.mean(0) if n else torch.zeros(DIM)
        torch.testing.assert_close(added[i, 0], model.summary(mean), atol=1e-5, rtol=0)
    none = batch._replace(prompt_codes=batch.prompt_codes[:, :, :0], prompt_lens=batch.prompt_lens * 0)
    assert (model._read(none).added == 0).all()


@pytest.mark.parametrize("config", NAR_VARIANTS)
def test_every_parameter_of_the_nar_learns_and_it_compiles(config):
    model, batch = make(NAR, config), nar_batch()
    model.loss(model(batch, 3), batch, 3)[0].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch, 3), model(batch, 3))


@pytest.mark.parametrize("config", NAR_VARIANTS)
def test_the_nar_completes_stage_by_stage_alone_or_in_a_batch(config):
    model, batch = make(NAR, config), nar_batch(padding=-1)

    def complete(b):
        return model.generate(*b[:2], *b[4:6], b.codes[:, 0], b.code_lens, b.index, b.prompt_index)

    said = complete(batch)
    for stage in range(2, 9):
        with torch.no_grad():
            logits = model(batch._replace(codes=said), stage)
        assert torch.equal(logits.argmax(-1)[batch.in_loss], said[:, stage - 1][batch.in_loss])
    for i in range(3):
        alone = complete(nar_row(batch, i))
        assert torch.equal(alone[0], said[i, :, : alone.shape[2]])


@pytest.mark.parametrize("mode", ["segment", "prefix"])
def test_prompts_know_their_phonemes(mode):
    batch = ar_batch()
    whole = frame_index(batch.durations, batch.phoneme_lens, batch.codes.shape[1])  # [B, T]
    codes = whole.unsqueeze(1).expand(-1, 8, -1)  # so that a code tells its phoneme
    drawn = draw_prompt(
        batch.phonemes,
        batch.phoneme_lens,
        codes,
        batch.code_lens,
        prompt_frames=4,
        mode=mode,
        generator=torch.Generator().manual_seed(0),
        durations=batch.durations,
    )
    assert drawn.index.shape == drawn.codes[:, 0].shape
    assert drawn.prompt_index.shape == drawn.prompt_codes[:, 0].shape
    for i in range(3):
        n, n_prompt = drawn.code_lens[i], drawn.prompt_lens[i]
        assert torch.equal(drawn.index[i, :n], drawn.codes[i, 0, :n])
        assert torch.equal(drawn.prompt_index[i, :n_prompt], drawn.prompt_codes[i, 0, :n_prompt])
    plain = draw_prompt(batch.phonemes, batch.phoneme_lens, codes, batch.code_lens)
    assert plain.index is plain.prompt_index is None
    assert plain.to("cpu").index is None


def test_stages_follow_their_weights():
    random = torch.Generator().manual_seed(0)
    stages = [draw_stage(8, random, (3, 2, 1.5, 1, 1, 1, 0)) for _ in range(950)]
    assert set(stages) == {2, 3, 4, 5, 6, 7}
    assert 250 < stages.count(2) < 350
    assert 160 < stages.count(3) < 240


# Configuration


def test_configurations_are_checked_and_survive_json():
    for cls, config in ((AR, AR_CONFIG), (NAR, NARConfig(11, stage_weights=(3, 2, 1.5, 1, 1, 1, 1), alignment=True))):
        with torch.device("meta"):
            assert cls.from_config(json.loads(json.dumps(cls(config).config_dict()))).config == config
    for kinds in ((), (0, 1)):
        with pytest.raises(ValleError, match="phoneme_kinds"):
            ARConfig(n_phonemes=11, alignment=True, phoneme_kinds=kinds)
    for weights in ((1.0,), (0.0,) * 7, (1.0, -1.0) + (1.0,) * 5, (float("nan"),) * 7):
        with pytest.raises(ValleError, match="stage_weights"):
            NARConfig(n_phonemes=11, stage_weights=weights)
