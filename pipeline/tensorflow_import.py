"""TensorFlow's import, which takes seconds: without its chatter, as fast as it can be, and once for all steps that are forks.

Nothing here runs anything of TensorFlow; ``tensorflow_v1`` is the door to what does.
"""

from __future__ import annotations

import contextlib
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


def load_for_forks() -> None:
    """Import TensorFlow into this process where its children are forks, so that none of them has to.

    A fork hangs where TensorFlow has run in the parent; its import alone starts no thread. On a machine with a GPU nothing
    is done: a fork cannot use what its parent may have opened of CUDA.
    """
    if multiprocessing.get_start_method() == "fork" and not has_nvidia():
        load()


def may_be_forked() -> bool:
    """Whether TensorFlow is imported in this process and has not run: the import of ``tensorflow_v1`` runs it."""
    return "tensorflow" in sys.modules and "pipeline.tensorflow_v1" not in sys.modules


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep back what is written to stderr, by C++ code too; show it where the block fails."""
    kept = os.dup(2)
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
            os.close(kept)


@contextlib.contextmanager
def _faster() -> Iterator[None]:
    """Load TensorFlow in four fifths of the time, or two thirds where scikit-learn is installed.

    It loads Keras, which loads scikit-learn, and goes on without where it cannot; whoever uses Keras loads it then. And Python
    would look through the million objects that it makes for what is no longer needed, again and again.
    """
    keras = "keras.src"
    if keras in sys.modules or not gc.isenabled():
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
