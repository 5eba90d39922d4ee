"""Where to compute, and in which number type."""

from __future__ import annotations

from typing import Literal

import torch

from valle.errors import ValleError


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to train on.

    Raises:
        ValleError: cuda is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValleError('device is "cuda", but torch sees no GPU here; set it to "auto" or "cpu"')
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """fp32 or bf16. NOTE on a CPU without bf16 instructions, bf16 products are hundreds of times slower than fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, name, None)  # private: absent in some versions
        if supported is not None and supported():
            return "bf16"
    return "fp32"
