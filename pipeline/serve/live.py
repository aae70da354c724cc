"""The model that is served. Where ``latest`` moves, the new version is loaded beside the old one and takes its place in one step."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import classifier, images, registry
from pipeline.classifier import Classifier
from pipeline.console import note, warn
from pipeline.errors import UserError

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BEFORE_A_RETRY = 60.0
"""After a version that could not be loaded."""


@dataclass(frozen=True)
class Served:
    """A version, loaded. A request takes one and stays with it."""

    folder: Path
    classifier: Classifier

    @property
    def version(self) -> str:
        return self.folder.name


def load(folder: Path) -> Served:
    """Load a version and run it once, so that no request waits for that. Raises UserError."""
    loaded = classifier.load(folder, batch=1)  # a request has one photo, and a batch is filled up with copies
    loaded.probabilities(images.blank())
    return Served(folder, loaded)


class Live:
    """The version that requests get now.

    Attributes:
        name: what the model is called.
        now: its version; another one from one moment to the next.
    """

    def __init__(self, name: str, folder: Path, followed: Path | None, load: Callable[[Path], Served] = load) -> None:
        """``followed`` is the folder whose ``latest`` says which version it is, or None for ``folder`` for good."""
        self.name = name
        self._followed, self._load = followed, load
        self._refused: Path | None = None
        self._try_again = 0.0
        self._replaced = False
        self.now = load(folder)

    def look(self) -> None:
        """See whether another version is live, and take it if it can be loaded; else keep the one that is there."""
        if self._replaced:
            # TensorFlow's graphs hold each other. By now no request has the old one any more, and its 20 MB can go.
            gc.collect()
            self._replaced = False
        folder = registry.live(self._followed) if self._followed else None
        if folder is None or folder == self.now.folder or (folder == self._refused and time.monotonic() < self._try_again):
            return
        try:
            self.now = self._load(folder)
            self._refused, self._replaced = None, True
            note(f"serving {self.name} {self.now.version} from now on")
        except Exception as error:  # whatever it is, requests go on being answered
            if folder != self._refused:
                reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                warn(f"still serving {self.name} {self.now.version}, since {folder.name} cannot be loaded: {reason}")
            self._refused, self._try_again = folder, time.monotonic() + SECONDS_BEFORE_A_RETRY

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Look again and again in another thread."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(SECONDS_BETWEEN_LOOKS):
                self.look()

        thread = threading.Thread(target=follow, name="live", daemon=True)
        if self._followed:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if self._followed:
                thread.join()
