"""Results of tool runs by digest: what was run before is found again, what was cut short is not."""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["Progress", "Workspace"]


class Progress:
    """A line on stderr: which step of how many, what runs, for how long; nothing if `quiet`."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total, self.done = total, 0
        self._quiet, self._started, self._label = quiet, time.monotonic(), ""
        self._live = sys.stderr.isatty()

    def start(self, label: str) -> None:
        self._label, self._started = label, time.monotonic()
        if self._live:
            self.tick()
        elif not self._quiet:
            print(f"[{self.done + 1}/{self.total}] {label}", file=sys.stderr, flush=True)

    def tick(self) -> None:
        if self._live and not self._quiet:
            seconds = time.monotonic() - self._started
            text = f"[{self.done + 1}/{self.total}] {self._label}  {seconds:.0f} s"
            print(f"\r{text:<78.78}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        self.done += 1
        if self.done >= self.total:
            self.close()

    def close(self) -> None:
        """Clears the line."""
        if self._live and not self._quiet:
            print(f"\r{'':78}\r", end="", file=sys.stderr, flush=True)


class Workspace:
    """Directories of finished steps under `root`, named by the digest of all they depend on."""

    def __init__(self, root: Path, progress: Progress) -> None:
        self.root, self.progress = root, progress

    def step(self, label: str, parts: Iterable[str], action: Callable[[Path], None]) -> Path:
        """The directory that `action` filled, from an earlier run if all `parts` are the same.

        A directory appears under its name only when the action has ended well.
        """
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode()
            digest.update(f"{len(data)}:".encode() + data)
        # Absolute: tools run in this directory
        place = self.root.resolve() / digest.hexdigest()[:20]
        self.progress.start(label)
        if not place.is_dir():
            self.root.mkdir(parents=True, exist_ok=True)
            scratch = place.with_name(f".{place.name}.{os.getpid()}")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                action(scratch)
                try:
                    scratch.rename(place)
                except OSError:  # another process was faster; its result is the same
                    if not place.is_dir():
                        raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        self.progress.finish()
        return place
