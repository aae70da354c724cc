"""The command line beside training, a file for each verb or noun; its ``add`` puts it into the parser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

Verbs = argparse._SubParsersAction
"""What a parser's verbs are added to."""

FAILED = 30
DATA_MISSING = 20
INTERRUPTED = 130  # as shells have it for Ctrl-C
CUT_OFF = 141  # as shells have it for a broken pipe


def manifests(task: str) -> list[dict[str, Any]]:
    """Those of all finished outputs of a task."""
    from pipeline import files, settings

    found = [files.read_manifest(folder) for folder in settings.paths().runs(task)]
    return [manifest for manifest in found if manifest]


def exports_folders() -> list[Path]:
    """The folders with published versions, a data set each; those too that a profile has moved."""
    from pipeline import registry, settings
    from pipeline.errors import UserError

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
