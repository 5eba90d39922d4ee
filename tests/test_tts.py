"""Text and a voice in, speech out: one seed one wave, alone, in a batch or as a stream; and every wrong input told."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from aligners import tiny_aligner
from sounds import voiced
from valle import VALLE, Audio, ValleError, pretrained
from valle.codec.spectral import SpectralCodec
from valle.model.ar import AR, ARResult, ARStep
from valle.model.nar import NAR
from valle.model.narrow import can_halve, can_int8
from valle.pieces import Piece, Prompt, candidate_seeds, join, make_piece, score
from valle.pretrained import describe, load_pretrained, save_pretrained
from valle.tts import BATCH_ROWS, SpeakOptions, _batches

TEXT = "What I say in it, word by word, is this and not much more."
TWO = "Hi. You."


@pytest.fixture(scope="module")
def tts(tiny_model_dir: Path) -> VALLE:
    return VALLE.from_pretrained(tiny_model_dir, "cpu")


@pytest.fixture(scope="module")
def prompt(tts: VALLE, reference: Path) -> Prompt:
    return tts.prompt(reference, TEXT)


def close(a: Audio, b: Audio) -> bool:
    """The same codes, and the same wave but for the rounding of sums of another length."""
    return torch.equal(a.codes, b.codes) and torch.allclose(a.waveform, b.waveform, atol=1e-5)


# Speaking


def test_generate_gives_speech_and_tells_how(tts: VALLE, reference: Path) -> None:
    audio = tts.generate("Hi.", reference, TEXT, seed=1)
    assert audio.sample_rate == 24000
    assert audio.codes.dtype == torch.int64
    assert audio.codes.shape[0] == 8
    assert audio.waveform.shape == (1, audio.codes.shape[1] * 320)
    assert audio.waveform.dtype == torch.float32
    assert torch.isfinite(audio.waveform).all()
    info = audio.info
    assert json.loads(json.dumps(info)) == info
    assert (info["synthetic"], info["model"], info["model_version"]) == (True, "tiny-random", "7")
    assert (info["voice"], info["seed"], info["frames"]) == ("me.wav", 1, audio.codes.shape[1])
    assert info["pieces"] == [{"text": "Hi.", "frames": info["frames"], "stop": info["stop"]}]
    assert info["seconds"] == pytest.approx(audio.seconds, abs=1e-3)
    assert info["rtf"] > 0
    # Users go on computing with the result.
    assert not audio.waveform.is_inference()
    assert not audio.codes.is_inference()


def test_one_seed_one_wave(tts: VALLE, prompt: Prompt) -> None:
    first, again = (tts.generate("Hi.", prompt=prompt, seed=3) for _ in range(2))
    assert torch.equal(first.waveform, again.waveform)
    other = tts.generate("Hi.", prompt=prompt, seed=4)
    assert not torch.equal(first.codes[:, :8], other.codes[:, :8])


def test_a_seed_that_was_drawn_gives_the_wave_again(tts: VALLE, prompt: Prompt) -> None:
    drawn = tts.generate("Hi.", prompt=prompt)
    assert torch.equal(tts.generate("Hi.", prompt=prompt, seed=drawn.info["seed"]).waveform, drawn.waveform)


def test_speaking_leaves_the_callers_random_state_alone(tts: VALLE, prompt: Prompt) -> None:
    before = torch.get_rng_state()
    tts.generate("Hi.", prompt=prompt, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("repetition_aware", [False, True])
def test_a_batch_is_one_by_one(tts: VALLE, prompt: Prompt, repetition_aware: bool) -> None:
    texts = ["Hi.", "Hi. You.", "Tea?"]
    options = {"seed": 5, "temperature": 0.9, "top_k": 50, "repetition_aware": repetition_aware}
    batch = tts.generate_batch(texts, prompt=prompt, **options)
    for text, audio in zip(texts, batch, strict=True):
        assert close(audio, tts.generate(text, prompt=prompt, **options))


def test_a_batch_takes_a_prompt_for_each_text(tts: VALLE, prompt: Prompt, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "other.wav", voiced(2.0)[::-1], 24000)
    other = tts.prompt(tmp_path / "other.wav", "Quite another text.")
    batch = tts.generate_batch(["Hi.", "Hi."], prompt=[prompt, other], seed=0)
    assert close(batch[0], tts.generate("Hi.", prompt=prompt, seed=0))
    assert close(batch[1], tts.generate("Hi.", prompt=other, seed=0))
    assert not torch.equal(batch[0].codes[:, :8], batch[1].codes[:, :8])
    with pytest.raises(ValleError, match="2 texts and 1 prompts"):
        tts.generate_batch(["Hi.", "Hi."], prompt=[prompt])
    assert tts.generate_batch([], prompt=prompt) == []


def test_a_stream_is_what_generate_gives(tts: VALLE, prompt: Prompt) -> None:
    whole = tts.generate(TWO, prompt=prompt, seed=6)
    assert len(whole.info["pieces"]) == 2
    chunks = list(tts.stream(TWO, prompt=prompt, seed=6, early=False))
    assert len(chunks) > 3
    assert all(chunk.info["synthetic"] and chunk.info["seed"] == 6 for chunk in chunks)
    torch.testing.assert_close(torch.cat([c.waveform for c in chunks], dim=1), whole.waveform, atol=1e-5, rtol=0)


def test_a_stream_speaks_only_as_far_as_it_is_heard(
    tts: VALLE, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = []
    speak = VALLE._speak

    def counting(self: VALLE, pieces: list[Piece], *args: object) -> object:
        spoken.extend(piece.text for piece in pieces)
        return speak(self, pieces, *args)

    monkeypatch.setattr(VALLE, "_speak", counting)
    stream = tts.stream(TWO, prompt=prompt, seed=6, early=False)
    assert spoken == []
    next(stream)
    assert spoken == ["Hi."]


def test_a_stream_tells_what_is_wrong_at_once(tts: VALLE, prompt: Prompt) -> None:
    with pytest.raises(ValleError, match="the text is empty"):
        tts.stream(" ", prompt=prompt)
    with pytest.raises(ValleError, match="temperature"):
        tts.stream("Hi.", prompt=prompt, temperature=-1.0)


def test_candidates_are_scored_and_the_best_is_kept(tts: VALLE, prompt: Prompt) -> None:
    best = tts.generate("Hi.", prompt=prompt, seed=7, num_candidates=4)
    (piece,) = best.info["pieces"]
    assert len(piece["scores"]) == 4
    assert piece["scores"][piece["candidate"]] == max(piece["scores"])
    assert len(set(piece["scores"])) == 4
    # The first candidate is what is spoken without others.
    assert candidate_seeds(7, 0, 4)[:1] == candidate_seeds(7, 0, 1)


def test_ten_thousand_characters_are_cut_into_what_fits(tts: VALLE, prompt: Prompt) -> None:
    numbers = range(1, 400)
    text = " ".join(f"Sentence {n} of this tale says that it rained, and that nobody minded." for n in numbers)[:10_000]
    pieces = tts._pieces(text, prompt, SpeakOptions(), continual=False)
    assert len(pieces) > 100
    reach = tts.model.info.max_seconds * tts.model.codec.frame_rate
    for piece in pieces:
        assert piece.prompt.n_frames + piece.expected_frames < reach
    said = " ".join(piece.text for piece in pieces)
    assert said.count("rained") == text.count("rained")
    for n_candidates in (1, 3, 20):  # and memory follows the rows that are spoken at once
        batches = list(_batches([piece.max_frames for piece in pieces], n_candidates))
        assert max(len(batch) * len(candidates) for batch, candidates in batches) <= BATCH_ROWS
        rows = [(i, c) for batch, candidates in batches for i in batch for c in candidates]
        assert sorted(rows) == [(i, c) for i in range(len(pieces)) for c in range(n_candidates)]


def test_max_seconds_bounds_the_speech(tts: VALLE, prompt: Prompt) -> None:
    audio = tts.generate(TWO, prompt=prompt, seed=8, max_seconds=0.5)
    assert audio.seconds == 0.5
    assert audio.info["stop"] == "max_seconds"
    assert "max_seconds" in audio.info["warnings"][0]
    assert abs(float(audio.waveform[0, -1])) < 1e-3  # faded out
    streamed = torch.cat(
        [c.waveform for c in tts.stream(TWO, prompt=prompt, seed=8, max_seconds=0.5, early=False)], dim=1
    )
    torch.testing.assert_close(streamed, audio.waveform, atol=1e-5, rtol=0)


def test_a_stream_that_was_cut_says_so(tts: VALLE, prompt: Prompt) -> None:
    for early in (False, True):
        *_, last = tts.stream(TWO, prompt=prompt, seed=8, max_seconds=0.5, early=early)
        assert last.info["warnings"] == tts.generate(TWO, prompt=prompt, seed=8, max_seconds=0.5).info["warnings"]


def test_a_decoder_is_told_the_voice_of_the_prompt(tts: VALLE, prompt: Prompt) -> None:
    config = replace(tts.model.codec.config, voice_dim=4)
    torch.manual_seed(0)
    codec = SpectralCodec(config).eval()
    codec.load_state_dict(codec.state_dict() | tts.model.codec.state_dict())
    told = VALLE(replace(tts.model, codec=codec))
    say = partial(told.generate, "Hi.", prompt=prompt, seed=1)
    assert close(say(), tts.generate("Hi.", prompt=prompt, seed=1))  # untrained, the voice changes nothing
    for block in codec.decoder.backbone.blocks:
        torch.nn.init.normal_(block.film.weight, std=30.0)
    audio = say()
    assert torch.equal(audio.codes, tts.generate("Hi.", prompt=prompt, seed=1).codes)
    voice = codec.voice(prompt.codes.unsqueeze(0))
    wav = codec.decode(audio.codes.unsqueeze(0), voice)[0] * prompt.gain
    middle = slice(480, -480)  # ends are faded
    torch.testing.assert_close(audio.waveform[:, middle], wav[:, middle], atol=1e-5, rtol=0)
    assert not torch.allclose(wav, codec.decode(audio.codes.unsqueeze(0))[0] * prompt.gain, atol=1e-3)
    streamed = torch.cat([c.waveform for c in told.stream("Hi.", prompt=prompt, seed=1, early=False)], dim=1)
    torch.testing.assert_close(streamed, audio.waveform, atol=1e-5, rtol=0)


def test_speech_without_an_end_is_told(tts: VALLE, prompt: Prompt) -> None:
    # Greedy decoding of a random model repeats itself for ever.
    audio = tts.generate("Hi.", prompt=prompt, temperature=0.0)
    assert audio.info["stop"] == "max_frames"
    assert "without an end" in audio.info["warnings"][0]


def test_continual_goes_on_from_the_recording(tts: VALLE, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", voiced(4.5), 24000)
    prompt = tts.prompt(tmp_path / "long.wav", TEXT)
    audio = tts.generate(prompt=prompt, continual=True, seed=0)
    assert torch.equal(audio.codes[:, :225], prompt.codes[:, :225])
    assert audio.info["recorded_s"] == 3.0
    assert audio.codes.shape[1] == 225 + audio.info["frames"]
    assert audio.waveform.shape == (1, audio.codes.shape[1] * 320)
    # What was cut off the recording bounds the length of its continuation.
    rest = prompt.n_frames - 225
    assert 0.4 * rest - 1 <= audio.info["frames"] <= 2 * rest + 76
    streamed = torch.cat(
        [c.waveform for c in tts.stream("", prompt=prompt, continual=True, seed=0, early=False)], dim=1
    )
    torch.testing.assert_close(streamed, audio.waveform, atol=1e-5, rtol=0)


def test_continual_phonemes_are_the_whole_transcript_then_the_text(tts: VALLE, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", voiced(4.5), 24000)
    prompt = tts.prompt(tmp_path / "long.wav", TEXT)
    first, second = tts._pieces("Hi there. Tea?", prompt, SpeakOptions(), continual=True)
    decode = tts.model.inventory.decode
    assert "".join(decode(first.phonemes)).startswith("".join(decode(prompt.phonemes)) + " h")
    assert first.prompt.n_frames == 225
    assert first.keep_prompt
    assert (second.prompt, second.keep_prompt) == (prompt, False)


def test_continual_needs_something_to_go_on_with(tts: VALLE, prompt: Prompt) -> None:
    with pytest.raises(ValleError, match=r"3.0 s of speech.*at least 4 s"):
        tts.generate(prompt=prompt, continual=True)
    assert tts.generate("Hi.", prompt=prompt, continual=True, seed=0).info["frames"] > 0


# Alignment


@pytest.fixture(scope="module")
def aligned(tts: VALLE, tmp_path_factory: pytest.TempPathFactory) -> VALLE:
    """A model of random weights that is told phonemes, stored and read."""
    model, inventory = tts.model, tts.model.inventory
    torch.manual_seed(0)
    ar_config = replace(model.ar.config, alignment=True, phoneme_kinds=inventory.kinds)
    ar_config = replace(ar_config, text_dropout=0.1)
    nar_config = replace(model.nar.config, alignment=True, prompt_summary=True, prompt_dropout=0.1)
    folder = tmp_path_factory.mktemp("models") / "aligned"
    save_pretrained(
        folder,
        ar=AR(ar_config).eval(),
        nar=NAR(nar_config).eval(),
        codec=model.codec,
        inventory=inventory,
        info=model.info,
        aligner=tiny_aligner(inventory),
    )
    assert describe(folder)["parts"]["aligner"]["bytes"] > 0
    return VALLE.from_pretrained(folder, "cpu")


@pytest.fixture(scope="module")
def aligned_prompt(aligned: VALLE, reference: Path) -> Prompt:
    return aligned.prompt(reference, TEXT)


def test_a_prompt_knows_its_phonemes(aligned: VALLE, aligned_prompt: Prompt, prompt: Prompt) -> None:
    assert prompt.durations is None
    durations = aligned_prompt.durations
    assert durations is not None
    assert len(durations) == len(aligned_prompt.phonemes)
    assert sum(durations) == aligned_prompt.n_frames
    head = aligned_prompt.head(100)
    assert head.durations is not None
    assert sum(head.durations) == head.n_frames == 100
    assert len(head.durations) == len(durations)
    assert all(a <= b for a, b in zip(head.durations, durations, strict=True))
    (piece,) = aligned._pieces("Hi.", aligned_prompt, SpeakOptions(), continual=False)
    assert piece.durations[: len(durations)] == durations
    assert len(piece.durations) == len(piece.phonemes)
    assert sum(piece.durations) == aligned_prompt.n_frames


def test_an_aligned_model_speaks_to_the_end_of_its_text(aligned: VALLE, aligned_prompt: Prompt) -> None:
    texts = ["Hi.", TWO, "Tea?"]
    options = {"seed": 5, "temperature": 0.9, "repetition_aware": True}
    batch = aligned.generate_batch(texts, prompt=aligned_prompt, **options)
    for text, audio in zip(texts, batch, strict=True):
        assert audio.info["stop"] == "eos"
        assert close(audio, aligned.generate(text, prompt=aligned_prompt, **options))
    streamed = torch.cat(
        [c.waveform for c in aligned.stream(TWO, prompt=aligned_prompt, early=False, **options)], dim=1
    )
    torch.testing.assert_close(streamed, batch[1].waveform, atol=1e-5, rtol=0)
    (piece,) = aligned.generate("Hi.", prompt=aligned_prompt, seed=7, num_candidates=3).info["pieces"]
    assert piece["scores"][piece["candidate"]] == max(piece["scores"])


@pytest.mark.parametrize("num_candidates", [1, 3])
def test_an_early_stream_sounds_before_its_sentence_is_spoken(
    aligned: VALLE, aligned_prompt: Prompt, num_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("valle.tts._FIRST_FRAMES", 24)
    text = "A stream that goes on for a good while, so that there is more than one chunk of it to hear."
    n_spoken = 0
    steps = type(aligned.model.ar).steps

    def counting(*args: Any, **options: Any) -> Iterator[ARStep]:
        nonlocal n_spoken
        for step in steps(*args, **options):
            n_spoken += 1
            yield step

    monkeypatch.setattr(type(aligned.model.ar), "steps", counting)
    chunks, when = [], []
    for chunk in aligned.stream(text, prompt=aligned_prompt, seed=3, num_candidates=num_candidates):
        chunks.append(chunk)
        when.append(n_spoken)
    total = n_spoken
    assert when[0] == 24 < total
    wav = torch.cat([chunk.waveform for chunk in chunks], dim=1)
    if num_candidates == 1:  # else another one may be chosen
        whole = aligned.generate(text, prompt=aligned_prompt, seed=3, num_candidates=1)
        assert wav.shape == whole.waveform.shape
    n_frames = wav.shape[1] / 320
    assert n_frames == int(n_frames)
    assert total - 1 <= n_frames <= total
    # What is shorter than the first chunk is spoken as ever.
    options = {"prompt": aligned_prompt, "seed": 3, "num_candidates": num_candidates}
    short = torch.cat([chunk.waveform for chunk in aligned.stream("Hi.", **options)], dim=1)
    torch.testing.assert_close(short, aligned.generate("Hi.", **options).waveform, atol=1e-5, rtol=0)


def test_an_early_stream_keeps_the_codes_of_the_whole(
    aligned: VALLE, aligned_prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codebook 1 of the chosen candidate, frame by frame, is the one that it has without being chosen early."""
    monkeypatch.setattr("valle.tts._FIRST_FRAMES", 12)
    (piece,) = aligned._pieces("Hello, dear tiny stream.", aligned_prompt, SpeakOptions(), continual=False)
    options = aligned._parse({"num_candidates": 3})
    for seed in range(4):
        seeds = candidate_seeds(seed, 0, 3)
        codes = torch.cat(list(aligned._speak_early(piece, seeds, options, ended := [])), dim=1)
        alone = [aligned._speak([piece], [[s]], aligned._parse({"num_candidates": 1}))[0].codes[0] for s in seeds]
        assert any(torch.equal(codes[0], own) for own in alone)
        assert ended == ["eos"]


def test_candidates_are_compared_by_what_comes_first(
    aligned: VALLE, aligned_prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One goes on, as it would have without the others; a text says the same alone and in a batch."""
    monkeypatch.setattr("valle.tts._COMPARED_FRAMES", 20)
    text = "A sentence that lasts for a good while longer than what is compared."
    (piece,) = aligned._pieces(text, aligned_prompt, SpeakOptions(), continual=False)
    seeds = candidate_seeds(3, 0, 3)
    (spoken,) = aligned._speak([piece], [seeds], aligned._parse({"num_candidates": 3}))
    assert sum(score < -900 for score in spoken.scores) == 2
    assert spoken.scores[spoken.chosen] == max(spoken.scores)
    (alone,) = aligned._speak([piece], [[seeds[spoken.chosen]]], aligned._parse({"num_candidates": 1}))
    assert torch.equal(alone.codes[0], spoken.codes[0])
    options = {"prompt": aligned_prompt, "seed": 3, "num_candidates": 3}
    together = aligned.generate_batch([text, "Hi."], **options)
    for said, audio in zip((text, "Hi."), together, strict=True):
        assert audio.codes is not None
        own = aligned.generate(said, **options).codes
        assert own is not None
        assert torch.equal(audio.codes[0], own[0])


def test_a_prompt_is_foretold_once(tts: VALLE, prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the NAR thinks of a prompt's own frames is computed for the first text, with the transcript alone."""
    config = replace(tts.model.nar.config, one_pass=True, codebook_dim=8, complete_by="prompt")
    torch.manual_seed(0)
    nar = NAR(config).eval()
    nar.set_codebooks(torch.randn(8, config.codebook_size, 8))
    own = VALLE(replace(tts.model, nar=nar))
    seen = []
    foretell = nar.foretell_prompt
    monkeypatch.setattr(nar, "foretell_prompt", lambda *args: seen.append(args) or foretell(*args))
    own.generate(TWO, prompt=prompt, seed=1, max_seconds=2.0)
    own.generate("Hi.", prompt=prompt, seed=2, max_seconds=1.0)
    assert len(seen) == 1
    assert seen[0][0].tolist() == [prompt.phonemes]
    assert torch.equal(seen[0][2][0], prompt.codes)
    for i in range(40):
        own._foretold([replace(prompt, name=str(i))])
    assert len(own._known) <= 32


def test_guidance_is_an_option_and_for_models_that_have_learnt_it(
    aligned: VALLE, aligned_prompt: Prompt, tts: VALLE, prompt: Prompt
) -> None:
    def say(**options: float) -> torch.Tensor:
        codes = aligned.generate("Hi.", prompt=aligned_prompt, seed=5, **options).codes
        assert codes is not None
        return codes

    plain, by_voice = say(), say(nar_guidance=3.0)
    assert torch.equal(plain[0], by_voice[0])
    assert not torch.equal(plain, by_voice)
    assert not torch.equal(plain[0, :40], say(guidance=4.0)[0, :40])
    assert not torch.equal(plain[0, :40], say(voice_guidance=4.0)[0, :40])
    for option, needs in (("guidance", "text_dropout"), ("nar_guidance", "prompt_dropout")):
        with pytest.raises(ValleError, match=needs):
            tts.generate("Hi.", prompt=prompt, **{option: 2.0})


def test_candidates_are_chosen_by_what_the_text_adds(
    aligned: VALLE, aligned_prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[ARResult] = []
    generate = aligned.model.ar.generate

    def spy(*args: Any, **kwargs: Any) -> ARResult:
        said.append(generate(*args, **kwargs))
        return said[-1]

    monkeypatch.setattr(aligned.model.ar, "generate", spy)
    audio = aligned.generate("Hello there.", prompt=aligned_prompt, seed=7, num_candidates=3)
    (piece,), (result,) = audio.info["pieces"], said
    assert result.gains is not None
    assert piece["scores"] == pytest.approx(result.gains.tolist(), abs=1.0)  # less what a bad length costs
    assert piece["candidate"] == max(range(3), key=lambda c: piece["scores"][c])
    assert audio.codes is not None
    assert torch.equal(audio.codes[0], result.codes[piece["candidate"]])

    model = replace(aligned.model, info=replace(aligned.model.info, num_candidates=3))
    by_default = VALLE(model).generate("Hello there.", prompt=aligned_prompt, seed=7)
    assert close(audio, by_default)


def test_candidates_of_an_aligned_model_are_chosen_by_ear(
    aligned: VALLE, aligned_prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that has not learnt to go without phonemes cannot tell what they add.
    monkeypatch.setattr(aligned.model.ar, "config", replace(aligned.model.ar.config, text_dropout=0.0))
    heard = aligned._fit_of_speech
    fits: list[float | None] = []

    def listen(piece: Piece, codes: torch.Tensor) -> float | None:
        fits.append(heard(piece, codes))
        return [-300.0, -1.0, -200.0][len(fits) - 1]

    monkeypatch.setattr(aligned, "_fit_of_speech", listen)
    audio = aligned.generate("Hello there.", prompt=aligned_prompt, seed=7, num_candidates=3)
    assert all(fit is not None and fit < 0 for fit in fits)
    assert audio.info["pieces"][0]["candidate"] == 1
    assert audio.info["pieces"][0]["scores"][2] < -100


def test_an_aligned_model_goes_on_from_a_recording(aligned: VALLE, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", voiced(4.5), 24000)
    prompt = aligned.prompt(tmp_path / "long.wav", TEXT)
    for text in ("", "Hi."):
        audio = aligned.generate(text, prompt=prompt, continual=True, seed=0)
        assert torch.equal(audio.codes[:, :225], prompt.codes[:, :225])
        assert audio.info["frames"] > 0
    n = len(prompt.phonemes)
    said = replace(prompt, durations=[225, *[0] * (n - 2), prompt.n_frames - 225])
    done = replace(prompt, durations=[0] * (n - 1) + [prompt.n_frames])
    with pytest.raises(ValleError, match="is at its end after 3 s"):
        aligned.generate("", prompt=done, continual=True, seed=0)
    assert aligned.generate("", prompt=said, continual=True, seed=0).info["frames"] > 0


def test_a_transcript_that_hardly_fits_is_a_warning(aligned: VALLE, aligned_prompt: Prompt) -> None:
    for fit, warned in ((-2.0, False), (-6.0, True)):
        audio = aligned.generate("Hi.", prompt=replace(aligned_prompt, fit=fit), seed=0)
        assert any("hardly fits" in warning for warning in audio.info["warnings"]) == warned
    assert aligned_prompt.fit is not None
    assert aligned_prompt.fit < 0


def test_what_cannot_be_aligned_is_told(
    aligned: VALLE, prompt: Prompt, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValleError, match=r"prompt me.wav is not aligned"):
        aligned.generate("Hi.", prompt=prompt)
    with pytest.raises(ValleError, match=r"prompt me.wav is not aligned"):
        aligned.generate_batch(["Hi."], prompt=[prompt])
    monkeypatch.setattr("valle.tts.MAX_PHONEMES_PER_S", 1e6)
    with pytest.raises(ValleError, match=r"me.wav cannot be aligned with its transcript: the recording has 225 frames"):
        aligned.prompt(reference, TEXT * 10)


def test_an_aligned_model_needs_its_own_aligner(aligned: VALLE, tts: VALLE, tmp_path: Path) -> None:
    m = aligned.model
    parts = {"codec": m.codec, "inventory": m.inventory, "info": m.info}
    copy = Path(shutil.copytree(m.path, tmp_path / "copy"))
    shutil.rmtree(copy / "aligner")
    with pytest.raises(ValleError, match="has no aligner"):
        load_pretrained(copy, "cpu")
    with pytest.raises(ValleError, match="has no aligner"):
        save_pretrained(tmp_path / "a", ar=m.ar, nar=m.nar, **parts)
    tiny_aligner(replace(m.inventory, version="other")).save(copy / "aligner")
    with pytest.raises(ValleError, match="its aligner is for the phoneme inventory other"):
        load_pretrained(copy, "cpu")
    with pytest.raises(ValleError, match="train both with alignment"):
        save_pretrained(tmp_path / "b", ar=tts.model.ar, nar=m.nar, aligner=m.aligner, **parts)
    # A NAR without alignment does with an AR that has it; and an aligner that nobody asks for is left out.
    save_pretrained(tmp_path / "c", ar=m.ar, nar=tts.model.nar, aligner=m.aligner, **parts)
    assert VALLE.from_pretrained(tmp_path / "c", "cpu").model.needs_aligner
    save_pretrained(tmp_path / "d", ar=tts.model.ar, nar=tts.model.nar, aligner=m.aligner, **parts)
    assert not (tmp_path / "d" / "aligner").exists()


# Texts


@pytest.mark.parametrize("text", ["", "   \n", "🙂🙂🎉", "...", "—"])
def test_texts_without_a_word_are_refused(tts: VALLE, prompt: Prompt, text: str) -> None:
    with pytest.raises(ValleError, match="give at least one word"):
        tts.generate(text, prompt=prompt)


def test_a_text_of_ten_thousand_characters_is_cut_into_pieces_within_reach(tts: VALLE, prompt: Prompt) -> None:
    text = ("It was the best of times, it was the worst of times, and 1,234,567 people came by on 12/25/2024. " * 110)[
        :10000
    ]
    pieces = tts._pieces(text, prompt, SpeakOptions(), continual=False)
    assert len(pieces) > 50
    reach = tts.model.info.max_seconds * 75
    assert all(piece.prompt.n_frames + piece.expected_frames <= reach for piece in pieces)
    said = "".join(piece.text for piece in pieces)
    assert said.count("worst of times") == text.count("worst of times")


def test_a_word_without_spaces_is_cut_too(tts: VALLE, prompt: Prompt) -> None:
    pieces = tts._pieces("a" * 2000, prompt, SpeakOptions(), continual=False)
    assert sum(piece.text.count("a") for piece in pieces) == 2000
    assert len(pieces) > 5


def test_emoji_among_words_are_passed_over(tts: VALLE, prompt: Prompt) -> None:
    (with_emoji,) = tts._pieces("Hi 🙂 there.", prompt, SpeakOptions(), continual=False)
    (without,) = tts._pieces("Hi there.", prompt, SpeakOptions(), continual=False)
    assert with_emoji.phonemes == without.phonemes


# Prompts


def test_a_recording_needs_its_transcript(tts: VALLE, reference: Path) -> None:
    for ref_text in (None, "", "  "):
        with pytest.raises(ValleError, match=r"transcript of me.wav is missing.*-s"):
            tts.generate("Hi.", reference, ref_text)
    with pytest.raises(ValleError, match="nothing that can be spoken"):
        tts.generate("Hi.", reference, "🙂")


def test_a_transcript_needs_its_recording(tts: VALLE) -> None:
    with pytest.raises(ValleError, match="no reference"):
        tts.generate("Hi.", ref_text="What I say.")


def test_a_transcript_of_another_recording_is_noticed(tts: VALLE, reference: Path) -> None:
    with pytest.raises(ValleError, match=r"more than the 3.0 s of me.wav can hold"):
        tts.generate("Hi.", reference, "This is far too much to say within so short a time as that. " * 5)


def test_only_one_voice_is_taken(tts: VALLE, prompt: Prompt, reference: Path) -> None:
    with pytest.raises(ValleError, match="give one of them"):
        tts.generate("Hi.", reference, TEXT, voice="me")
    with pytest.raises(ValleError, match="give one of them"):
        tts.generate("Hi.", reference, TEXT, prompt=prompt)
    with pytest.raises(ValleError, match="there is no voice 'me'"):
        tts.generate("Hi.", voice="me")


def test_a_voice_by_name_is_its_recording_and_transcript(tts: VALLE, prompt: Prompt, reference: Path) -> None:
    from valle.voices import add_voice, find_voice

    add_voice("me", reference, TEXT)
    named = tts.prompt(voice="me")
    assert (named.name, named.phonemes) == ("me", prompt.phonemes)
    assert torch.equal(named.codes, tts.prompt(find_voice("me").path, TEXT).codes)
    add_voice("dumb", reference)
    with pytest.raises(ValleError, match="transcript of dumb is missing"):
        tts.prompt(voice="dumb")
    assert tts.prompt(voice="dumb", ref_text=TEXT).phonemes == prompt.phonemes


def test_a_recording_may_be_an_open_file_or_audio(tts: VALLE, prompt: Prompt, reference: Path) -> None:
    for source in (io.BytesIO(reference.read_bytes()), Audio(*_read(reference))):
        assert torch.equal(tts.prompt(source, TEXT).codes, prompt.codes)


def _read(path: Path) -> tuple[torch.Tensor, int]:
    samples, rate = soundfile.read(path, dtype="float32")
    return torch.from_numpy(samples).unsqueeze(0), rate


def test_unknown_and_senseless_options(tts: VALLE, prompt: Prompt) -> None:
    with pytest.raises(TypeError, match=r"unknown option heat; known are seed, temperature"):
        tts.generate("Hi.", prompt=prompt, heat=1.0)
    for option in (
        {"top_p": 0.0},
        {"top_k": -1},
        {"num_candidates": 0},
        {"max_seconds": 0.0},
        {"lang": "xx-none"},
        {"guidance": -1.0},
        {"voice_guidance": -1.0},
        {"nar_guidance": -1.0},
    ):
        with pytest.raises(ValleError):
            tts.generate("Hi.", prompt=prompt, **option)


# Lengths, scores and joints


def piece(expected: float, limit: float = 1e9) -> Piece:
    prompt = Prompt("", torch.zeros(8, 225, dtype=torch.int64), [1] * 50, 1.0)
    return make_piece("Hi.", [1], prompt, expected_frames=expected, limit=limit, frame_rate=75)


def test_a_piece_knows_where_its_text_begins() -> None:
    prompt = Prompt("", torch.zeros(8, 9, dtype=torch.int64), [5, 6, 7], 1.0, [4, 5, 0])
    cloned = make_piece("Hi.", [5, 6, 7, 0, 1], prompt, expected_frames=9, limit=99, frame_rate=75)
    continued = make_piece("", [5, 6, 7], prompt, expected_frames=9, limit=99, frame_rate=75, keep_prompt=True)
    assert (cloned.text_start, continued.text_start) == (4, 2)


def test_the_bounds_of_the_length_follow_the_text() -> None:
    assert (piece(100).min_frames, piece(100).max_frames) == (40, 275)
    assert piece(1).min_frames == 4
    assert (piece(100, limit=20).min_frames, piece(100, limit=20).max_frames) == (20, 20)
    assert piece(100, limit=-5).max_frames == 1


def test_the_rate_of_a_reference_is_believed_within_reason() -> None:
    codes = torch.zeros(8, 300, dtype=torch.int64)
    assert Prompt("", codes, [0] * 60, 1.0).frames_per_phoneme == 5.0
    assert Prompt("", codes, [0] * 3, 1.0).frames_per_phoneme == 10.0
    assert Prompt("", codes, [0] * 300, 1.0).frames_per_phoneme == 3.0


def test_scores_prefer_an_end_and_a_plausible_length() -> None:
    good = score(piece(100), 110, "eos", -4.0)
    assert good == -4.0
    assert score(piece(100), 110, "max_frames", -4.0) < good
    assert score(piece(100), 40, "eos", -4.0) < good
    assert score(piece(100), 250, "eos", -4.0) < good
    assert score(piece(100), 110, "eos", -3.0) > good


def test_pieces_are_joined_with_pauses_and_without_clicks() -> None:
    ones = torch.ones(1, 2400)
    joined = torch.cat(list(join([([ones], 0.25), ([ones[:, :50], ones[:, 50:]], 0.1)], 24000)), dim=1)
    assert joined.shape == (1, 2400 + 6000 + 2400)
    assert (joined[0, 2400:8400] == 0).all()
    assert joined.diff().abs().max() < 0.01
    assert (joined[0, 200:2200] == 1).all()
    torch.testing.assert_close(joined[:, :2400], joined[:, 8400:])  # however it was cut into chunks
    cut = torch.cat(list(join([([ones], 0.25), ([ones], 0.1)], 24000, max_seconds=0.36)), dim=1)
    assert cut.shape == (1, 8640)
    assert cut.diff().abs().max() < 0.01


# Models


def test_weights_stored_in_half_precision_become_float32(tts: VALLE, tiny_model_dir: Path) -> None:
    from safetensors.torch import load_file

    assert {t.dtype for t in load_file(tiny_model_dir / "ar" / "model.safetensors").values()} == {torch.float16}
    for model in (tts.model.ar, tts.model.nar, tts.model.codec):
        assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}
        assert not model.training


def test_weights_are_read_as_asked(tiny_model_dir: Path) -> None:
    as_they_are = VALLE.from_pretrained(tiny_model_dir, "cpu", "fp32").model
    assert not any(getattr(m, "narrowed", None) for m in as_they_are.ar.modules())
    halved = load_pretrained(tiny_model_dir, "cpu", "fp16")
    layer, decoder = halved.ar.transformer.blocks[0].ff.up, halved.codec.get_submodule("decoder")
    assert (layer.narrowed is not None) == can_halve()
    assert any(getattr(m, "narrowed", None) for m in decoder.modules()) == can_halve()
    encoding = [m for part in halved.codec.encoding_modules() for m in part.modules()]
    assert not any(getattr(m, "narrowed", None) for m in encoding), "codes must be those of the shards"
    codes = torch.randint(0, 16, (1, 8, 20))
    torch.testing.assert_close(halved.codec.decode(codes), as_they_are.codec.decode(codes), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValleError, match="weights is 'int5'; give one of auto, fp32, fp16, int8, int4, bf16"):
        load_pretrained(tiny_model_dir, "cpu", "int5")


@pytest.mark.skipif(not can_int8(), reason="no 8-bit products on this machine")
def test_speech_in_8_bits(tiny_model_dir: Path) -> None:
    """It speaks, and what it says does not depend on what is said beside it."""
    tts = VALLE.from_pretrained(tiny_model_dir, "cpu", "int8")
    assert tts.model.ar.transformer.blocks[0].ff.up.precision == "int8"
    assert tts.model.nar.transformer.blocks[0].ff.up.precision == "int8"
    prompt = tts.prompt()
    alone = tts.generate("Hi there.", prompt=prompt, seed=3, max_seconds=1.0)
    assert alone.codes.shape[1] > 0
    together = tts.generate_batch(["Hi there.", "You and I."], prompt=prompt, seed=3, max_seconds=1.0)
    assert torch.equal(together[0].codes, alone.codes)


def test_a_model_survives_being_stored_again(tts: VALLE, tmp_path: Path) -> None:
    m = tts.model
    save_pretrained(tmp_path / "copy", ar=m.ar, nar=m.nar, codec=m.codec, inventory=m.inventory, info=m.info)
    again = load_pretrained(tmp_path / "copy", "cpu")
    assert again.info == m.info
    for name, tensor in m.ar.state_dict().items():
        torch.testing.assert_close(again.ar.state_dict()[name], tensor)


@pytest.fixture
def broken(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "broken"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_parts_that_do_not_belong_together_are_refused(broken: Path) -> None:
    edit(broken / "valle.json", codec_fingerprint="000000000000")
    with pytest.raises(ValleError, match=r"does not fit together: the codec is [0-9a-f]{12}, but 000000000000"):
        load_pretrained(broken)


def test_another_inventory_is_refused(broken: Path) -> None:
    edit(broken / "valle.json", inventory_version="ipa-0")
    with pytest.raises(ValleError, match=r"phoneme inventory is .* but ipa-0 is needed"):
        load_pretrained(broken)


def test_damaged_models_are_refused(broken: Path) -> None:
    for name in ("ar/model.safetensors", "nar/config.json", "codec/config.json", "phonemes.json", "valle.json"):
        kept = (broken / name).read_bytes()
        (broken / name).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(ValleError):
            load_pretrained(broken)
        (broken / name).unlink()
        with pytest.raises(ValleError, match=r"incomplete|is not a codec|is not a model"):
            load_pretrained(broken)
        (broken / name).write_bytes(kept)
    edit(broken / "valle.json", format=2)
    with pytest.raises(ValleError, match="format 2, this program reads 1: update"):
        load_pretrained(broken)


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValleError, match="there is no model"):
        load_pretrained(tmp_path / "missing")
    with pytest.raises(ValleError, match="there is no model"):
        load_pretrained("./missing")
    with pytest.raises(ValleError, match=r"is not a model: it has no valle\.json"):
        load_pretrained(tmp_path)
    monkeypatch.setattr(pretrained, "EMBEDDED", tmp_path)
    with pytest.raises(ValleError, match="no embedded model"):
        load_pretrained()
    with pytest.raises(ValleError, match="device 'gpu'"):
        load_pretrained(tmp_path, "gpu")


def test_a_model_from_the_hub(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def fetch(name: str, **_: object) -> str:
        asked.append(name)
        return str(tiny_model_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert load_pretrained("someone/some-model", "cpu").info.name == "tiny-random"
    assert asked == ["someone/some-model"]

    def fail(_name: str, **_: object) -> str:
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValleError, match=r"could not be fetched under that name: no route to host$"):
        load_pretrained("someone/some-model")
