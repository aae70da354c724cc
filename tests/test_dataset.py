from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photos

from pipeline import changes, dataset, files, indexing, scan
from pipeline.dataset import Photo, Photos
from pipeline.errors import DataMissing, UserError
from pipeline.words import readable

DEFAULTS = {"testing_percentage": 10, "validation_percentage": 10, "seed": 0, "unreadable_limit": 20}


def photo(path: str, content: str | None = None) -> Photo:
    digest = files.sha256_bytes((content or f"content of {path}").encode("utf-8", "surrogateescape"))
    return Photo(path, path.partition("/")[0], sha256=digest, bytes=1)


def many(label: str, count: int) -> list[Photo]:
    return [photo(f"{label}/{i}.jpg") for i in range(count)]


def splits_of(photos: list[Photo], **changes: float) -> dict[str, str]:
    options = {"testing_percentage": 10, "validation_percentage": 10, "seed": 0, **changes}
    return {p.path: p.split for p in indexing.split(Photos(photos), **options)}  # type: ignore[arg-type]


# --- Scan -----------------------------------------------------------------------------------------------------------


def look(folder: Path, memory: Path | None = None) -> Photos:
    return scan.of_folder(folder, scan.Memory(memory or folder.parent / "memory.csv"))


def test_labels_are_the_folder_names_as_they_are(tmp_path: Path) -> None:
    labels = ("Oak Tree", "oak tree", "oak_tree", "花", "naïve")
    make_photos(tmp_path / "photos", 1, labels)
    assert {p.label for p in look(tmp_path / "photos")} == set(labels)


def test_nested_folders_belong_to_the_class_and_hidden_ones_to_nobody(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_photos(root, 1, ("red",))
    make_photos(root / "red" / "2024" / "june", 1, ("x",))
    for hidden in (root / ".thumbs", root / "__MACOSX", root / "red" / ".cache"):
        make_photos(hidden, 1, ("x",))
    assert [p.path for p in look(root)] == ["red/000.png", "red/2024/june/x/000.png"]
    assert {p.label for p in look(root)} == {"red"}


def test_files_are_known_by_content_and_not_by_extension(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_photos(root, 3, ("red",))
    (root / "red/000.png").rename(root / "red/000.JPG")
    (root / "red/001.png").rename(root / "red/no-extension")
    (root / "red/notes.txt").write_text("not a photo, and not named like one")
    (root / "red/page.jpeg").write_text("<!DOCTYPE html><p>404")
    (root / "red/empty.jpg").write_bytes(b"")
    problems = {p.path: p.problem for p in look(root)}
    assert problems == {
        "red/000.JPG": "",
        "red/002.png": "",
        "red/empty.jpg": "the file is empty",
        "red/no-extension": "",
        "red/page.jpeg": "not an image that is read here (an HTML page)",
    }


def test_photos_in_no_class_and_classes_without_a_photo_are_named(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_photos(root, 1, ("red",))
    (root / "red/000.png").rename(root / "loose.PNG")
    (root / "LICENSE.txt").write_text("no photo")
    (root / "blue").mkdir()
    (root / "blue/notes.txt").write_text("no photo")
    assert {p.path: p.problem for p in look(root)} == {
        "blue/": "the folder holds no photo",
        "loose.PNG": "it lies beside the class folders; move it into one",
        "red/": "the folder holds no photo",
    }


def test_links_are_followed_but_not_round_in_a_circle(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_photos(root, 1, ("red",))
    make_photos(tmp_path / "elsewhere", 1, ("more",))
    (root / "red" / "linked").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "red" / "circle").symlink_to(root / "red")
    (root / "red" / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (root / "red" / "round").symlink_to(root)  # would bring every class in under "red"
    make_photos(root, 1, ("blue",))
    found = {p.path: p.problem for p in look(root)}
    assert found.pop("blue/000.png") == ""
    assert found.pop("red/dangling.jpg").startswith("cannot be read")
    assert found == {"red/000.png": "", "red/linked/000.png": ""}


def test_a_file_name_that_is_not_utf8_survives_the_index(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_photos(root, 1, ("red",))
    (root / "red/000.png").rename(root / "red" / os.fsdecode(b"caf\xe9.png"))
    photos = look(root)
    dataset.write_photos(tmp_path / "index.csv", photos)
    again = dataset.read_photos(tmp_path / "index.csv")
    assert again == photos
    assert (root / again[0].path).is_file()
    assert readable(again[0].path) == "red/caf\N{REPLACEMENT CHARACTER}.png"


def test_a_second_scan_opens_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "photos"
    make_photos(root, 3, ("red",))
    monkeypatch.setattr(scan, "_RACY_NS", -(10**12))  # as if the photos had been lying there for long
    first = look(root)
    read: list[str] = []
    original = scan._read
    monkeypatch.setattr(scan, "_read", lambda folder, photo: read.append(photo.path) or original(folder, photo))
    assert look(root) == first
    assert read == []
    (root / "red/001.png").write_bytes((root / "red/000.png").read_bytes())
    (root / "red/002.png").rename(root / "red/009.png")
    second = look(root)
    assert sorted(read) == ["red/001.png", "red/009.png"]
    assert second[1].sha256 == first[0].sha256
    assert second[2].sha256 == first[2].sha256


def test_a_photo_that_was_just_written_is_not_trusted_by_its_time_stamp(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_photos(root, 2, ("red",))
    before = look(root)
    status = (root / "red/000.png").stat()
    other = bytearray((root / "red/000.png").read_bytes())
    other[-20] ^= 1
    (root / "red/000.png").write_bytes(other)
    os.utime(root / "red/000.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look(root)[0].sha256 != before[0].sha256


@pytest.mark.parametrize(
    "damage", ["1,2,3\n", "cut", "not hexadecimal", "cut hash", "too large", "out of order", "\0", "another label", "re-encoded?"]
)
def test_a_damaged_memory_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    make_photos(tmp_path / "photos", 3, ("red", "blue"))
    monkeypatch.setattr(scan, "_RACY_NS", -(10**12))  # as if the photos had been lying there for long
    before = look(tmp_path / "photos")
    memory = tmp_path / "memory.csv"
    whole = memory.read_text()
    seal, heading, *lines = whole.splitlines(keepends=True)
    sha256 = before[2].sha256
    damaged = {
        "cut": [*lines[:2], lines[2][:50]],
        "not hexadecimal": [line.replace(sha256, f"x{sha256[1:]}") for line in lines],
        "cut hash": [line.replace(sha256, sha256[:60]) for line in lines],
        "too large": [line.replace(",PNG,", f",PNG,{10**30}") for line in lines],
        "out of order": lines[::-1],
        "another label": [line.replace(",blue,", ",bluf,") for line in lines],
        "re-encoded?": [line.replace(",False,", ",Talse,") for line in lines],
    }.get(damage, [damage])
    altered = "".join([heading, *damaged])
    for sealed in (seal, f"{files.sha256_bytes(altered.encode())}\n"):
        if sealed == seal or damage != "another label":  # who alters a table and seals it anew is believed
            memory.write_text(sealed + altered)
            assert look(tmp_path / "photos") == before
            assert memory.read_text() == whole  # put right


def test_what_is_forgotten_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path / "photos", 3, ("red", "blue"))
    monkeypatch.setattr(scan, "_RACY_NS", -(10**12))  # as if the photos had been lying there for long
    before = look(tmp_path / "photos")
    scan.Memory(tmp_path / "memory.csv").forget(["red/001.png", "never/seen.png"])
    read = []
    monkeypatch.setattr(scan, "_read", lambda folder, photo, real=scan._read: read.append(photo.path) or real(folder, photo))
    assert look(tmp_path / "photos") == before
    assert read == ["red/001.png"]


def test_names_with_line_breaks_come_back_from_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path / "photos", 1, ("red",))
    for name in ("a\rb.png", "a\nb.png", 'a\r\n"b".png'):
        (tmp_path / "photos/red" / name).write_bytes((tmp_path / "photos/red/000.png").read_bytes())
    monkeypatch.setattr(scan, "_RACY_NS", -(10**12))
    photos = look(tmp_path / "photos")
    monkeypatch.setattr(scan, "_read", lambda *_: pytest.fail("a photo was read again"))
    assert look(tmp_path / "photos") == photos
    dataset.write_photos(tmp_path / "index.csv", photos)
    assert dataset.read_photos(tmp_path / "index.csv") == photos
    changes.write_photos(tmp_path / "photos.csv.gz", photos)
    assert [photo.path for photo in changes.each_photo(tmp_path / "photos.csv.gz")] == [photo.path for photo in photos]


def test_a_date_after_2262_is_one(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 2, ("red",))
    os.utime(tmp_path / "photos/red/000.png", ns=(10**19, 10**19))
    assert look(tmp_path / "photos") == look(tmp_path / "photos")


def test_a_file_that_is_gone_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path / "photos", 3, ("red", "blue"))
    monkeypatch.setattr(scan, "_RACY_NS", -(10**12))
    before = look(tmp_path / "photos")
    for name in ("blue/000.png", "red/002.png"):
        (tmp_path / "photos" / name).unlink()
        assert look(tmp_path / "photos") == [photo for photo in before if (tmp_path / "photos" / photo.path).exists()]
        assert name not in (tmp_path / "memory.csv").read_text()


def test_photos_are_sorted_by_path_whatever_their_folders(tmp_path: Path) -> None:
    for name in ("a", "a-b", "a.b", "a/b", "a/b-c", "a/b.c", "a b", "ä", "a/B/c", "z"):  # a slash comes after "-" and "."
        make_photos(tmp_path / "photos", 1, (name,))
    paths = [photo.path for photo in look(tmp_path / "photos")]
    assert paths == sorted(paths) and len(paths) == 10


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="there is no folder"):
        look(tmp_path / "nothing")


def test_the_fingerprint_follows_paths_labels_and_contents_only(tmp_path: Path) -> None:
    photos = many("a", 3)
    same = dataset.fingerprint(photos)
    assert dataset.fingerprint([p._replace(bytes=7) for p in photos]) == same
    for changed in (
        photos[:2],
        [*photos[:2], photos[2]._replace(sha256="other")],
        [*photos[:2], photos[2]._replace(path="a/new.jpg")],
        [*photos[:2], photos[2]._replace(label="b")],
    ):
        assert dataset.fingerprint(changed) != same


# --- Photos ---------------------------------------------------------------------------------------------------------


PHOTOS = [
    photo("a/caf\udce9.jpg")._replace(format="JPEG", width=3, height=2, reencode=True, split="testing"),
    photo("b/\n\u82b1.jpg", "twin")._replace(bytes=2**40, split="training", view=7),
    photo("b/x.jpg", "twin")._replace(label="c", split="validation"),
    Photo("b/broken.jpg", "b", problem="the file is empty"),
]


def test_columns_give_back_what_was_put_in() -> None:
    photos = Photos(PHOTOS)
    assert photos == PHOTOS and list(photos) == PHOTOS and len(photos) == 4
    assert photos[-1] == PHOTOS[-1] and photos[1:3] == PHOTOS[1:3] and photos[::-2] == PHOTOS[::-2]
    with pytest.raises(IndexError):
        photos[4]
    assert photos != PHOTOS[:3] and photos != [*PHOTOS[:3], photo("other")]
    photos.put(3, PHOTOS[3]._replace(problem="", sha256=PHOTOS[0].sha256, label="new"))
    assert photos[3] == Photo("b/broken.jpg", "new", PHOTOS[0].sha256)
    for wrong in ("ab", "x" * 64):
        with pytest.raises(ValueError, match=r"SHA-256|hexadecimal"):
            photos.append(Photo("a", "a", wrong))


def test_columns_can_be_asked(tmp_path: Path) -> None:
    photos = Photos(PHOTOS)
    labels, which = photos.labels()
    assert photos.counts() == {"a": 1, "b": 2, "c": 1}
    assert labels == ["a", "b", "c"] and which.tolist() == [0, 1, 2, 1]
    assert photos.has("split", "testing").tolist() == [True, False, False, False] and not photos.has("label", "unheard of").any()
    assert photos.where(photos.has("problem", "")) == PHOTOS[:3]
    first, content_of = photos.contents()
    assert [PHOTOS[row].sha256 for row in first] == sorted({p.sha256 for p in PHOTOS})
    assert [PHOTOS[first[number]].sha256 for number in content_of] == [p.sha256 for p in PHOTOS]
    assert photos.unique().tolist() == sorted(
        range(4), key=lambda row: (PHOTOS[row].sha256, PHOTOS[row].view)
    )  # of the twins, one is a view
    assert Photos([PHOTOS[1]] * 2 + [PHOTOS[1]._replace(view=8)]).unique().tolist() == [0, 2]
    assert photos.of_several_labels().tolist() == [1, 2]
    assert [p.split for p in photos.divided(np.array([2, 1, 0, 0]))] == ["testing", "validation", "training", "training"]
    assert photos == PHOTOS  # as before
    dataset.write_photos(tmp_path / "index.csv", photos)
    assert dataset.read_photos(tmp_path / "index.csv") == PHOTOS


def test_a_million_photos_are_a_few_hundred_megabytes() -> None:
    count = 20_000
    rows = (photo(f"class {i % 10}/{i:07d}.jpg") for i in range(count))
    tracemalloc.start()
    try:
        photos = Photos(rows)
        held = tracemalloc.get_traced_memory()[0] / count
        indexing.make_index(photos, **DEFAULTS)  # type: ignore[arg-type]
        most = tracemalloc.get_traced_memory()[1] / count
    finally:
        tracemalloc.stop()
    assert held < 150 and most < 400, "bytes a photo; objects would take 500"


def test_no_photos() -> None:
    photos = Photos()
    assert photos == [] and not photos and photos.labels()[0] == [] and len(photos.unique()) == len(photos.of_several_labels()) == 0
    assert photos.where(photos.has("problem", "")) == []


# --- Split ----------------------------------------------------------------------------------------------------------


def test_split_keeps_to_the_percentages() -> None:
    counts = Counter(splits_of(many("a", 5000) + many("b", 5000), testing_percentage=20, validation_percentage=5).values())
    assert counts["testing"] == pytest.approx(2000, rel=0.05)
    assert counts["validation"] == pytest.approx(500, rel=0.1)


def test_adding_photos_moves_none_of_the_old_ones() -> None:
    before = splits_of(many("a", 200) + many("b", 200))
    after = splits_of(many("a", 400) + many("b", 300) + many("c", 50))
    assert {path: after[path] for path in before} == before


def test_split_depends_on_the_content_and_not_on_the_name() -> None:
    photos = many("a", 200) + many("b", 200)
    renamed = [p._replace(path=f"{p.label}/moved/{p.path[2:]}") for p in photos]
    assert list(splits_of(photos).values()) == list(splits_of(renamed).values())


def test_another_seed_is_another_split() -> None:
    photos = many("a", 200) + many("b", 200)
    assert splits_of(photos, seed=0) != splits_of(photos, seed=1)


def test_exact_duplicates_fall_on_one_side() -> None:
    photos = many("a", 300) + many("b", 300)
    photos += [p._replace(path=f"{p.label}/copy/{p.path[2:]}") for p in photos]
    sides = splits_of(photos)
    assert all(sides[p.path] == sides[f"{p.label}/copy/{p.path[2:]}"] for p in photos[:600])


def test_names_before_nohash_stay_together_even_over_a_duplicate() -> None:
    photos = many("a", 100) + many("b", 100)
    photos += [photo(f"a/rose{i}_nohash_{j}.jpg") for i in range(100) for j in range(3)]
    # A duplicate ties two such names together.
    photos += [photo("a/x_nohash_1.jpg", "same"), photo("a/y_nohash_1.jpg", "same"), photo("a/y_nohash_2.jpg")]
    sides = splits_of(photos)
    for i in range(100):
        assert len({sides[f"a/rose{i}_nohash_{j}.jpg"] for j in range(3)}) == 1
    assert sides["a/x_nohash_1.jpg"] == sides["a/y_nohash_1.jpg"] == sides["a/y_nohash_2.jpg"]
    assert len({sides[f"a/rose{i}_nohash_0.jpg"] for i in range(100)}) == 3


def test_nothing_before_nohash_is_a_name_too() -> None:
    sides = splits_of(many("a", 100) + many("b", 100) + [photo(f"a/_nohash_{i}.jpg") for i in range(20)])
    assert len({sides[f"a/_nohash_{i}.jpg"] for i in range(20)}) == 1


@pytest.mark.parametrize("count", [3, 4, 7, 12])
def test_no_class_is_without_a_split(count: int) -> None:
    photos = [p for label in "abcdefgh" for p in many(label, count)]
    sides = splits_of(photos, testing_percentage=1, validation_percentage=1)
    for label in "abcdefgh":
        assert {side for path, side in sides.items() if path.startswith(label)} == set(dataset.SPLITS)


def test_a_class_lends_only_what_it_needs() -> None:
    photos = many("a", 30)
    ranks = {p.path: 100 * indexing._rank(0, f"sha256:{p.sha256}") for p in photos}
    plain = {path: "validation" if rank < 1 else "testing" if rank < 2 else "training" for path, rank in ranks.items()}
    lent = splits_of([*photos, *many("b", 1000)], testing_percentage=1, validation_percentage=1)
    assert sum(plain[p.path] != lent[p.path] for p in photos) <= 2


def test_two_photos_in_a_class_are_too_few() -> None:
    with pytest.raises(UserError, match=r"b \(2\)"):
        splits_of(many("a", 30) + many("b", 2))


def test_copies_of_one_photo_are_one_photo() -> None:
    with pytest.raises(UserError, match=r"b \(1\)"):
        splits_of(many("a", 30) + [photo(f"b/{i}.jpg", "same") for i in range(10)])


# --- Index ----------------------------------------------------------------------------------------------------------


def index(photos: list[Photo], **changes: float) -> indexing.Index:
    return indexing.make_index(Photos(photos), **{**DEFAULTS, **changes})  # type: ignore[arg-type]


def test_warnings_name_what_a_person_should_know() -> None:
    photos = many("Rose", 30) + many("rose", 30) + many("oak", 5)
    photos += [photo("Rose/twin.jpg", "twin"), photo("oak/twin.jpg", "twin")]
    photos += [photo("empty/x.jpg")._replace(problem="the file is empty")]
    found = index(photos)
    assert found.labels == ["Rose", "oak", "rose"]
    assert found.warnings == [
        "left out 1 of 68 (the first: empty/x.jpg: the file is empty)",
        "fewer than 20 photos in 1 of 3 classes: oak (6)",
        "classes without a photo that can be used are left out: empty",
        "labels that differ only in case are kept apart: Rose and rose",
        "exact duplicates under more than one label: 1 (Rose/twin.jpg as Rose and oak/twin.jpg as oak)",
    ]


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ([], "no class with photos"),
        (many("a", 30), r"only one class with photos \(a\)"),
        (many("a", 30) + many("b\nc", 30), "cannot be a line of labels.txt"),
        (many("a", 30) + many("caf\udce9", 30), "cannot be a line of labels.txt"),
        (many("a", 30) + [p._replace(problem="bad") for p in many("b", 10)], "10 of 40 photos cannot be used"),
        ([Photo("a/", "a", problem="empty"), Photo("b/", "b", problem="empty")], "the data set has no class with photos"),
        (many("all/oak", 30) + many("all/elm", 30), r"\(all\); .* in a table; if the folders in all are the classes \(elm, oak\), name it"),
        (
            many("train/oak", 30) + many("Test/oak", 30) + many("train/elm", 30),
            r"would be Test, train, and not the folders in them \(elm, oak\)",
        ),
        ([Photo(f"{i}.jpg", "", problem="beside") for i in range(60)], r"or in a table; 60 are of no class \(the first, 0.jpg: beside\)"),
    ],
)
def test_what_no_classifier_can_be_made_of_is_said(photos: list[Photo], message: str) -> None:
    with pytest.raises(UserError, match=message):
        index(photos)


@pytest.mark.parametrize(
    "photos", [many("train/oak", 30) + many("plane/oak", 30), many("train", 30) + many("test", 30), many("a/june", 30) + many("b/june", 30)]
)
def test_classes_that_are_none_for_sure_alone_are_refused(photos: list[Photo]) -> None:
    assert len(index(photos).labels) == 2


def test_the_unreadable_limit_is_a_setting() -> None:
    photos = many("a", 30) + many("b", 30) + [p._replace(problem="bad") for p in many("c", 30)]
    assert len(index(photos, unreadable_limit=40).skipped) == 30


def test_what_is_no_photo_of_a_class_counts_for_no_unreadable_one() -> None:
    empty = [Photo(f"class {i}/", f"class {i}", problem="the folder holds no photo") for i in range(40)]
    found = index(many("a", 30) + many("b", 30) + empty + [Photo("loose.jpg", "", problem="it lies beside")])
    assert found.warnings == [
        "photos of no class are left out: loose.jpg (the first: it lies beside)",
        "classes without a photo that can be used are left out: class 0, class 1, class 10, class 11, class 12 and 35 more",
    ]
    assert indexing.figures(found)["skipped"] == 1


def test_skipped_photos_come_back_from_their_file(tmp_path: Path) -> None:
    skipped = [
        Photo("a/b, c.jpg", "a", problem='a "reason"'),
        Photo("loose.jpg", "", problem="it lies beside"),
        Photo("only notes/", "only notes", problem="the folder holds no photo"),
    ]
    dataset.write_skipped(tmp_path / "skipped.csv", skipped)
    assert dataset.read_skipped(tmp_path / "skipped.csv") == skipped


def test_a_folder_named_gives_the_photos_that_a_training_would_take(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 3, ("red", "__MACOSX"))
    make_photos(tmp_path / "elsewhere", 1, ("more",))
    red = tmp_path / "photos/red"
    (red / "000.png").rename(tmp_path / "photos/noext")
    (red / "001.png").rename(red / "photo.dat")
    (red / "notes.dat").write_text("no photo")
    (red / "linked").symlink_to(tmp_path / "elsewhere/more")
    (red / "round").symlink_to(tmp_path / "photos")
    for name in ("pipe", "pipe.jpg"):
        os.mkfifo(red / name)  # whoever opens it waits for ever
    found = scan.photos_in([str(tmp_path / "photos")])
    assert [str(path.relative_to(tmp_path / "photos")) for path in found] == [
        "noext",
        "red/002.png",
        "red/linked/000.png",
        "red/photo.dat",
        "red/pipe.jpg",
    ]


def test_names_are_files_or_folders(tmp_path: Path) -> None:
    make_photos(tmp_path / "deep", 1, ("red", ".hidden"))
    (tmp_path / "deep" / "notes.txt").write_text("x")
    assert scan.photos_in([str(tmp_path)]) == [tmp_path / "deep/red/000.png"]
    assert scan.photos_in([str(tmp_path / "deep/notes.txt")]) == [tmp_path / "deep/notes.txt"]
    with pytest.raises(UserError, match="there is no file or folder"):
        scan.photos_in([str(tmp_path / "nothing")])
    too_long = "x" * 300
    with pytest.raises(UserError, match="there is no file or folder"):
        scan.photos_in([too_long])
    assert scan.photos_in([], listed=[too_long]) == [Path(too_long)]  # a row with its error
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no photos in the folders named"):
        scan.photos_in([str(tmp_path / "bare")])
