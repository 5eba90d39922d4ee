"""A trained recogniser's folder: weights (half precision), ``config.json``, ``lexicon.json`` and ``lm.arpa``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valle.asr.hybrid.features import STEP_S
from valle.asr.hybrid.gmm import Gmm
from valle.asr.hybrid.lexicon import Lexicon
from valle.asr.hybrid.network import Network, NetworkConfig
from valle.asr.hybrid.units import Units
from valle.config import from_dict, to_dict
from valle.errors import ValleError
from valle.files import fingerprint, write_atomic
from valle.text import DEFAULT_INVENTORY

if TYPE_CHECKING:
    from valle.asr.intervals import PhonemeAligner

KIND = "hybrid"
WEIGHTS_FILE, CONFIG_FILE, LEXICON_FILE, LM_FILE = "model.safetensors", "config.json", "lexicon.json", "lm.arpa"


@dataclass(frozen=True)
class DecodingConfig:
    """How a model listens; chosen on dev."""

    acoustic_scale: float = 0.6
    """Weight of the network's log-likelihoods against the language model."""
    gmm_scale: float = 0.15
    """The same for those of the Gaussians."""
    prior_scale: float = 0.8
    """How much of the states' frequencies is taken off the network's answers."""
    beam: float = 14.0
    """Paths this much worse than the best are given up."""
    max_active: int = 6000
    """Paths kept in a step at most."""
    word_cost: float = 0.0
    """For each word said: above 0 there are fewer, longer ones."""
    calibration: tuple[float, ...] = ()
    """What turns the marks of a word into the probability that it is right (``confidence``); none: not calibrated."""


@dataclass(frozen=True)
class ModelConfig:
    """What the weights belong to."""

    units: tuple[str, ...]
    """``Units.names``."""
    n_pdfs: int
    """Tied states."""
    lang: str = "en-us"
    """What the phonemiser reads."""
    inventory_version: str = DEFAULT_INVENTORY.version
    """``PhonemeInventory.version`` of the phonemes."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Its size."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How it listens."""
    trained_on: str = ""
    """What it learned from, in words."""


class HybridModel:
    """Units, tied states, network and Gaussians; with lexicon and language model where it is to transcribe."""

    def __init__(
        self, config: ModelConfig, pdfs: NDArray[np.int32], network: Network | None, priors: Tensor, gmm: Gmm | None
    ) -> None:
        """
        Args:
            config: what it is.
            pdfs: [units, left, 2].
            network: None before it is trained.
            priors: [pdfs] log-frequencies of the states.
            gmm: what the network was bootstrapped from.
        """
        self.config, self.pdfs, self.network, self.priors, self.gmm = config, pdfs, network, priors, gmm
        self.units = Units(config.units)
        self.lexicon: Lexicon = {}
        self.folder: Path | None = None

    @torch.no_grad()
    def log_posteriors(self, mels: Tensor) -> Tensor:
        """Log mel energies [T, 80] -> log-probabilities of the tied states [S, pdfs], S = (T + 1) // 3."""
        assert self.network is not None, "the network is not trained yet"
        return self.network(mels.float().unsqueeze(0))[0].log_softmax(1)  # type: ignore[no-any-return]

    def scores(self, mels: Tensor) -> NDArray[np.float32]:
        """Log-likelihoods without a scale, up to a constant a step, by the network where there is one: [S, pdfs]."""
        if self.network is None:
            return self.gmm_answers(mels).numpy()
        out: NDArray[np.float32] = (self.log_posteriors(mels) - self.config.decoding.prior_scale * self.priors).numpy()
        return out

    def gmm_answers(self, mels: Tensor) -> Tensor:
        """Log-likelihoods of the Gaussians: [T, 80] -> [S, pdfs]."""
        if self.gmm is None:
            raise ValleError(f"{self.folder} holds no Gaussians; train it anew with `valle asr train`")
        return self.gmm.scores(self.gmm.features(mels))

    def fingerprint(self) -> str:
        """Twelve hex digits over the weights, as they are stored."""
        return fingerprint(json.dumps(self.config.units), sorted(self._stored().items()))

    def save(self, folder: str | Path) -> None:
        """Write weights, configuration and lexicon; the language model is written by who makes it."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS_FILE, save(self._stored()))
        lexicon = {
            word: [[" ".join(self.units.names[u] for u in p), round(n, 4)] for p, n in said]
            for word, said in self.lexicon.items()
        }
        write_atomic(folder / LEXICON_FILE, (json.dumps(lexicon, ensure_ascii=False) + "\n").encode())
        body = {"kind": KIND, "step_s": STEP_S, **to_dict(self.config)}
        write_atomic(folder / CONFIG_FILE, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())
        self.folder = folder

    @classmethod
    def load(cls, folder: str | Path) -> HybridModel:
        """Read what ``save`` wrote.

        Raises:
            ValleError: the folder holds no hybrid recogniser.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            if values.pop("kind") != KIND:
                raise ValueError("it is of another kind")
            values.pop("step_s", None)
            config = from_dict(ModelConfig, values, str(folder / CONFIG_FILE))
            stored = load_file(folder / WEIGHTS_FILE)
            model = cls._from_tensors(config, stored)
            lexicon = json.loads((folder / LEXICON_FILE).read_text(encoding="utf-8"))
            ids = {name: i for i, name in enumerate(config.units)}
            model.lexicon = {
                word: [(tuple(ids[u] for u in p.split()), float(n)) for p, n in said] for word, said in lexicon.items()
            }
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValleError(
                f"{folder} is not a hybrid recogniser ({reason}); train one with `valle asr train`"
            ) from error
        model.folder = folder
        return model

    @classmethod
    def _from_tensors(cls, config: ModelConfig, stored: dict[str, Tensor]) -> HybridModel:
        def group(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name + "."): t for k, t in stored.items() if k.startswith(name + ".")}

        network = None
        if weights := group("network"):
            network = Network(config.network, config.n_pdfs)
            network.load_state_dict({k: t.float() for k, t in weights.items()})
            network.eval()
        gmm = None
        if parts := group("gmm"):
            gmm = Gmm(**{k: t.float() for k, t in parts.items()})
        pdfs = stored["pdfs"].numpy().astype(np.int32)
        if pdfs.shape != (len(config.units), len(config.units), 2) or int(pdfs.max()) + 1 != config.n_pdfs:
            raise ValueError(f"the table of tied states is {list(pdfs.shape)}")
        return cls(config, pdfs, network, stored["priors"].float(), gmm)

    def _stored(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {"pdfs": torch.from_numpy(self.pdfs.astype(np.int16)), "priors": self.priors}
        if self.network is not None:
            named.update({f"network.{k}": t for k, t in self.network.state_dict().items()})
        if self.gmm is not None:
            named.update({f"gmm.{k}": t for k, t in self.gmm.tensors().items()})
        return {
            k: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous().clone() for k, t in named.items()
        }


def is_hybrid(folder: str | Path) -> bool:
    """Whether a folder says that it holds a hybrid recogniser."""
    try:
        values: Any = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("kind") == KIND


def load_aligner(folder: str | Path) -> PhonemeAligner:
    """What tells durations: an ``Aligner``, or a hybrid recogniser in its place.

    Raises:
        ValleError: the folder holds neither.
    """
    from valle.asr.aligner import Aligner

    if not is_hybrid(folder):
        return Aligner.load(folder)
    from valle.asr.hybrid.aligner import HybridAligner

    return HybridAligner(folder)
