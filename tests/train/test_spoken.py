"""Judged by ear while it trains: the same sentences each time, honest numbers, and not one bit of the run changed."""

import dataclasses
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_loop import config_file, last_tensors, log

from valle.data.pack import Pack
from valle.errors import ValleError
from valle.eval.judges import Judges
from valle.train.config import SpokenConfig, load_train_config
from valle.train.loop import Trainer, main
from valle.train.pictures import BANDS, ROWS, picture, stacked
from valle.train.spoken import SpokenEvaluation, is_kept, known_texts, load_spoken_judges
from valle.train.tasks import Speech, pair_to_speak, pairs_to_speak

TRAIN, DEV = [30, 41, 38, 55], [31, 34, 36, 38, 12, 40, 43]
TEXTS = {
    f"dev{i}": f"number {word} it is" for i, word in enumerate(["no", "one", "two", "three", "four", "five", "six"])
}
OPTIONS = {"samples": False}


@pytest.fixture(autouse=True)
def short_sentences(monkeypatch):
    """Otherwise 2 to 6 s, of which most of the time here would be spent."""
    monkeypatch.setattr("valle.train.tasks.SPOKEN_PROMPT_S", (0.4, 0.8))


class FakeCodec:
    """A wave whose level tells codebook 1, and whose length tells how many codebooks were decoded."""

    sample_rate = 24000

    def decode(self, codes):
        wav = (codes[:, :1].float() + 1).repeat_interleave(320, dim=2) / 1100  # [1, 1, N]
        return torch.nn.functional.pad(wav, (0, codes.shape[1]))


class FakeRecogniser:
    """Understands what the recordings say, and one word too many in anything else; draws from every global source."""

    def __init__(self):
        self.known = {}
        self.n_heard = 0

    def transcribe(self, wav):
        torch.rand(3), random.random(), np.random.rand(2)  # noqa: NPY002
        self.n_heard += 1
        return self.known.get(len(wav), "number it is")


class FakeSpeaker:
    def embed(self, wav, sample_rate):
        return np.array([len(wav) % 320, 8], np.float32)  # whether all codebooks were there


@pytest.fixture
def judges(monkeypatch):
    """Judges that need no package; the recogniser is returned."""
    recogniser = FakeRecogniser()
    fakes = Judges(recogniser, FakeSpeaker(), {"recogniser": "ear", "speaker": "nose"})
    monkeypatch.setattr("valle.train.spoken.load_spoken_judges", lambda config, device: fakes)
    monkeypatch.setattr(Trainer, "_load_codec", lambda self: FakeCodec())
    return recogniser


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in TEXTS.items()))
    return path


def with_spoken(path: Path, **spoken) -> Path:
    """The same configuration with a table [spoken], in another file."""
    lines = ["[spoken]", *(f"{key} = {json.dumps(value)}" for key, value in spoken.items())]
    other = path.with_name("spoken.toml")
    other.write_text(path.read_text() + "\n" + "\n".join(lines))
    return other


def run(kind: str, config: Path, out: Path) -> Path:
    trainer = Trainer(kind, load_train_config(config), out / kind)
    trainer.start(resume=False)
    trainer.run()
    return out / kind


def spoken_events(folder: Path) -> list[dict]:
    return [e for e in log(folder) if any(name.startswith("spoken") for name in e)]


@pytest.mark.parametrize("kind", ["ar", "nar"])
@pytest.mark.parametrize("alignment", [False, True])
def test_a_run_has_the_same_weights_with_it_and_without(kind, alignment, tmp_path, make_pack, judges, texts):
    pack = make_pack({"train": TRAIN, "dev": DEV}, aligned=alignment)
    config = config_file(tmp_path, pack, alignment=alignment, max_steps=4, eval_every=2, **OPTIONS)
    without = run(kind, config, tmp_path / "without")
    heard = run(kind, with_spoken(config, every=1, n=3, whisper="w", texts=[str(texts)]), tmp_path / "heard")
    assert [e["step"] for e in spoken_events(heard)] == [1, 2, 3, 4]
    a, b = last_tensors(without), last_tensors(heard)
    assert a.keys() == b.keys()
    assert any(name.startswith("average/") for name in a)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
    losses = [[e["train/loss"] for e in log(r) if "train/loss" in e] for r in (without, heard)]
    assert losses[0] == losses[1]


def test_what_an_ar_says_alone_and_with_a_nar(tmp_path, make_pack, judges, texts):
    pack = make_pack({"train": TRAIN, "dev": DEV})
    options = {"every": 2, "n": 4, "whisper": "w", "texts": [str(texts)]}
    config = with_spoken(config_file(tmp_path, pack, max_steps=3, eval_every=3, **OPTIONS), **options)
    out = tmp_path / "runs"
    alone = spoken_events(run("ar", config, out))
    assert [e["step"] for e in alone] == [2, 3]  # and at the end
    names = {name.partition("/")[0] for event in alone for name in event} - {"step", "time"}
    assert names == {"spoken_codebook_1"}
    samples = {path.name for path in (out / "ar" / "samples").iterdir()}
    assert {f"spoken_codebook_1-{i:02d}-00000003.wav" for i in range(1, 5)} <= samples
    assert sum(name.startswith("spoken_recordings-") for name in samples) == 4  # once

    board = EventAccumulator(str(out / "ar" / "tensorboard")).Reload().Tags()
    shown = {f"spoken_codebook_1/{i:02d}" for i in range(1, 5)}
    assert shown <= set(board["images"])
    assert shown | {f"spoken_recordings/{i:02d}" for i in range(1, 5)} == set(board["audio"])
    assert {f"spoken_codebook_1/wer{end}" for end in ("", "_low", "_high")} <= set(board["scalars"])
    assert "spoken_codebook_1/words/text_summary" in board["tensors"]

    run("nar", config, out)
    (nar, _) = spoken_events(out / "nar")
    assert not {"spoken/length", "spoken/unfinished"} & nar.keys()  # they are the recording's
    assert 0 <= nar["spoken/wer_low"] <= nar["spoken/wer"] <= nar["spoken/wer_high"]

    whole = spoken_events(run("ar", config, tmp_path / "again"))  # that folder has no NAR
    assert "spoken_codebook_1/wer" in whole[0]
    config.write_text(config.read_text() + f'\npartner = "{out / "nar" / "best"}"')
    for event in spoken_events(run("ar", config, tmp_path / "third")):
        assert {"spoken/length", "spoken/unfinished", "spoken/floor_wer", "spoken/floor_sim_r"} <= event.keys()
        assert 0 < event["spoken/length"] <= 2


def test_the_numbers_are_those_of_the_judges(tmp_path, make_pack, judges, texts):
    pack = make_pack({"train": TRAIN, "dev": DEV})
    config = with_spoken(
        config_file(tmp_path, pack, max_steps=1, **OPTIONS), every=1, n=5, whisper="w", texts=[str(texts)]
    )
    trainer = Trainer("ar", load_train_config(config), tmp_path / "runs" / "ar")
    spoken = trainer.spoken
    assert isinstance(spoken, SpokenEvaluation)
    assert len({text for _, text in spoken.pairs}) == 5
    # Recordings are understood, whatever else is not; lengths at 16 kHz tell them apart.
    lengths = {text: (int(spoken.dev.n_frames[text]) * 320 + 1) * 2 // 3 for _, text in spoken.pairs}
    judges.known = {n + d: TEXTS[spoken.dev.ids[text]] for text, n in lengths.items() for d in (-1, 0, 1)}
    said = [Speech(torch.zeros(1, 30, dtype=torch.int64), unfinished=i == 0) for i in range(4)]
    said.append(Speech(torch.zeros(1, 0, dtype=torch.int64)))  # ended before it began
    spoken.task.say = lambda split, pairs, device, other, sampling: said
    trainer.start(resume=False)
    with trainer._tracker() as tracker:
        spoken.run(1, tracker, spoken.task)
        spoken.run(2, tracker, spoken.task)
    first, second = ({k.partition("/")[2]: v for k, v in e.items()} for e in log(tmp_path / "runs" / "ar"))
    assert first["floor_wer"] == second["floor_wer"] == 0
    # Four sentences of four words lack one, the empty one lacks all.
    assert first["wer"] == pytest.approx((4 * 1 + 4) / 20)
    assert first["wer_low"] < first["wer"] < first["wer_high"]
    assert first["unfinished"] == pytest.approx(1 / 5)
    expected = sum(30 / int(spoken.dev.n_frames[text]) for _, text in spoken.pairs[:4]) / 5
    assert first["length"] == pytest.approx(expected)
    # Prompts are decoded with all codebooks, speech and recordings here with one.
    angle = np.array([1, 8]) @ np.array([8, 8]) / np.hypot(1, 8) / np.hypot(8, 8)
    assert first["sim_r"] == first["floor_sim_r"] == pytest.approx(angle)
    assert judges.n_heard == 5 + 2 * 4  # the recordings once, silence never
    assert not list((tmp_path / "runs" / "ar" / "samples").glob("spoken_codebook_1-05-*"))
    due = SpokenConfig(every=3).due
    assert [due(0), due(2), due(3), due(2, is_done=True), SpokenConfig().due(3)] == [False, False, True, True, False]


def test_a_failure_is_noted_and_the_run_goes_on(tmp_path, make_pack, judges, texts, monkeypatch, capsys):
    pack = make_pack({"train": TRAIN, "dev": DEV})
    config = with_spoken(config_file(tmp_path, pack, max_steps=2, **OPTIONS), every=1, whisper="w", texts=[str(texts)])
    monkeypatch.setattr(FakeRecogniser, "transcribe", lambda self, wav: 1 / 0)
    folder = run("ar", config, tmp_path / "runs")
    assert (folder / "best").is_dir()
    assert "judging by ear broke off at step 2: division by zero" in capsys.readouterr().err


def test_the_average_speaks_and_the_pause_does_not_count_as_slowness(tmp_path, make_pack, judges, texts, monkeypatch):
    pack = make_pack({"train": TRAIN, "dev": DEV})
    config = with_spoken(
        config_file(tmp_path, pack, max_steps=4, eval_every=100, log_every=2, **OPTIONS),
        every=1,
        whisper="w",
        texts=[str(texts)],
    )
    clock = [0.0]
    monkeypatch.setattr("valle.train.throughput.time.monotonic", lambda: clock[0])
    trainer = Trainer("nar", load_train_config(config), tmp_path / "runs" / "nar")
    trainer.start(resume=False)
    step, hear = trainer.train_step, trainer.spoken.run

    def slow_step(means):
        clock[0] += 1
        return step(means)

    def slow_run(step, tracker, task):
        assert all(torch.equal(p, trainer.average.weights[name]) for name, p in trainer.model.named_parameters())
        hear(step, tracker, task)
        clock[0] += 1000

    monkeypatch.setattr(trainer, "train_step", slow_step)
    monkeypatch.setattr(trainer.spoken, "run", slow_run)
    trainer.run()
    rates = [e["train/tokens_per_s"] for e in log(tmp_path / "runs" / "nar") if "train/tokens_per_s" in e]
    assert len(rates) == 2
    assert not all(torch.equal(p, trainer.average.weights[name]) for name, p in trainer.model.named_parameters())
    assert min(rates) > 20


def test_pairs_are_of_one_speaker_each_in_turn_and_always_the_same(make_pack):
    dev = Pack(make_pack({"train": [40], "dev": [31, 34, 36, 38, 12, 90, 42, 44, 46]}, n_speakers=3)).split("dev")
    pairs = pairs_to_speak(dev, 100, 1)
    assert len(pairs) == len({text for _, text in pairs}) == 7  # one is too short, one too long
    for voice, text in pairs:
        assert voice != text
        assert dev.speakers[voice] == dev.speakers[text]
    assert len({int(dev.speakers[text]) for _, text in pairs[:3]}) == 3
    assert pairs_to_speak(dev, 4, 1) == pairs[:4]
    assert any(pairs_to_speak(dev, 4, seed) != pairs[:4] for seed in range(2, 6))
    assert {dev.ids[text] for _, text in pairs_to_speak(dev, 9, 1, texts={"dev0", "dev3", "dev4"})} == {"dev0", "dev3"}
    assert pair_to_speak(dev) == (0, 3)
    alone = dataclasses.replace(dev.info, frame_rate=30.0)
    dev.info = alone  # all of them are too long now
    assert pairs_to_speak(dev, 4, 1) == []
    assert pair_to_speak(dev) is None


@pytest.mark.parametrize("alignment", [False, True])
@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_many_sentences_at_once_are_those_said_alone(kind, alignment, tmp_path, make_pack):
    pack = make_pack({"train": TRAIN, "dev": DEV}, aligned=alignment)
    config = load_train_config(config_file(tmp_path, pack, alignment=alignment, **OPTIONS))
    trainer, nar = (Trainer(k, config, tmp_path / k) for k in (kind, "nar"))
    other = nar.model.eval() if kind == "ar" else None
    trainer.model.eval()
    pairs = pairs_to_speak(trainer.dev, 4, 0)
    with torch.no_grad():
        together = trainer.task.say(trainer.dev, pairs, trainer.device, other)
        for pair, speech in zip(pairs, together, strict=True):
            (alone,) = trainer.task.say(trainer.dev, [pair], trainer.device, other)
            assert speech.codes.shape[0] == 8
            assert torch.equal(speech.codes, alone.codes)
            assert speech.unfinished == alone.unfinished
            if kind == "ar" and alignment:
                assert torch.equal(speech.path, alone.path)
                assert 0 <= int(speech.path.min()) <= int(speech.path.max()) < trainer.dev.n_phonemes[pair[1]]
    lengths = {speech.codes.shape[1] for speech in together}
    assert len(lengths) > 1


def test_what_is_missing_is_told_before_anything_is_trained(tmp_path, make_pack, monkeypatch, texts):
    pack = make_pack({"train": TRAIN, "dev": DEV})
    plain = config_file(tmp_path, pack, **OPTIONS)

    def refused(match: str, **spoken) -> None:
        with pytest.raises(ValleError, match=match) as caught:
            Trainer("ar", load_train_config(with_spoken(plain, every=5, **spoken)), tmp_path / "runs" / "ar")
        assert "\n" not in str(caught.value)

    refused("no codec is named; give as codec")
    monkeypatch.setattr(Trainer, "_load_codec", lambda self: FakeCodec())
    refused("as spoken.speaker an ONNX file", speaker="nowhere.onnx")
    monkeypatch.setattr("valle.eval.judges._load_recogniser", lambda *args: (FakeRecogniser(), "ear"))
    monkeypatch.setattr("valle.data.sources.need", lambda *args: None)
    refused(r"nothing tells what the utterances of dev say; give as spoken\.texts", whisper="base")
    (tmp_path / "wrong.jsonl").write_text('{"id": "other", "text": "Hello."}\n')
    refused(r"wrong\.jsonl tells of none of the", whisper="base", texts=[str(tmp_path / "wrong.jsonl")])
    refused("guidance is 2, but this model has not learnt", guidance=2.0)
    refused("is no NAR model", partner=str(tmp_path))
    refused("temperature is -1", temperature=-1.0)
    plain = config_file(tmp_path, make_pack({"train": TRAIN, "dev": [20, 25]}, name="short"), **OPTIONS)
    refused("no two utterances of one speaker between 2 and 6 s; use a larger")
    with pytest.raises(ValleError, match=r"spoken\.n 0"):
        SpokenConfig(n=0)
    assert not (tmp_path / "runs").exists()


def test_packages_that_are_missing_are_named(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("importlib.import_module", absent)
    for spoken, package in (
        (SpokenConfig(whisper="base"), "faster_whisper"),
        (SpokenConfig(speaker="voices.onnx"), "onnxruntime"),
        (SpokenConfig(speaker="wavlm:folder"), "transformers"),
    ):
        with pytest.raises(ValleError, match=rf"Python package {package}, .* pip install 'valle\[eval\]'"):
            load_spoken_judges(spoken, torch.device("cpu"))
    assert load_spoken_judges(SpokenConfig(every=1), torch.device("cpu")) is None


def test_a_partner_of_another_pack_is_refused(tmp_path, make_pack, judges, texts):
    pack = make_pack({"train": TRAIN, "dev": DEV})
    config = config_file(tmp_path, pack, max_steps=1, **OPTIONS)
    best = run("nar", config, tmp_path / "runs") / "best"
    other = make_pack({"train": TRAIN, "dev": DEV}, name="other", fingerprint="0ther")
    config = with_spoken(config_file(tmp_path, other, max_steps=1, **OPTIONS), every=1, partner=str(best))
    with pytest.raises(ValleError, match="its codec is c0dec, but 0ther is needed"):
        Trainer("ar", load_train_config(config), tmp_path / "runs" / "ar")


def test_a_partner_with_alignment_needs_an_ar_with_it(tmp_path, make_pack, judges, texts):
    pack = make_pack({"train": TRAIN, "dev": DEV}, aligned=True)
    best = run("nar", config_file(tmp_path, pack, max_steps=1, alignment=True, **OPTIONS), tmp_path / "runs") / "best"
    config = config_file(tmp_path, pack, max_steps=1, **OPTIONS)
    with pytest.raises(ValleError, match="an AR without alignment does not tell"):
        Trainer("ar", load_train_config(with_spoken(config, every=1, partner=str(best))), tmp_path / "new" / "ar")
    # Where it is only the other run's, the AR is heard alone.
    events = spoken_events(run("ar", with_spoken(config, every=1, n=2), tmp_path / "runs"))
    assert "spoken_codebook_1/length" in events[0]


def test_texts_come_from_the_pack_from_files_and_from_sources(tmp_path, reference):
    pack = tmp_path / "pack"
    pack.mkdir()
    assert known_texts([], pack) == {}
    (pack / "transcripts.jsonl").write_text('{"id": "a", "text": "heard"}\n{"id": "b", "text": "also"}\n')
    manifest = tmp_path / "manifest.jsonl"
    line = {"id": "b", "path": str(reference), "dataset": "d", "speaker": "s", "lang": "en", "seconds": 3.0}
    manifest.write_text(json.dumps(line | {"text": "written", "split": "dev", "licence": "x", "synthetic": False}))
    assert known_texts([str(manifest)], pack) == {"a": "heard", "b": "written"}
    reference.with_suffix(".txt").write_text("Beside it.")
    assert "Beside it." in known_texts([f"folder:{reference.parent}"], pack).values()
    with pytest.raises(ValleError, match="nowhere"):
        known_texts(["nowhere"], pack)


def test_the_disk_grows_with_the_logarithm():
    kept = [number for number in range(1, 10_001) if is_kept(number)]
    assert kept[:16] == list(range(1, 17))
    assert len(kept) < 100
    assert all(b / a <= 1.13 for a, b in pairwise(kept[15:]))


def test_pictures_show_the_sound_and_the_path():
    t = torch.arange(24000) / 24000
    low, high = (torch.sin(2 * torch.pi * f * t) * 0.5 for f in (200, 6000))
    pictures = [picture(wav, 24000, 320) for wav in (low, high)]
    assert pictures[0].shape == (BANDS * ROWS, 76, 3)
    brightest = [int(p.float().sum((1, 2)).argmax()) for p in pictures]
    assert brightest[0] > 130 > 60 > brightest[1]
    drawn = picture(low, 24000, 320, torch.arange(75) // 5, 15)
    is_path = (drawn != pictures[0]).any(-1)  # [H, W]
    assert is_path.sum() == 2 * 75
    rows = is_path[:, :75].float().argmax(0)
    assert rows[0] == BANDS * ROWS - 2
    assert rows[-1] == 0
    assert bool((rows.diff() <= 0).all())
    assert picture(low[:100], 24000, 320).shape == (BANDS * ROWS, 1, 3)
    assert stacked([drawn, picture(low[:100], 24000, 320)]).shape[1:] == (76, 3)


def test_help_tells_of_it(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "[spoken]" in capsys.readouterr().out
