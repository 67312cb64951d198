"""Files that are there whole or not at all, so that a run goes on where it was stopped."""

import contextlib
import io
import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch

__all__ = ["load", "load_json", "save", "save_json", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file by renaming a finished one: an interrupt leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def save(path: Path, state: dict[str, Any]) -> None:
    """A dictionary of tensors, numbers, strings, lists and dictionaries of these."""
    stream = io.BytesIO()
    torch.save(state, stream)
    write_whole(path, stream.getvalue())


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote; None where there is no such file.

    Raises ValueError, naming the file, if it is none of ours: the file is then to be deleted.
    """
    if not path.exists():
        return None
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a checkpoint, delete it to begin again: {reason}") from None


def save_json(path: Path, value: Any) -> None:
    """JSON with its keys in order, one line per level."""
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def load_json(path: Path) -> Any:
    """What `save_json` wrote; None where there is no such file. Raises ValueError as `load`."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not a result of this program, delete it to begin again: {error}"
        ) from None
