"""What is compiled does what PyTorch does: frames of the AR, in every precision, on any number of threads."""

import os
import shutil
import subprocess
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from valle.errors import ValleError
from valle.model.ar import AR, ARConfig
from valle.model.bits import dequantised_4, quantised_4, quantised_8
from valle.model.decoder import Decoder
from valle.model.narrow import Linear, Narrowable, narrow
from valle.model.sampling import SamplingConfig
from valle.model.transformer import AdaptiveNorm, KVCache, Transformer, TransformerConfig, padding_mask
from valle.native import frames, library
from valle.native.matrix import Matrix
from valle.native.sequence import Columns, can_read, read
from valle.pretrained import narrow_ar

pytestmark = pytest.mark.skipif(library() is None, reason="valle was installed without a C compiler, or no AVX2")

SMALL = TransformerConfig(dim=64, n_layers=2, n_heads=2, ff_dim=128)
CONFIGS = {
    "plain": ARConfig(n_phonemes=11, codebook_size=24, transformer=SMALL, text_dropout=0.2),
    "own output": ARConfig(n_phonemes=11, codebook_size=24, transformer=SMALL, tie_weights=False),
    "convolutions": ARConfig(n_phonemes=11, codebook_size=40, transformer=SMALL, text_dropout=0.2, local_layers=2),
    "grouped, relu": ARConfig(
        n_phonemes=11,
        codebook_size=24,
        transformer=replace(SMALL, dim=128, n_heads=4, n_kv_heads=2, activation="relu"),
        text_dropout=0.2,
    ),
    "aligned": ARConfig(
        n_phonemes=11, codebook_size=24, transformer=SMALL, alignment=True, phoneme_kinds=(0,) * 11, text_dropout=0.2
    ),
}


def make(config, precision="fp16"):
    """A model of weights that half precision holds, its attention sharp."""
    torch.manual_seed(0)
    model = AR(config).eval()
    with torch.no_grad():
        for block in model.transformer.blocks:
            block.attention.qkv.weight.mul_(2)
            block.attention.out.weight.mul_(2)
        for p in model.parameters():
            p.copy_(p.half())
    if precision is not None:
        narrow(model, precision)
    return model


def coarse(model, precision):
    """The same model, its linear layers holding what is left of their weights in so few bits."""
    for module in model.modules():
        if isinstance(module, Linear):
            with torch.no_grad():
                if precision == "int8":
                    numbers, scales = quantised_8(module.weight)
                    module.weight.copy_(numbers * scales.unsqueeze(1))
                elif precision == "int4":
                    module.weight.copy_(dequantised_4(module.weight))
    return model


def inputs():
    random = torch.Generator().manual_seed(1)
    phonemes = torch.randint(0, 11, (3, 6), generator=random)
    codes = torch.randint(0, 24, (3, 70), generator=random)
    return phonemes, torch.tensor([6, 2, 4]), codes, torch.tensor([40, 0, 70])


def durations():
    return torch.tensor([[20, 20, 0, 0, 0, 0], [0] * 6, [30, 30, 10, 0, 0, 0]])


def decode_all(model, n_frames=70, candidates=1, native=True, keep_at=None, monkeypatch=None):
    """Logits and moves of frames, rows of three lengths in ``candidates`` copies, some of them blind."""
    if not native:
        monkeypatch.setattr("valle.model.ar.can_run", lambda *_: False)
    aligned = model.config.alignment
    random = torch.Generator().manual_seed(2)
    out = []
    with torch.inference_mode():
        first, state = model.prefill(
            *inputs(), durations() if aligned else None, max_frames=n_frames, candidates=candidates,
            blind=torch.tensor([False, True, False]),
        )  # fmt: skip
        assert isinstance(state.decoder, frames.Frames if native else Decoder)
        out.append(first)
        rows = 3 * candidates
        for n in range(n_frames):
            places = [torch.randint(0, 2, (3 * candidates,), generator=random) for _ in range(2)]
            codes = torch.randint(0, 24, (3 * candidates,), generator=random)
            if n == keep_at:
                chosen = [1, 3, 8]
                model._keep(chosen, state, 1, candidates)
                rows = 3
            if rows == 3 and candidates > 1:
                codes, places = codes[[1, 3, 8]], [p[[1, 3, 8]] for p in places]
            out.append(model.decode(codes, state, *(places if aligned else (None, None))))
            if state.moves is not None:
                out.append(state.moves)
    return out


def assert_near(a, b):
    spread = float(b.std()) + 1e-3
    assert float((a - b).std()) < 4e-3 * spread
    assert float((a - b).abs().max()) < 2e-2 * spread


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("candidates", [1, 3])
def test_frames_are_those_of_torch(name, candidates, monkeypatch):
    """Keys and values in half precision are all that differs: about a thousandth of the logits' spread."""
    model = make(CONFIGS[name])
    ours = decode_all(model, candidates=candidates)
    theirs = decode_all(make(CONFIGS[name], None), candidates=candidates, native=False, monkeypatch=monkeypatch)
    for a, b in zip(ours, theirs, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_in_fewer_bits_it_is_near_torch_with_weights_as_coarse(precision, monkeypatch):
    """What is left is that inputs are 8-bit numbers: a hundredth or two of each product."""
    config = CONFIGS["convolutions"]
    ours = decode_all(make(config, precision), candidates=3)
    theirs = decode_all(coarse(make(config, None), precision), candidates=3, native=False, monkeypatch=monkeypatch)
    errors = [float((a - b).std() / b.std()) for a, b in zip(ours[1:], theirs[1:], strict=True)]
    assert sum(errors) / len(errors) < 0.06


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 6, 7, 13])
def test_a_layer_alone_is_the_product(precision, n_rows):
    """One product with odd sizes against float64, and bit for bit the same whatever the rows beside and the threads."""
    torch.manual_seed(n_rows)
    transformer = make(CONFIGS["plain"]).transformer
    layer = Linear(64, 51).eval()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.half())
        layer.bias.copy_(torch.randn(51).half())
    narrow(layer, precision)
    cache = KVCache(SMALL, n_rows, 1, like=torch.zeros(1))
    with torch.inference_mode():
        transformer(torch.randn(n_rows, 1, 64), causal=True, cache=cache)
        x = torch.randn(n_rows, 64)
        x[0] *= 1000
        runner = frames.Frames(
            transformer, Columns.of(cache), torch.ones(n_rows, dtype=torch.int64), 4, outputs=[layer]
        )
        hidden = Decoder(transformer, cache, 4).step(x)
        (y,) = runner.step(x)
        weight = coarse(torch.nn.Sequential(layer), precision)[0].weight.double()
        exact = F.linear(hidden.double(), weight, layer.bias.double())
        rounding = 0.0 if precision == "fp16" else 0.02  # of the inputs, and of the transformer before
        assert (y - exact).std() < (4e-3 + rounding) * exact.std()
        alone = KVCache(SMALL, 1, 1, like=torch.zeros(1))
        for row in {0, n_rows - 1}:
            for of_all, of_one in ((cache.keys, alone.keys), (cache.values, alone.values)):
                for a, b in zip(of_all, of_one, strict=True):
                    b.copy_(a[row : row + 1])
            alone.length = 1
            runner = frames.Frames(transformer, Columns.of(alone), torch.ones(1, dtype=torch.int64), 4, outputs=[layer])
            assert torch.equal(runner.step(x[row : row + 1])[0], y[row : row + 1])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_number_of_threads_changes_no_bit(precision):
    model = make(CONFIGS["convolutions"], precision)
    before = torch.get_num_threads()
    try:
        runs = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            random = torch.Generator().manual_seed(3)
            x = torch.randn(2, 9, 64, generator=random)
            cache = KVCache(SMALL, 2, 9, like=x)
            torch.set_num_threads(1)  # reading may share sums out
            with torch.inference_mode():
                model.transformer(x, causal=True, cache=cache)
                torch.set_num_threads(n)
                lens = torch.tensor([9, 5])
                runner = frames.Frames(model.transformer, Columns.of(cache), lens, 50, 3, outputs=[model.code_emb])
                runs.append(torch.stack([runner.step(torch.randn(6, 64, generator=random))[0] for _ in range(50)]))
        assert torch.equal(runs[0], runs[1])
        assert torch.equal(runs[0], runs[2])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["plain", "convolutions", "grouped, relu", "aligned"])
def test_the_candidate_that_goes_on_alone_says_the_same(name):
    model = make(CONFIGS[name])
    every, chosen = decode_all(model, candidates=3), decode_all(model, candidates=3, keep_at=33)
    for a, b in zip(every, chosen, strict=True):
        torch.testing.assert_close(a if len(b) == 9 else a[[1, 3, 8]], b, atol=1e-5, rtol=1e-5)


def test_many_speak_at_once():
    """Only one at a time has the other threads; the rest go on alone. Nobody gets another's numbers."""
    model = make(CONFIGS["plain"])
    expected = torch.cat([x.flatten() for x in decode_all(model)])
    before = torch.get_num_threads()
    results = {}

    def speak(i):
        torch.set_num_threads(2)
        results[i] = [torch.cat([x.flatten() for x in decode_all(model)]) for _ in range(5)]

    try:
        threads = [threading.Thread(target=speak, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(results) == 4
        for row in (x for own in results.values() for x in own):
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_frames_go_on():
    """The threads do not come along; a child must not wait for them."""
    model = make(CONFIGS["plain"])
    cache = KVCache(SMALL, 1, 3, like=torch.zeros(1))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            model.transformer(torch.randn(1, 3, 64), causal=True, cache=cache)
            runner = frames.Frames(
                model.transformer, Columns.of(cache), torch.tensor([3]), 300, outputs=[model.code_emb]
            )
            x = torch.randn(1, 64)
            for _ in range(50):
                runner.step(x)
            child = os.fork()
            if child == 0:
                for _ in range(50):  # NOTE torch itself must not compute after a fork; these are ours
                    runner._run(runner._frame_at, runner.length, 2)
                    runner.length += 1
                os._exit(7)
            waited = threading.Timer(30, lambda: os.kill(child, 9))
            waited.start()
            _, status = os.waitpid(child, 0)
            waited.cancel()
            assert os.waitstatus_to_exitcode(status) == 7
    finally:
        torch.set_num_threads(before)


def test_more_columns_than_there_is_room_for_are_refused():
    model = make(CONFIGS["plain"])
    with torch.inference_mode():
        _, state = model.prefill(*inputs(), max_frames=2)
        for _ in range(2):
            state.decoder.step(torch.zeros(3, 64))
        with pytest.raises(AssertionError, match="room for 2 more frames"):
            state.decoder.step(torch.zeros(3, 64))


def test_what_it_cannot_take_is_left_to_torch():
    plain = make(CONFIGS["plain"], None)
    assert not frames.can_run(plain.transformer, None, [plain.code_emb]), "not narrowed"
    narrow(plain)
    assert frames.can_run(plain.transformer, None, [plain.code_emb])
    plain.train()
    assert not frames.can_run(plain.transformer, None, [plain.code_emb]), "training"
    thin = AR(replace(CONFIGS["plain"], transformer=replace(SMALL, n_heads=8))).eval()
    with torch.no_grad():
        for p in thin.parameters():
            p.copy_(p.half())
    narrow(thin)
    assert not frames.can_run(thin.transformer, None, [thin.code_emb]), "heads of 8"
    inexact = make(CONFIGS["plain"], None)
    with torch.no_grad():
        inexact.transformer.blocks[1].ff.up.weight.mul_(1.0001)
    narrow(inexact)
    assert not frames.can_run(inexact.transformer, None, [inexact.code_emb]), "weights that would lose"


def test_speech_is_the_same_without_the_library(monkeypatch):
    """Whole utterances, drawn: the same codes by either way, for nearly all rows (a draw may fall on an edge)."""
    model = make(CONFIGS["convolutions"])
    sampling = SamplingConfig(temperature=0.9, top_p=0.9, guidance=1.5)

    def speak():
        return model.generate(
            *inputs(), sampling=sampling, max_frames=60, candidates=2, with_gains=True,
            generators=[torch.Generator().manual_seed(i) for i in range(6)],
        )  # fmt: skip

    ours = speak()
    monkeypatch.setattr("valle.model.ar.can_run", lambda *_: False)
    monkeypatch.setattr("valle.native.sampling.library", lambda: None)
    theirs = speak()
    same = [torch.equal(a, b) for a, b in zip(ours.codes, theirs.codes, strict=True)]
    assert sum(same) >= 5
    for i, is_same in enumerate(same):
        if is_same:
            assert ours.log_probs[i] == pytest.approx(float(theirs.log_probs[i]), abs=1e-3)
            assert ours.gains[i] == pytest.approx(float(theirs.gains[i]), abs=1e-3)


def test_4_bits_choose_scales_that_cost_little():
    """Better than the scale by which the largest weight fits, and exact where weights are few multiples of one."""
    torch.manual_seed(0)
    weight = torch.randn(20, 96)
    error = (dequantised_4(weight) - weight).square().mean()
    groups = weight.unflatten(1, (-1, 32))
    scale = groups.abs().amax(2, keepdim=True) / 7
    plain = ((groups / scale).round() * scale - groups).square().mean()
    assert error < 0.9 * plain
    exact = torch.randint(-8, 8, (4, 64)) * 0.25
    exact[:, ::32] = -2.0
    torch.testing.assert_close(dequantised_4(exact), exact)
    numbers, scales = quantised_4(torch.zeros(2, 32))
    assert torch.equal(numbers, torch.full((2, 32), 8, dtype=torch.uint8))
    assert torch.equal(scales, torch.zeros(2, 1, dtype=torch.float16))


def test_4_bits_need_the_library(monkeypatch):
    monkeypatch.setattr("valle.pretrained.library", lambda: None)
    with pytest.raises(ValleError, match="int4 need what valle compiles"):
        narrow_ar(make(CONFIGS["plain"], None), "int4")
    model = narrow_ar(make(CONFIGS["plain"], None), "auto")
    assert {m.precision for m in model.modules() if isinstance(m, Narrowable)} == {"fp16"}


def test_rows_hide_what_is_past_their_end():
    """The columns after a row's own do not count, whatever stands there."""
    model = make(CONFIGS["plain"])
    lens = torch.tensor([40, 7])
    with torch.inference_mode():
        x = torch.randn(2, 40, 64)
        results = []
        for filler in (0.0, 100.0):
            cache = KVCache(SMALL, 2, 40, like=x)
            model.transformer(x, causal=True, cache=cache)
            for tensor in (*cache.keys, *cache.values):
                tensor[1, :, 7:] = filler
            runner = frames.Frames(model.transformer, Columns.of(cache), lens, 5, outputs=[model.code_emb])
            results.append(runner.step(torch.ones(2, 64))[0])
            decoder = Decoder(model.transformer, cache, 5, 1, padding_mask(lens, 40))
            expected = model._logits(decoder.step(torch.ones(2, 64)))
            torch.testing.assert_close(results[-1], expected, atol=5e-3, rtol=5e-3)
        assert torch.equal(*results)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("shape", [(1,), (2, 9), (70,)])
def test_a_product_with_many_rows(precision, shape):
    """To float32's last digits the product of what both were rounded to."""
    torch.manual_seed(0)
    weight, bias, x = torch.randn(37, 96), torch.randn(37), torch.randn(*shape, 96)
    x.view(-1, 96)[0] *= 1e4
    scales = x.abs().amax(-1, keepdim=True).double() / 127
    rounded = (x / scales).round() * scales
    if precision == "int8":
        numbers, steps = quantised_8(weight)
        left = numbers.double() * steps.double().unsqueeze(1)
    else:
        left = dequantised_4(weight).double()
    y = Matrix.pack(weight, bias, precision).multiply(x)
    exact = F.linear(rounded.double(), left, bias.double())
    assert y.shape == exact.shape
    assert ((y - exact).norm(dim=-1) < 1e-4 * exact.norm(dim=-1)).all()
    assert Matrix.pack(weight, None, precision).multiply(torch.zeros(0, 96)).shape == (0, 37)
    assert torch.equal(Matrix.pack(weight, bias, precision).multiply(torch.zeros(3, 96)), bias.expand(3, -1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (2, 100), (3, 47)])
@pytest.mark.parametrize("kind", ["causal", "adaptive", "holes", "grouped, relu"])
def test_whole_sequences_are_those_of_torch(kind, shape):
    """In 8 bits either way; and what frames go on from is what torch would have kept."""
    torch.manual_seed(0)
    config = replace(SMALL, n_layers=3)
    if kind == "grouped, relu":
        config = replace(config, dim=128, n_heads=4, n_kv_heads=2, activation="relu")
    transformer = Transformer(config, adaptive=kind == "adaptive").eval()
    with torch.no_grad():
        for block in transformer.blocks:
            block.attention.qkv.weight.mul_(2)
        for module in transformer.modules():
            if isinstance(module, AdaptiveNorm):
                torch.nn.init.normal_(module.project.weight, std=0.3)
    narrow(transformer, "int8")
    x = torch.randn(*shape, config.dim)
    options = {"causal": kind in ("causal", "grouped, relu")}
    seen = torch.ones(shape, dtype=torch.bool)
    if kind == "adaptive":
        options["condition"] = torch.randn(config.dim)
    if kind == "holes":
        seen = torch.rand(shape) < 0.7
        seen[:, 0] = True
    mask = seen[:, None, None] if kind == "holes" else None
    with torch.inference_mode():
        assert can_read(transformer, x)
        ours, columns = read(transformer, x, mask=None if mask is None else seen, **options)
        through = transformer(x, mask=mask, **options)
        assert torch.equal(ours, through), "the transformer itself takes this way"
        cache = KVCache(config, *shape, like=x)
        theirs = transformer(x, mask=mask, cache=cache, **options)
        assert (ours - theirs)[seen].std() < 0.04 * theirs.std()
        kept = Columns.of(cache)
        assert columns.length == kept.length
        for a, b in zip((*columns.keys, *columns.values), (*kept.keys, *kept.values), strict=True):
            assert a.shape == b.shape
            assert (a.float() - b.float()).std() < 0.04 * b.float().std() + 1e-6


def test_what_sequences_cannot_be_read_is_left_to_torch():
    transformer = Transformer(SMALL).eval()
    x = torch.randn(1, 5, 64)
    with torch.no_grad():
        assert not can_read(transformer, x), "not in 8 bits"
        narrow(transformer, "int8")
        assert can_read(transformer, x)
        assert not can_read(transformer, x[:, :0])
        assert not can_read(transformer, x.double())
    assert not can_read(transformer, x), "gradients are wanted"


def test_products_of_other_number_types_and_layouts():
    torch.manual_seed(0)
    layer = Linear(64, 40).eval()
    narrow(layer, "int8")
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = layer(x)
        for other in (torch.float64, torch.bfloat16, torch.float16):
            y = layer(x.to(other))
            assert y.dtype == other
            torch.testing.assert_close(y.float(), expected, atol=0.15, rtol=0)
        torch.testing.assert_close(layer(x.t().contiguous().t()), expected)
    transformer = Transformer(SMALL).eval()
    narrow(transformer, "int8")
    with torch.inference_mode():
        x = torch.randn(1, 64, 9)
        torch.testing.assert_close(transformer(x.transpose(1, 2)), transformer(x.transpose(1, 2).contiguous()))


def test_what_is_wanted_for_a_gradient_is_not_narrowed():
    """And who trains gets the weights themselves back."""
    layer = Linear(64, 40).eval()
    narrow(layer, "int8")
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, -1))
    assert layer.weight.grad is not None
    assert layer.precision == "int8"
    layer.train()
    assert (layer.precision, layer.narrowed, layer.packed) == (None, None, None)


def test_what_is_no_number_is_not_hidden():
    layer = Linear(64, 40).eval()
    narrow(layer, "int8")
    x = torch.randn(3, 64)
    x[1, 5] = torch.nan
    with torch.no_grad():
        y = layer(x)
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()


def test_another_default_type_changes_nothing():
    model = make(CONFIGS["plain"], "int8")
    expected = decode_all(model, n_frames=5)
    torch.set_default_dtype(torch.float64)
    try:
        frames_ = decode_all(model, n_frames=5)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(expected, frames_, strict=True):
        torch.testing.assert_close(a.float(), b.float())


@pytest.mark.parametrize("source", ["int valle_can_run(void) { return 1; }", "int other(void) { return 1; }"])
def test_a_library_of_another_time_is_left_alone(source, tmp_path, monkeypatch):
    """Built from an earlier frames.c it lacks functions: all goes on by torch, not into a traceback."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    (tmp_path / "old.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / "old.so"], check=True)
    monkeypatch.setenv("VALLE_NATIVE", str(tmp_path / "old.so"))
    assert library.__wrapped__() is None
    monkeypatch.setenv("VALLE_NATIVE", "0")
    assert library.__wrapped__() is None
    monkeypatch.setenv("VALLE_NATIVE", str(tmp_path / "missing.so"))
    assert library.__wrapped__() is None
