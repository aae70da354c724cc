"""TensorFlow's import, which takes seconds: without its chatter, as fast as it can be, and once for all steps that are forks.

Nothing here runs anything of TensorFlow; ``tensorflow_v1`` is the door to what does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Iterator

from pipeline.machine import has_nvidia


def load() -> None:
    """Import TensorFlow into this process."""
    # TensorFlow heeds the level only once its logging is set up; before that, nothing but a closed ear helps.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow takes oneDNN's convolutions only where the CPU has AVX512-VNNI. With AVX2 alone, too, a photo takes a third less time.
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Trying out all ways to convolve takes a GPU seconds at the start and twice the memory, and its choice can differ between runs.
    os.environ.setdefault("TF_CUDNN_USE_AUTOTUNE", "0")
    with hushed(), _faster():
        import tensorflow.compat.v1
        import tensorflow.python.framework.convert_to_constants  # noqa: F401


_loaded_for_forks = False


def load_for_forks() -> None:
    """Import TensorFlow into this process where its children are forks, so that none of them has to; once, and if it can be.

    A fork hangs where TensorFlow has run in the parent; its import alone starts no thread. On a machine with a GPU nothing
    is done: a fork cannot use what its parent may have opened of CUDA. Where the import fails, whoever needs it says why.
    """
    global _loaded_for_forks
    if "tensorflow" in sys.modules or multiprocessing.get_start_method() != "fork" or has_nvidia():
        return
    with _telling_of_a_crash(), contextlib.suppress(Exception):
        load()
        _loaded_for_forks = True


def may_be_forked() -> bool:
    """Whether ``load_for_forks`` has imported TensorFlow and it has not run since, here: the import of ``tensorflow_v1`` runs it."""
    return _loaded_for_forks and "pipeline.tensorflow_v1" not in sys.modules


@contextlib.contextmanager
def _telling_of_a_crash() -> Iterator[None]:
    """Have Python say so where C++ code crashes: it is Luigi's own process that ends then, and stderr is hushed."""
    if faulthandler.is_enabled():
        yield
        return
    with os.fdopen(os.dup(2), "w") as stderr:
        faulthandler.enable(stderr, all_threads=False)
        try:
            yield
        finally:
            faulthandler.disable()


_hushed: list[int] = []
"""What stderr was, while it is hushed."""


def speak() -> None:
    """End a hush, to say something before this process ends."""
    for kept in _hushed[:1]:
        os.dup2(kept, 2)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep back what is written to stderr, by C++ code too; show it where the block fails."""
    kept = os.dup(2)
    _hushed.append(kept)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(kept, held_back.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            _hushed.remove(kept)
            os.close(kept)


@contextlib.contextmanager
def _faster() -> Iterator[None]:
    """Load TensorFlow in four fifths of the time, or two thirds where scikit-learn is installed.

    It loads Keras, which loads scikit-learn, and goes on without where it cannot; whoever uses Keras loads it then. And Python
    would look through the million objects that it makes for what is no longer needed, again and again.
    """
    keras = "keras.src"
    if "tensorflow" in sys.modules or keras in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    sys.modules[keras] = None  # type: ignore[assignment]  # how Python says that a module cannot be imported
    try:
        yield
    finally:
        del sys.modules[keras]
        gc.freeze()
        gc.enable()
