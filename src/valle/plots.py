"""Figures of matplotlib without its global state, and as files that are the same for the same numbers."""

from __future__ import annotations

import io
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
    """
    from matplotlib.figure import Figure  # without pyplot, which would keep what it draws

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def as_bytes(figure: Any, kind: str = "png") -> bytes:
    """A figure as a file of that kind, png or svg, without date or program in it."""
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "valle", "svg.fonttype": "none"}):
        figure.savefig(out, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
    return out.getvalue()
