"""What is compiled (``frames.c``): frames of a transformer that speaks, and the draws between them; x86 with AVX2.

It is built when valle is installed, where there is a C compiler, and used where it is there and the processor can run
it. Without it everything works the same, by PyTorch, and speaks about half as fast (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.util import find_spec

SWITCH = "VALLE_NATIVE"
"""Environment variable: 0 leaves what is compiled alone, a path is another build of it (``make sanitise``)."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where there are none, where this processor cannot run them, or by ``SWITCH``."""
    path: str | None = os.environ.get(SWITCH, "1")
    if path == "0":
        return None
    if path in ("", "1"):
        spec = find_spec("valle.native._frames")
        path = None if spec is None else spec.origin
    if path is None:
        return None
    try:
        found = ctypes.CDLL(path)  # a library like any other: it holds nothing of Python
        return _declared(found) if found.valle_can_run() else None
    except (OSError, AttributeError):  # built for another machine, or from an earlier frames.c
        return None


def _declared(found: ctypes.CDLL) -> ctypes.CDLL | None:
    """With the types of its functions; None where its structures are not those of ``matrix.py``."""
    from valle.native.matrix import Frame, Phase

    at, n, many = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    found.valle_run.argtypes = [at, n, n]
    found.valle_draw.argtypes = [at, many, n, n, ctypes.c_float, n, ctypes.c_double, at, at, at]
    found.valle_log_probs.argtypes = [at, many, n, n, at, at]
    found.valle_draw.restype = found.valle_log_probs.restype = None
    found.valle_quantised_size.argtypes = [many, many]
    found.valle_quantised_size.restype = many
    found.valle_size_of_frame.restype = found.valle_size_of_phase.restype = many
    sizes = found.valle_size_of_frame(), found.valle_size_of_phase()
    return found if sizes == (ctypes.sizeof(Frame), ctypes.sizeof(Phase)) else None
