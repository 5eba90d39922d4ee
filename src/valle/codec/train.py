"""Training of a codec by the EnCodec recipe (EnCodec §3.4): reconstruction, commitment, adversarial losses, balanced.

One step is: crops of speech -> codec -> multi-scale mel and waveform losses, and after ``adversarial_start`` the
multi-scale STFT discriminators with feature matching; the quantiser's codebooks learn by moving averages inside the
codec. With ``train = "decoder"`` the encoder and the quantiser stay as they are, so that the codes, and every shard and
language model made from them, stay valid while the decoder improves.

Departure: a run may be bounded by minutes instead of steps (``max_minutes``); the learning rate then follows the clock,
so that a machine lent for a while yields a finished model.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from valle.codec.balancer import Balancer
from valle.codec.base import load_codec
from valle.codec.crops import (
    PITCH_STEP,
    Crops,
    ForetoldCrops,
    VoicePrompts,
    WaveCache,
    build_cache,
    join_crops,
    random_crops,
    speakers_of,
)
from valle.codec.discriminator import MultiScaleSTFTDiscriminator
from valle.codec.encodec import EnCodec
from valle.codec.harmonic import N_SUB, HarmonicDecoder, pitch_hz
from valle.codec.losses import (
    MultiScaleMelLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    waveform_loss,
)
from valle.codec.spectral import SpectralCodec
from valle.codec.train_config import CodecTrainConfig
from valle.config import load_config, to_dict
from valle.data.pack import Pack
from valle.device import choose_device, choose_precision
from valle.errors import ValleError
from valle.train.checkpoint import (
    checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from valle.train.signals import stop_signals
from valle.train.tracking import Tracker

logger = logging.getLogger(__name__)


def train_codec(config_path: Path, resume: bool = False, out: Path | None = None) -> Path:
    """Run ``valle codec train``; returns the folder of the trained codec.

    Raises:
        ValleError: a wrong configuration, no data, a run that is there already, or with ``resume`` none.
    """
    config = load_config(config_path, CodecTrainConfig)
    trainer = CodecTrainer(config, Path(out or config.out))
    if resume:
        trainer.restore()
    elif checkpoints(trainer.out / "checkpoints"):
        raise ValleError(f"{trainer.out} already holds a run; continue it with --resume or give another --out")
    return trainer.run()


class MelProbe(nn.Module):
    """Reads the encoder's log-mel input back from the quantised vectors; used in training only.

    Departure from EnCodec. The decoder has to invent the phase before its spectra come near the target, so that in the
    first hours its gradient says little about what a code should hold. The probe says it at once.
    """

    def __init__(self, dim: int, n_mels: int, hidden: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(dim, hidden, 5, padding=2), nn.GELU(), nn.Conv1d(hidden, n_mels, 1))

    def forward(self, z: Tensor, log_mel: Tensor) -> Tensor:
        """z [B, D, T], log_mel [B, T, n_mels] -> mean absolute difference, scalar."""
        return nn.functional.l1_loss(self.net(z).transpose(1, 2), log_mel)


class CodecTrainer:
    """The state of one run and its loop."""

    def __init__(self, config: CodecTrainConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.device = choose_device(config.device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32: several times faster, and the codes are searched in fp32
        self.generator = torch.Generator().manual_seed(config.seed)  # crops, gains, dropout of codebooks
        torch.manual_seed(config.seed)
        self.codec = self._build_codec().to(self.device)
        self.mel_loss = MultiScaleMelLoss(self.codec.sample_rate).to(self.device)
        self.discriminator = MultiScaleSTFTDiscriminator(
            config.discriminator_windows, config.discriminator_channels
        ).to(self.device)
        self.balancer = Balancer(
            {
                "mel": config.loss.mel,
                "waveform": config.loss.waveform,
                "adversarial": config.loss.adversarial,
                "feature": config.loss.feature,
                "recogniser": config.loss.recogniser,
                "speaker": config.loss.speaker,
            }
        )
        self.listeners = self._build_listeners()
        self.probe = self._build_probe()
        self.trained = self._trained_parameters()
        self.optimizer = torch.optim.AdamW(self.trained, config.lr, config.betas, weight_decay=1e-3)
        self.disc_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), config.discriminator_lr, config.betas, weight_decay=1e-3
        )
        self.step, self.minutes = 0, 0.0
        self.quantizing = bool(config.init or (config.adapt and not config.adapt_decoder_only))
        self.pitch: tuple[np.ndarray, np.ndarray] | None = None
        self.foretold: ForetoldCrops | None = None
        self.voices: VoicePrompts | None = None
        self.autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=choose_precision(config.precision, self.device) == "bf16"
        )

    def _build_codec(self) -> SpectralCodec | EnCodec:
        if self.config.adapt and (self.config.init or self.config.codec != "spectral"):
            raise ValleError('adapt is for codec = "spectral" without init; leave one of them out')
        if self.config.init:
            codec = load_codec(self.config.init)
            assert isinstance(codec, SpectralCodec | EnCodec)
            return codec
        if self.config.codec == "encodec":
            return EnCodec(self.config.encodec)
        codec = SpectralCodec(self.config.spectral)
        if self.config.adapt:
            given = load_codec(self.config.adapt).state_dict()
            own = codec.state_dict()
            same = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
            if self.config.adapt_decoder_only:
                same = {k: v for k, v in same.items() if k.startswith("decoder.")}
            elif not all(k in same for k in own if k.startswith("quantizer.") and "ema_" not in k):
                raise ValleError(
                    f"the codebooks of {self.config.adapt} do not fit [spectral]; use its codebook_dim, n_quantizers "
                    "and codebook_size"
                )
            codec.load_state_dict(same, strict=False)
        return codec

    def _trained_parameters(self) -> list[nn.Parameter]:
        if self.config.train == "decoder":
            frozen = [p for m in self.codec.encoding_modules() for p in m.parameters()]
            for p in frozen:
                p.requires_grad_(False)
        probe = [] if self.probe is None else list(self.probe.parameters())
        return [p for p in self.codec.parameters() if p.requires_grad] + probe

    def _build_listeners(self) -> dict[str, nn.Module]:
        """The frozen networks that hear reconstruction and recording, by the names of their losses."""
        listeners: dict[str, nn.Module] = {}
        if self.config.recogniser:
            from valle.codec.perceptual import RecogniserLoss

            listeners["recogniser"] = RecogniserLoss.load(self.config.recogniser, self.codec.sample_rate)
        if self.config.speaker:
            from valle.codec.speaker import SpeakerLoss, XVectorNetwork

            listeners["speaker"] = SpeakerLoss(XVectorNetwork.load(self.config.speaker), self.codec.sample_rate)
        return {name: listener.to(self.device) for name, listener in listeners.items()}

    def _build_probe(self) -> MelProbe | None:
        if self.config.loss.probe == 0 or self.config.train == "decoder":
            return None
        if not isinstance(self.codec, SpectralCodec):
            raise ValleError("loss.probe reads a log-mel spectrogram, which only the spectral codec has; set it to 0")
        sizes = self.codec.config
        return MelProbe(sizes.codebook_dim, sizes.n_mels * sizes.mel_frames).to(self.device)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the end, or until interrupted; returns the folder of the trained codec."""
        config = self.config
        train = build_cache(config.data.manifest, config.data.train_splits, config.data.cache, self.codec.sample_rate)
        dev = build_cache(config.data.manifest, config.data.dev_splits, config.data.cache, self.codec.sample_rate)
        if isinstance(self.codec.decoder, HarmonicDecoder):
            if self.codec.hop_length != N_SUB * PITCH_STEP:
                raise ValleError(
                    f"hop_length is {self.codec.hop_length}; a harmonic decoder learns its pitch at a hop of "
                    f"{N_SUB * PITCH_STEP} samples"
                )
            from valle.codec.pitch import build_pitch, fill

            track = build_pitch(
                train, Path(config.data.cache) / f"{'-'.join(config.data.train_splits)}.f0.npy", self.codec.sample_rate
            )
            self.pitch = track, fill(track)
        if config.data.foretold:
            self.foretold = ForetoldCrops(
                train, Pack(config.data.foretold), self.codec.fingerprint(), self.codec.hop_length
            )
        if isinstance(self.codec, SpectralCodec) and self.codec.config.voice_dim:
            n_samples = round(config.data.voice_s * self.codec.frame_rate) * self.codec.hop_length
            self.voices = VoicePrompts(train, speakers_of(config.data.manifest, train), n_samples)
        self.out.mkdir(parents=True, exist_ok=True)
        crop_s = config.data.batch_size * config.data.crop_s
        started, done_before, last_save = time.monotonic(), self.minutes, time.monotonic()
        with (
            Tracker(self.out, config.max_steps, start_step=self.step, unit="s of speech") as tracker,
            stop_signals() as stop,
        ):
            if config.init and self.step == 0:
                tracker.log(0, self.evaluate(dev), show=False)
            if self.step == 0 and not self.quantizing:
                self.start_linear_path(train)
            while self.progress() < 1 and not stop:
                if not self.quantizing and self.step >= config.quantize_after:
                    self.start_quantizing(train)
                values = self.train_step(self.crops(train))
                self.step += 1
                self.minutes = done_before + (time.monotonic() - started) / 60
                tracker.advance(self.step, crop_s)
                if self.step % config.log_every == 0:
                    rate = {
                        "train/lr": self.lr(),
                        "train/speech_s_per_s": tracker.rate(),
                        "train/minutes": self.minutes,
                    }
                    tracker.log(self.step, {f"train/{k}": v for k, v in values.items()} | rate)
                if self.step % config.eval_every == 0:
                    tracker.log(self.step, self.evaluate(dev), show=False)
                    tracker.audio(self.step, "dev", self.sample(dev), self.codec.sample_rate)
                    tracker.restart_clock()
                if time.monotonic() - last_save > config.checkpoint_minutes * 60:
                    self.save()
                    last_save = time.monotonic()
            self.save()
            tracker.log(self.step, self.evaluate(dev), show=False)
        folder = self.out / "codec"
        self.codec.save(folder)
        return folder

    def progress(self) -> float:
        """Share of the run that is done, by steps or by minutes."""
        config = self.config
        by_time = self.minutes / config.max_minutes if config.max_minutes > 0 else 0.0
        return min(1.0, max(self.step / config.max_steps, by_time))

    def lr(self) -> float:
        """Linear warm-up, then half a cosine down to ``lr_end``."""
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        decay = config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * self.progress()))
        return config.lr * warm * decay

    def crops(self, cache: WaveCache) -> Crops:
        """One batch."""
        data = self.config.data
        n_frames = round(data.crop_s * self.codec.frame_rate)
        n_foretold = 0 if self.foretold is None else round(data.foretold_share * data.batch_size)
        crops = random_crops(
            cache,
            data.batch_size - n_foretold,
            n_frames * self.codec.hop_length,
            data.max_gain_db,
            self.generator,
            self.pitch,
        )
        if self.foretold is not None and n_foretold:
            crops = join_crops(crops, self.foretold.draw(n_foretold, n_frames, self.generator, self.pitch))
        return crops.to(self.device)

    def voice(self, crops: Crops) -> Tensor | None:
        """Voices [B, voice_dim] of crops, some of them 0; None for a codec that is told none."""
        if self.voices is None:
            return None
        assert isinstance(self.codec, SpectralCodec)
        assert crops.utterances is not None
        codes = self.voices.draw(crops.utterances.tolist(), self.generator, self.codec).to(self.device)
        told = torch.rand(len(codes), 1, generator=self.generator) >= self.config.data.voice_dropout
        return self.codec.voice_of(self.codec.quantizer.decode(codes)) * told.to(self.device)

    def draw_quantizers(self, batch: int) -> Tensor:
        """Quantizer dropout: [B] codebooks in use, all of them or a power of two below."""
        n = self.codec.n_quantizers
        choices = torch.tensor([2**i for i in range(n.bit_length()) if 2**i < n] or [n])
        drawn = choices[torch.randint(len(choices), (batch,), generator=self.generator)]
        full = torch.rand(batch, generator=self.generator) < self.config.full_share
        return torch.where(full, n, drawn).to(self.device)

    def decode(self, z: Tensor, crops: Crops, voice: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """z [B, D, T], voice [B, voice_dim] -> wav [B, 1, T * hop], a second draw of it, and the pitch's error.

        A decoder that draws nothing has no second draw, and its pitch no error.
        """
        decoder = self.codec.decoder
        if not isinstance(decoder, HarmonicDecoder):
            wav: Tensor = decoder(z) if voice is None else decoder(z, voice)
            return wav, None, z.new_zeros(())
        assert crops.hz is not None
        assert crops.voiced is not None
        with self.autocast:
            filters, logits = decoder.controls(z, voice)
        hz = crops.hz
        if self.progress() >= self.config.own_pitch_start:
            own = torch.rand(len(hz), 1, generator=self.generator).to(hz.device) < 0.5
            hz = torch.where(own, pitch_hz(logits.detach()), hz)
        # The balancer shares out the gradient of one wave only.
        n_draws = 2 if self.config.loss.energy and self.step < self.config.adversarial_start else 1
        draws = [decoder.synthesise(filters, hz, decoder.random_start(hz, self.generator)) for _ in range(n_draws)]
        pitch = decoder.pitch_loss(logits, crops.hz, crops.voiced)
        return draws[0], draws[1] if n_draws == 2 else None, pitch

    def train_step(self, crops: Crops) -> dict[str, float]:
        """One step of the codec, and of the discriminators once they take part; returns the losses."""
        config, wav = self.config, crops.wav
        self.codec.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        frozen = config.train == "decoder"
        n_foretold = 0 if crops.codes is None else len(crops.codes)
        with torch.set_grad_enabled(not frozen), self.autocast:
            z = self.codec.latents(wav[: len(wav) - n_foretold]).float()
        commitment = wav.new_zeros(())
        if frozen:
            codes = self.codec.quantizer.encode(z)  # [B, K, T]
            used = self.draw_quantizers(len(wav)).tolist()
            if crops.codes is not None:
                codes = torch.cat([codes, crops.codes])
                used[-n_foretold:] = [self.codec.n_quantizers] * n_foretold
            z = torch.cat([self.codec.quantizer.decode(codes[i : i + 1, :k]) for i, k in enumerate(used)])
        elif self.quantizing:
            quantized = self.codec.quantizer(z, self.draw_quantizers(len(wav)), generator=self.generator)
            z, commitment = quantized.z, quantized.commitment_loss
        output, other, pitch = self.decode(z, crops, self.voice(crops))
        output = output[..., : wav.shape[2]]
        values: dict[str, float] = {"pitch": float(pitch.detach())}
        if other is None:
            losses = {"mel": self.mel_loss(output, wav)}
        else:
            energy, distance = self.mel_loss.energy_distance(output, other[..., : wav.shape[2]], wav)
            losses, values["distance"] = {"mel": energy}, float(distance)
        if config.loss.waveform > 0:
            losses["waveform"] = waveform_loss(output, wav)
        for name, listener in self.listeners.items():
            losses[name] = listener(output, wav)
        # What does not pass through the wave is kept apart: the balancer shares out the wave's gradient only.
        inner = commitment * config.loss.commitment + pitch * config.loss.pitch
        if self.probe is not None and self.quantizing:
            assert isinstance(self.codec, SpectralCodec)
            probe = self.probe(z, self.codec.log_mel(wav))
            inner = inner + probe * config.loss.probe
            values["probe"] = float(probe.detach())
        adversarial = self.step >= config.adversarial_start
        if adversarial:
            values["discriminator"] = self.discriminator_step(output.detach(), wav)
            self.discriminator.requires_grad_(False)
            with self.autocast:
                fake = self.discriminator(output)
                with torch.no_grad():
                    real = self.discriminator(wav)
            self.discriminator.requires_grad_(True)
            losses["adversarial"] = generator_loss([j.logits for j in fake])
            losses["feature"] = feature_matching_loss([j.features for j in fake], [j.features for j in real])
        self.optimizer.zero_grad(set_to_none=True)
        if adversarial and config.loss.balancer:
            if inner.requires_grad:
                torch.autograd.backward(inner, retain_graph=True)
            self.balancer.backward(losses, output)
        else:
            weights = to_dict(config.loss)
            total = sum((weights[k] * v for k, v in losses.items()), inner)
            assert isinstance(total, Tensor)
            torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(self.trained, config.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        values.update({k: float(v.detach()) for k, v in losses.items()})
        return values | {"commitment": float(commitment.detach()), "grad_norm": float(norm)}

    def discriminator_step(self, fake: Tensor, real: Tensor) -> float:
        """One step of the discriminators; fake and real are wav [B, 1, N]."""
        with self.autocast:
            fakes, reals = self.discriminator(fake), self.discriminator(real)
        loss = discriminator_loss([j.logits for j in fakes], [j.logits for j in reals])
        self.disc_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.disc_optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def start_linear_path(self, cache: WaveCache) -> None:
        """Let a linear path begin with the principal components of ``kmeans_frames`` frames."""
        if not isinstance(self.codec, SpectralCodec) or self.codec.linear is None:
            return
        features: list[Tensor] = []
        while sum(len(f) for f in features) < self.config.kmeans_frames:
            features.append(self.codec.features(self.crops(cache).wav).flatten(0, 1))
        self.codec.begin_with_components(torch.cat(features))

    @torch.no_grad()
    def start_quantizing(self, cache: WaveCache) -> None:
        """Set the codebooks by k-means over ``kmeans_frames`` frames."""
        self.codec.eval()
        zs: list[Tensor] = []
        while sum(z.shape[0] * z.shape[2] for z in zs) < self.config.kmeans_frames:
            zs.append(self.codec.latents(self.crops(cache).wav))
        self.codec.quantizer.initialise(torch.cat(zs), generator=self.generator)
        self.quantizing = True

    # -- judging ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, cache: WaveCache, max_s: float = 4.0, max_utterances: int = 24) -> dict[str, float]:
        """Mel distance on held-out speakers by number of codebooks, and how evenly each codebook is used."""
        self.codec.eval()
        distances: dict[int, list[float]] = {k: [] for k in (1, 2, 4, 8) if k <= self.codec.n_quantizers}
        probes: dict[int, list[float]] = {}
        used: list[Tensor] = []
        for i in _spread(len(cache), max_utterances):
            wav = cache.wav(i)[None, :, : int(max_s * self.codec.sample_rate)].to(self.device)
            wav = wav[:, :, : wav.shape[2] // self.codec.hop_length * self.codec.hop_length]
            if not self.quantizing:
                distances[max(distances)].append(float(self.mel_loss(self.reconstruct(wav), wav)))
                continue
            codes = self.codec.encode(wav)
            used.append(codes[0])
            for k, values in distances.items():
                values.append(float(self.mel_loss(self.codec.decode(codes[:, :k]), wav)))
                if self.probe is not None and isinstance(self.codec, SpectralCodec):
                    z = self.codec.quantizer.decode(codes[:, :k])
                    probes.setdefault(k, []).append(float(self.probe(z, self.codec.log_mel(wav))))
        result = {f"dev/mel_{k}": sum(v) / len(v) for k, v in distances.items() if v}
        result |= {f"dev/probe_{k}": sum(v) / len(v) for k, v in probes.items()}
        if used:
            for k, codes_k in enumerate(torch.cat(used, dim=1)):
                p = torch.bincount(codes_k, minlength=self.codec.codebook_size) / len(codes_k)
                result[f"dev/perplexity_{k + 1}"] = float((-(p * p.clamp(min=1e-9).log()).sum()).exp())
        return result

    @torch.no_grad()
    def sample(self, cache: WaveCache) -> Tensor:
        """A held-out utterance through the codec: [1, 1, N]."""
        self.codec.eval()
        return self.reconstruct(cache.wav(len(cache) // 2)[None].to(self.device))

    def reconstruct(self, wav: Tensor) -> Tensor:
        """wav [1, 1, N] -> [1, 1, N'] through the codec as it is now, quantised or not yet."""
        if self.quantizing:
            return self.codec.decode(self.codec.encode(wav))
        decoded: Tensor = self.codec.decoder(self.codec.latents(wav))
        return decoded

    # -- stopping and going on ---------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint and, beside it, the codec as it is now."""
        optimizer, optimizer_rest = optimizer_tensors(self.optimizer)
        disc_optimizer, disc_rest = optimizer_tensors(self.disc_optimizer)
        tensors = {
            "codec": self.codec.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "probe": {} if self.probe is None else self.probe.state_dict(),
            "optimizer": optimizer,
            "disc_optimizer": disc_optimizer,
            "rng": rng_state(crops=self.generator),
        }
        state: dict[str, Any] = {
            "step": self.step,
            "minutes": self.minutes,
            "quantizing": self.quantizing,
            "optimizer": optimizer_rest,
            "disc_optimizer": disc_rest,
            "balancer": self.balancer.state_dict(),
            "config": to_dict(self.config),
        }
        save_checkpoint(self.out / "checkpoints", tensors=tensors, state=state)

    def restore(self) -> None:
        """Continue from the newest checkpoint."""
        checkpoint = load_checkpoint(self.out / "checkpoints")
        try:
            self.codec.load_state_dict(checkpoint.tensors["codec"])
            self.discriminator.load_state_dict(checkpoint.tensors["discriminator"])
            if self.probe is not None:
                self.probe.load_state_dict(checkpoint.tensors["probe"])
        except (RuntimeError, KeyError) as error:
            raise ValleError(
                f"the checkpoint in {self.out} is of another codec than the configuration's; resume with the one that "
                "the run was started with, or give another --out"
            ) from error
        restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
        restore_optimizer(self.disc_optimizer, checkpoint.tensors["disc_optimizer"], checkpoint.state["disc_optimizer"])
        restore_rng(checkpoint.tensors["rng"], crops=self.generator)
        self.balancer.load_state_dict(checkpoint.state["balancer"])
        self.step, self.minutes = checkpoint.step, float(checkpoint.state["minutes"])
        self.quantizing = bool(checkpoint.state["quantizing"])


def _spread(n: int, k: int) -> list[int]:
    """k indices below n, evenly spaced."""
    return [i * n // min(n, k) for i in range(min(n, k))]
