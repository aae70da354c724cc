from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Project, make_photos

from pipeline import predict, scan
from pipeline.errors import UserError


def test_photos_are_named_by_their_label_in_order(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 4)
    paths = scan.photos_in([str(tmp_path)])
    predictions = list(predict.load(finished.live("colours")).predict(paths))
    assert [prediction.path for prediction in predictions] == paths
    assert [prediction.scores[0].label for prediction in predictions] == [path.parent.name for path in paths]
    for prediction in predictions:
        assert {score.label for score in prediction.scores} == {"blue", "green", "red"}
        assert sum(score.probability for score in prediction.scores) == pytest.approx(1, abs=1e-5)
        assert sorted(prediction.scores, key=lambda score: -score.probability) == list(prediction.scores)


def test_a_bad_photo_is_a_row_with_its_problem(finished: Project, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    make_photos(tmp_path, 1, ("red",))
    paths = [tmp_path / "empty.jpg", tmp_path / "red/000.png", tmp_path / "gone.jpg"]
    bad, good, gone = predict.load(finished.live("colours")).predict(paths)
    assert (bad.problem, bad.scores) == ("the file is empty", ())
    assert good.scores[0].label == "red"
    assert gone.problem == "cannot be read: No such file or directory"


def test_it_is_named_by_a_data_set_a_folder_or_a_graph(finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path, 1, ("red",))
    photo = tmp_path / "red/000.png"
    monkeypatch.chdir(finished.root)
    for name in ("colours", "exports/colours", Path("exports/colours/latest"), finished.live("colours") / "output_graph.pb"):
        classifier = predict.load(name)
        assert classifier.labels == ["blue", "green", "red"]
    for photos in ([str(photo)], [photo], str(photo), photo, iter([photo])):
        (prediction,) = classifier.predict(photos)
        assert (prediction.path, prediction.scores[0].label) == (photo, "red")
    with pytest.raises(UserError, match="'flowers' is neither .* published are: colours"):
        predict.load("flowers")


def test_a_photo_gets_the_same_numbers_among_any_others(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 3)
    (tmp_path / "red/empty.png").write_bytes(b"")
    (tmp_path / "red/hole.png").write_bytes((tmp_path / "red/000.png").read_bytes()[:60] + b"IEND")  # its header is whole
    paths = scan.photos_in([str(tmp_path)])
    classifier = predict.load(finished.live("colours"))
    together = list(classifier.predict(paths))
    assert [prediction.path.name for prediction in together if prediction.problem] == ["empty.png", "hole.png"]
    assert together == [next(classifier.predict([path])) for path in paths]


def test_latest_is_resolved_once(finished: Project, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(finished.live("colours"))
    classifier = predict.load(link)
    link.unlink()
    make_photos(tmp_path, 1, ("blue",))
    (prediction,) = classifier.predict([tmp_path / "blue/000.png"])
    assert prediction.scores[0].label == "blue"


def test_an_incomplete_export_is_named(finished: Project, tmp_path: Path) -> None:
    for file in finished.live("colours").glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert predict.load(tmp_path).labels == ["blue", "green", "red"]
    (tmp_path / "output_graph.pb").write_bytes(b"cut")
    with pytest.raises(UserError, match="is not a whole export"):
        predict.load(tmp_path)
    (tmp_path / "output_graph.pb").unlink()
    with pytest.raises(UserError, match="is not a whole export"):
        predict.load(tmp_path)
