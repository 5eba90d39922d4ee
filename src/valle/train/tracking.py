"""What a run leaves to be looked at: a JSONL log always, TensorBoard when it is installed, a progress bar.

``log.jsonl`` has one line an event: ``{"step": 1200, "time": 1767225600.123, "train/loss": 3.21, ...}``. A resumed run
drops the events after the step it resumes from, so that no step is told twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import struct
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from valle import provenance

logger = logging.getLogger(__name__)


class Tracker:
    """Log, TensorBoard and progress bar of one run.

    ``advance`` after every optimiser step moves the bar and measures the rate; ``log`` writes an event whenever the
    caller has one. Use it as a context manager, or call ``close``.
    """

    def __init__(
        self,
        folder: str | Path,
        total_steps: int,
        *,
        start_step: int = 0,
        unit: str = "tokens",
        description: str = "",
        progress: bool = True,
        tensorboard: bool = True,
    ) -> None:
        """
        Args:
            folder: the run's folder; gets ``log.jsonl``, ``tensorboard/`` and ``samples/``.
            total_steps: where the progress bar ends.
            start_step: steps already behind a resumed run; later events of an existing log are dropped.
            unit: what ``advance`` counts, e.g. "tokens" or "seconds of speech"; the rate is shown as unit/s.
            description: stands before the bar.
            progress: show the bar on stderr; a screen that is not a terminal gets a line every 30 s.
            tensorboard: write TensorBoard events if that package is installed.
        """
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.unit = unit
        self._path = self.folder / "log.jsonl"
        self._truncate(start_step)
        self._log = self._path.open("a", encoding="utf-8")
        self._writer = self._open_tensorboard(start_step) if tensorboard else None
        self._bar: tqdm[Any] = tqdm(
            total=total_steps,
            initial=start_step,
            desc=description or None,
            unit="step",
            file=sys.stderr,
            disable=not progress,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )
        self._shown: dict[str, str] = {}
        self._count = 0.0
        self._since = time.monotonic()

    def advance(self, step: int, amount: float = 0.0) -> None:
        """One optimiser step is done: ``step`` of them in all, this one having processed ``amount`` units."""
        self._count += amount
        self._bar.update(step - self._bar.n)

    def rate(self) -> float:
        """Units a second since the last call or ``restart_clock``."""
        now = time.monotonic()
        rate = self._count / max(now - self._since, 1e-9)
        self._count, self._since = 0.0, now
        return rate

    def restart_clock(self) -> None:
        """Forget the time and the units since the last rate, so that a pause does not count as slowness."""
        self._count, self._since = 0.0, time.monotonic()

    def log(self, step: int, values: Mapping[str, float], *, show: bool | Collection[str] = True) -> None:
        """Write an event: a JSON line, TensorBoard scalars, and those to ``show`` (all, none, or these) beside the bar.

        A number that is not finite is written as null, which JSON can hold.
        """
        numbers = {name: float(value) for name, value in values.items()}
        event: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        event.update({name: value if math.isfinite(value) else None for name, value in numbers.items()})
        self._log.write(json.dumps(event) + "\n")
        self._log.flush()
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)
        if show:
            shown = {name: value for name, value in numbers.items() if show is True or name in show}
            self._shown.update({name.rsplit("/", 1)[-1]: f"{value:.4g}" for name, value in shown.items()})
            self._bar.set_postfix(self._shown, refresh=False)

    def audio(self, step: int, name: str, wav: Tensor, sample_rate: int, info: Mapping[str, Any] | None = None) -> Path:
        """Keep a sample: wav [..., N] in [-1, 1] -> ``samples/<name>-<step>.wav`` (16 bit) and TensorBoard.

        ``info`` says how it was made, as ``Audio.info`` does; a synthetic sample is marked (``valle.provenance``).
        """
        samples = wav.detach().to("cpu", torch.float32).reshape(-1).nan_to_num().clamp(-1, 1)  # [N]
        path = self.folder / "samples" / f"{name.replace('/', '-')}-{step:08d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        pcm = (samples * 32767).round().to(torch.int16).numpy().tobytes()
        path.write_bytes(_wav_file(pcm, sample_rate, provenance.tags(info or {}).get("comment", "")))
        if self._writer is not None:
            self._writer.add_audio(name, samples.unsqueeze(0), step, sample_rate)
        return path

    def image(self, step: int, name: str, pixels: Tensor) -> None:
        """Show a picture, uint8 [H, W, 3], in TensorBoard, if that is there and can."""
        if self._writer is not None:
            with contextlib.suppress(ImportError):  # older ones come without pillow
                self._writer.add_image(name, pixels.cpu(), step, dataformats="HWC")

    def text(self, step: int, name: str, markdown: str) -> None:
        """Show a text in TensorBoard, if that is there."""
        if self._writer is not None:
            self._writer.add_text(name, markdown, step)

    def bands(self, names: Sequence[str]) -> None:
        """Show each scalar ``name`` in one chart with its interval, from ``name_low`` to ``name_high``."""
        if self._writer is not None:
            charts: dict[str, dict[str, list[Any]]] = {}
            for name in names:
                group, _, own = name.rpartition("/")
                charts.setdefault(group, {})[own] = ["Margin", [name, f"{name}_low", f"{name}_high"]]
            self._writer.add_custom_scalars(charts)

    def note(self, message: str) -> None:
        """Tell something in words above the bar."""
        if self._bar.disable:
            logger.info(message)
        else:
            self._bar.write(message, file=sys.stderr)

    def close(self) -> None:
        """Flush and close everything; calling it twice does no harm."""
        self._bar.close()
        self._log.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _truncate(self, start_step: int) -> None:
        """Drop the events after ``start_step`` and a half-written last line."""
        if not self._path.is_file():
            return
        kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= start_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)

    def _open_tensorboard(self, start_step: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.warning(
                "tensorboard is not installed, so only %s is written; `pip install tensorboard` adds it", self._path
            )
            return None
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)


def _step_of(line: str) -> float:
    """The step of a log line; infinite for a line that is not whole."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def _wav_file(pcm: bytes, sample_rate: int, comment: str) -> bytes:
    """A mono 16-bit wav file with a comment; a bare training machine has no libsndfile."""
    chunks = [b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)]
    if comment:
        text = comment.encode("ascii") + b"\0" * (2 - len(comment) % 2)  # ends in a zero, of even length
        chunks.append(b"LIST" + struct.pack("<I", len(text) + 12) + b"INFOICMT" + struct.pack("<I", len(text)) + text)
    chunks.append(b"data" + struct.pack("<I", len(pcm)) + pcm)
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body
