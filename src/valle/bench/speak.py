"""How fast it speaks here: the AR in tokens a second, the NAR in seconds, the codec against real time.

The task is always the same one, so that machines and systems compare: a prompt of 3 s (225 frames), 100 phonemes, and
for the NAR all its passes (the paper's: seven) over 4 s (300 frames) of speech, and one pass (``one_pass``). Weights
are random: only sizes matter. They are read in each way that there is (``valle.model.narrow``): fp32 is plain eager
PyTorch, the others stand beside it with their ratio. A number is the median of some repeats after a warm-up. At 75
tokens a second the AR is as fast as speech; how fast memory is read bounds it. The real-time factor of a size is that
of these 4 s: prompt and phonemes read, 300 tokens, the NAR's one pass, the codec.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn

from valle.codec.base import Codec, load_codec
from valle.config import from_dict
from valle.errors import ValleError
from valle.model.ar import AR, ARConfig
from valle.model.nar import NAR, NARConfig
from valle.model.narrow import can_halve, can_int8, narrow
from valle.model.sampling import SamplingConfig
from valle.native import library
from valle.native.matrix import Precision

PROMPT_FRAMES = 225
TARGET_FRAMES = 300
FRAME_RATE = 75
N_PHONEMES = 100
BATCHES = (1, 8)
WAYS = ("fp32", "fp16", "int8", "int4")
"""How weights are read, the plain way first; in 4 bits the AR's, and the NAR's then in 8."""
CODEC_S = 5.0
CHUNK_FRAMES = 15  # 0.2 s, of the streamed decoding
WORDS = "Hello from a small voice."
SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody in the village had seen it before."
TEXT = f"It was late when they came to the river. {SENTENCE} They sat down and waited for the morning."
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
        ``ar_parameters``, ``nar_parameters``; ``ar``, by the way weights are read: ``prefill_s`` (phonemes and prompt,
        up to the first token) and ``tokens_per_s`` by batch size (all rows together); ``nar`` likewise: ``s`` of all
        passes, where there are several, and ``one_pass_s``.
    """
    torch.manual_seed(0)
    ar = AR(models[0]).eval()
    for p in ar.parameters():
        p.data = p.data.half().float()  # as they are stored
    can = {"fp32": True, "fp16": can_halve(), "int8": can_int8(), "int4": library() is not None}
    ways = [way for way in WAYS if can[way]]
    ar_results: dict[str, dict[str, Any]] = {}
    for way in ways:
        _read_as(ar, way)
        rates: dict[str, float] = {}
        for batch in BATCHES:
            bench_ar(ar, batch, 4)
            times = [bench_ar(ar, batch, n_tokens) for _ in range(repeats)]
            rates[str(batch)] = batch * (n_tokens - 1) / statistics.median(rest for _, rest in times)
            if batch == 1:
                prefill_s = statistics.median(first for first, _ in times)
        ar_results[way] = {"prefill_s": prefill_s, "tokens_per_s": rates}
    ar_parameters = ar.n_parameters
    del ar  # at the paper's size each takes 0.6 GB
    nar_results: dict[str, dict[str, float]] = {way: {} for way in ways if way in ("fp32", "int8")}
    nar_parameters = 0
    for one_pass in sorted({models[1].one_pass, True}):  # False goes first
        nar = NAR(replace(models[1], one_pass=one_pass)).eval()
        nar_parameters = nar_parameters or nar.n_parameters
        for way, of_way in nar_results.items():
            _read_as(nar, way)
            of_way["one_pass_s" if one_pass else "s"] = _bench_nar(nar, repeats)
        del nar
    return {
        "ar_parameters": ar_parameters,
        "nar_parameters": nar_parameters,
        "ar": ar_results,
        "nar": nar_results,
    }


def _read_as(model: nn.Module, way: str) -> None:
    """fp32 is how a model comes."""
    if way != "fp32":
        narrow(model, cast("Precision", way))


def _bench_nar(nar: NAR, repeats: int) -> float:
    """Seconds for codebooks 2 to 8 of the target."""
    config = nar.config
    phonemes, phoneme_lens = _random(config.n_phonemes, 1, N_PHONEMES)
    prompt, prompt_lens = _random(config.codebook_size, 1, config.n_quantizers, PROMPT_FRAMES)
    codes_1, code_lens = _random(config.codebook_size, 1, TARGET_FRAMES)
    return _median(lambda: nar.generate(phonemes, phoneme_lens, prompt, prompt_lens, codes_1, code_lens), repeats)


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


def bench_say(model: str | None, repeats: int, seeds: int = 3) -> dict[str, Any]:
    """What a user waits for, with a whole model and its default voice.

    Args:
        model: folder or hub id; None: the embedded one.
        repeats: of the command, of which the median is taken.
        seeds: other speech for each; ranges are over them.

    Returns:
        ``command_s``, seconds from the start of ``valle say`` with five words to its finished file; ``rtf`` and
        ``rtf_1``, [least, most] seconds of work for a second of speech, 18 words, as many candidates as the model's
        default and one; ``first_audio_s``, [least, most] until the first chunk of a streamed text.
    """
    from valle.tts import VALLE

    times = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "valle", "say", WORDS, "--seed", "0", "-o", str(Path(folder) / "out.wav")]
        for _ in range(repeats):
            began = perf_counter()
            subprocess.run([*command, *(["--model", model] if model else [])], check=True, capture_output=True)
            times.append(perf_counter() - began)
    tts = VALLE.from_pretrained(model, "cpu")
    prompt = tts.prompt()
    tts.generate(WORDS, prompt=prompt, seed=0)
    rtfs: dict[str, list[float]] = {"rtf": [], "rtf_1": [], "first_audio_s": []}
    for seed in range(seeds):
        for key, n in (("rtf", None), ("rtf_1", 1)):
            rtfs[key].append(tts.generate(SENTENCE, prompt=prompt, seed=seed, num_candidates=n).info["rtf"])
        began = perf_counter()
        next(tts.stream(TEXT, prompt=prompt, seed=seed))
        rtfs["first_audio_s"].append(perf_counter() - began)
    ranges = {key: [min(values), max(values)] for key, values in rtfs.items()}
    return {"model": tts.model.info.name, "command_s": statistics.median(times), **ranges}


def machine() -> dict[str, Any]:
    """What was measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": name,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compiled": library() is not None,
        "memory_gb_per_s": _memory_speed(),
    }


def _memory_speed() -> float:
    """How fast 256 MB are read, 10⁹ bytes a second; the best of ten."""
    numbers = torch.ones(1 << 26)
    times = []
    for _ in range(10):
        began = perf_counter()
        numbers.max()
        times.append(perf_counter() - began)
    return numbers.nbytes / min(times) / 1e9


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
    parser.add_argument("--say", action="store_true", help="what users wait for with a whole model, too")
    parser.add_argument("--model", metavar="DIR", help="of --say: a model's folder or hub id (the embedded one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise ValleError(f"--repeats is {args.repeats}; it must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes: dict[str, dict[str, Any]] = {}
    results: dict[str, Any] = {
        "machine": machine(),
        "codec": bench_codec(_codec(args.codec), args.repeats),
        "sizes": sizes,
    }
    for size in SIZES if args.size == "all" else [args.size]:  # the small one first: the peak only ever grows
        sizes[size] = bench_models(configs(size), SIZES[size], args.repeats)
        sizes[size]["peak_memory_mb"] = peak_memory_mb()
    if args.say:
        results["say"] = bench_say(args.model, args.repeats)
    sys.stdout.write(json.dumps(results, indent=1) + "\n" if args.json else markdown(results))
    return 0


def markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    where, codec = results["machine"], results["codec"]
    lines = [
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, torch {where['torch']}; "
        f"{'with' if where['compiled'] else 'without'} what valle compiles; memory is read at "
        f"{where['memory_gb_per_s']:.1f} GB/s.\n",
        "| size | weights read in | AR prefill, s | AR tokens/s | at batch 8 | NAR, s | NAR with one pass, s | "
        "real-time factor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, r in results["sizes"].items():
        name = f"{size}, AR {r['ar_parameters'] / 1e6:.1f} M, NAR {r['nar_parameters'] / 1e6:.1f} M"
        plain, plain_nar = r["ar"]["fp32"], r["nar"]["fp32"]
        for way, of_way in r["ar"].items():
            rates, nar = of_way["tokens_per_s"], r["nar"].get(way, {})
            one_pass = r["nar"].get({"int4": "int8"}.get(way, way), plain_nar)["one_pass_s"]
            seconds = TARGET_FRAMES / FRAME_RATE
            work = of_way["prefill_s"] + (TARGET_FRAMES - 1) / rates["1"] + one_pass
            cells = [
                f"{of_way['prefill_s']:.3f}",
                *(_with_ratio(rates[b], rates[b] / plain["tokens_per_s"][b], ".1f") for b in rates),
                *(_with_ratio(nar[k], plain_nar[k] / nar[k], ".2f") if k in nar else "" for k in ("s", "one_pass_s")),
                f"{work / seconds + codec['decode_rtf']:.2f}",
            ]
            lines.append(f"| {name} | {way} | {' | '.join(cells)} |")
        memory = r["peak_memory_mb"]
        name = f"{size}, peak memory: {'not told here' if memory is None else f'{memory:.0f} MB'}"
        lines.append(f"| {name} | | | | | | | |")
    lines.append("\n| codec, real-time factor | encode | decode | decode in chunks of 0.2 s |\n|---|---|---|---|")
    lines.append(f"| | {codec['encode_rtf']:.4f} | {codec['decode_rtf']:.4f} | {codec['stream_rtf']:.4f} |\n")
    if say := results.get("say"):
        lines.append(f"| {say['model']}, default voice | |\n|---|---|")
        lines.append(f"| five words, from the command to the finished file | {say['command_s']:.1f} s |")
        lines.append(f"| real-time factor, 18 words | {say['rtf'][0]:.2f} to {say['rtf'][1]:.2f} |")
        lines.append(f"| with one candidate | {say['rtf_1'][0]:.2f} to {say['rtf_1'][1]:.2f} |")
        first = say["first_audio_s"]
        lines.append(f"| until the first sound of a stream | {first[0]:.2f} to {first[1]:.2f} s |\n")
    return "\n".join(lines)


def _with_ratio(x: float, ratio: float, form: str) -> str:
    """A number, and how many times as fast as the plain way it is."""
    return f"{x:{form}}" if ratio == 1 else f"{x:{form}} ({ratio:.2f} times)"


def _codec(folder: str | None) -> Codec:
    """The codec in a folder, the embedded one, or one of its kind with random weights."""
    from valle.codec.spectral import SpectralCodec, SpectralCodecConfig
    from valle.pretrained import EMBEDDED, narrow_decoder

    if folder is None and not (EMBEDDED / "codec" / "config.json").is_file():
        return SpectralCodec(SpectralCodecConfig()).eval()
    codec = load_codec(folder or EMBEDDED / "codec")
    narrow_decoder(codec, "fp16")  # as ``load_pretrained`` does
    return codec


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
