"""What a device can compute: as its maker says, for ``train plan``; as measured, for the rate in a run's log."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch

from valle.errors import ValleError

Precision = Literal["fp32", "bf16"]

MEASURE_S = 0.15
"""Seconds that a measurement takes, besides its warm-up."""

CPU_SIZE, GPU_SIZE = 768, 8192
"""Rows and columns of the matrices that it multiplies."""


@dataclass(frozen=True)
class Device:
    """One device as its maker describes it."""

    fp32_tflops: float
    """Peak of products in float32, in 10¹² operations a second, without TF32."""
    bf16_tflops: float | None
    """Likewise in bfloat16 with float32 sums, without sparsity; None: it has none."""
    memory_gb: float | None
    """Memory in 10⁹ bytes; None: not known."""
    power_w: float | None
    """Most that it draws; None: not known."""

    def precision(self, wanted: Literal["auto", "fp32", "bf16"]) -> Precision:
        """What a run computes in, as ``choose_precision`` does.

        Raises:
            ValleError: bf16 is wanted where there is none.
        """
        if wanted == "bf16" and self.bf16_tflops is None:
            raise ValleError('precision is "bf16", which this device does not have; set it to "auto" or "fp32"')
        return "bf16" if wanted != "fp32" and self.bf16_tflops is not None else "fp32"

    def peak_tflops(self, precision: Precision) -> float:
        """In that precision."""
        return self.bf16_tflops if precision == "bf16" and self.bf16_tflops is not None else self.fp32_tflops


DEVICES = {
    "h100": Device(67.0, 989.0, 80.0, 700.0),
    "h200": Device(67.0, 989.0, 141.0, 700.0),
    "a100": Device(19.5, 312.0, 80.0, 400.0),
    "a10g": Device(35.0, 70.0, 24.0, 300.0),
    "l4": Device(30.3, 121.0, 24.0, 72.0),
    "rtx4090": Device(82.6, 165.0, 24.0, 450.0),
    "v100": Device(15.7, None, 32.0, 300.0),
}
"""NVIDIA's data sheets, of the SXM form where there are several. The V100's 125 TFLOP/s are in fp16, in which nothing
here is trained."""

CPU = "cpu"
"""Name of the device whose peak is measured, here and now."""


def find_device(name: str, precision: Literal["auto", "fp32", "bf16"]) -> Device:
    """A device by name; ``cpu`` is this machine's, measured in the precision that it would train in.

    Raises:
        ValleError: there is none of that name.
    """
    if name == CPU:
        from valle.device import choose_precision

        cpu = torch.device("cpu")
        chosen = choose_precision(precision, cpu)
        peak = measure_peak(cpu, chosen) / 1e12
        return Device(peak, peak if chosen == "bf16" else None, _memory_gb(), None)
    if name not in DEVICES:
        raise ValleError(f"there is no device {name!r} in the table; it has {', '.join(DEVICES)} and {CPU}")
    return DEVICES[name]


def measure_peak(device: torch.device, precision: Precision) -> float:
    """The best rate of large square products on ``device``, in operations a second; takes less than a second.

    What is measured is what torch reaches here, with the threads, clocks and TF32 setting of the run: less than the
    data sheet promises, and the most that a training can come to. On a processor it is measured in the process's own
    time. The random state of the process stays as it is.
    """
    n = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # Random numbers, because a GPU draws less power for zeros and so clocks higher than a training lets it.
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(n, n, generator=generator, device=device).to(dtype)
    b = a.t().contiguous()
    out = torch.empty_like(a)

    # A processor's own time, so that what else runs on it in this moment does not make it look slow.
    is_coarse = sys.platform == "win32"  # where that clock ticks 64 times a second
    clock = time.perf_counter if device.type == "cuda" or is_coarse else time.process_time
    n_threads = torch.get_num_threads() if clock is time.process_time else 1

    def seconds(n_products: int) -> float:
        began = clock()
        for _ in range(n_products):
            torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (clock() - began) / n_threads

    with torch.no_grad():
        seconds(1)
        once = max(seconds(1), 1e-6)
        n_products = max(1, round(MEASURE_S / 5 / once))
        n_times = max(1, min(5, round(MEASURE_S / once)))  # once on a device that is slow at it
        best = min(seconds(n_products) for _ in range(n_times))
    return float(2 * n**3 * n_products / best)


def _memory_gb() -> float | None:
    """Memory of this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # Windows, and systems without these names
        return None
