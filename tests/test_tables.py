"""Data sets that a table names: the table, its rule, the scan, and the whole way with photos that a package ships."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from conftest import Project, make_photos

from pipeline import dataset, indexing, scan, sources
from pipeline.dataset import Photos
from pipeline.errors import UserError
from pipeline.tables import Row, Table, parse_rule

ELPV = "functional < 0.5, defective >= 0.5"


def table(folder: Path, text: str, path_column: str = "1", label_column: str = "2", rule: str = "") -> Table:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    return Table(folder / "labels.csv", path_column, label_column, parse_rule(rule))


# --- The table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a.png,Oak Tree\nb.png,花\n", "12"),
        ("a.png, Oak Tree\r\n\r\nb.png,花", "12"),
        ("\ufeffOak Tree;a.png\n花;b.png\n", "21"),
        ('a.png   "Oak Tree"     mono\nb.png   花     poly\n', "12"),
        ("7\tOak Tree\ta.png\n8\t花\tb.png\n", "32"),
        ('"./a.png","Oak Tree"\n".//b.png","花"\n"a.png","Oak Tree"\n', "12"),
    ],
)
def test_columns_stand_between_commas_semicolons_tabs_or_spaces(tmp_path: Path, text: str, columns: str) -> None:
    assert table(tmp_path, text, *columns).read() == [Row("a.png", "Oak Tree"), Row("b.png", "花")]


def test_a_column_with_a_name_stands_in_a_header(tmp_path: Path) -> None:
    text = "kind,file,note\noak,a.png,\nelm,b.png,x\n"
    named = table(tmp_path, text, "file", "kind").read()
    assert named == table(tmp_path, text, "file", "1").read() == [Row("a.png", "oak"), Row("b.png", "elm")]
    assert table(tmp_path, "file  p\na.png 1\n", "file", "p").read() == [Row("a.png", "1")]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("file,kind\n", ("file", "label"), "'label' is no column of .*labels.csv; its columns are: file, kind"),
        ("a,b\n", ("0", "2"), "'0' is no column of"),
        (
            "a.png,oak\nb.png\n",
            ("1", "2"),
            "labels.csv, line 2: 1 columns, where the path in column 1 and the label in column 2 are wanted",
        ),
        ("a.png,oak\n,elm\n", ("1", "2"), "labels.csv, line 2: 2 columns, where the path in column 1"),
        ('a.png,oak\nb.png,"elm\n', ("1", "2"), "labels.csv, line 2: .*; mend the line"),
        ("a\0.png,oak\n", ("1", "2"), "labels.csv, line 1: .*; mend the line"),
    ],
)
def test_a_table_that_cannot_be_understood_is_an_error(tmp_path: Path, text: str, columns: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        table(tmp_path, text, *columns).read()
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no table .*none.csv; put it there, or correct table in \[images\]"):
        Table(tmp_path / "none.csv", "1", "2").read()
    with pytest.raises(UserError, match="cannot be read"):
        Table(tmp_path, "1", "2").read()


# --- The rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "texts", "labels"),
    [
        (ELPV, ["0.0", "0.3333333333333333", "0.6666666666666666", "1.0", "0.5"], ["functional"] * 2 + ["defective"] * 3),
        ("Oak Tree = 0,\n elm=1", ["0", "0.0", "1", "2", ""], ["Oak Tree", "Oak Tree", "elm", "", ""]),
        ("good = yes, bad = no", ["yes", "no", "Yes"], ["good", "bad", ""]),
        ("low <= 1, middle <= 2, high > 2", ["1", "1.5", "2", "1e3", "nan", "x"], ["low", "middle", "middle", "high", "", ""]),
        ("", ["a < b", "0"], ["a < b", "0"]),
    ],
)
def test_the_first_part_of_a_rule_that_holds_gives_the_label(tmp_path: Path, rule: str, texts: list[str], labels: list[str]) -> None:
    rows = table(tmp_path, "".join(f"{i}.png,{text}\n" for i, text in enumerate(texts)), rule=rule).read()
    assert [row.label for row in rows] == labels
    assert [row.problem for row in rows if row.label] == [""] * len([label for label in labels if label])


def test_why_a_line_gives_no_label(tmp_path: Path) -> None:
    rows = table(tmp_path, "a.png,0.5\nb.png,\n", rule="functional = 0, defective = 1").read()
    assert [row.problem for row in rows] == ["label_rule has no label for '0.5'", "the table has no label for it"]


@pytest.mark.parametrize("rule", ["functional", "functional < half", "< 3", "a = 1, , b = 2", "0 < x < 1", "a => 1"])
def test_what_is_no_rule(rule: str) -> None:
    with pytest.raises(UserError, match="label_rule has .*; write LABEL = VALUE, or LABEL < NUMBER") as error:
        parse_rule(rule)
    assert "\n" not in str(error.value)


# --- The scan -------------------------------------------------------------------------------------------------------


def look(named: Table, memory: Path) -> Photos:
    return scan.of_table(named, scan.Memory(memory))


def test_a_scan_takes_what_the_table_names_from_its_folder(tmp_path: Path) -> None:
    make_photos(tmp_path / "set/deep", 3, ("x",))
    make_photos(tmp_path, 1, ("absolute",))
    (tmp_path / "set/deep/page.html").write_text("<html>")
    lines = ["../../absolute/000.png,b", "x/001.png,a", f"{tmp_path}/absolute/000.png,a", "x/000.png,b", "x/9.png,a", "page.html,a", "x,a"]
    found = look(table(tmp_path / "set/deep", "\n".join([*lines, "x/002.png,"])), tmp_path / "memory.csv")
    assert [(photo.path, photo.label, photo.problem) for photo in found] == [
        ("../../absolute/000.png", "b", ""),
        (f"{tmp_path}/absolute/000.png", "a", ""),
        ("page.html", "a", "not a photo"),
        ("x", "a", "cannot be read: not a file"),
        ("x/000.png", "b", ""),
        ("x/001.png", "a", ""),
        ("x/002.png", "", "the table has no label for it"),
        ("x/9.png", "a", "cannot be read: No such file or directory"),
    ]
    from pipeline import bottlenecks

    for photo in found:  # where the scan has read them, so does whoever computes their vectors
        if not photo.problem:
            assert bottlenecks.read_encoded(photo, tmp_path / "set/deep") == (tmp_path / "set/deep" / photo.path).read_bytes()


def test_another_label_opens_no_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path / "set", 3, ("x",))
    monkeypatch.setattr(scan, "_RACY_NS", -(10**12))  # as if the photos had been lying there for long
    before = look(table(tmp_path / "set", "x/000.png,a\nx/001.png,b\nx/001.png,a\n"), tmp_path / "memory.csv")
    original = scan._read
    monkeypatch.setattr(scan, "_read", lambda *_: pytest.fail("a photo was opened"))
    again = look(table(tmp_path / "set", "x/001.png,a\nx/000.png,a\nx/001.png,b\n"), tmp_path / "memory.csv")
    assert again == before
    assert dataset.fingerprint(again) == dataset.fingerprint(before)
    changed = look(table(tmp_path / "set", "x/000.png,b\nx/001.png,b\n"), tmp_path / "memory.csv")
    assert [photo.label for photo in changed] == ["b", "b"]
    assert dataset.fingerprint(changed) != dataset.fingerprint(before)
    monkeypatch.setattr(scan, "_read", original)
    # What a table says is not remembered: folders may name the photos next.
    assert {photo.label for photo in scan.of_folder(tmp_path / "set", scan.Memory(tmp_path / "memory.csv")) if "001" in photo.path} == {"x"}


def test_a_file_named_under_two_labels_is_said(tmp_path: Path) -> None:
    make_photos(tmp_path, 30, ("x", "y"))
    lines = [f"{label}/{i:03d}.png,{label}" for label in "xy" for i in range(30)]
    found = look(table(tmp_path, "\n".join([*lines, "x/000.png,y", "x/001.png,x"])), tmp_path / "memory.csv")
    index = indexing.make_index(found, testing_percentage=10, validation_percentage=10, seed=0, unreadable_limit=20)
    assert index.warnings == ["exact duplicates under more than one label: 1 (x/000.png as x and x/000.png as y)"]
    assert len({photo.split for photo in index.photos if photo.path == "x/000.png"}) == 1


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    make_photos(tmp_path, 1, ("x",))
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "x/000.png").rename(tmp_path / name)
    (photo,) = look(table(tmp_path, f"{name},a\n"), tmp_path / "memory.csv")
    assert (photo.path, photo.problem) == (name, "")


# --- The whole way --------------------------------------------------------------------------------------------------


def test_a_package_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_cells").mkdir()
    (tmp_path / "some_cells/__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    assert sources.package_folder("some-cells/data") == tmp_path / "some_cells/data"
    assert sources.package_folder("other-cells/data") is None
    assert sources.package_folder("csv") is None  # a module, with no folder
    assert sources.package_folder("nosuch.inside/data") is None
    assert sources.distribution("some_cells/data") == "some-cells"


def test_photos_of_a_package_that_a_table_names(project: Project, tmp_path: Path) -> None:
    shipped = tmp_path / "site/some_cells/data"
    make_photos(shipped, 10, ("blue", "red"))
    (tmp_path / "site/some_cells/__init__.py").write_text("")
    chances = {"blue": ("0.0", "0.3333333333333333"), "red": ("1.0", "0.6666666666666666")}
    lines = [f"{label}/{i:03d}.png  {chances[label][i % 2]:<20} mono\n" for label in chances for i in range(10)]
    (shipped / "labels.csv").write_text("".join([*lines, "gone.png  1.0   poly\n"]))
    profile = f"[Export]\nhow_many_training_steps = 100\n[images]\npackage = some_cells/data\ntable = labels.csv\nlabel_rule = {ELPV}\n"
    project.profile("cells", profile)

    missing = project.export("--data", "cells")
    assert missing.returncode == 20
    assert "they come with the package some-cells, which has to be installed: " in missing.stderr
    assert missing.stderr.splitlines()[-1].endswith("-m pip install some-cells")

    site = {"PYTHONPATH": str(tmp_path / "site")}
    first = project.export("--data", "cells", **site)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("cells: 20 photos in 2 classes, ")
    assert (project.live("cells") / "labels.txt").read_text() == "defective\nfunctional\n"
    (packed,) = project.runs("ComputeBottlenecks")
    with open(packed / "skipped.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [["gone.png", "defective", "cannot be read: No such file or directory"]]

    (shipped / "labels.csv").write_text("".join(lines).replace("red/001.png  0.66", "red/001.png  0.33"))
    second = project.export("--data", "cells", **site)
    assert second.returncode == 0, second.stderr
    assert "bottlenecks of 20 photos: 20 from the cache, 0 computed" in second.stderr
    assert json.loads((project.live("cells") / "manifest.json").read_text())["classes"] == {"defective": 9, "functional": 11}
    assert project.export("--data", "cells", **site).stdout.startswith("cells: nothing to do, ")


def test_a_table_that_is_missing_is_one_line(project: Project) -> None:
    project.profile("mine", "[images]\ntable = labels.csv\n")
    lacking = project.export("--data", "mine")
    assert lacking.returncode == 20
    assert lacking.stderr.splitlines()[-1].endswith(
        "put the photos and their table labels.csv there, or name another folder with --images PATH"
    )
    project.photos("mine", 1)
    done = project.export("--data", "mine")
    assert done.returncode == 30
    assert "error: there is no table " in done.stderr and "Traceback" not in done.stderr
