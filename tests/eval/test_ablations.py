"""The ablation table: what each row is told, rows of NARs that are given, and the table by the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_helpers import FakeRecogniser, judges, write_corpus

from valle.data.corpus import read_manifest
from valle.errors import ValleError
from valle.eval import report
from valle.eval.ablations import ALL_CODES, FIRST_CODES, NamedNAR, PromptlessAR, complete, load_nars, measure_ablations
from valle.eval.journal import Journal
from valle.eval.trials import draw_trials
from valle.model.ar import AR
from valle.model.nar import NAR, NARConfig
from valle.model.sampling import SamplingConfig
from valle.pieces import Prompt
from valle.pretrained import load_pretrained, save_pretrained
from valle.tts import VALLE


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"ann": [1.6, 2.0], "bob": [1.7, 1.9]})


@pytest.fixture
def tts(tiny_model_dir: Path) -> VALLE:
    return VALLE(load_pretrained(tiny_model_dir, "cpu"))


def nar_that_reads(tts: VALLE, prompts: str, seed: int = 1, **config: Any) -> NAR:
    torch.manual_seed(seed)
    return NAR(replace(tts.model.nar.config, prompts=prompts, **config)).eval()


def voice(tts: VALLE, seed: int, n_frames: int = 80) -> Prompt:
    codes = torch.randint(0, 1024, (8, n_frames), generator=torch.Generator().manual_seed(seed))
    return Prompt("v", codes, tts.model.inventory.encode(list("hɛloʊ")), 1.0)


def test_what_a_nar_is_told(tts: VALLE) -> None:
    prompt, other, target = voice(tts, 0), voice(tts, 1), voice(tts, 2, 30)
    nar = nar_that_reads(tts, "both")

    def codes(prompt: Prompt, withheld: Any = "", nar: NAR = nar) -> torch.Tensor:
        return complete(tts.model, nar, prompt, target, withheld=withheld)

    told = codes(prompt)
    assert told.shape == (8, 30)
    assert torch.equal(told[0], target.codes[0])  # codebook 1 is the recording's
    assert not torch.equal(told, codes(other))
    assert torch.equal(codes(prompt, "prompt"), codes(other, "prompt"))
    assert not torch.equal(codes(prompt, "prompt"), told)
    rephrased = replace(prompt, phonemes=prompt.phonemes[::-1])
    assert torch.equal(codes(prompt, "phonemes"), codes(rephrased, "phonemes"))
    assert not torch.equal(codes(rephrased), told)
    # A NAR that was trained without a prompt hears none either.
    for reads in ("phonemes", "none"):
        nar = nar_that_reads(tts, reads)
        assert torch.equal(codes(prompt, nar=nar), codes(other, nar=nar))


def test_the_recordings_answers_are_not_told(tts: VALLE) -> None:
    target = voice(tts, 2, 30)
    changed = replace(target, codes=torch.cat([target.codes[:1], target.codes[1:] * 0]))
    a, b = (complete(tts.model, tts.model.nar, voice(tts, 0), t) for t in (target, changed))
    assert torch.equal(a, b)


@pytest.mark.parametrize("alignment", [False, True])
def test_an_ar_without_prompt_is_told_the_text_alone(tts: VALLE, alignment: bool) -> None:
    config = replace(
        tts.model.ar.config, alignment=alignment, phoneme_kinds=tts.model.inventory.kinds if alignment else ()
    )
    torch.manual_seed(0)
    ar = AR(config).eval()
    bare = PromptlessAR(ar)
    text, transcripts = [20, 21, 30, 22], ([23, 24, 0], [25, 26, 27, 28, 0])
    options: dict[str, Any] = {"sampling": SamplingConfig(temperature=0.8), "max_frames": 12}

    def generators(n: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(7) for _ in range(n)]

    rows = [torch.tensor(t + text) for t in transcripts]
    phonemes = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lens = torch.tensor([len(r) for r in rows])
    prompt = torch.randint(0, 1024, (2, 6))
    durations = torch.zeros_like(phonemes)
    durations[:, 0] = 6
    told = bare.generate(
        phonemes, lens, prompt, torch.tensor([6, 6]), durations if alignment else None,
        text_starts=torch.tensor([3, 5]), candidates=2, generators=generators(4), **options,
    )  # fmt: skip
    alone = ar.generate(
        torch.tensor([text]), torch.tensor([4]), torch.zeros(1, 0, dtype=torch.int64), torch.tensor([0]),
        torch.zeros(1, 4, dtype=torch.int64) if alignment else None, generators=generators(1), **options,
    )  # fmt: skip
    assert len(told.codes) == 4
    for codes in told.codes:  # whatever was said before
        assert torch.equal(codes, alone.codes[0])
    if alignment:
        assert told.index is not None
        assert alone.index is not None
        for row, start in enumerate([3, 3, 5, 5]):
            assert torch.equal(told.index[row], alone.index[0] + start)  # places in all of the phonemes


def test_rows_stand_where_their_training_puts_them(tts: VALLE, manifest: Path, tmp_path: Path) -> None:
    trials = draw_trials(read_manifest(manifest), 2, folder=manifest.parent, seed=0)
    nars = [
        NamedNAR("deaf", nar_that_reads(tts, "phonemes"), "d1"),
        NamedNAR("blind", nar_that_reads(tts, "none"), "d2"),
    ]
    recogniser = FakeRecogniser(default="nothing")

    def measure(nars: list[NamedNAR]) -> tuple[dict[str, Any], str]:
        journal = Journal(tmp_path / "j.jsonl", {})
        return measure_ablations(
            tts, nars, trials, manifest.parent, judges(recogniser), journal, wavs=tmp_path / "wavs"
        )

    results, text = measure(nars)
    assert list(results["tables"]["nar"]) == [
        "recording",
        ALL_CODES,
        FIRST_CODES,
        "NAR, no prompt (blind)",
        "same model, phonemes withheld (tiny-random)",
        "NAR, phonemes alone (deaf)",
        "same model, acoustic prompt withheld (tiny-random)",
        "NAR, both prompts (tiny-random)",
    ]
    rows = results["tables"]["nar"]
    assert (rows["NAR, no prompt (blind)"]["paper_wer"], rows["NAR, no prompt (blind)"]["paper_spk"]) == (0.196, 0.518)
    assert rows["same model, acoustic prompt withheld (tiny-random)"]["paper_wer"] is None
    assert rows["NAR, both prompts (tiny-random)"]["sim_r"].n == 2
    ar = results["tables"]["ar"]
    assert list(ar) == ["AR, with the acoustic prompt (tiny-random)", "AR, without the acoustic prompt (tiny-random)"]
    assert [row["paper_spk"] for row in ar.values()] == [0.585, 0.236]
    assert "compare rows with each other" in text
    assert results["nars"]["deaf"] == {"digest": "d1", "prompts": "phonemes"}
    heard = recogniser.n_calls
    again, text = measure([])  # nothing is measured twice, and what is missing is told
    assert recogniser.n_calls == heard
    assert again["tables"]["nar"]["NAR, no prompt (none was given)"] == {"paper_wer": 0.196, "paper_spk": 0.518}
    assert again["tables"]["ar"] == ar


def test_command_with_a_nar_of_elsewhere(tts: VALLE, manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = tts.model
    save_pretrained(
        tmp_path / "deaf", ar=model.ar, nar=nar_that_reads(tts, "phonemes"), codec=model.codec,
        inventory=model.inventory, info=model.info,
    )  # fmt: skip
    argv = ["ablations", "--model", str(tiny_model_dir), "--nar", f"deaf={tmp_path / 'deaf'}", "--device", "cpu"]
    argv += ["--manifest", str(manifest), "--whisper", "none", "--speaker", "none", "--n", "1", "--listen", "1"]
    assert report.main([*argv, "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["nars"]["deaf"]["prompts"] == "phonemes"
    assert "NAR, phonemes alone (deaf)" in results["tables"]["nar"]
    assert len(list((tmp_path / "out" / "wavs").iterdir())) == 8
    text = (tmp_path / "out" / "report.md").read_text()
    assert str(tmp_path.parent) not in text


def test_wrong_nars(tts: VALLE, tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValleError, match="give name=folder"):
        load_nars(["runs/nar"], tts.model)
    with pytest.raises(ValleError, match="another NAR has that name"):
        load_nars([f"tiny-random={tiny_model_dir}"], tts.model)
    with pytest.raises(ValleError, match="holds no best weights"):
        load_nars([f"a={tmp_path}"], tts.model)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "training.json").write_text(json.dumps({"codec_fingerprint": "another"}))
    with pytest.raises(ValleError, match="trained with the codec fingerprint another"):
        load_nars([f"a={tmp_path}"], tts.model)
    assert NARConfig(n_phonemes=1).prompts == "both"
