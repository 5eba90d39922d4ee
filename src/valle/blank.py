"""Modules that are about to be filled from a file need no random weights: drawing them takes longer than reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

_DRAWS = {
    *(Tensor.normal_, Tensor.uniform_, Tensor.random_),
    *(init.normal_, init.uniform_, init.trunc_normal_, init.kaiming_uniform_),  # torch tells of some as a whole
}


class _NoDraws(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _DRAWS:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            return tensor.zero_()  # NOTE torch draws a truncated normal again and again until all of it is within
        return func(*args, **(kwargs or {}))


@contextmanager
def blank() -> Iterator[None]:
    """Within, tensors become 0 instead of being drawn; every one of them is to be written afterwards.

    The generators of random numbers do not move.
    """
    with torch.no_grad(), _NoDraws():
        yield
