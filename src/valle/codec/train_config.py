"""The configuration of ``valle codec train``: one TOML file is one run (configs/codec*.toml)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from valle.codec.encodec import EnCodecConfig
from valle.codec.spectral import SpectralCodecConfig
from valle.errors import ValleError


@dataclass(frozen=True)
class DataConfig:
    """Where the speech is and how it is cut."""

    manifest: str
    """JSON-lines file with id, path and split of every recording."""
    train_splits: tuple[str, ...] = ("train", "unlabelled")
    """Splits to learn from."""
    dev_splits: tuple[str, ...] = ("dev",)
    """Splits to judge by."""
    cache: str = "runs/cache"
    """Folder for the decoded samples (170 MB an hour)."""
    crop_s: float = 0.68
    """Seconds of a training crop, a whole number of frames."""
    batch_size: int = 12
    """Crops a step."""
    max_gain_db: float = 10.0
    """Each crop is made louder or softer by up to this."""
    foretold: str = ""
    """Pack of codes that a NAR foretells for the recordings (``python -m valle.data.foretell``), so that the decoder
    learns from those that it gets when a model speaks; with train = "decoder"."""
    foretold_share: float = 0.6
    """Share of the crops that have such codes."""
    voice_s: float = 3.0
    """Seconds of another recording of the speaker by which a decoder with ``voice_dim`` is told the voice."""
    voice_dropout: float = 0.15
    """Share of the crops whose decoder is not told it."""


@dataclass(frozen=True)
class LossConfig:
    """Weights; with the balancer they are shares of the gradient."""

    mel: float = 1.0
    """Multi-scale log-mel difference."""
    waveform: float = 0.0
    """Difference of the samples; keep it 0 for a codec that sees no phase."""
    adversarial: float = 1.0
    """Hinge loss against the discriminators."""
    feature: float = 1.0
    """Feature matching."""
    commitment: float = 0.25
    """Pull of the encoder towards the codebooks; never balanced."""
    probe: float = 0.0
    """Log-mel read off the quantised vectors by a small network (see ``MelProbe``); never balanced."""
    pitch: float = 1.0
    """Error of the pitch, in octaves, that a harmonic decoder tells; never balanced."""
    recogniser: float = 0.0
    """How differently ``recogniser`` hears the reconstruction (``valle.codec.perceptual``)."""
    speaker: float = 0.0
    """How differently ``speaker``, a network that tells voices apart, hears it (``valle.codec.speaker``)."""
    energy: bool = True
    """Two draws of a harmonic decoder's noise are compared by the spectral energy distance instead of one by the mel
    difference alone (``MultiScaleMelLoss.energy_distance``)."""
    balancer: bool = True
    """Balance the gradients once the discriminators take part."""


@dataclass(frozen=True)
class CodecTrainConfig:
    """One run of ``valle codec train``."""

    out: str
    """Folder of the run: checkpoints, log, and the trained codec in ``codec/``."""
    data: DataConfig
    """The speech."""
    codec: Literal["spectral", "encodec"] = "spectral"
    """Which architecture."""
    spectral: SpectralCodecConfig = field(default_factory=SpectralCodecConfig)
    """Sizes of the spectral codec."""
    encodec: EnCodecConfig = field(default_factory=EnCodecConfig)
    """Sizes of EnCodec."""
    init: str = ""
    """Codec folder to start from instead of random weights."""
    adapt: str = ""
    """Codec folder whose tensors are taken where name and shape agree with [spectral]; all others start at random."""
    adapt_decoder_only: bool = False
    """Of ``adapt`` take the decoder's tensors only; encoder and codebooks begin anew, and so do the codes."""
    recogniser: str = ""
    """Folder of a recogniser (``valle asr train``) for the loss of that name."""
    speaker: str = ""
    """Folder of a speaker network (``python -m valle.codec.speaker``) for the loss of that name."""
    train: Literal["all", "decoder"] = "all"
    """What learns; "decoder" keeps the codes as they are."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the losses."""
    max_steps: int = 100_000
    """Steps of the run."""
    max_minutes: float = 0.0
    """Minutes of the run, 0 for no bound; whichever of the two comes first ends it and shapes the learning rate."""
    lr: float = 6e-4
    """Peak learning rate of the codec."""
    lr_end: float = 0.05
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: int = 300
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.8, 0.99)
    """Of AdamW."""
    max_grad_norm: float = 5.0
    """Gradients of the codec are clipped to this norm."""
    quantize_after: int = 200
    """Steps before the codebooks are set by k-means; until then the decoder sees the vectors themselves."""
    kmeans_frames: int = 12_000
    """Frames that k-means sees."""
    full_share: float = 0.5
    """Share of crops that use all the codebooks; the others use a number drawn from 1, 2, 4, …"""
    own_pitch_start: float = 0.5
    """From this share of the run on, half of the crops are decoded with the pitch that the harmonic decoder tells."""
    adversarial_start: int = 1_000_000
    """Step at which the discriminators begin."""
    discriminator_channels: int = 32
    """Width of the discriminators."""
    discriminator_windows: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    """Window lengths of the discriminators, in samples."""
    discriminator_lr: float = 3e-4
    """Learning rate of the discriminators."""
    seed: int = 0
    """Of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the encoder's and a harmonic decoder's matrix products are computed in; auto: bf16 where the hardware has
    it."""
    log_every: int = 20
    """Steps between log lines."""
    eval_every: int = 500
    """Steps between evaluations on the dev splits."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""

    def __post_init__(self) -> None:
        if self.data.foretold and self.train != "decoder":
            raise ValleError('data.foretold holds codes of a codec as it is; set train = "decoder", or leave it out')
        if not (0 <= self.data.foretold_share <= 1 and 0 <= self.data.voice_dropout <= 1 and self.data.voice_s > 0):
            raise ValleError("data.foretold_share and data.voice_dropout must be 0 to 1, data.voice_s above 0")
        if min(self.max_steps, self.log_every, self.eval_every, self.data.batch_size) < 1:
            raise ValleError("max_steps, log_every, eval_every and data.batch_size must be at least 1")
        for name, folder, weight in (
            ("recogniser", self.recogniser, self.loss.recogniser),
            ("speaker", self.speaker, self.loss.speaker),
        ):
            if (weight > 0) != bool(folder):
                raise ValleError(
                    f"{name} is {folder!r} and its weight, loss.{name}, {weight:g}; give both, a folder and a number "
                    "above 0, or neither"
                )
