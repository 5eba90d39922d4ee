"""The paper's judges, read by ``transformers``: HuBERT with CTC for words, WavLM with x-vectors for voices (§5.1).

A classifier of emotions is read likewise (``valle eval claims emotion``).

The recogniser is the paper's (HuBERT-Large fine-tuned on LibriSpeech's 960 h, the likeliest symbol at every frame, no
language model). Departure: the paper's speaker network is UniLM's WavLM-Large with an ECAPA-TDNN, which is published as
a pickle only; of the same family ``transformers`` has WavLM base with the TDNN of x-vectors.

Weights are read from safetensors and nothing else: a pickle can run code. A network that lacks some of its weights is
refused, since ``transformers`` would draw them at random and judge with them.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from valle.errors import ValleError

RATE = 16000
"""Samples a second that both networks take."""
_MIN_SAMPLES = 400  # that the recogniser's first layers need for one frame
_MIN_S = 0.4  # that the speaker network's layers and their statistics over time need
_UNUSED = re.compile(r"^(objective|classifier)\.|masked_spec_embed$")  # weights that only training uses
_UNUSED_BY_CLASSIFIERS = re.compile(r"masked_spec_embed$")
_PROCESSORS = {
    "HubertForCTC": "Wav2Vec2Processor",
    "WavLMForXVector": "Wav2Vec2FeatureExtractor",
    "Wav2Vec2ForSequenceClassification": "Wav2Vec2FeatureExtractor",
    "HubertForSequenceClassification": "Wav2Vec2FeatureExtractor",
    "WavLMForSequenceClassification": "Wav2Vec2FeatureExtractor",
    "AutoModelForAudioClassification": "AutoFeatureExtractor",
}


class HubertRecogniser:
    """HuBERT with CTC, greedy, without a language model."""

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        """
        Args:
            name: a folder, or a hub id such as "facebook/hubert-large-ls960-ft"; "name@revision" for one of its states.
            device: where to compute.

        Raises:
            ValleError: no such model, another kind of model, or one without safetensors.
        """
        self.folder = find_judge(name, "--recogniser hubert:", "HubertForCTC")
        self._model, self._processor = _load(self.folder, "HubertForCTC", device)

    @torch.inference_mode()
    def transcribe(self, wav: NDArray[np.float32]) -> str:
        padded = np.pad(wav, (0, max(0, _MIN_SAMPLES - len(wav))))
        inputs = self._processor(padded, sampling_rate=RATE, return_tensors="pt")
        logits = self._model(inputs.input_values.to(self._model.device)).logits  # [1, T, V]
        return str(self._processor.batch_decode(logits.argmax(-1).cpu())[0])


class WavLMSpeaker:
    """WavLM with the TDNN of x-vectors."""

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        """
        Args:
            name: a folder, or a hub id such as "microsoft/wavlm-base-plus-sv"; "name@revision" for one of its states.
            device: where to compute.

        Raises:
            ValleError: no such model, another kind of model, or one without safetensors.
        """
        self.folder = find_judge(name, "--speaker wavlm:", "WavLMForXVector")
        self._model, self._extractor = _load(self.folder, "WavLMForXVector", device)

    @torch.inference_mode()
    def embed(self, wav: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """wav [N] -> [D], of unit length.

        Raises:
            ValleError: less than 0.4 s of sound.
        """
        if len(wav) < _MIN_S * sample_rate:
            raise ValleError(
                f"a voice cannot be judged by {len(wav) / sample_rate:.2f} s; at least {_MIN_S} s is needed"
            )
        inputs = self._extractor(soxr.resample(wav, sample_rate, RATE), sampling_rate=RATE, return_tensors="pt")
        vector = self._model(inputs.input_values.to(self._model.device)).embeddings[0]  # [D]
        return np.asarray(torch.nn.functional.normalize(vector, dim=0).cpu().numpy(), np.float32)


class EmotionClassifier:
    """A Wav2Vec2, HuBERT or WavLM that learnt to name emotions, or whatever else a recording may be said to be."""

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        """
        Args:
            name: a folder, a hub id, or "name@revision".
            device: where to compute.

        Raises:
            ValleError: no such model, another kind of model, or one without safetensors.
        """
        self.folder = find_judge(name, "--emotion ", "AutoModelForAudioClassification")
        classes = [cls for cls in _PROCESSORS if cls.endswith("ForSequenceClassification")]
        try:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            cls = next(cls for cls in config["architectures"] if cls in classes)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise ValleError(
                f"{self.folder} is not a classifier of emotions; give --emotion a model of one of the classes "
                f"{', '.join(classes)}"
            ) from error
        self._model, self._extractor = _load(self.folder, cls, device, unused=_UNUSED_BY_CLASSIFIERS)
        self.labels = tuple(str(self._model.config.id2label[i]) for i in range(self._model.config.num_labels))

    @torch.inference_mode()
    def probabilities(self, wav: NDArray[np.float32], sample_rate: int) -> dict[str, float]:
        """Of wav [N], by emotion; they add up to 1."""
        x = np.asarray(soxr.resample(wav, sample_rate, RATE), np.float32)
        padded = np.pad(x, (0, max(0, _MIN_SAMPLES - len(x))))
        inputs = self._extractor(padded, sampling_rate=RATE, return_tensors="pt")
        told = self._model(inputs.input_values.to(self._model.device)).logits[0].softmax(-1).tolist()  # [C]
        return dict(zip(self.labels, told, strict=True))


def find_judge(name: str, option: str, cls: str) -> Path:
    """The folder of a judge's model, which is fetched once when it is a hub id.

    Args:
        name: a folder, "owner/model" or "owner/model@revision".
        option: by which it was given, for errors.
        cls: class of ``transformers`` that reads it.

    Raises:
        ValleError: the package is missing, there is no such model, or its weights are a pickle.
    """
    if find_spec("transformers") is None:
        raise ValleError(
            f"{option.strip()} needs the Python package transformers; install it: pip install 'valle[eval]'"
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetch(name, option)
    if not (folder / "config.json").is_file():
        raise ValleError(
            f"{folder} is not a model of transformers (it has no config.json); give {option}DIR such a one"
        )
    if not any(folder.glob("*.safetensors")):
        processor = _PROCESSORS[cls]
        raise ValleError(
            f"{name} has no weights as safetensors, and a pytorch_model.bin, being a pickle that can run code, is not "
            f'read; convert it once, python -c "from transformers import {cls} as M, {processor} as P; '
            f"[C.from_pretrained('{name}').save_pretrained('DIR') for C in (M, P)]\", and give {option}DIR"
        )
    return folder


def _fetch(name: str, option: str) -> Path:
    from huggingface_hub import snapshot_download

    hub_id, _, revision = name.partition("@")
    if Path(name).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", hub_id):
        raise ValleError(
            f"there is no folder {name}; give {option.strip()} the folder of a model, or a hub id as owner/model"
        )
    try:
        return Path(
            snapshot_download(hub_id, revision=revision or None, allow_patterns=["*.json", "*.safetensors", "*.txt"])
        )
    except Exception as error:  # NOTE whatever network library its version is built on may raise here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValleError(
            f"there is no folder {name}, and the model could not be fetched under that name: {reason}"
        ) from error


def _load(folder: Path, cls: str, device: str, unused: re.Pattern[str] = _UNUSED) -> tuple[Any, Any]:
    """A network in evaluation mode, fp32, and what makes its input; weights that are ``unused`` may be missing."""
    import transformers

    wanted = getattr(transformers, cls).config_class.model_type
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValleError(f"{folder}/config.json is not one of a model of transformers; fetch it again") from error
    if found != wanted:
        raise ValleError(f"{folder} is a model of the type {found}; one of the type {wanted} ({cls}) is needed")
    try:
        model, report = getattr(transformers, cls).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        processor = getattr(transformers, _PROCESSORS[cls]).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parts raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValleError(f"{folder} cannot be read as {cls}: {reason}") from error
    lost = [str(k) for k in [*report["missing_keys"], *report["mismatched_keys"]] if not unused.search(str(k))]
    if lost:
        raise ValleError(
            f"{folder} lacks {len(lost)} weights of {cls}, such as {sorted(lost)[0]}: it was not trained to judge; "
            "give one that was"
        )
    return model.float().eval().to(device), processor
