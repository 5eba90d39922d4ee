"""How fast one core prepares data, step by step, and what a corpus of any size would take (paper §4.1: 60,000 hours).

``python -m valle.data.speed SOURCE --codec DIR [--recogniser KIND:MODEL] [--n 40] [--json FILE]`` runs each step of
``valle prepare`` by itself over the same recordings, with one thread, and tells hours of recordings an hour of the
processor's time: not of the clock, so that what else runs on the machine matters little.

``python -m valle.data.speed --plan 60000 --measured FILE [--cores 64] [--price F]`` reckons from such figures hours,
machines, storage and cost, and which part of the program gives way first.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from valle.config import from_dict, to_dict
from valle.data.corpus import Utterance, load_wav
from valle.data.cutting import piece_of
from valle.data.pack import PackedUtterance, PackInfo, write_shard
from valle.data.probe import BadAudio, probe
from valle.data.quality import judge, measure
from valle.data.reading import Phonemize
from valle.data.recognise import cpu_time
from valle.data.segment import SpeechDetector, detect
from valle.data.transcripts import SAMPLE_RATE as RECOGNISER_RATE
from valle.data.transcripts import Transcript, TranscriptCache, Word
from valle.errors import ValleError, exit_with

if TYPE_CHECKING:
    from valle.asr import PhonemeAligner
    from valle.codec.base import Codec
    from valle.data.transcripts import Recogniser
    from valle.text import PhonemeInventory

A = TypeVar("A")

PIECE_S = 15.0
"""Length of a piece of a long recording (``valle.data.segment``)."""
PCM_MB_PER_HOUR = 16000 * 2 * 3600 / 1e6
"""Of uncompressed recordings at 16 kHz and 16 bits; lossless compression takes about half."""


@dataclass(frozen=True)
class Step:
    """One step of preparing."""

    name: str
    """What it does."""
    cpu_s: float
    """The processor's time it took."""
    audio_s: float
    """The recordings that it took it for."""

    @property
    def rate(self) -> float:
        """Hours of recordings an hour of one core."""
        return self.audio_s / max(self.cpu_s, 1e-9)


@dataclass(frozen=True)
class Speed:
    """What was measured."""

    steps: tuple[Step, ...]
    """In the order in which a recording passes them."""
    hours: float
    """Of the recordings."""
    n_utterances: int
    """How many there were."""
    shard_mb_per_hour: float
    """Size of what was written."""
    source_mb_per_hour: float
    """Size of the recordings' files."""
    machine: str = ""
    """The processor and what was loaded."""

    def __post_init__(self) -> None:
        if not self.steps or min(step.audio_s for step in self.steps) <= 0:
            raise ValleError("figures of speed need steps, each over some seconds of recordings; measure them anew")

    @property
    def rate(self) -> float:
        """Hours of recordings an hour of one core, by all steps one after the other."""
        return 1 / sum(1 / step.rate for step in self.steps)

    def table(self) -> str:
        """As Markdown."""
        total = sum(1 / step.rate for step in self.steps)
        lines = ["| step | hours an hour of one core | core seconds an hour | share, % |", "|---|---|---|---|"]
        for step in self.steps:
            share = 100 / step.rate / total
            lines.append(f"| {step.name} | {_short(step.rate)} | {_short(3600 / step.rate)} | {share:.1f} |")
        lines.append(f"| all | {_short(self.rate)} | {_short(3600 / self.rate)} | 100 |")
        lines += [
            "",
            f"{self.n_utterances} recordings, {60 * self.hours:.1f} minutes; {self.machine}. A shard takes "
            f"{self.shard_mb_per_hour:.2f} MB an hour, these recordings' files {self.source_mb_per_hour:.1f}.",
            "",
        ]
        return "\n".join(lines)


class _Watch:
    """Adds up the processor's time of each step."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self.audio_s: dict[str, float] = {}

    def run(self, name: str, seconds: float, function: Callable[[], A]) -> A:
        """The result of ``function``, which is a step for a recording of so many seconds."""
        begun = cpu_time()
        result = function()
        self.cpu_s[name] = self.cpu_s.get(name, 0.0) + cpu_time() - begun
        self.audio_s[name] = self.audio_s.get(name, 0.0) + seconds
        return result

    def steps(self) -> tuple[Step, ...]:
        return tuple(Step(name, self.cpu_s[name], self.audio_s[name]) for name in self.cpu_s)


def measure_speed(
    utterances: Sequence[Utterance],
    codec: Codec,
    inventory: PhonemeInventory,
    phonemize: Phonemize,
    *,
    detector: SpeechDetector | None = None,
    recogniser: Recogniser | None = None,
    aligner: PhonemeAligner | None = None,
) -> Speed:
    """Run every step by itself over the same recordings; what loads lazily is loaded before, on the first of them.

    Args:
        utterances: with texts; those that are not fit are left out of all steps.
        codec: makes the codes.
        inventory: phoneme ids.
        phonemize: (text, language) -> symbols.
        detector: tells speech from pauses; None leaves that step out.
        recogniser: transcribes; None leaves that step out.
        aligner: tells durations; None leaves that step out.

    Raises:
        ValleError: none of the recordings is fit.
    """
    _pass(utterances[:1], codec, inventory, phonemize, _Watch(), detector, recogniser, aligner)
    watch = _Watch()
    made = _pass(utterances, codec, inventory, phonemize, watch, detector, recogniser, aligner)
    if not made:
        raise ValleError("none of the recordings is fit to be prepared; give others with texts")
    seconds = sum(u.seconds for u, _ in made)
    info = PackInfo(
        codec_fingerprint="",
        inventory_version=inventory.version,
        n_phonemes=len(inventory),
        separator_id=0,
        frame_rate=codec.frame_rate,
        aligned=aligner is not None,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        watch.run("writing", seconds, lambda: write_shard(path, [packed for _, packed in made], info))
        n_bytes = path.stat().st_size
    return Speed(
        watch.steps(),
        seconds / 3600,
        len(made),
        n_bytes / 1e6 / (seconds / 3600),
        sum(u.path.stat().st_size for u, _ in made) / 1e6 / (seconds / 3600),
    )


def _pass(
    utterances: Sequence[Utterance],
    codec: Codec,
    inventory: PhonemeInventory,
    phonemize: Phonemize,
    watch: _Watch,
    detector: SpeechDetector | None,
    recogniser: Recogniser | None,
    aligner: PhonemeAligner | None,
) -> list[tuple[Utterance, PackedUtterance]]:
    from valle.audio import normalise_loudness, trim_silence

    made: list[tuple[Utterance, PackedUtterance]] = []
    for utterance in utterances:
        seconds, text = utterance.seconds, utterance.text or ""
        try:
            ids = inventory.encode(list(phonemize(text, utterance.lang)))
            probe(utterance.path)
            if aligner is not None:
                aligner.align(load_wav(utterance), ids)
        except (BadAudio, ValleError):
            continue
        watch.run("probe (decoding)", seconds, lambda u=utterance: probe(u.path))  # type: ignore[misc]
        if detector is not None:
            watch.run("speech detection", seconds, lambda u=utterance: detect(u.path, detector))  # type: ignore[misc]
        if recogniser is not None:

            def transcribe(u: Utterance = utterance) -> Transcript:
                return recogniser.transcribe(load_wav(u, RECOGNISER_RATE)[0].numpy(), RECOGNISER_RATE)

            watch.run("transcription", seconds, transcribe)

        def phonemes(u: Utterance = utterance) -> list[int]:
            return inventory.encode(list(phonemize(u.text or "", u.lang)))

        def ready(u: Utterance = utterance) -> torch.Tensor:
            wav = trim_silence(load_wav(u, codec.sample_rate), codec.sample_rate)
            return normalise_loudness(wav, codec.sample_rate)

        ids = watch.run("text and phonemes", seconds, phonemes)
        wav = watch.run("decoding, resampling, level", seconds, ready)  # [1, N]
        watch.run("quality", seconds, lambda w=wav, t=text: judge(measure(w, codec.sample_rate, text=t)))  # type: ignore[misc]
        durations = None
        if aligner is not None:
            durations = watch.run(
                "alignment",
                seconds,
                lambda w=wav, i=ids: aligner.align(w, i).durations,  # type: ignore[misc]
            )

        def encode(w: torch.Tensor = wav) -> torch.Tensor:
            with torch.inference_mode():
                return codec.encode(w.unsqueeze(0))[0].to(torch.int16)  # [8, T]

        codes = watch.run("codec", seconds, encode)
        made.append((utterance, PackedUtterance(utterance.id, torch.tensor(ids), codes, -1, durations)))
    return made


# --- a corpus of any size ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is taken for granted."""

    hours: float = 60000.0
    """Of recordings."""
    cores: int = 64
    """That work at a time."""
    cores_per_machine: int = 16
    """Of one machine."""
    price: float = 0.04
    """Of a core for an hour, in whatever currency."""
    storage_price: float = 0.02
    """Of a gigabyte for a month."""
    efficiency: float = 0.85
    """What is left of each core's speed when all of a machine's work, and of the cores when the last shards end."""
    shard_hours: float = 1.0
    """``PrepareConfig.shard_hours``."""
    memory_gb: float = 64.0
    """Of one machine."""
    storage_mb_s: float = 500.0
    """What the storage that all machines share can be read with."""

    def __post_init__(self) -> None:
        amounts = (self.hours, self.cores, self.cores_per_machine, self.shard_hours, self.memory_gb, self.storage_mb_s)
        if min(amounts) <= 0:
            raise ValleError(
                "hours, cores, the length of shards, memory and the speed of storage must be above 0; see --plan"
            )
        if not 0 < self.efficiency <= 1:
            raise ValleError(f"--efficiency is {self.efficiency:g}; it must be above 0 and at most 1")


def plan_table(speed: Speed, plan: Plan) -> str:
    """Machines, hours, storage and cost of a corpus, and what gives way first, as Markdown."""
    busy = {step.name: plan.hours / step.rate for step in speed.steps}  # core hours
    core_hours = sum(busy.values()) / plan.efficiency
    wall_h = core_hours / plan.cores
    n_machines = math.ceil(plan.cores / plan.cores_per_machine)
    n_pieces = plan.hours * 3600 / PIECE_S
    shards_gb = plan.hours * speed.shard_mb_per_hour / 1000
    saved_gb = plan.hours * 3600 * 75 * 8 * 6 / 8 / 1e9  # six bits a code, eight codes a frame
    pcm_tb = plan.hours * PCM_MB_PER_HOUR / 1e6
    read_mb_s = plan.hours * PCM_MB_PER_HOUR * _N_READS / (wall_h * 3600)
    entry = _bytes_of_a_transcript()
    index_gb, file_gb = n_pieces * entry[0] / 1e9, n_pieces * entry[1] / 1e9
    id_gb = n_pieces * _bytes_of_an_id() / 1e9
    lost_h = plan.shard_hours / speed.rate / plan.efficiency
    most, worst = max((share, name) for name, share in busy.items())
    rows: list[tuple[str, str]] = [
        ("recordings", f"{plan.hours:,.0f} h, {n_pieces / 1e6:.1f} million pieces of {PIECE_S:g} s"),
        ("work", f"{core_hours:,.0f} core hours at {100 * plan.efficiency:.0f} % of the speed of one core alone"),
        ("of it the most", f"{worst}, {most / plan.efficiency:,.0f} core hours"),
        ("machines", f"{n_machines} of {plan.cores_per_machine} cores"),
        ("time", f"{wall_h:,.0f} h, {wall_h / 24:.1f} days"),
        ("cost of the work", f"{core_hours * plan.price:,.0f} at {plan.price:g} a core hour"),
        ("recordings on disk", f"{pcm_tb:.1f} TB uncompressed at 16 kHz, about half as FLAC"),
        ("read from it", f"{_N_READS} times, {read_mb_s:.0f} MB/s in all (uncompressed)"),
        ("shards", f"{plan.hours / plan.shard_hours:,.0f} files, {shards_gb:.0f} GB; --compact takes {saved_gb:.0f} GB "
                   "less"),
        ("a month of storage", f"{(shards_gb + file_gb + pcm_tb * 1000 / 2) * plan.storage_price:,.0f} at "
                               f"{plan.storage_price:g} a GB, recordings as FLAC with it"),
        ("lost by a kill", f"{lost_h:.2f} core hours a worker at most"),
        ("transcripts.jsonl", f"{file_gb:.0f} GB, an index of {index_gb:.1f} GB in every worker's memory"),
        ("ids of the pack", f"{id_gb:.1f} GB in every process that trains on it"),
    ]  # fmt: skip
    limits = [
        (index_gb * plan.cores_per_machine / plan.memory_gb,
         f"memory of a machine: indices of transcripts, {index_gb * plan.cores_per_machine:.0f} of "
         f"{plan.memory_gb:g} GB"),
        (id_gb / plan.memory_gb, f"memory of a training process: ids, {id_gb:.1f} of {plan.memory_gb:g} GB"),
        (read_mb_s / plan.storage_mb_s, f"shared storage: {read_mb_s:.0f} of {plan.storage_mb_s:g} MB/s"),
    ]  # fmt: skip
    limits.sort(reverse=True)
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    lines += ["", "What gives way first, need over limit:", ""]
    lines += [f"{place}. {share:.2f}: {what}" for place, (share, what) in enumerate(limits, 1)]
    return "\n".join([*lines, ""])


_N_READS = 4
"""How often a long recording is decoded: probed, searched for pauses, transcribed, encoded."""


def _bytes_of_a_transcript(n: int = 2000) -> tuple[float, float]:
    """What a piece's transcript takes: in the memory of ``TranscriptCache``, and on disk; measured on made-up ones."""
    words = tuple(Word("seven" if i % 2 else "words", 0.4 * i, 0.4 * i + 0.3, 0.9876) for i in range(38))  # in 15 s
    transcript = Transcript(" ".join(word.word for word in words), words, 0.9876)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transcripts.jsonl"
        cache = TranscriptCache(path)
        book = Utterance("reader/book/chapter-0001", Path(folder) / "none.flac", 3600.0, "train")
        for i in range(n):
            cache.put("vosk:model", piece_of(book, PIECE_S * i, PIECE_S * (i + 1)), transcript)
        cache.close()
        tracemalloc.start()
        try:
            kept = TranscriptCache(path)
            memory = tracemalloc.get_traced_memory()[0]
            kept.close()
        finally:
            tracemalloc.stop()
        return memory / n, path.stat().st_size / n


def _bytes_of_an_id() -> float:
    """What the id of a piece, and its place in the index, take in ``PackSplit``'s memory."""
    id = piece_of(Utterance("reader/book/chapter-0001", Path("x"), 1.0, "train"), 0, 1).id
    return sys.getsizeof(id) + 8 + sys.getsizeof([0, 0]) + 2 * 32 + 8


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m valle.data.speed",
        description="How fast one core prepares data, step by step, and what a corpus of any size would take.",
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="recordings with texts (see valle.data.sources)")
    parser.add_argument("--split", default="test", help="which of them (test)")
    parser.add_argument("--n", type=int, default=40, metavar="N", help="how many, always the same (40)")
    parser.add_argument("--codec", metavar="DIR", help="the codec (that of the embedded model)")
    parser.add_argument("--aligner", metavar="DIR", help="the aligner (that of the embedded model)")
    parser.add_argument("--recogniser", metavar="KIND:MODEL", help="as `valle prepare` takes it (none)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there, for --plan")
    reckon = parser.add_argument_group("what a corpus would take")
    reckon.add_argument("--plan", type=float, metavar="HOURS", help="reckon for so many hours")
    reckon.add_argument("--measured", metavar="FILE", help="figures that --json wrote, in place of measuring")
    reckon.add_argument("--cores", type=int, default=Plan.cores, metavar="N", help=f"at a time ({Plan.cores})")
    reckon.add_argument("--cores-per-machine", type=int, default=Plan.cores_per_machine, metavar="N", help="(16)")
    reckon.add_argument("--price", type=float, default=Plan.price, metavar="F", help=f"a core hour ({Plan.price:g})")
    reckon.add_argument(
        "--storage-price", type=float, default=Plan.storage_price, metavar="F", help="a GB month (0.02)"
    )
    reckon.add_argument("--efficiency", type=float, default=Plan.efficiency, metavar="F", help="of all cores (0.85)")
    reckon.add_argument("--shard-hours", type=float, default=Plan.shard_hours, metavar="F", help="(1)")
    reckon.add_argument("--memory-gb", type=float, default=Plan.memory_gb, metavar="F", help="of a machine (64)")
    reckon.add_argument("--storage-mb-s", type=float, default=Plan.storage_mb_s, metavar="F", help="shared (500)")
    args = parser.parse_args(argv)
    if (args.source is None) == (args.measured is None):
        raise ValleError("give recordings to measure the speed on, or --measured FILE with what was measured; not both")
    if args.json and args.measured is not None:
        raise ValleError("--json keeps what is measured, but --measured measures nothing; leave one of them out")
    speed = _measured(args) if args.source is None else _measure(args)
    if args.source is not None or args.plan is None:
        sys.stdout.write(speed.table())
    if args.plan is not None:
        plan = Plan(
            args.plan,
            args.cores,
            args.cores_per_machine,
            args.price,
            args.storage_price,
            args.efficiency,
            args.shard_hours,
            args.memory_gb,
            args.storage_mb_s,
        )
        sys.stdout.write(plan_table(speed, plan))
    return 0


def _measured(args: argparse.Namespace) -> Speed:
    path = Path(args.measured)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise ValleError(f"{path} cannot be read ({error}); give what `--json` wrote") from error
    return from_dict(Speed, values, str(path))


def _measure(args: argparse.Namespace) -> Speed:
    from dataclasses import replace

    from valle.asr.hybrid.model import load_aligner
    from valle.codec.base import load_codec
    from valle.data.reading import espeak
    from valle.data.recognise import load_recogniser, pick
    from valle.data.segment import load_detector
    from valle.data.sources import read_split
    from valle.files import check_writable, write_atomic
    from valle.pretrained import find_model
    from valle.text import DEFAULT_INVENTORY

    if args.json:
        check_writable(args.json)
    torch.set_num_threads(1)
    if args.n < 1:
        raise ValleError(f"--n is {args.n}; give how many recordings to measure on, 40 or more are best")
    utterances = read_split(args.source, args.split)
    codec = load_codec(args.codec or find_model() / "codec")
    aligner = load_aligner(args.aligner or find_model() / "aligner")
    detector = load_detector()
    recogniser = load_recogniser(args.recogniser) if args.recogniser else None
    speed = measure_speed(
        pick(utterances, args.n),
        codec,
        DEFAULT_INVENTORY,
        espeak(),
        detector=detector,
        recogniser=recogniser,
        aligner=aligner,
    )
    parts = [f"codec {codec.fingerprint()}", f"aligner {aligner.fingerprint()}", detector.name]
    parts += [recogniser.name] if recogniser is not None else []
    speed = replace(speed, machine=f"one thread of {_processor()}; {', '.join(parts)}")
    if args.json:
        write_atomic(args.json, (json.dumps(to_dict(speed), indent=1) + "\n").encode())
    return speed


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    exit_with(main)
