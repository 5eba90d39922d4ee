"""Outputs: their formats, and files that are whole or not there.

A place is checked before the long work, which is why nothing heavy is imported here, and written by one rename after.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from valle.errors import ValleError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("wav", "flac", "mp3", "opus", "pcm")
"""Of sound files that can be written."""

_SUFFIXES = {f".{name}": name for name in FORMATS} | {".ogg": "opus", ".raw": "pcm"}


def format_of(path: object) -> str:
    """The format that a file's suffix asks for; wav for ``"-"`` (standard output) and open files.

    Raises:
        ValleError: the suffix is none of the known ones.
    """
    if path == "-" or not isinstance(path, str | os.PathLike):
        return "wav"
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValleError(
            f"the output {path} has no suffix of a known format; end it with {', '.join(_SUFFIXES)} or give --format"
        )
    return _SUFFIXES[suffix]


def check_writable(path: str | Path) -> None:
    """Find out now, before minutes of work, whether ``write_atomic(path, ...)`` can succeed.

    Raises:
        ValleError: the folder does not exist or cannot be written, or ``path`` is a folder or a read-only file.
    """
    path = _target(path)
    if path.is_dir():
        raise ValleError(f"the output {path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise ValleError(f"the output {path} cannot be written: there is no folder {path.parent}; make it first")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValleError(f"the output {path} cannot be written: it is read-only; choose another name")
    if path.exists() and not path.is_file():
        return  # a device or a pipe
    try:
        temporary = _open_temporary(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary.unlink()


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a file beside its place and rename it, so that nobody ever sees a part of it.

    A link is followed, a device or a pipe is written directly, and the permissions of a file that is replaced stay.

    Raises:
        ValleError: it cannot be written; nothing is left behind.
    """
    path = _target(path)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        temporary = _open_temporary(path)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o777)
            os.replace(temporary, path)
        except BaseException:  # an interrupt too must not leave it
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _target(path: str | Path) -> Path:
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def _open_temporary(path: Path) -> Path:
    """An empty file beside ``path``, with the permissions that any new file gets."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _unwritable(path: Path, error: OSError) -> ValleError:
    return ValleError(f"the output {path} cannot be written: {error.strerror or error}; choose another place")


def fingerprint(head: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Twelve hex digits over some text and named tensors, in the order given."""
    digest = hashlib.sha256(head.encode())
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:12]
