from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import Checkpoints
from pipeline.tensorflow_v1 import session, tf


@contextmanager
def counter(folder: Path, **options: Any) -> Iterator[tuple[Checkpoints, tf.Session, tf.Variable]]:
    """A fresh process's view of ``folder``: a graph with one variable, its Saver, a session."""
    with tf.Graph().as_default(), session(threads=1) as running:
        value = tf.get_variable("value", [], tf.int64, tf.zeros_initializer(), use_resource=True)
        running.run(tf.global_variables_initializer())
        yield Checkpoints(folder, "x.ckpt", **options), running, value


def save(folder: Path, *steps: int, **options: Any) -> None:
    with counter(folder, **options) as (checkpoints, running, value):
        checkpoints.restore(running)
        for step in steps:
            running.run(value.assign(step))
            checkpoints.save(running, step)


def restored(folder: Path, **options: Any) -> tuple[int | None, int]:
    """The step that a fresh process restores, and the value that the variable then has."""
    with counter(folder, **options) as (checkpoints, running, value):
        return checkpoints.restore(running), int(running.run(value))


def steps_in(folder: Path, ending: str = ".index") -> list[int]:
    return sorted(int(path.name.removeprefix("x.ckpt-").removesuffix(ending)) for path in folder.glob(f"x.ckpt-*{ending}"))


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert restored(tmp_path) == (None, 0)


def test_the_newest_comes_back_also_after_the_folder_was_moved(tmp_path: Path) -> None:
    save(tmp_path / "here", 10, 20)
    (tmp_path / "here").rename(tmp_path / "there")
    assert restored(tmp_path / "there") == (20, 20)
    assert tf.train.latest_checkpoint(str(tmp_path / "there")) == str(tmp_path / "there" / "x.ckpt-20")


def test_max_to_keep_holds_over_restarts(tmp_path: Path) -> None:
    for first in range(1, 30, 3):
        save(tmp_path, first, first + 1, first + 2, max_to_keep=2)
    assert steps_in(tmp_path) == steps_in(tmp_path, ".meta") == [29, 30]


def test_every_hour_one_is_kept_for_good_over_restarts(tmp_path: Path) -> None:
    # Next to no hour: each checkpoint is due to be kept.
    options = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1e-9}
    save(tmp_path, 1, 2, 3, **options)
    assert steps_in(tmp_path) == [1, 2, 3]
    assert restored(tmp_path, **options) == (3, 3)
    assert steps_in(tmp_path) == [1, 2, 3]


def test_keeping_all_holds_over_restarts(tmp_path: Path) -> None:
    for first in range(1, 9, 2):
        save(tmp_path, first, first + 1, max_to_keep=0)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    (tmp_path / "x.ckpt-8.data-00000-of-00001").write_bytes(b"cut")
    assert restored(tmp_path, max_to_keep=0) == (7, 7)


def test_fewer_to_keep_than_there_are(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, max_to_keep=4)
    save(tmp_path, 5, max_to_keep=2)
    assert steps_in(tmp_path) == [4, 5]


@pytest.mark.parametrize("damage", ["cut", "flip", "no data", "no index"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 10, 20)
    data, index = tmp_path / "x.ckpt-20.data-00000-of-00001", tmp_path / "x.ckpt-20.index"
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:3])
    elif damage == "flip":
        data.write_bytes(bytes(255 - byte for byte in data.read_bytes()))
    elif damage == "no data":
        data.unlink()
    else:
        index.unlink()
    assert restored(tmp_path) == (10, 10)
    assert steps_in(tmp_path, ".meta") == [10]  # the damaged one is swept away
    save(tmp_path, 20)
    assert restored(tmp_path) == (20, 20)


@pytest.mark.parametrize(
    ("damage", "step"),
    [
        ({"x.ckpt-30.data-00000-of-00001": "x.ckpt-10.data-00000-of-00001", "x.ckpt-30.index": "x.ckpt-10.index"}, 20),
        ({"x.ckpt-20.data-00000-of-00001": "more"}, 10),
        ({"x.ckpt-10.index": "more"}, None),
        ({"x.ckpt-30.index": None}, 20),
        ({"x.ckpt.sha256": None}, None),
        ({"x.ckpt.sha256": "more"}, 30),
        ({"checkpoint": "more"}, 30),
        ({"checkpoint": None}, 30),
    ],
)
def test_what_was_altered_since_is_not_gone_on_with(
    tmp_path: Path, damage: dict[str, str | None], step: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "whole", 10, 20, 30)
    shutil.copytree(tmp_path / "whole", tmp_path / "altered")
    for name, other in damage.items():
        path = tmp_path / "altered" / name
        if other is None:
            path.unlink()
        elif other == "more":
            path.write_bytes(path.read_bytes() + b"more")
        else:
            shutil.copyfile(tmp_path / "altered" / other, path)
    with counter(tmp_path / "altered") as (checkpoints, running, value):
        assert checkpoints.restore(running) == step
        assert running.run(value) == (step or 0)
        for later in range((step or 0) + 10, 31, 10):
            running.run(value.assign(later))
            checkpoints.save(running, later)
    assert ("is damaged" in capsys.readouterr().err) == (step != 30)
    whole, altered = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "altered"))
    assert altered == whole


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_kill_between_a_checkpoint_and_its_note_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    save(tmp_path / "whole", 10, 20, max_to_keep=most)
    for step in (10, 20):
        with counter(tmp_path / "killed", max_to_keep=most) as (checkpoints, running, value):
            checkpoints.restore(running)
            running.run(value.assign(step))
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(checkpoints, "_note", killed)
                checkpoints.save(running, step)
        assert restored(tmp_path / "killed", max_to_keep=most) == (step, step)
    whole, after = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "killed"))
    assert after == whole


def test_a_kill_before_the_newest_is_listed_loses_nothing_of_it(tmp_path: Path) -> None:
    save(tmp_path, 10)
    listed, noted = (tmp_path / "checkpoint").read_bytes(), (tmp_path / "x.ckpt.sha256").read_bytes()
    save(tmp_path, 20)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "checkpoint").write_bytes(listed)
    (tmp_path / "x.ckpt.sha256").write_bytes(noted)
    assert restored(tmp_path) == (20, 20)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_one_that_was_copied_over_another_before_its_note_is_not_gone_on_with(tmp_path: Path) -> None:
    with tf.Graph().as_default(), session(threads=1) as running:
        step = tf.train.get_or_create_global_step()
        running.run(tf.global_variables_initializer())
        checkpoints = Checkpoints(tmp_path, "x.ckpt")
        for number in (10, 20):
            running.run(step.assign(number))
            checkpoints.save(running, number)
        note = (tmp_path / "x.ckpt.sha256").read_bytes()
        running.run(step.assign(30))
        checkpoints.save(running, 30)
        (tmp_path / "x.ckpt.sha256").write_bytes(note)
        for ending in ("index", "data-00000-of-00001"):
            shutil.copyfile(tmp_path / f"x.ckpt-10.{ending}", tmp_path / f"x.ckpt-30.{ending}")
        assert checkpoints.restore(running) == 20
        assert running.run(step) == 20


def test_the_note_is_what_sha256sum_checks(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, max_to_keep=1)
    lines = (tmp_path / "x.ckpt.sha256").read_text().splitlines()
    assert [line.partition("  ")[2] for line in lines] == ["x.ckpt-20.data-00000-of-00001", "x.ckpt-20.index"]
    for digest, name in (line.split("  ") for line in lines):
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_what_tensorflow_was_writing_at_a_kill_is_gone(tmp_path: Path) -> None:
    names = ["x.ckpt.data-00000-of-00001.tempstate12", "x.ckpt.index.tempstate34", "checkpoint.tmp5f"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    with counter(tmp_path) as (checkpoints, running, _):
        checkpoints.save(running)
    assert not {path.name for path in tmp_path.iterdir()}.intersection(names)


def test_what_a_kill_left_half_written_is_swept(tmp_path: Path) -> None:
    save(tmp_path, 10)
    for name in ("x.ckpt-20.data-00000-of-00001.tempstate123", "x.ckpt-20.index.tempstate123", "x.ckpt-20.meta"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "somebody-elses").write_text("stays")
    assert restored(tmp_path) == (10, 10)
    assert not list(tmp_path.glob("x.ckpt-20*"))
    assert (tmp_path / "somebody-elses").exists()


def test_the_meta_graph_is_there_before_the_checkpoint_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with counter(tmp_path) as (checkpoints, running, _):

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(checkpoints._saver, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(running, 10)
    assert steps_in(tmp_path, ".meta") == [10]
    assert tf.train.latest_checkpoint(str(tmp_path)) is None


def test_an_altered_meta_graph_is_written_again(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30)
    whole = (tmp_path / "x.ckpt-30.meta").read_bytes()
    (tmp_path / "x.ckpt-10.meta").write_bytes(whole[:-9])
    (tmp_path / "x.ckpt-20.meta").unlink()
    (tmp_path / "x.ckpt-30.meta").write_bytes(b"altered")
    assert restored(tmp_path) == (30, 30)
    assert [(tmp_path / f"x.ckpt-{step}.meta").read_bytes() for step in (10, 20, 30)] == [whole] * 3


def test_which_variables_and_whether_a_meta_graph(tmp_path: Path) -> None:
    with tf.Graph().as_default(), session(threads=1) as running:
        kept = tf.get_variable("kept", [], use_resource=True)
        tf.get_variable("left_out", [], use_resource=True)
        running.run(tf.global_variables_initializer())
        Checkpoints(tmp_path, "x.ckpt", variables=[kept], write_meta_graph=False).save(running, 1)
    names = [name for name, _ in tf.train.list_variables(str(tmp_path / "x.ckpt-1"))]
    assert names == ["kept"]
    assert steps_in(tmp_path, ".meta") == []


def test_import_meta_graph_brings_it_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    latest = tf.train.latest_checkpoint(str(tmp_path / "copy"))
    with tf.Graph().as_default(), tf.Session() as running:
        tf.train.import_meta_graph(latest + ".meta").restore(running, latest)
        assert running.run(tf.global_variables()) == [7]
