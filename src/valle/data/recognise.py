"""Recognisers: recordings to texts (paper §4.1).

The paper transcribes LibriLight with a hybrid DNN-HMM recogniser that was trained on LibriSpeech. Vosk's models are of
that kind, Whisper is not; both stand behind one protocol, and what either has understood is kept
(``valle.data.transcripts``).

``python -m valle.data.recognise SOURCE --recogniser vosk:FOLDER`` measures a recogniser on recordings whose text is
known.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from valle.data.corpus import Utterance
from valle.data.sources import missing_package, need
from valle.data.transcripts import SAMPLE_RATE, Recogniser, Transcript, Word, transcribe_all
from valle.errors import ValleError, exit_with


class VoskRecogniser:
    """A Kaldi model by Vosk: a hybrid DNN-HMM with a trigram, which writes lower-case words without punctuation.

    It listens in a process of its own (``valle.data.vosk_process`` says why), to one recording at a time.
    """

    cpu_s: ClassVar[float] = 0.0
    """Processor time of all these processes; not of this one."""

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            ValleError: the package is missing, or the folder holds no model.
        """
        folder = Path(folder)
        if not any((folder / file).is_file() for file in ("am/final.mdl", "final.mdl")):
            raise ValleError(
                f"{folder} holds no Vosk model (no am/final.mdl); give vosk:FOLDER with an unpacked one, such as "
                "vosk-model-small-en-us-0.15"
            )
        if find_spec("vosk") is None:
            raise ValleError(missing_package("vosk", f"the recogniser vosk:{folder}", "recognise"))
        self.name = f"vosk:{folder.resolve().name}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "valle.data.vosk_process", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        weakref.finalize(self, _end, self._process)
        self._lock = threading.Lock()
        if error := self._answer()["error"]:
            raise ValleError(f"the Vosk model {folder} cannot be loaded: {error}; unpack it again")

    def transcribe(self, wav: NDArray[np.float32], sample_rate: int) -> Transcript:
        wav = _resample(wav, sample_rate)  # [N]
        samples = (np.clip(wav, -1, 1) * 32767).astype("<i2").tobytes()
        questions = self._process.stdin
        assert questions is not None, "it was opened as a pipe"
        with self._lock:
            try:
                with suppress(BrokenPipeError):  # it has died; that there is no answer tells so
                    questions.write(len(samples).to_bytes(8, "little") + samples)
                    questions.flush()
                answer = self._answer()
            except BaseException:  # its answer would be taken for that to the next question
                self._process.kill()
                raise
            VoskRecogniser.cpu_s += answer["cpu_s"]
        return _transcript([Word(w["word"], w["start"], w["end"], w["conf"]) for w in answer["heard"]])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "it was opened as a pipe"
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            self._process.wait()
            raise ValleError(
                f"the process of {self.name} has ended with status {self._process.returncode}; see above for why, and "
                "whether there is enough memory"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def cpu_time() -> float:
    """Seconds of the processor that this process has had, and those in which Vosk listens for it."""
    return time.process_time() + VoskRecogniser.cpu_s


class WhisperRecogniser:
    """Whisper by faster-whisper, with the times of words, at temperature 0 and without fallback: nothing is random.

    ``valle.eval.wer`` has its own for judging, which is kept as it is so that tables can be compared.
    """

    def __init__(
        self, model: str, *, lang: str = "en", beam_size: int = 5, threads: int = 1, device: str = "cpu"
    ) -> None:
        """
        Args:
            model: folder of a CTranslate2 model, or a name such as "base" that faster-whisper downloads.
            lang: language of the recordings.
            beam_size: hypotheses kept; 1 is greedy.
            threads: of the processor; 0 leaves it to the library.
            device: ``cpu`` (8-bit weights) or ``cuda`` (half precision).

        Raises:
            ValleError: the package is missing, or neither a folder with a model nor a known name is given.
        """
        whisper = need("faster_whisper", f"the recogniser whisper:{model}", "recognise")
        is_folder = (Path(model) / "model.bin").is_file()
        if not is_folder and model not in whisper.available_models():
            raise ValleError(
                f"whisper:{model} names no Whisper model: there is no {Path(model) / 'model.bin'}, and faster-whisper "
                f"knows only {', '.join(whisper.available_models())}"
            )
        compute_type = "int8" if device == "cpu" else "float16"
        try:
            self._model = whisper.WhisperModel(model, device=device, compute_type=compute_type, cpu_threads=threads)
        except Exception as error:  # damaged files or no network: the library raises what it meets
            raise ValleError(f"the Whisper model {model} cannot be loaded: {error}") from error
        self._lang, self._beam_size = lang, beam_size
        self.name = f"whisper:{Path(model).resolve().name if is_folder else model}"

    def transcribe(self, wav: NDArray[np.float32], sample_rate: int) -> Transcript:
        segments, _ = self._model.transcribe(
            _resample(wav, sample_rate),
            language=self._lang,
            beam_size=self._beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=True,
        )
        segments = list(segments)
        words = [word for segment in segments for word in segment.words or ()]
        return _transcript(
            [Word(w.word.strip(), float(w.start), float(w.end), float(w.probability)) for w in words],
            " ".join(" ".join(segment.text for segment in segments).split()),
        )


def load_recogniser(spec: str, *, threads: int = 1, device: str = "cpu") -> Recogniser:
    """The recogniser ``vosk:FOLDER``, ``whisper:NAME``, ``whisper:FOLDER``, or ``hybrid:FOLDER`` (``valle asr train``).

    Args:
        spec: which.
        threads: of the processor, for those that can be told.
        device: ``cpu`` or ``cuda``, for those that can be told; Vosk stays on the processor.

    Raises:
        ValleError: an unknown kind, a missing package, or no model there.
    """
    kind, colon, where = spec.partition(":")
    if not colon or not where or kind not in ("vosk", "whisper", "hybrid", "hybrid-gmm", "valle"):
        raise ValleError(
            f"the recogniser {spec!r} is none that is known; give vosk:FOLDER, or whisper:NAME (such as whisper:base) "
            "or whisper:FOLDER, or hybrid:FOLDER with one by `valle asr train`"
        )
    if kind == "valle":
        raise ValleError(
            f"{spec} names a recogniser of this project, which has none yet: it can align a text that is known "
            "(`valle asr align`), but not find it; give vosk:FOLDER or whisper:NAME"
        )
    if kind == "vosk":
        return VoskRecogniser(where)
    if kind in ("hybrid", "hybrid-gmm"):
        from valle.asr.hybrid.recogniser import HybridRecogniser

        return HybridRecogniser(where, acoustics="network" if kind == "hybrid" else "gmm")
    return WhisperRecogniser(where, threads=threads, device=device)


@dataclass(frozen=True)
class _Timed:
    """A recogniser that counts what it does."""

    recogniser: Recogniser
    seconds: list[tuple[float, float, float]]
    """Of each recording: its length, the processor's time, and the time that has passed."""

    @property
    def name(self) -> str:
        return self.recogniser.name

    def transcribe(self, wav: NDArray[np.float32], sample_rate: int) -> Transcript:
        cpu, wall = cpu_time(), time.perf_counter()
        transcript = self.recogniser.transcribe(wav, sample_rate)
        spent = (cpu_time() - cpu, time.perf_counter() - wall)
        self.seconds.append((len(wav) / sample_rate, *spent))
        return transcript


def measure(
    utterances: Sequence[Utterance], recogniser: Recogniser, cache: str | Path | None = None
) -> tuple[dict[str, Any], str]:
    """Word error rate by data set and in all with 95 % intervals, and speed, as a dict and as Markdown.

    Both texts pass through Whisper's normaliser (``valle.eval.wer``). The real-time factor is the processor's time per
    second of recording, of those that were not in the cache.

    Raises:
        ValleError: no utterance has a text, or the cache cannot be read or written.
    """
    from valle.eval.wer import WordErrors, error_rate, word_errors

    spoken = [u for u in utterances if (u.text or "").strip()]
    if not spoken:
        raise ValleError("none of the recordings has a text to compare with; give a source whose texts are known")
    timed = _Timed(recogniser, [])
    counts: dict[str, list[WordErrors]] = {}
    confidences: dict[str, list[float]] = {}
    n_unreadable = 0
    for utterance, transcript in transcribe_all(spoken, timed, cache):
        if transcript is None:
            n_unreadable += 1
            continue
        counts.setdefault(utterance.dataset, []).append(word_errors(utterance.text or "", transcript.text))
        confidences.setdefault(utterance.dataset, []).append(transcript.confidence)
    audio_s, cpu_s, wall_s = (sum(column) for column in zip(*timed.seconds, strict=True)) if timed.seconds else (0,) * 3
    table = [
        "| data set | utterances | words | WER, % | 95 % interval | substituted | left out | put in | confidence |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    results: dict[str, Any] = {}
    for name in [*sorted(counts), "all"]:
        errors = [e for c in counts.values() for e in c] if name == "all" else counts[name]
        sure = [s for c in confidences.values() for s in c] if name == "all" else confidences[name]
        rate = error_rate(errors)
        if rate is None:
            continue
        kinds = [sum(getattr(e, kind) for e in errors) for kind in ("substitutions", "deletions", "insertions")]
        n_words, confidence = sum(e.words for e in errors), sum(sure) / len(sure)
        results[name] = {**asdict(rate), "words": n_words, "errors": kinds, "confidence": confidence}
        table.append(
            f"| {name} | {rate.n} | {n_words} | {100 * rate.mean:.1f} | {100 * rate.low:.1f} to {100 * rate.high:.1f} "
            f"| {kinds[0]} | {kinds[1]} | {kinds[2]} | {confidence:.2f} |"
        )
    speed = "all of it from the cache"
    if audio_s:
        results["real_time_factor"] = cpu_s / audio_s
        speed = (
            f"real-time factor {cpu_s / audio_s:.3f} of processor time ({wall_s / audio_s:.3f} of passed time) over "
            f"{audio_s:.0f} s of recordings"
        )
    unread = f" {n_unreadable} recordings could not be read." if n_unreadable else ""
    lines = [f"# Recogniser {recogniser.name}", "", *table, "", f"Speed: {speed}.{unread}", ""]
    return results, "\n".join(lines)


def pick(utterances: Iterable[Utterance], n: int) -> list[Utterance]:
    """``n`` of the utterances, drawn by the hashes of their ids: the same on every machine, from every data set."""
    return sorted(utterances, key=lambda u: hashlib.sha256(u.id.encode()).hexdigest())[:n]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    Raises:
        ValleError: what the user got wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m valle.data.recognise", description="Measure a recogniser on recordings whose text is known."
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a list, or KIND:PATH (see valle.data.sources)")
    parser.add_argument("--recogniser", required=True, metavar="R", help="vosk:FOLDER, whisper:NAME or whisper:FOLDER")
    parser.add_argument("--split", default="test", help="which recordings (test)")
    parser.add_argument("--max", type=int, metavar="N", help="only N of them, always the same")
    parser.add_argument("--cache", metavar="FILE", help="keep the transcripts there, and go on from it")
    parser.add_argument("--out", metavar="FILE", help="also write the table there")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the processor (1)")
    args = parser.parse_args(argv)
    from valle.data.sources import read_split
    from valle.files import check_writable, write_atomic

    if args.out:
        check_writable(args.out)
    recogniser = load_recogniser(args.recogniser, threads=args.threads)
    utterances = read_split(args.source, args.split)
    _, table = measure(pick(utterances, args.max or len(utterances)), recogniser, args.cache)
    if args.out:
        write_atomic(args.out, table.encode())
    sys.stdout.write(table)
    return 0


def _transcript(words: Sequence[Word], text: str | None = None) -> Transcript:
    words = [w._replace(start_s=round(w.start_s, 3), end_s=round(w.end_s, 3)) for w in words if w.word]
    words = [w._replace(confidence=round(min(max(w.confidence, 0.0), 1.0), 4)) for w in words]
    confidence = sum(w.confidence for w in words) / len(words) if words else 0.0
    return Transcript(" ".join(w.word for w in words) if text is None else text, tuple(words), round(confidence, 4))


def _resample(wav: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """wav [N] at ``SAMPLE_RATE``."""
    assert wav.ndim == 1, f"wav must be [N], not {list(wav.shape)}"
    if sample_rate != SAMPLE_RATE:
        import soxr

        wav = soxr.resample(wav, sample_rate, SAMPLE_RATE)
    return np.ascontiguousarray(wav, np.float32)


if __name__ == "__main__":
    exit_with(main)
