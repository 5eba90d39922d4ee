"""Which steps are skipped: those without a finite gradient and, if asked for, those whose gradient is far too large.

One batch of broken data can undo hours. What is far too large is told by the gradients before it, whose norms are a
part of the checkpoint: a resumed run skips the same steps.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

WINDOW = 100
"""Accepted norms that a new one is compared with; until there are so many, only norms that are not finite are refused.
"""


class SpikeGuard:
    """Accepts or refuses steps by the norms of their gradients.

    When the norms rise for good, all steps are refused from there on, and the run ends by ``max_skipped``.
    """

    def __init__(self, max_spike: float = 0.0) -> None:
        """``max_spike``: refuse norms above so many times the median of the last ``WINDOW`` accepted; 0: none."""
        self.max_spike = max_spike
        self.norms: deque[float] = deque(maxlen=WINDOW)

    @property
    def limit(self) -> float:
        """The largest norm that is accepted now."""
        if not self.max_spike or len(self.norms) < WINDOW:
            return math.inf
        return self.max_spike * statistics.median(self.norms)

    def accepts(self, norm: float) -> bool:
        """Whether a step with this norm is made; if so, the norm is remembered."""
        if not math.isfinite(norm) or norm > self.limit:
            return False
        self.norms.append(norm)
        return True

    def state(self) -> list[float]:
        """The norms remembered, ready for JSON, which holds them exactly."""
        return list(self.norms)

    def load(self, state: Iterable[float]) -> None:
        """Go on from a checkpoint."""
        self.norms = deque(state, maxlen=WINDOW)
