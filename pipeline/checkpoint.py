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

from pipeline import console, files
from pipeline.errors import UserError
from pipeline.tensorflow_v1 import WhileContextDef, tf

NEVER = 10_000.0
"""Hours; the Saver's own default for ``keep_checkpoint_every_n_hours``, which keeps none beyond ``max_to_keep``."""

NOTE = ".sha256"
"""Behind the prefix of the checkpoints, the name of the list of their hashes."""

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
        for left in (*folder.glob(f"{name}*.tempstate*"), *folder.glob("checkpoint.tmp*")):
            left.unlink()  # TensorFlow's own, of a process that was killed
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
        self._noted: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, session: tf.Session, global_step: int | None = None) -> None:
        """Save the variables. A kill at any moment leaves the checkpoint before this one, or this one, whole."""
        suffix = "" if global_step is None else f"-{global_step}"
        # The Saver itself names a checkpoint in its list before it writes the .meta; a kill in between would leave a
        # latest_checkpoint that import_meta_graph cannot read. So the .meta comes first.
        if self._meta_graph is not None:
            files.write_atomic(self._prefix.with_name(f"{self._prefix.name}{suffix}.meta"), self._meta_graph)
        self._saver.save(session, str(self._prefix), global_step=global_step, write_meta_graph=False)
        if global_step is not None:
            self._note(global_step)

    def restore(self, session: tf.Session) -> int | None:
        """Restore the newest checkpoint that is whole, as all kept before it are, and remove those after it.

        Returns its global step; None, with nothing restored, where there is none.
        """
        steps = self._whole()
        while steps and not self._restores(session, steps[-1]):
            self._say_damaged(steps.pop())
        if self._max_to_keep:  # a new Saver knows of no older steps, and would never delete them
            self._saver.recover_last_checkpoints([self._path(step) for step in steps])
        self._sweep(steps)
        if not steps:
            return None
        self._mend_meta_graphs()
        self.save(session, steps[-1])  # the same bytes; and the Saver's list of them is what it was then
        return steps[-1]

    def forget(self) -> None:
        """Remove all checkpoints, as if there never was one."""
        self._saver.recover_last_checkpoints([])
        self._noted = {}
        self._sweep([])

    def _path(self, step: int) -> str:
        return f"{self._prefix}-{step}"

    def _restores(self, session: tf.Session, step: int) -> bool:
        """Restore a checkpoint, if it can be read and is that of its name: one that a kill kept from being noted may be another's."""
        try:
            self._saver.restore(session, self._path(step))
            reader = tf.train.load_checkpoint(self._path(step))
            return not reader.has_tensor("global_step") or int(reader.get_tensor("global_step")) == step
        except _UNREADABLE:
            return False

    def _say_damaged(self, step: int) -> None:
        console.warn(f"{self._path(step)} is damaged; what came after the checkpoint before it is computed again")

    def _whole(self) -> list[int]:
        """The steps of the newest checkpoints, oldest first, up to one that was damaged.

        The Saver's list of them is not asked: it may have been altered, and one that keeps all lists the newest only.
        """
        noted = self._noted = self._read_note()
        there = {_step(path.stem) for path in self._prefix.parent.glob(f"{self._prefix.name}-*.index")} - {-1}
        steps = sorted(there.union(_step(name.partition(".index")[0]) for name in noted if name.endswith(".index")))
        steps = steps[-self._max_to_keep :]  # a kill may have come before the older ones were removed, or in the middle of it
        for number, step in enumerate(steps):
            names = [name for name in noted if name.startswith(f"{self._prefix.name}-{step}.")]
            if not names and step == steps[-1] and (noted or number == 0):
                continue  # a kill came between the newest and its note
            if not names or not all(map(self._is_whole, names)):
                self._say_damaged(step)
                return steps[:number]
        return steps

    def _is_whole(self, name: str) -> bool:
        try:
            return files.sha256_file(self._prefix.with_name(name)) == self._noted[name]
        except OSError:
            return False

    def _note(self, step: int) -> None:
        """Note the hashes of what is kept, as ``sha256sum`` does. TensorFlow's checksums do not tell that a file is another step's."""
        kept = [path for path in self._prefix.parent.glob(f"{self._prefix.name}-*") if path.suffix != ".meta"]
        new = {path.name: files.sha256_file(path) for path in kept if path.name not in self._noted or _step(path.stem) == step}
        self._noted = {path.name: (self._noted | new)[path.name] for path in sorted(kept)}
        files.write_atomic(f"{self._prefix}{NOTE}", "".join(f"{digest}  {name}\n" for name, digest in self._noted.items()).encode())

    def _read_note(self) -> dict[str, str]:
        try:
            lines = files.read_regular(f"{self._prefix}{NOTE}").decode(errors="replace").splitlines()
        except OSError:
            return {}
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def _sweep(self, steps: Sequence[int]) -> None:
        """Remove the files of other steps: half-written, damaged, or replaced just before a kill."""
        for path in self._prefix.parent.glob(f"{self._prefix.name}-*"):
            step = _step(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path.name))
            for_good = self._keeps_some_for_good and 0 <= step < max(steps, default=0)
            if step not in steps and not for_good:
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
