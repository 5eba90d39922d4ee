"""A whole model on disk: codec, AR, NAR and phoneme inventory that belong together, found, checked, read and written.

A model is a folder ``{ar,nar,codec}/{model.safetensors,config.json}``, ``phonemes.json`` and ``valle.json``; one with
alignment has an ``aligner`` of the same form. ``valle.json`` names the codec (by fingerprint) and the inventory (by
version) that the language models were trained on: another codec of the same shapes would give noise without a word, so
a folder in which they differ is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from valle.blank import blank
from valle.codec.base import Codec, load_codec
from valle.config import from_dict, to_dict
from valle.errors import ValleError
from valle.files import write_atomic
from valle.model.ar import AR
from valle.model.nar import NAR
from valle.model.narrow import narrow
from valle.model.sampling import SamplingConfig
from valle.native import library
from valle.native.frames import pack
from valle.native.matrix import Precision
from valle.text import PhonemeInventory

if TYPE_CHECKING:
    from valle.asr.aligner import Aligner

FORMAT = 1
INFO_FILE = "valle.json"
PHONEMES_FILE = "phonemes.json"
ALIGNER = "aligner"
EMBEDDED = Path(__file__).parent / "assets" / "model"

Model = TypeVar("Model", AR, NAR)


@dataclass(frozen=True)
class ModelInfo:
    """What ``valle.json`` says."""

    name: str
    """Goes into the metadata of every file that the model speaks."""
    codec_fingerprint: str
    """``Codec.fingerprint()`` of the codec whose codes it writes."""
    inventory_version: str
    """``PhonemeInventory.version`` of the phonemes it reads."""
    version: str = "0"
    """Of the model, not of the program."""
    max_seconds: float = 20.0
    """Longest prompt and speech together in training; longer texts are spoken in pieces that stay below it."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How to sample when the caller does not say: what was best on the dev split."""
    nar_temperature: float = 0.0
    """Likewise for codebooks 2 to 8; 0 takes the likeliest codes, as the paper does."""
    nar_guidance: float = 1.0
    """Likewise how far the prompt's voice pulls them; 1 is off."""
    num_candidates: int = 1
    """Likewise how often each piece is spoken, to keep the best."""
    continual_s: float = 3.0
    """What continual mode keeps of the recording; the paper has 3 s."""
    training: dict[str, Any] = field(default_factory=dict)
    """Figures of its training, for `valle info`."""
    format: int = FORMAT
    """Version of this layout."""


@dataclass(frozen=True)
class Pretrained:
    """A model in memory, checked and in evaluation mode."""

    path: Path
    info: ModelInfo
    ar: AR
    nar: NAR
    codec: Codec
    inventory: PhonemeInventory
    aligner: Aligner | None = None
    """Finds the phonemes of a recording; None when neither language model asks for them."""

    @property
    def needs_aligner(self) -> bool:
        """Whether a language model wants to know which phoneme a frame belongs to."""
        return self.ar.config.alignment or self.nar.config.alignment

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.ar.parameters()).device


def find_model(model: str | Path | None = None) -> Path:
    """The folder of a model: the embedded one (None), a folder, or a Hugging Face hub id, which is fetched once.

    Raises:
        ValleError: there is no such model, or it cannot be fetched.
    """
    if model is None:
        if not (EMBEDDED / INFO_FILE).is_file():
            raise ValleError("this installation has no embedded model; give the folder or hub id of one (-m)")
        return EMBEDDED
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / INFO_FILE).is_file():
            raise ValleError(f"{path} is not a model: it has no {INFO_FILE}; give a folder that `valle info` can read")
        return path
    if isinstance(model, Path) or path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)):
        raise ValleError(
            f"there is no model {model}; give a folder with {INFO_FILE} in it, or a hub id such as name/model"
        )
    return _fetch(str(model))


def part_of(name: str | Path, part: Literal["ar", "nar", "codec", "aligner"]) -> Path:
    """The folder of one part of a model: ``embedded`` and a model's folder have it, any other folder is it.

    Raises:
        ValleError: there is no embedded model, or it has no such part.
    """
    folder = EMBEDDED if str(name) == "embedded" else Path(name).expanduser()
    if str(name) == "embedded":
        find_model()
    if not (folder / INFO_FILE).is_file():
        return folder
    if not (folder / part / "config.json").is_file():
        raise ValleError(f"the model {name} has no {part}; give the folder of one")
    return folder / part


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # NOTE whatever network library its version is built on may raise here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValleError(
            f"there is no folder {hub_id}, and the model could not be fetched under that name: {reason}"
        ) from error
    if not (path / INFO_FILE).is_file():
        raise ValleError(f"the model {hub_id} has no {INFO_FILE}: it is not one of this project's")
    return path


def read_info(folder: Path) -> ModelInfo:
    """Read ``valle.json``.

    Raises:
        ValleError: damaged, incomplete, or made by a newer program.
    """
    path = folder / INFO_FILE
    values = _read_json(path)
    if values.get("format", FORMAT) != FORMAT:
        raise ValleError(f"{path} has the format {values['format']!r}, this program reads {FORMAT}: update valle")
    return from_dict(ModelInfo, values, str(path))


WEIGHTS = ("auto", "fp32", "fp16", "int8", "int4", "bf16")


def pick_device(device: str = "auto") -> torch.device:
    """ "auto" is the GPU where there is one.

    Raises:
        ValleError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValleError(f"the device {device!r} cannot be used here; choose auto, cpu or cuda") from error
    return chosen


def narrow_ar(ar: AR, weights: str) -> AR:
    """Have a CPU read its weights as ``load_pretrained`` says.

    Raises:
        ValleError: this machine cannot.
    """
    if weights == "int4" and library() is None:
        raise ValleError(
            "weights in int4 need what valle compiles when it is installed: an x86 processor with AVX2, and a C "
            "compiler (gcc or clang) that is there before pip install; leave weights auto"
        )
    if weights == "auto":
        weights = "int8" if library() is not None else "fp16"
    ways: dict[str, Precision] = {"fp16": "fp16", "int8": "int8", "int4": "int4"}
    if weights in ways:
        narrow(ar, ways[weights])
        if library() is not None:
            pack(ar)
    return ar


def narrow_nar(nar: NAR, weights: str) -> NAR:
    """The same for the NAR: with its hundreds of rows at a time half precision would gain nothing."""
    if weights in ("int8", "int4") or (weights == "auto" and library() is not None):
        narrow(nar, "int8")
    return nar


def narrow_decoder(codec: Codec, weights: str) -> Codec:
    """The same for what does not decide the codes, which must be those of the shards to the last bit."""
    for module in codec.children() if weights != "fp32" else ():
        if module not in codec.encoding_modules():
            narrow(module)
    return codec


def load_pretrained(model: str | Path | None = None, device: str = "auto", weights: str = "auto") -> Pretrained:
    """Find, read and check a model. Its weights become float32 however they are stored.

    Args:
        model: which (``find_model``).
        device: where (``pick_device``).
        weights: how those of the language models are read when it speaks. On a CPU (``valle.model.narrow``): "fp32" as
            they are; "fp16": the AR's in half precision, which gives the same; "int8": both models in 8 bits; "int4":
            the AR in 4, the NAR in 8; "auto": the fastest of which no loss could be measured (docs/performance.md),
            int8 with what valle compiles, else fp16. The codec's decoder is read in half precision, but for "fp32".
            On a GPU: "fp32" and "auto" as they are; "bf16": the AR goes on in bfloat16, as a CUDA graph
            (``valle.model.graphs``).

    Raises:
        ValleError: no such model, a file of it is missing or damaged, its parts do not belong together, or weights that
            this machine cannot read.
    """
    where = pick_device(device)
    if weights not in WEIGHTS:
        raise ValleError(f"weights is {weights!r}; give one of {', '.join(WEIGHTS)}")
    if weights not in ("auto", "fp32") and (where.type == "cpu") == (weights == "bf16"):
        other = "a GPU" if weights == "bf16" else "a CPU"
        raise ValleError(f"weights in {weights} are for {other}, and the device is {where.type}; leave weights auto")
    path = find_model(model)
    info = read_info(path)
    if not (path / PHONEMES_FILE).is_file():
        raise ValleError(f"the model {path} has no {PHONEMES_FILE}; it is incomplete")
    inventory = PhonemeInventory.load(path / PHONEMES_FILE)
    narrowed = weights if where.type == "cpu" else "fp32"
    with ThreadPoolExecutor(3) as pool:  # side by side: most of it is work of torch, which lets the others go on
        ar_read = pool.submit(lambda: narrow_ar(_load(path / "ar", AR, where), narrowed))
        nar_read = pool.submit(lambda: narrow_nar(_load(path / "nar", NAR, where), narrowed))
        codec_read = pool.submit(lambda: narrow_decoder(load_codec(path / "codec", where), narrowed))
    ar, nar, codec = ar_read.result(), nar_read.result(), codec_read.result()
    if weights == "bf16":
        ar.transformer.graph_dtype = torch.bfloat16
    pretrained = Pretrained(path, info, ar, nar, codec, inventory)
    if pretrained.needs_aligner and (path / ALIGNER).is_dir():
        from valle.asr.aligner import Aligner

        pretrained = dataclasses.replace(pretrained, aligner=Aligner.load(path / ALIGNER))
    _check(pretrained)
    return pretrained


def save_pretrained(
    folder: str | Path,
    *,
    ar: AR,
    nar: NAR,
    codec: Codec,
    inventory: PhonemeInventory,
    info: ModelInfo,
    aligner: Aligner | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a model folder; ``info`` gets the codec's fingerprint and the inventory's version.

    Raises:
        ValleError: the parts do not belong together.
    """
    from safetensors.torch import save

    folder = Path(folder)
    info = dataclasses.replace(info, codec_fingerprint=codec.fingerprint(), inventory_version=inventory.version)
    model = Pretrained(folder, info, ar, nar, codec, inventory, aligner)
    _check(model)
    for name, part in (("ar", ar), ("nar", nar)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu().to(dtype).contiguous() for k, v in part.state_dict().items()}
        write_atomic(folder / name / "model.safetensors", save(tensors))
        write_atomic(folder / name / "config.json", _json(part.config_dict()))
    codec.save(folder / "codec", dtype)
    if aligner is not None and model.needs_aligner:
        aligner.save(folder / ALIGNER)
    inventory.save(folder / PHONEMES_FILE)
    write_atomic(folder / INFO_FILE, _json(to_dict(info)))  # last: a folder without it is no model


def describe(folder: Path) -> dict[str, Any]:
    """What `valle info` tells: ``valle.json``, and the size of each part."""
    import math

    from safetensors import safe_open

    parts = {}
    for name in ("ar", "nar", "codec", *([ALIGNER] if (folder / ALIGNER).is_dir() else [])):
        path = folder / name / "model.safetensors"
        if not path.is_file():
            raise ValleError(f"the model {folder} has no {name}/model.safetensors; it is incomplete")
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
        config = _read_json(folder / name / "config.json")
        parts[name] = {
            "parameters": sum(math.prod(shape) for shape in shapes),
            "bytes": path.stat().st_size,
            "config": config,
        }
    total = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return {"path": str(folder), **to_dict(read_info(folder)), "bytes": total, "parts": parts}


def _load(folder: Path, cls: Callable[..., Model] | type[Model], device: torch.device) -> Model:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValleError(f"the model has no {folder / name}; it is incomplete")
    with blank():
        model: Model = cls.from_config(_read_json(folder / "config.json"))  # type: ignore[union-attr]
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValleError(f"{folder / 'model.safetensors'} does not fit its config.json: {reason}") from error
    return model.to(device).eval()


def _check(model: Pretrained) -> None:
    """Refuse parts that do not belong together, naming what differs."""
    ar, nar, codec, n_phonemes = model.ar.config, model.nar.config, model.codec, len(model.inventory)
    for what, has, needs in (
        ("codec", codec.fingerprint(), model.info.codec_fingerprint),
        ("phoneme inventory", model.inventory.version, model.info.inventory_version),
        ("number of phonemes of its AR model", ar.n_phonemes, n_phonemes),
        ("number of phonemes of its NAR model", nar.n_phonemes, n_phonemes),
        ("codebook size of its AR model", ar.codebook_size, codec.codebook_size),
        ("codebook size of its NAR model", nar.codebook_size, codec.codebook_size),
        ("number of codebooks of its NAR model", nar.n_quantizers, codec.n_quantizers),
    ):
        if has != needs:
            raise ValleError(
                f"the model {model.path} does not fit together: the {what} is {has}, but {needs} is needed"
            )
    if model.nar.config.alignment and not ar.alignment:
        raise ValleError(
            f"the model {model.path} does not fit together: its NAR model needs to know the phoneme of each frame, "
            "which its AR model does not tell; train both with alignment"
        )
    if not model.needs_aligner:
        return
    if model.aligner is None:
        raise ValleError(
            f"the model {model.path} has no {ALIGNER}, which its language models need; add that of their pack"
        )
    if model.aligner.inventory_version != model.inventory.version:
        raise ValleError(
            f"the model {model.path} does not fit together: its aligner is for the phoneme inventory "
            f"{model.aligner.inventory_version}, but {model.inventory.version} is needed"
        )
    if ar.alignment and ar.phoneme_kinds != model.inventory.kinds:
        raise ValleError(
            f"the model {model.path} does not fit together: the kinds of phonemes of its AR model are not those of "
            "its phoneme inventory; train it again with this inventory"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValleError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValleError(f"{path} must hold a JSON object")
    return values


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
