from __future__ import annotations

from pathlib import Path

from pipeline import sources


def test_a_folder_counts_once_something_is_in_it(tmp_path: Path) -> None:
    assert not sources.has_photos(tmp_path / "nothing")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".DS_Store").write_text("")
    assert not sources.has_photos(tmp_path / "x")
    (tmp_path / "x" / "red").mkdir()
    assert sources.has_photos(tmp_path / "x")


def test_a_fallback_is_noted_for_some_hours(tmp_path: Path) -> None:
    record = tmp_path / "deep" / "flowers.json"
    noted = sources.Fallback("flowers-sample", "refused", since=1000.0)
    assert sources.read_fallback(record, 1000.0) is None
    sources.write_fallback(record, noted)
    assert sources.read_fallback(record, 1000.0) == noted
    assert sources.read_fallback(record, noted.until - 1) == noted
    assert sources.read_fallback(record, noted.until) is None
    assert sources.read_fallback(record, 999.0) is None  # the clock was set back
    record.write_text("{}")
    assert sources.read_fallback(record, 1001.0) is None


def test_drawing_appears_whole(tmp_path: Path) -> None:
    seen: list[int] = []
    sources.draw(tmp_path / "data" / "x", 1, 1, lambda done, total: seen.append((tmp_path / "data" / "x").exists()))
    assert seen == [False] * 6  # once before, and once for each of five pictures
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["x"]
