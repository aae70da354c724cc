"""The command line beside training, a file for each verb or noun; its ``add`` puts it into the parser."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import files, registry, settings
from pipeline.console import shown
from pipeline.errors import UserError

Verbs = argparse._SubParsersAction
"""What a parser's verbs are added to."""


@contextlib.contextmanager
def nothing_else_running() -> Iterator[None]:
    """Keep runs out of the store meanwhile. Raises UserError where one is going on."""
    store = settings.paths().store
    try:
        with files.alone(store):
            yield
    except BlockingIOError:
        raise UserError(f"something runs that works in {shown(store)}; prune when it has ended") from None


def manifests(task: str) -> list[dict[str, Any]]:
    """Those of all finished outputs of a task."""
    found = [files.read_manifest(folder) for folder in settings.paths().runs(task)]
    return [manifest for manifest in found if manifest]


def exports_folders() -> list[Path]:
    """The folders with published versions, a data set each; those too that a profile has moved."""
    main = settings.paths().exports
    names = {path.name for path in main.iterdir() if path.is_dir()} if main.is_dir() else set()
    names |= set(settings.profiles())
    folders = []
    for name in sorted(names):
        try:
            folders.append(settings.paths(name).exports / name)
        except UserError:  # its profile cannot be read
            folders.append(main / name)
    return [folder for folder in folders if registry.versions(folder)]
