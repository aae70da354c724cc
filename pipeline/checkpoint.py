"""The one place that makes a Saver: checkpoints that survive a kill, a damaged file and a moved folder.

    checkpoints = Checkpoints(folder, "final_layer.ckpt")
    step = checkpoints.restore(session)      # None: nothing to go on from
    checkpoints.save(session, step)

Anybody else reads them in plain TensorFlow: ``import_meta_graph(latest_checkpoint(folder) + ".meta")`` and ``restore``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.tensorflow_v1 import WhileContextDef, tf

NEVER = 10_000.0
"""Hours; the Saver's own default for ``keep_checkpoint_every_n_hours``, which keeps none beyond ``max_to_keep``."""

# ValueError is the Saver's word for files that are not there at all.
_UNREADABLE = (
    tf.errors.DataLossError,
    tf.errors.OutOfRangeError,
    tf.errors.NotFoundError,
    tf.errors.InvalidArgumentError,
    ValueError,
)


class Checkpoints:
    """The checkpoints of the default graph in one folder. Make it once the graph is complete."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        variables: Sequence[tf.Variable] | None = None,
        max_to_keep: int = 5,
        keep_checkpoint_every_n_hours: float = NEVER,
        write_meta_graph: bool = True,
    ) -> None:
        """
        Args:
            folder: where they lie; made where it is missing.
            name: the prefix of the files, before ``-<global step>``.
            variables: which to save; all by default.
            max_to_keep: how many of the newest stay; 0 keeps all.
            keep_checkpoint_every_n_hours: keep one for good for each so many hours of running.
            write_meta_graph: write the graph beside each, for ``import_meta_graph``.
        """
        self._prefix = folder / name
        self._max_to_keep = max_to_keep
        self._keeps_some_for_good = keep_checkpoint_every_n_hours < NEVER
        # Without relative paths, latest_checkpoint finds nothing once the folder has been moved.
        self._saver = tf.train.Saver(
            variables,
            max_to_keep=max_to_keep,
            keep_checkpoint_every_n_hours=keep_checkpoint_every_n_hours,
            save_relative_paths=True,
        )
        self._meta_graph = _meta_graph(self._saver) if write_meta_graph else None
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, session: tf.Session, global_step: int | None = None) -> None:
        """Save the variables. A kill at any moment leaves the checkpoint before this one, or this one, whole."""
        suffix = "" if global_step is None else f"-{global_step}"
        # The Saver itself names a checkpoint in its list before it writes the .meta; a kill in between would leave a
        # latest_checkpoint that import_meta_graph cannot read. So the .meta comes first.
        if self._meta_graph is not None:
            files.write_atomic(self._prefix.with_name(f"{self._prefix.name}{suffix}.meta"), self._meta_graph)
        self._saver.save(session, str(self._prefix), global_step=global_step, write_meta_graph=False)

    def restore(self, session: tf.Session) -> int | None:
        """Restore the newest checkpoint that can be read, drop what a kill left behind, and return its global step.

        Returns None, with nothing restored, where there is none.
        """
        listed = self._listed()
        while listed:
            try:
                self._saver.restore(session, listed[-1])
            except _UNREADABLE:
                listed.pop()
            else:
                break
        # A new Saver knows of no older steps; without this, max_to_keep would never delete them.
        if self._max_to_keep:
            listed = listed[-self._max_to_keep :]  # it may have been larger when the run was started
        self._saver.recover_last_checkpoints(listed)
        self._sweep({Path(path).name for path in listed})
        self._mend_meta_graphs()
        return int(listed[-1].rpartition("-")[2]) if listed else None

    def _listed(self) -> list[str]:
        """The checkpoints there are, oldest first. A Saver that keeps all lists only the newest, so that the folder tells."""
        state = tf.train.get_checkpoint_state(str(self._prefix.parent))
        if state and not self._max_to_keep:
            newest = _step(state.model_checkpoint_path)
            found = [path.with_suffix("") for path in self._prefix.parent.glob(f"{self._prefix.name}-*.index")]
            return [str(path) for path in sorted(found, key=lambda path: _step(path.name)) if 0 <= _step(path.name) <= newest]
        return list(state.all_model_checkpoint_paths) if state else []

    def _sweep(self, listed: set[str]) -> None:
        """Remove the files of steps that are not in the list: half-written, damaged, or replaced just before a kill."""
        newest = max((_step(name) for name in listed), default=-1)
        for path in self._prefix.parent.glob(f"{self._prefix.name}-*"):
            name = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path.name)
            for_good = self._keeps_some_for_good and 0 <= _step(name) < newest
            if name not in listed and not for_good:
                path.unlink()

    def _mend_meta_graphs(self) -> None:
        """Restoring reads none of them; import_meta_graph, later, does."""
        if self._meta_graph is None:
            return
        for index in self._prefix.parent.glob(f"{self._prefix.name}-*.index"):
            path = index.with_suffix(".meta")
            if not path.is_file() or path.read_bytes() != self._meta_graph:
                files.write_atomic(path, self._meta_graph)


def _meta_graph(saver: tf.train.Saver) -> bytes:
    """The default graph for ``import_meta_graph``, the same bytes in each process: of a loop, TensorFlow lists the tensors in the
    order of a set."""
    meta_graph = saver.export_meta_graph()
    if tf.GraphKeys.WHILE_CONTEXT in meta_graph.collection_def:
        loops = meta_graph.collection_def[tf.GraphKeys.WHILE_CONTEXT].bytes_list.value
        for number, loop in enumerate(map(WhileContextDef.FromString, loops)):
            loop.values_def.values.sort()
            loops[number] = loop.SerializeToString(deterministic=True)
    return bytes(meta_graph.SerializeToString(deterministic=True))


def _step(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def latest(folder: Path) -> str:
    """The newest checkpoint of a folder, as ``Saver.restore`` wants it. Raises UserError where there is none."""
    path = tf.train.latest_checkpoint(str(folder))
    if path is None:
        raise UserError(f"{folder} holds no checkpoint that can be read; remove the folder and run again")
    return str(path)


def restore(session: tf.Session, folder: Path, variables: Mapping[str, tf.Variable]) -> None:
    """Give ``variables`` their values from the newest checkpoint of ``folder``, found there by the names of the mapping."""
    tf.train.Saver(dict(variables)).restore(session, latest(folder))


def read(folder: Path, name: str) -> object:
    """The value of one variable in the newest checkpoint of ``folder``, without a graph."""
    return tf.train.load_checkpoint(latest(folder)).get_tensor(name)
