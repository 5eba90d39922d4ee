"""How fast it speaks here: the AR in tokens a second, the NAR in seconds, the codec against real time.

The task is always the same one, so that machines and systems compare: a prompt of 3 s (225 frames), 100 phonemes, and
for the NAR all its passes (the paper's: seven) over 4 s (300 frames) of speech. Weights are random, fp32, eager, those
of the AR read as if they were stored (``valle.model.halving``), and beside it as they are: only sizes matter. A number
is the median of some repeats after a warm-up. At 75 tokens a second the AR is as fast as speech.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from valle.codec.base import Codec, load_codec
from valle.config import from_dict
from valle.errors import ValleError
from valle.model.ar import AR, ARConfig
from valle.model.halving import halve
from valle.model.nar import NAR, NARConfig
from valle.model.sampling import SamplingConfig

PROMPT_FRAMES = 225
TARGET_FRAMES = 300
N_PHONEMES = 100
BATCHES = (1, 8)
CODEC_S = 5.0
CHUNK_FRAMES = 15  # 0.2 s, of the streamed decoding
SIZES = {"default": 150, "paper": 60}
"""Size -> tokens that the AR writes: enough for a steady rate, few enough for a slow machine."""

Configs = tuple[ARConfig, NARConfig]


def configs(size: str) -> Configs:
    """The paper's models, or those of configs/default.toml; installed without it, those embedded, which are the same.

    What is timed is speaking without an alignment, which costs nothing to speak of.

    Raises:
        ValleError: there is neither a default configuration nor an embedded model.
    """
    from valle.pretrained import EMBEDDED
    from valle.text import DEFAULT_INVENTORY

    n_phonemes = len(DEFAULT_INVENTORY)
    if size == "paper":
        return ARConfig(n_phonemes), NARConfig(n_phonemes)
    path = Path(__file__).parents[3] / "configs" / "default.toml"
    if path.is_file():
        from valle.train.config import load_train_config

        config = load_train_config(path)
        known = {"n_phonemes": n_phonemes, "alignment": False}
        ar = from_dict(ARConfig, {**config.ar.model, **known}, f"{path} [ar.model]")
        return ar, from_dict(NARConfig, {**config.nar.model, **known}, f"{path} [nar.model]")
    if not (EMBEDDED / "ar" / "config.json").is_file():
        raise ValleError("there is no configs/default.toml and no embedded model to take the default size from")
    own = {name: json.loads((EMBEDDED / name / "config.json").read_text(encoding="utf-8")) for name in ("ar", "nar")}
    return (
        replace(from_dict(ARConfig, own["ar"], "the embedded AR model"), alignment=False, phoneme_kinds=()),
        replace(from_dict(NARConfig, own["nar"], "the embedded NAR model"), alignment=False),
    )


def bench_models(models: Configs, n_tokens: int, repeats: int) -> dict[str, Any]:
    """Speed of an AR and a NAR model of these sizes.

    Args:
        models: their configurations.
        n_tokens: that the AR writes at a time; at least 2.
        repeats: of which the median is taken.

    Returns:
        ``ar_parameters``, ``ar_prefill_s`` (phonemes and prompt, up to the first token), ``ar_tokens_per_s`` by batch
        size (all rows together) and ``ar_fp32_tokens_per_s``, the same with weights as they are, ``nar_parameters``,
        ``nar_s``.
    """
    torch.manual_seed(0)
    ar = AR(models[0]).eval()
    for p in ar.parameters():
        p.data = p.data.half().float()  # as they are stored
    prefill_s = 0.0
    rates: dict[str, float] = {}
    plain_rates: dict[str, float] = {}
    for halved, by_batch in ((False, plain_rates), (True, rates)):
        if halved:
            halve(ar)
        for batch in BATCHES:
            bench_ar(ar, batch, 4)
            times = [bench_ar(ar, batch, n_tokens) for _ in range(repeats)]
            by_batch[str(batch)] = batch * (n_tokens - 1) / statistics.median(rest for _, rest in times)
            if batch == 1:
                prefill_s = statistics.median(first for first, _ in times)
    ar_parameters = ar.n_parameters
    del ar  # at the paper's size each takes 0.6 GB
    nar = NAR(models[1]).eval()
    phonemes, phoneme_lens = _random(models[1].n_phonemes, 1, N_PHONEMES)
    prompt, prompt_lens = _random(models[1].codebook_size, 1, models[1].n_quantizers, PROMPT_FRAMES)
    codes_1, code_lens = _random(models[1].codebook_size, 1, TARGET_FRAMES)
    nar_s = _median(lambda: nar.generate(phonemes, phoneme_lens, prompt, prompt_lens, codes_1, code_lens), repeats)
    return {
        "ar_parameters": ar_parameters,
        "ar_prefill_s": prefill_s,
        "ar_tokens_per_s": rates,
        "ar_fp32_tokens_per_s": plain_rates,
        "nar_parameters": nar.n_parameters,
        "nar_s": nar_s,
    }


def bench_ar(ar: AR, batch: int, n_tokens: int) -> tuple[float, float]:
    """Seconds up to the first token of a batch, and for the others."""
    phonemes, phoneme_lens = _random(ar.config.n_phonemes, batch, N_PHONEMES)
    prompt, prompt_lens = _random(ar.config.codebook_size, batch, PROMPT_FRAMES)
    steps = ar.steps(
        phonemes,
        phoneme_lens,
        prompt,
        prompt_lens,
        min_frames=n_tokens,
        max_frames=n_tokens,
        sampling=SamplingConfig(),
    )
    with torch.inference_mode():
        began = perf_counter()
        next(steps)
        first = perf_counter()
        n = 1 + sum(1 for _ in steps)
        assert n == n_tokens
        return first - began, perf_counter() - first


def bench_codec(codec: Codec, repeats: int) -> dict[str, float]:
    """Real-time factors of a codec (seconds of work for a second of sound; below 1 is faster than real time)."""
    wav = 0.1 * torch.randn(1, 1, round(CODEC_S * codec.sample_rate))
    codes = codec.encode(wav)  # [1, 8, T]

    def streamed() -> None:
        decoder = codec.stream_decoder()
        for t in range(0, codes.shape[2], CHUNK_FRAMES):
            decoder.push(codes[:, :, t : t + CHUNK_FRAMES])
        decoder.finish()

    return {
        "encode_rtf": _median(lambda: codec.encode(wav), repeats) / CODEC_S,
        "decode_rtf": _median(lambda: codec.decode(codes), repeats) / CODEC_S,
        "stream_rtf": _median(streamed, repeats) / CODEC_S,
    }


def machine() -> dict[str, Any]:
    """What was measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": name, "cores": cores, "threads": torch.get_num_threads(), "torch": torch.__version__}


def peak_memory_mb() -> float | None:
    """Most memory that this process has ever held; None where the system does not tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main(argv: Sequence[str]) -> int:
    """``valle bench``; prints markdown, or JSON."""
    parser = argparse.ArgumentParser(prog="valle bench", description="Measure the speed on this machine.")
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all", help="of the language models (%(default)s)")
    parser.add_argument("--codec", metavar="DIR", help="folder of a codec (one of the embedded one's kind)")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0: torch's choice")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is taken (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise ValleError(f"--repeats is {args.repeats}; it must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes: dict[str, dict[str, Any]] = {}
    results = {"machine": machine(), "codec": bench_codec(_codec(args.codec), args.repeats), "sizes": sizes}
    for size in SIZES if args.size == "all" else [args.size]:  # the small one first: the peak only ever grows
        sizes[size] = bench_models(configs(size), SIZES[size], args.repeats)
        sizes[size]["peak_memory_mb"] = peak_memory_mb()
    sys.stdout.write(json.dumps(results, indent=1) + "\n" if args.json else markdown(results))
    return 0


def markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    where, codec = results["machine"], results["codec"]
    lines = [
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, torch {where['torch']}, fp32, eager.\n",
        "| size | AR | NAR | AR prefill, s | AR tokens/s | at batch 8 | with fp32 weights | at batch 8 | NAR, s | peak "
        "memory, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size, r in results["sizes"].items():
        rates, plain, memory = r["ar_tokens_per_s"], r["ar_fp32_tokens_per_s"], r["peak_memory_mb"]
        ar_m, nar_m = r["ar_parameters"] / 1e6, r["nar_parameters"] / 1e6
        lines.append(
            f"| {size} | {ar_m:.1f} M | {nar_m:.1f} M | {r['ar_prefill_s']:.3f} | {rates['1']:.1f} | {rates['8']:.1f} "
            f"| {plain['1']:.1f} ({rates['1'] / plain['1']:.2f} times) | {plain['8']:.1f} "
            f"| {r['nar_s']:.2f} | {'–' if memory is None else f'{memory:.0f}'} |"
        )
    lines.append("\n| codec, real-time factor | encode | decode | decode in chunks of 0.2 s |\n|---|---|---|---|")
    lines.append(f"| | {codec['encode_rtf']:.4f} | {codec['decode_rtf']:.4f} | {codec['stream_rtf']:.4f} |\n")
    return "\n".join(lines)


def _codec(folder: str | None) -> Codec:
    """The codec in a folder, the embedded one, or one of its kind with random weights."""
    from valle.codec.spectral import SpectralCodec, SpectralCodecConfig
    from valle.pretrained import EMBEDDED

    if folder is None and not (EMBEDDED / "codec" / "config.json").is_file():
        return SpectralCodec(SpectralCodecConfig()).eval()
    return load_codec(folder or EMBEDDED / "codec")


def _random(n: int, batch: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Tokens below n, [batch, *shape], and their lengths [batch]."""
    return torch.randint(n, (batch, *shape)), torch.full((batch,), shape[-1])


def _median(work: Callable[[], object], repeats: int) -> float:
    """Seconds, after one warm-up."""
    times = []
    with torch.inference_mode():
        work()
        for _ in range(repeats):
            began = perf_counter()
            work()
            times.append(perf_counter() - began)
    return statistics.median(times)
