from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    command = [sys.executable, "tests/fuzz_images.py", "--examples", "3000", "--last", str(tmp_path / "last.bin")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    said = done.stderr[-3000:]
    assert done.returncode == 0, f"exit code {done.returncode} with {tmp_path / 'last.bin'}: {said}"
