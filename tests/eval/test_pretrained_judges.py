"""The paper's judges by their real path: small random networks of the same classes, saved to folders and read again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_helpers import speechlike
from safetensors.torch import load_file, save_file

from valle.errors import ValleError
from valle.eval import pretrained_judges
from valle.eval.judges import load_judges
from valle.eval.pretrained_judges import EmotionClassifier, HubertRecogniser, WavLMSpeaker
from valle.eval.results import printable_command

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
}
SYMBOLS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHR")


def extractor() -> object:
    return transformers.Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16000, do_normalize=True, return_attention_mask=True
    )


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HubertForCTC that writes one symbol a frame, by the seed."""
    folder = tmp_path_factory.mktemp("judges") / "hubert-tiny"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(SYMBOLS)}))
    torch.manual_seed(0)
    model = transformers.HubertForCTC(transformers.HubertConfig(vocab_size=len(SYMBOLS), **SMALL))
    with torch.no_grad():
        model.lm_head.weight *= 30  # so that it does not say the same at every frame
    model.save_pretrained(folder)
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    transformers.Wav2Vec2Processor(extractor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges") / "wavlm-tiny"
    torch.manual_seed(0)
    config = transformers.WavLMConfig(tdnn_dim=(16, 16, 16, 16, 24), xvector_output_dim=12, **SMALL)
    transformers.WavLMForXVector(config).save_pretrained(folder)
    extractor().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


def test_hubert_writes_what_its_symbols_say(hubert: Path) -> None:
    recogniser = HubertRecogniser(str(hubert))
    wav = speechlike(1.0, rate=16000)
    heard = recogniser.transcribe(wav)
    # By hand: repeated symbols are one, the blank (<pad>) is none, | parts words.
    model = transformers.HubertForCTC.from_pretrained(hubert).eval()
    scaled = (wav - wav.mean()) / np.sqrt(wav.var() + 1e-7)
    with torch.no_grad():
        ids = model(torch.from_numpy(scaled)[None]).logits.argmax(-1)[0].tolist()
    merged = [i for n, i in enumerate(ids) if n == 0 or ids[n - 1] != i]
    spelt = "".join(SYMBOLS[i] for i in merged if i != 0).replace("|", " ").replace("<unk>", "[UNK]")
    special = ("<s>", "</s>", "<unk>", "[UNK]")
    assert heard
    assert "".join(c for c in heard if c in "ETAOINSHR") == "".join(
        c for c in _without(spelt, special) if c in "ETAOINSHR"
    )
    assert recogniser.transcribe(wav) == heard
    assert isinstance(recogniser.transcribe(wav[:10]), str)  # shorter than one frame


def _without(text: str, parts: tuple[str, ...]) -> str:
    for part in parts:
        text = text.replace(part, "")
    return text


def test_wavlm_gives_unit_vectors_whatever_the_rate(wavlm: Path) -> None:
    network = WavLMSpeaker(str(wavlm))
    a, b = network.embed(speechlike(1.0), 24000), network.embed(speechlike(1.0, rate=16000), 16000)
    assert a.shape == (12,)
    assert a.dtype == np.float32
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5)
    assert float(a @ b) > 0.9
    assert np.isfinite(network.embed(speechlike(0.4, rate=16000), 16000)).all()
    with pytest.raises(ValleError, match=r"0\.39 s; at least 0\.4 s"):
        network.embed(speechlike(0.39, rate=16000), 16000)


def test_both_by_the_options(hubert: Path, wavlm: Path) -> None:
    judges = load_judges(None, f"wavlm:{wavlm}", recogniser=f"hubert:{hubert}", device="cpu")
    assert judges.names["recogniser"].startswith("hubert-tiny (HuBERT, CTC, greedy, ")
    assert judges.names["speaker"].startswith("wavlm-tiny (WavLM, x-vector, ")
    wav = speechlike(1.0)
    counted = judges.words(wav, 24000, "the text")
    assert counted is not None
    assert counted["words"] == 2
    assert judges.voice(wav, 24000) is not None
    assert judges.voice(wav[:1000], 24000) is None
    again = load_judges(None, f"wavlm:{wavlm}", recogniser=f"hubert:{hubert}", device="cpu")
    assert again.names == judges.names


def test_digest_is_of_the_weights(wavlm: Path, tmp_path: Path) -> None:
    other = copy(wavlm, tmp_path)
    torch.manual_seed(1)
    config = transformers.WavLMConfig.from_pretrained(wavlm)
    transformers.WavLMForXVector(config).save_pretrained(other)
    names = [load_judges("none", f"wavlm:{folder}").names["speaker"] for folder in (wavlm, other)]
    assert names[0] != names[1]


def test_a_network_without_its_head_does_not_judge(wavlm: Path, hubert: Path, tmp_path: Path) -> None:
    # transformers would draw the missing weights at random and only warn.
    for folder, cls, judge in ((hubert, "HubertModel", HubertRecogniser), (wavlm, "WavLMModel", WavLMSpeaker)):
        bare = copy(folder, tmp_path)
        config = getattr(transformers, cls).config_class.from_pretrained(folder)
        getattr(transformers, cls)(config).save_pretrained(bare)
        with pytest.raises(ValleError, match=r"lacks \d+ weights of .* it was not trained to judge"):
            judge(str(bare))


def test_pickles_are_not_read(hubert: Path, tmp_path: Path) -> None:
    folder = copy(hubert, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValleError, match=r"no weights as safetensors.*not read; convert it once, python -c"):
        HubertRecogniser(str(folder))


def test_wrong_models_are_named(hubert: Path, wavlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValleError, match=r"type wavlm; one of the type hubert \(HubertForCTC\) is needed"):
        HubertRecogniser(str(wavlm))
    with pytest.raises(ValleError, match=r"there is no folder .*nowhere; give --speaker wavlm: the folder"):
        WavLMSpeaker(str(tmp_path / "nowhere"))
    with pytest.raises(ValleError, match=r"no config\.json"):
        WavLMSpeaker(str(tmp_path))
    damaged = copy(wavlm, tmp_path)
    config = (damaged / "config.json").read_text()
    (damaged / "config.json").write_text("{")
    with pytest.raises(ValleError, match=r"config\.json is not one of a model of transformers"):
        WavLMSpeaker(str(damaged))
    (damaged / "config.json").write_text(config)
    (damaged / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValleError, match="cannot be read as WavLMForXVector"):
        WavLMSpeaker(str(damaged))
    monkeypatch.setattr(pretrained_judges, "find_spec", lambda name: None)
    with pytest.raises(ValleError, match=r"needs the Python package transformers.*pip install 'valle\[eval\]'"):
        HubertRecogniser(str(hubert))


def test_hub_ids_are_fetched_with_their_revision(hubert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, **options: object) -> str:
        asked.append((name, options["revision"], options["allow_patterns"]))
        return str(hubert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    judges = load_judges(None, "none", recogniser="hubert:someone/hubert@refs/pr/1")
    assert asked == [("someone/hubert", "refs/pr/1", ["*.json", "*.safetensors", "*.txt"])]
    assert judges.names["recogniser"].startswith("someone/hubert@refs/pr/1 (HuBERT")

    def fail(name: str, **options: object) -> str:
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValleError, match=r"could not be fetched under that name: no network$"):
        load_judges("none", "wavlm:someone/wavlm")


def test_one_recogniser_and_a_known_one(tmp_path: Path) -> None:
    assert load_judges("none", "none").names == {"recogniser": "none", "speaker": "none"}
    assert load_judges(None, "none", recogniser="none").recogniser is None
    with pytest.raises(ValleError, match="give one of them"):
        load_judges("base", "none", recogniser="hubert:x/y")
    for wrong in ("kaldi:x", "hubert:", "hubert", str(tmp_path)):
        with pytest.raises(ValleError, match=r"is not known; give whisper:DIR, hubert:DIR"):
            load_judges(None, "none", recogniser=wrong)
    with pytest.raises(ValleError, match="needs a recogniser; give --whisper"):
        load_judges(None, "none")


def test_commands_name_no_folder_of_the_machine() -> None:
    argv = ["speech", "--recogniser", "hubert:/home/me/my hub", "--speaker=wavlm:/opt/x/w", "--model", "a/b"]
    assert printable_command(argv) == "valle eval speech --recogniser 'hubert:my hub' --speaker=wavlm:w --model a/b"
    system = printable_command(["--system", "f5=/opt/py /home/me/f5.py --cfg=/etc/f5.toml {text} {out}"])
    assert system == "valle eval --system 'f5=py f5.py --cfg=f5.toml {text} {out}'"


@pytest.fixture(scope="module")
def emotions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wav2Vec2ForSequenceClassification of three emotions, by the seed."""
    folder = tmp_path_factory.mktemp("judges") / "emotions-tiny"
    torch.manual_seed(0)
    labels = {0: "angry", 1: "happy", 2: "sad"}
    config = transformers.Wav2Vec2Config(
        id2label=labels, label2id={v: k for k, v in labels.items()}, classifier_proj_size=8, **SMALL
    )
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    extractor().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def test_emotions_are_the_networks_own(emotions: Path) -> None:
    classifier = EmotionClassifier(str(emotions))
    wav = speechlike(1.0, rate=16000)
    told = classifier.probabilities(wav, 16000)
    model = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(emotions).eval()
    scaled = (wav - wav.mean()) / np.sqrt(wav.var() + 1e-7)
    with torch.no_grad():
        wanted = model(torch.from_numpy(scaled)[None]).logits[0].softmax(-1)
    assert list(told) == ["angry", "happy", "sad"]
    assert list(told.values()) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert sum(classifier.probabilities(wav[:10], 16000).values()) == pytest.approx(1)  # shorter than one frame


def test_emotions_that_are_none(emotions: Path, wavlm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValleError, match=r"there is no folder nowhere; give --emotion the folder of a model, or a hub"):
        EmotionClassifier("nowhere")
    with pytest.raises(ValleError, match=r"is not a classifier of emotions; give --emotion a model of one of the clas"):
        EmotionClassifier(str(wavlm))
    pickled = copy(emotions, tmp_path)
    weights = load_file(pickled / "model.safetensors")
    headless = {k: v for k, v in weights.items() if not k.startswith("classifier.")}
    save_file(headless, pickled / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValleError, match=r"lacks 2 weights of Wav2Vec2ForSequenceClassification, such as classifier"):
        EmotionClassifier(str(pickled))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ValleError, match=r"AutoModelForAudioClassification as M, AutoFeatureExtractor as P"):
        EmotionClassifier(str(pickled))
