"""Pretrained models in the forms that people have them in, each read into a frozen graph.

frozen GraphDef     graph.pb
SavedModel          a folder with saved_model.pb                        saved_model.py
Keras               model.keras, model.h5                               keras_model.py
checkpoint          a folder or prefix with .meta, .index, .data files  meta_graph.py
archive             .tgz, .tar.gz, .tar or .zip that holds one of these; ``archive.tgz/name`` takes one of several
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pipeline import fetch, files
from pipeline.backbones import ARCHIVES, keras_model, labels, meta_graph, saved_model
from pipeline.backbones.frozen import Description, Frozen
from pipeline.errors import UserError

KERAS = (".keras", ".h5", ".hdf5")
WANTED = "a frozen graph (.pb), a SavedModel folder, a Keras model (.keras, .h5), a checkpoint (.meta) or an archive of one (.tgz, .zip)"

# Google's archives hold the same network twice: as it is, and with its weights rounded.
_OF_TWO = {"frozen_graph.pb", "quantized_graph.pb"}


def read(path: Path, described: Description, scratch: Path, member: str = "", called: str = "") -> Frozen:
    """Read the model at ``path``, whatever its form.

    Args:
        path: a file, a folder, or the prefix of a checkpoint.
        described: what is known of it.
        scratch: a folder in which an archive is unpacked for the time being.
        member: the file to take from an archive or a folder, where there are several.
        called: what its user calls it, if that says more than ``path``.

    Raises UserError that says what was found and what is wanted.
    """
    name, called = path.name.lower(), (called or str(path)).lower()
    if path.is_dir():
        return _read_folder(path, described, scratch, member, called)
    if name.endswith(ARCHIVES):
        with tempfile.TemporaryDirectory(dir=scratch) as temporary:
            top = fetch.unpack(path, unpacked := Path(temporary) / path.name)
            inside = "" if member == top else member.removeprefix(f"{top}/")
            return _read_folder(unpacked, described, scratch, inside, called)
    if name == "saved_model.pb":
        return saved_model.read(path.parent, described, called)
    if name.endswith(".pb"):
        return _read_graph(path, described)
    if name.endswith(KERAS):
        return keras_model.read(path, described)
    if name.endswith(".meta") or path.with_name(f"{path.name}.meta").is_file():
        return meta_graph.read(Path(str(path).removesuffix(".meta")), described)
    raise UserError(f"{path} is no model that is read here; wanted is {WANTED}")


def _read_folder(folder: Path, described: Description, scratch: Path, member: str, called: str) -> Frozen:
    """The one model in a folder, or in the only folder below it that has one; of several the ``member``."""
    if not member and (folder / "saved_model.pb").is_file():
        return saved_model.read(folder, described, called)
    if not member and (latest := _latest_checkpoint(folder)):
        return meta_graph.read(latest, described)
    paths = [path for path in sorted(folder.rglob("*")) if path.name.lower().endswith((".pb", ".meta", *KERAS))]
    found = [path for path in paths if not _is_hub_note(path) and not fetch.is_added_by_a_mac(str(path.relative_to(folder)))]
    names = [str(path.relative_to(folder)) for path in found]
    wanted = _named(member, dict(zip(names, found))) if member else []
    if member and not wanted:
        raise UserError(f"{folder.name} holds no model {member!r}; it holds: {', '.join(names[:6]) or 'none'}")
    wanted = wanted or [path for path in found if path.name == "saved_model.pb"] or found
    guessed = []
    if {path.name for path in wanted} == _OF_TWO and len(wanted) == 2:
        wanted = [path for path in wanted if path.name == "frozen_graph.pb"]
        guessed = ["frozen_graph.pb, and not quantized_graph.pb"]
    if len(wanted) != 1:
        remedy = f"; name it like this: {folder.name}/{names[0]}" if names else ""
        raise UserError(f"{folder.name} holds {len(found)} models ({', '.join(names[:6]) or 'none'}), wanted is one{remedy}")
    result = read(wanted[0], described, scratch, called=called)
    result.guessed += guessed
    return result


def _named(member: str, models: dict[str, Path]) -> list[Path]:
    """Those of ``models`` that are called ``member``, or else that end so; ``x.meta`` is ``x``, too, and ``x/saved_model.pb`` is ``x``."""
    said = {path: (name, name.removesuffix("/saved_model.pb").removesuffix(".meta")) for name, path in models.items()}
    exactly = [path for path, names in said.items() if member in names]
    return exactly or [path for path, names in said.items() if any(name.endswith(f"/{member}") for name in names)]


def _is_hub_note(path: Path) -> bool:
    return path.name in ("tfhub_module.pb", "keras_metadata.pb", "fingerprint.pb")


def _latest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a folder. Its own note of that may hold the path that the folder had when it was written."""
    note = folder / "checkpoint"
    found = re.search(r'^model_checkpoint_path: "(.*)"', note.read_text("utf-8", "replace"), re.MULTILINE) if note.is_file() else None
    latest = folder / Path(found[1]).name if found else None
    return latest if latest and latest.with_name(f"{latest.name}.index").is_file() else None


def _read_graph(path: Path, described: Description) -> Frozen:
    from google.protobuf.message import DecodeError

    from pipeline.tensorflow_v1 import tf

    try:
        graph = tf.GraphDef.FromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is no frozen graph ({error}); it may be cut short, or of another form") from None
    if not graph.node:
        raise UserError(f"{path} is an empty graph; it may be cut short, or of another form")
    return Frozen(graph, described, labels.beside(path.parent), files.sha256_file(path))
