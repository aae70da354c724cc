"""The command line beside training, a file for each verb or noun; its ``add`` puts it into the parser."""

from __future__ import annotations

import argparse
from typing import Any

Verbs = argparse._SubParsersAction
"""What a parser's verbs are added to."""

FAILED = 30
DATA_MISSING = 20
CUT_OFF = 141  # as shells have it for a broken pipe


def manifests(task: str) -> list[dict[str, Any]]:
    """Those of all finished outputs of a task."""
    from pipeline import files, settings

    found = [files.read_manifest(folder) for folder in settings.paths().runs(task)]
    return [manifest for manifest in found if manifest]
