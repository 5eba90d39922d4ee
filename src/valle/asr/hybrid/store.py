"""Features and labels on disk, one safetensors file for about an hour of recordings, read through a memory map.

A file is written whole or not at all, and named after what is in it, so that a run that was stopped goes on where it
was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from valle.files import write_atomic

_PART = 500  # recordings in a file


class TensorStore:
    """Tensors by name, in a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: dict[str, Any] = {}
        self._places: dict[str, str] = {}

    def fill(self, names: Sequence[str], make: Callable[[Sequence[str]], Iterable[Tensor | None]], key: str) -> None:
        """Have a tensor for each name, or none where ``make`` gives None.

        Args:
            names: of the tensors, in the order in which they are stored.
            make: what makes those of some names, in order.
            key: what else the tensors depend on.
        """
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(names), _PART):
            part = names[start : start + _PART]
            digest = hashlib.sha256(json.dumps([key, *part]).encode()).hexdigest()[:16]
            path = self.folder / f"{digest}.safetensors"
            if not path.is_file():
                made = {n: t.contiguous() for n, t in zip(part, make(part), strict=True) if t is not None}
                write_atomic(path, save(made))
            self._take(path)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._places[name]].get_tensor(name)
        return tensor

    def length(self, name: str) -> int:
        """Of a tensor's first axis, without reading it."""
        shape: list[int] = self._files[self._places[name]].get_slice(name).get_shape()
        return shape[0]

    def _take(self, path: Path) -> None:
        from safetensors import safe_open

        file: Any = safe_open(path, framework="pt")
        self._files[path.name] = file
        for name in file.keys():  # noqa: SIM118  it is no dict
            self._places[name] = path.name
