"""What changed in the photos since the last version: each change under its own name, by itself and through the task graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Project, make_photos

from pipeline import changes, dataset, files
from pipeline.dataset import Photo
from pipeline.tasks import Report


def photos(*rows: str) -> list[Photo]:
    """Photos from ``label/name=content``, or ``name:label=content`` where a table gives the label; sorted, as an index is."""
    found = []
    for row in rows:
        path, _, content = row.partition("=")
        path, _, label = path.partition(":")
        found.append(Photo(path, label or path.partition("/")[0], content, split="training"))
    return sorted(found, key=lambda photo: (photo.path, photo.label))


BEFORE = ("a/1=one", "a/2=two", "b/3=three", "b/4=four")


@pytest.mark.parametrize(
    ("now", "words", "named"),
    [
        (BEFORE, "the same photos", {}),
        ((*BEFORE, "b/5=five"), "1 photo added", {"added": ["b/5"]}),
        (BEFORE[1:], "1 photo removed", {"removed": ["a/1"]}),
        (("a/1=new", *BEFORE[1:]), "1 photo edited", {"edited": ["a/1"]}),
        (("a/june/1=one", *BEFORE[1:]), "1 photo moved or renamed", {"moved": ["a/1 → a/june/1"]}),
        (("b/1=one", *BEFORE[1:]), "1 photo relabelled", {"relabelled": ["b/1: a → b"]}),
        ((*BEFORE, "c/5=five", "c/6=six"), "2 photos added; new classes: 1 (c)", {"added": ["c/5", "c/6"]}),
        (BEFORE[:2], "2 photos removed; classes gone: 1 (b)", {"removed": ["b/3", "b/4"]}),
        (("a/1=two", "a/2=one", *BEFORE[2:]), "2 photos edited", {"edited": ["a/1", "a/2"]}),
        (
            ("a/1=three", "a/2=four", "b/3=one", "b/4=two"),
            "4 photos relabelled",
            {"relabelled": ["a/1: b → a", "a/2: b → a", "b/3: a → b", "b/4: a → b"]},
        ),
        (("a/1=three", *BEFORE[1:]), "1 photo edited", {"edited": ["a/1"]}),
        (("c/3=three", "c/4=four", *BEFORE[:2]), "2 photos relabelled; new classes: 1 (c); classes gone: 1 (b)", {}),
        ((*BEFORE, "a/copy=one"), "1 photo added", {"added": ["a/copy"]}),
        (("a/x=one", "b/x=one", *BEFORE[1:]), "1 photo added, 1 moved or renamed", {"moved": ["a/1 → a/x"], "added": ["b/x"]}),
    ],
)
def test_each_change_has_its_name(now: tuple[str, ...], words: str, named: dict[str, list[str]]) -> None:
    found = changes.between(photos(*BEFORE), photos(*now)).as_json()
    assert changes.sentence(found) == words
    for name, first in named.items():
        assert found[name] == {"count": len(first), "first": first}


def test_a_photo_relabelled_in_a_table_is_relabelled() -> None:
    found = changes.between(photos("1.png:good=one", "2.png:bad=two"), photos("1.png:bad=one", "2.png:bad=two", "2.png:good=two"))
    assert found.relabelled.first == ["1.png: good → bad"]
    assert found.added.first == ["2.png"]  # under a second label


def test_only_the_first_are_named() -> None:
    found = changes.between([], photos(*(f"a/{number:03d}={number}" for number in range(30))))
    assert (found.added.count, len(found.added.first)) == (30, changes.NAMED)


def test_the_list_of_photos_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Names that are no UTF-8 too; and the same photos give the same bytes."""
    written = [Photo('a/caf\udce9, "x".jpg', "a", "1" * 64, split="testing"), Photo("花/1\n.jpg", "花", "2" * 64, split="training")]
    for name in ("one", "other"):
        changes.write_photos(tmp_path / name, written)
    assert list(changes.each_photo(tmp_path / "one")) == written
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_every_change_of_the_photos_is_handled_and_said(copy_of_finished: Project) -> None:
    """Two nights: of each kind of change a few photos; then a class comes and another goes. Nothing stale is used."""
    project, data = copy_of_finished, copy_of_finished.root / "data/colours"
    first = project.live("colours").name
    make_photos(project.root / "fresh", 3, ("red",), size=50)
    shutil.copy(project.root / "fresh/red/000.png", data / "red/new0.png")
    shutil.copy(project.root / "fresh/red/001.png", data / "red/new1.png")
    shutil.copy(project.root / "fresh/red/002.png", data / "red/003.png")
    (data / "blue/002.png").unlink()
    (data / "blue/004.png").rename(data / "blue/renamed.png")
    (data / "green/001.png").rename(data / "red/was_green.png")
    done = project.export("--data", "colours", "--how-many-training-steps", "100")
    assert done.returncode == 0, done.stderr
    said = "2 photos added, 1 removed, 1 edited, 1 moved or renamed, 1 relabelled"
    assert done.stdout.splitlines()[1] == f"since    {first}: {said}"
    assert "bottlenecks of 31 photos: 28 from the cache, 3 computed" in done.stderr
    version = project.live("colours")
    since = files.read_json(version / files.MANIFEST)["since"]
    assert since["version"] == first
    assert since["relabelled"] == {"count": 1, "first": ["red/was_green.png: green → red"]}
    page = (version / "report.html").read_text(encoding="utf-8")
    assert f"{said}." in page and "blue/004.png → blue/renamed.png" in page

    shutil.rmtree(data / "blue")
    make_photos(data, 6, ("yellow",))
    shutil.rmtree(project.root / "store/runs")  # what a version compares with lies beside it
    kept = project.export("--data", "colours", "--how-many-training-steps", "100")
    assert kept.stdout.startswith("colours: rejected: ") and project.live("colours") == version  # the class that is gone
    done = project.export("--data", "colours", "--how-many-training-steps", "100", "--gate-lost-labels", "true")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.splitlines()[1]
        == kept.stdout.splitlines()[1]
        == (f"since    {version.name}: 6 photos added, 9 removed; new classes: 1 (yellow); classes gone: 1 (blue)")
    )
    assert (project.live("colours") / "labels.txt").read_text() == "green\nred\nyellow\n"
    predicted = project.pipeline("predict", "colours", "data/colours/yellow/000.png")
    assert predicted.stdout.split()[1] == "yellow"


@pytest.mark.parametrize("changed", [0, 1])
def test_a_version_has_the_splits_that_it_was_trained_with(tmp_path: Path, changed: int) -> None:
    photos = [Photo(f"red/{name}.png", "red", f"{number:064x}", split="training") for number, name in enumerate("abcd")]
    trained = [photos[0], photos[2]._replace(split="testing"), photos[3], photos[0]._replace(view=1)]  # the second one failed
    for name, rows in (("index", photos), ("packed", trained)):
        (tmp_path / name).mkdir()
        dataset.write_photos(tmp_path / name / dataset.INDEX, rows)
    index, packed = (SimpleNamespace(folder=tmp_path / name) for name in ("index", "packed"))
    packed.output = lambda: SimpleNamespace(manifest=lambda: {"changed": changed})
    assert list(Report._photos(index, packed)) == [photos[0], *([] if changed else [photos[1]]), *trained[1:3]]  # type: ignore[arg-type]


def test_a_version_that_does_not_say_what_its_photos_were_is_no_failure(copy_of_finished: Project) -> None:
    project = copy_of_finished
    (project.live("colours") / changes.PHOTOS).unlink()  # which makes it damaged, and a new one takes its place
    done = project.export("--data", "colours", "--how-many-training-steps", "300")
    assert done.returncode == 0, done.stderr
    assert not any(line.startswith("since") for line in done.stdout.splitlines())
    assert (project.live("colours") / changes.PHOTOS).is_file()
