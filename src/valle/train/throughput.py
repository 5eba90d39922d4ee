"""How well a run uses its device: rate, padding, waiting for data, and the share of the device's peak (MFU)."""

from __future__ import annotations

import time

from valle.train.flops import Work


class Throughput:
    """Counts what steps do, and tells it as rates since it was last asked.

    Everything counted is of all ranks together; nothing is read from a device.
    """

    def __init__(self, n_ranks: int = 1) -> None:
        self.n_ranks = n_ranks
        self.peak: float | None = None
        """Operations a second that a device has been measured to reach; None: not measured, and no MFU is told."""
        self._n_tokens, self._wait_s = 0.0, 0.0
        self._work = Work(0, 0, 0)
        self._since = time.monotonic()

    def add(self, n_tokens: float, work: Work, wait_s: float) -> None:
        """One step.

        Args:
            n_tokens: frames of codebook 1.
            work: of all its batches.
            wait_s: seconds that ranks waited for their batches, summed over ranks.
        """
        self._n_tokens += n_tokens
        self._work = self._work.plus(work)
        self._wait_s += wait_s

    def take(self) -> dict[str, float]:
        """Numbers for the log, of the steps since the last call or ``restart``; starts anew.

        ``tokens_per_s``; ``padding``, the share of places that are padding, phonemes and frames alike; ``data_wait``,
        the share of the time that was spent waiting for batches; ``mfu``, the share of ``peak_tflops`` that the models'
        operations amount to (``valle.train.flops``), and that peak of one device.
        """
        seconds = max(time.monotonic() - self._since, 1e-9)
        values = {
            "train/tokens_per_s": self._n_tokens / seconds,
            "train/padding": 1 - self._work.filled / max(1, self._work.positions),
            "train/data_wait": self._wait_s / (seconds * self.n_ranks),
        }
        if self.peak is not None:
            values["train/mfu"] = self._work.flops / (seconds * self.n_ranks * self.peak)
            values["train/peak_tflops"] = self.peak / 1e12
        self.restart()
        return values

    def restart(self) -> None:
        """Forget what was counted, so that a pause does not count as slowness."""
        self._n_tokens, self._wait_s = 0.0, 0.0
        self._work = Work(0, 0, 0)
        self._since = time.monotonic()
