"""The aligner: boundaries of a made-up language are found, and durations keep their rules whatever is given."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valle import cli
from valle.asr import Aligner
from valle.asr.aligner import HOP_LENGTH, AlignerConfig, Features
from valle.asr.train_aligner import AlignerTraining, Example, read_examples, train_aligner
from valle.audio import Audio
from valle.data.corpus import read_manifest
from valle.errors import ValleError
from valle.text import DEFAULT_INVENTORY, MARK, PAUSE, PHONE, PhonemeInventory

A, U, S = (DEFAULT_INVENTORY.encode(x)[0] for x in "aus")
SPACE, COMMA, STOP, STRESS, LONG = (DEFAULT_INVENTORY.encode(x)[0] for x in " ,.ˈː")
FREQUENCIES = {A: (300, 1500, 3100), U: (700, 2300, 4700)}


def sound(phone: int, n_frames: int, generator: torch.Generator) -> torch.Tensor:
    """A chord for a vowel, noise for s."""
    n = n_frames * HOP_LENGTH
    noise = torch.randn(n, generator=generator)
    if phone == S:
        return 0.1 * noise
    phases = torch.rand(3, generator=generator) * 6.28
    t = torch.arange(n) / 24000
    chord = sum(torch.sin(6.2832 * f * t + p) for f, p in zip(FREQUENCIES[phone], phases, strict=True))
    return 0.1 * chord + 0.003 * noise


def utterance(seed: int) -> tuple[torch.Tensor, list[int], list[int]]:
    """wav [1, N], phonemes and their durations: words of alternating sounds, now and then with silence between."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def silence(n_frames: int) -> torch.Tensor:
        return 0.001 * torch.randn(n_frames * HOP_LENGTH, generator=generator)

    waves, phonemes, durations = [silence(6)], [], []
    previous = None  # no sound follows itself, since nobody could tell where
    for word in range(3):
        if word:
            n_frames = number(8, 20) * number(0, 1)
            waves.append(silence(n_frames))
            phonemes += [COMMA, SPACE]
            durations += [n_frames, 0]
        for _ in range(number(2, 4)):
            phone = [p for p in (A, U, S) if p != previous][number(0, 1 if previous else 2)]
            n_frames = number(4, 14)
            phonemes += [STRESS, phone, LONG]
            durations += [0, n_frames, 0]
            waves.append(sound(phone, n_frames, generator))
            previous = phone
    phonemes.append(STOP)
    waves.append(silence(7))
    durations.append(7)
    durations[1] += 6  # silence before the first phone is its own
    return torch.cat(waves).unsqueeze(0), phonemes, durations


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    features = Features()
    examples = []
    for seed in range(60):
        wav, phonemes, _ = utterance(seed)
        examples.append(Example(phonemes, features(wav)))
    return train_aligner(examples, config=AlignerTraining(rounds=(4, 3), min_count=10))


def test_kinds_of_symbols() -> None:
    def of(kind: int) -> str:
        return "".join(s for s, k in zip(DEFAULT_INVENTORY.symbols, DEFAULT_INVENTORY.kinds, strict=True) if k == kind)

    assert of(PAUSE) == " .,!?;:—…"
    assert set("ˈˌːˑʰʲ˞ʼ0˥\u0303\u0361") < set(of(MARK))
    assert set("aɪʊəθʃʔǃβŋ") < set(of(PHONE))
    assert PhonemeInventory("x", ("tʃ", "ɜː", "ˈ", "|")).kinds == (PHONE, PHONE, MARK, PAUSE)


def test_boundaries_are_found_within_two_frames(aligner: Aligner) -> None:
    errors = []
    for seed in range(1000, 1020):
        wav, phonemes, expected = utterance(seed)
        durations = aligner.align(wav, phonemes).durations
        errors += (durations.cumsum(0) - torch.tensor(expected).cumsum(0)).abs().tolist()
    assert max(errors) <= 2
    assert sum(errors) / len(errors) < 0.7


def test_another_text_is_less_likely(aligner: Aligner) -> None:
    wav, phonemes, _ = utterance(2000)
    swapped = [{A: U, U: S, S: A}.get(p, p) for p in phonemes]
    assert aligner.align(wav, swapped).fit < aligner.align(wav, phonemes).fit - 1


@settings(max_examples=60, deadline=None)
@given(
    phonemes=st.lists(st.integers(0, len(DEFAULT_INVENTORY) - 1), max_size=40),
    n_samples=st.integers(1, 40000),
    level=st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_durations_keep_their_rules(aligner: Aligner, phonemes: list[int], n_samples: int, level: float) -> None:
    wav = level * torch.randn(1, n_samples, generator=torch.Generator().manual_seed(0))
    kinds = [DEFAULT_INVENTORY.kinds[p] for p in phonemes]
    n_frames = -(-n_samples // HOP_LENGTH)
    n_phones = kinds.count(PHONE)
    if not 0 < n_phones <= n_frames:
        with pytest.raises(ValleError, match="phone"):
            aligner.align(wav, phonemes)
        return
    alignment = aligner.align(wav, phonemes)
    durations = alignment.durations.tolist()
    assert alignment.durations.dtype == torch.int64
    assert len(durations) == len(phonemes)
    assert sum(durations) == n_frames
    assert torch.isfinite(torch.tensor(alignment.fit))
    in_run = first_seen = False
    for kind, n in zip(kinds, durations, strict=True):
        if kind == PHONE:
            assert n >= 1
            in_run, first_seen = False, True
        elif kind == MARK:
            assert n == 0
        else:
            if in_run or not first_seen:
                assert n == 0
            in_run = True


def test_every_id_aligns(aligner: Aligner) -> None:
    wav, _, _ = utterance(0)
    for i in range(len(DEFAULT_INVENTORY)):
        durations = aligner.align(wav, [A, i, U]).durations
        assert int(durations.sum()) == wav.shape[1] // HOP_LENGTH


def test_what_cannot_be_aligned_is_an_error(aligner: Aligner) -> None:
    wav = torch.zeros(1, 3 * HOP_LENGTH)
    assert aligner.align(wav, [A, U, S]).durations.tolist() == [1, 1, 1]
    with pytest.raises(ValleError, match="has 3 frames and its text 4 phones"):
        aligner.align(wav, [A, U, S, A])
    with pytest.raises(ValleError, match="no phone"):
        aligner.align(wav, [SPACE, STRESS])
    with pytest.raises(ValleError, match="999 is no phoneme id"):
        aligner.align(wav, [A, 999])
    with pytest.raises(ValleError, match="one channel"):
        aligner.align(wav[0], [A])


def test_a_batch_is_as_one_by_one(aligner: Aligner) -> None:
    examples = [utterance(seed) for seed in (5, 6, 7, 8)]
    features = sorted(((aligner.features(w), p) for w, p, _ in examples), key=lambda e: -len(e[0]))
    chains = [aligner.chain(p) for _, p in features]
    paths, scores, best = aligner.viterbi([x for x, _ in features], chains)
    for (x, _), chain, path, score in zip(features, chains, paths, scores, strict=True):
        (alone,), (alone_score,), _ = aligner.viterbi([x], [chain])
        assert torch.equal(path, alone)
        assert score == pytest.approx(alone_score, rel=1e-5)
    assert all(score < most for score, most in zip(scores, best, strict=True))


def test_saved_and_loaded_it_is_the_same(aligner: Aligner, tmp_path) -> None:
    aligner.save(tmp_path / "aligner")
    loaded = Aligner.load(tmp_path / "aligner")
    assert loaded.fingerprint() == aligner.fingerprint()
    assert loaded.inventory_version == DEFAULT_INVENTORY.version
    wav, phonemes, _ = utterance(3)
    a, b = aligner.align(wav, phonemes), loaded.align(wav, phonemes)
    assert torch.equal(a.durations, b.durations)
    assert a.fit == b.fit
    other = Aligner(AlignerConfig("ipa-1", DEFAULT_INVENTORY.kinds, 3))
    assert other.fingerprint() != aligner.fingerprint()


def test_another_folder_is_refused(aligner: Aligner, tmp_path) -> None:
    with pytest.raises(ValleError, match="is not an aligner"):
        Aligner.load(tmp_path / "nothing")
    aligner.save(tmp_path)
    config = tmp_path / "config.json"
    good = config.read_text()
    for bad in ("{", "[]", json.dumps({**json.loads(good), "n_units": 1}), json.dumps({"kind": "codec"})):
        config.write_text(bad)
        with pytest.raises(ValleError, match="is not an aligner"):
            Aligner.load(tmp_path)
    config.write_text(good)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValleError, match="is not an aligner"):
        Aligner.load(tmp_path)


def test_training_needs_something_to_learn_from() -> None:
    with pytest.raises(ValleError, match="none of the 1 utterances"):
        train_aligner([Example([A, U], torch.zeros(1, 39))])


def test_the_commands(tmp_path, capsys) -> None:
    lines = []
    for seed in range(6):
        wav, _, _ = utterance(seed)
        Audio(wav, 24000).save(tmp_path / f"{seed}.wav")
        record = {"id": f"u{seed}", "path": f"{seed}.wav", "seconds": wav.shape[1] / 24000, "split": "train"}
        lines.append(json.dumps({**record, "text": None if seed == 5 else "Ah, saw us."}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    assert len(read_examples(read_manifest(tmp_path))) == 5
    out = tmp_path / "aligner"
    assert cli.main(["asr", "train-aligner", str(tmp_path), "--out", str(out), "--max-hours", "1"]) == 0
    assert "round 18/18" in capsys.readouterr().err
    arguments = ["asr", "align", str(tmp_path / "0.wav"), "--text", "Ah, saw us.", "--aligner", str(out)]
    assert cli.main(arguments) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0][1] == "0.000"
    assert all(a[2] == b[1] for a, b in itertools.pairwise(rows))
    assert cli.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [s["symbol"] for s in report["symbols"]] == [row[0] for row in rows]
    assert cli.main([*arguments[:-1], str(tmp_path)]) == 2
    assert "is not an aligner" in capsys.readouterr().err
