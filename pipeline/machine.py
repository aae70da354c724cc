"""What this process may use of the machine."""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 64
"""Items for each thread that a map in threads has begun or finished before the first of them is taken."""


def usable_cores() -> int:
    """How many cores this process may use: its affinity, and the quota of its cgroup where a container sets one."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cgroup_quota(Path("/sys/fs/cgroup")))))


def _cgroup_quota(root: Path) -> float:
    """CPUs that the cgroup's quota amounts to; infinity without one."""
    try:
        quota, period = (root / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()  # version 1
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def computes_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers in hardware, as Linux tells; elsewhere it is not known, and no."""
    try:
        facts = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", facts) is not None


def has_nvidia() -> bool:
    """Whether there is an NVIDIA GPU with its driver, whatever else it wants to be used; known on Linux only."""
    return Path("/proc/driver/nvidia/version").exists()


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int = 0) -> Iterator[Result]:
    """``map`` with a thread per usable core, in order, looking ahead by AHEAD items a thread at most, so that memory stays flat."""
    threads = threads or usable_cores()
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                while ahead and (ahead[0].done() or len(ahead) >= AHEAD * threads):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
