"""Files that are either whole or absent."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laai.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it there in one step.

    Raises:
        UserError: the folder cannot be written or the disk is full; an older file at `path` is left as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes it private
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def check_name(name: str | Path) -> Path:
    """The path of this name; refuses what no file can be called, before the system does.

    Raises:
        UserError: a part of the path is too long, or there is a NUL in it.
    """
    longest = max((len(part.encode(errors="surrogatepass")) for part in Path(name).parts), default=0)
    if longest > 255 or "\0" in str(name):
        raise UserError(f"expected a name or path, found one that no file can have: {str(name)[:80]!r}")
    return Path(name)


def write_json(path: Path, value: Any) -> Path:
    """Write indented JSON (UTF-8, NaN refused) atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def check_output(name: str, option: str = "--output") -> Path:
    """The path of a file to be written later; nothing is left behind.

    Args:
        name: as the user gave it.
        option: that it was given by.

    Raises:
        UserError: a folder, or a place where no file can be made.
    """
    path = check_name(name)
    folder = path.absolute().parent
    try:
        if path.is_dir():
            raise UserError(f"expected {option} as a file to write, found the folder {path}: name a file in it")
        while not folder.exists():
            folder = folder.parent
        # Tried rather than asked: permissions, read-only disks and names that are too long all show by it.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.partial-00.0.", suffix=".tmp"):
            pass
    except OSError as error:
        found = f"{path}: {error.strerror or error}"
        raise UserError(f"expected {option} as a file that can be written, found {found}; name another") from error
    return path
