"""What TensorFlow Hub's cache does not look after by itself: modules that are half there, and locks of the dead."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from pathlib import Path


def is_whole(module: Path) -> bool:
    """Whether a module's folder has its graph and all shards of its variables."""
    if not (module / "saved_model.pb").is_file():
        return False
    shards = [re.fullmatch(r"variables\.data-(\d+)-of-(\d+)", path.name) for path in (module / "variables").glob("variables.data-*")]
    if not (module / "variables").is_dir():
        return True  # a network of constants
    total = {int(shard[2]) for shard in shards if shard}
    return (module / "variables" / "variables.index").is_file() and len(total) == 1 and len(shards) == total.pop()


def remove(module: Path) -> None:
    """Forget a module, so that it is fetched again."""
    shutil.rmtree(module, ignore_errors=True)
    module.with_name(f"{module.name}.descriptor.txt").unlink(missing_ok=True)


def remove_stale_lock(handle: str) -> None:
    """Remove the lock of a download whose process is dead; Hub itself would wait for it for ten minutes."""
    cache = Path(os.environ["TFHUB_CACHE_DIR"])
    lock = cache / f"{hashlib.sha1(handle.encode(), usedforsecurity=False).hexdigest()}.lock"
    try:
        host, _, rest = lock.read_text().rpartition(".")[0].rpartition(".")
        if host == socket.gethostname() and not Path(f"/proc/{int(rest)}").exists():
            lock.unlink()
    except (OSError, ValueError):
        pass
