"""TensorFlow Hub's cache: where a module lies in it, whether it is whole, and locks of the dead.

Hub itself takes any folder that is not empty for a module.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.backbones.graphs import VARIABLES

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf


def place(handle: str) -> Path:
    """The folder that a module has in the cache, as Hub names it."""
    return Path(os.environ["TFHUB_CACHE_DIR"]) / hashlib.sha1(handle.encode(), usedforsecurity=False).hexdigest()


def archive_of(handle: str) -> str:
    """The address of a module's archive (https://www.tensorflow.org/hub/hosting)."""
    query = urlsplit(handle).query
    return handle if "tf-hub-format=" in query else f"{handle}{'&' if query else '?'}tf-hub-format=compressed"


def is_whole(module: Path) -> bool:
    """Whether a module's folder has its graph and every byte of its variables, which are read for it."""
    from google.protobuf.message import DecodeError

    from pipeline.tensorflow_v1 import SavedModel, tf

    try:
        graphs = SavedModel.FromString((module / "saved_model.pb").read_bytes()).meta_graphs
        if any(_has_variables(graph) for graph in graphs):
            variables = tf.train.load_checkpoint(str(module / "variables" / "variables"))
            for name in variables.get_variable_to_shape_map():
                variables.get_tensor(name)
    except (DecodeError, OSError, tf.errors.OpError, RuntimeError, ValueError, IndexError):  # a file cut short is an IndexError
        return False
    return len(graphs) > 0


def _has_variables(graph: tf.MetaGraphDef) -> bool:
    """TensorFlow 2 writes, and wants, files of variables even where there are none."""
    return len(graph.object_graph_def.nodes) > 0 or any(node.op in VARIABLES for node in graph.graph_def.node)


def remove(module: Path) -> None:
    """Forget a module, so that it is fetched again."""
    shutil.rmtree(module, ignore_errors=True)
    module.with_name(f"{module.name}.descriptor.txt").unlink(missing_ok=True)


def remove_stale_lock(handle: str) -> None:
    """Remove the lock of a download whose process is dead; Hub itself would wait for it for ten minutes."""
    lock = place(handle).with_suffix(".lock")
    try:
        host, _, process = lock.read_text().rpartition(".")[0].rpartition(".")
        if host == socket.gethostname() and not _is_alive(int(process)):
            lock.unlink()
    except (OSError, ValueError):
        pass


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
