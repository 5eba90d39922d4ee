"""VALL-E: text and three seconds of a voice in, that voice speaking the text out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valle.audio import Audio
    from valle.errors import ValleError
    from valle.tts import VALLE

    __version__: str

__all__ = ["VALLE", "Audio", "ValleError", "__version__"]

_HOMES = {"VALLE": "valle.tts", "Audio": "valle.audio", "ValleError": "valle.errors"}


def __getattr__(name: str) -> Any:
    """Import on first use: `import valle` alone costs nothing, and torch takes a second."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("valle")
        except PackageNotFoundError:  # run from a source tree
            return "0+unknown"
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
