"""The report of a training: its numbers, what may stand in it, and how it looks in a real browser."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from conftest import Project
from markupsafe import escape
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline import dataset, evaluation, files, report
from pipeline.dataset import Photo, Photos
from pipeline.packed import PACKED
from pipeline.report import charts, page

VERDICT = {"accepted": True, "against": [], "findings": ["the first <version>"], "words": "accepted: the first <version>", "live": ""}


def exported_format(file: str, accuracy: float = 0.9, problem: str = "") -> dict[str, Any]:
    """What a manifest says of an exported format."""
    checked = {"photos": 50, "accuracy": accuracy, "named_alike": 0.99, "largest_difference": 0.0123, "tolerance": "anything"}
    return {"file": file, "bytes": 12_300_000, "checked": checked, **({"problem": problem} if problem else {})}


def make_report(root: Path, labels: list[str], counts: tuple[int, int, int], *, drawn: str = "", live: Path | None = None) -> Path:
    """The report of a training that never was: so many photos of each class in each split, a tenth of them named wrongly."""
    rng = np.random.default_rng(0)
    splits = [split for split, count in zip(dataset.SPLITS, counts) for _ in range(count)]
    photos = sorted(
        (
            Photo(f"{label}/{number:04d}.jpg", label, files.sha256_bytes(f"{label}{number}".encode()), split=split)
            for label in labels
            for number, split in enumerate(splits)
        ),
        key=lambda photo: photo.path,
    )
    names = Photos(photos).labels()[0]
    truth = np.array([names.index(photo.label) for photo in photos])
    packed, training, classifier, out = (root / name for name in ("packed", "training", "classifier", "report"))
    for folder in (packed, training, classifier, out, root / "lite"):
        folder.mkdir(parents=True)
    vectors = rng.normal(0, 1, (len(names), 24))[truth] * 3 + rng.normal(0, 1, (len(photos), 24))
    np.save(packed / PACKED, vectors.astype("<f4"))
    dataset.write_photos(packed / dataset.INDEX, photos)
    not_used = [Photo("<b>bold</b>/x.jpg", "", problem="not an image & no more"), Photo("empty/", "empty", problem="no photo")]
    dataset.write_skipped(packed / "skipped.csv", not_used)
    for split in evaluation.MEASURED:
        rows = [row for row, photo in enumerate(photos) if photo.split == split]
        logits = rng.normal(0, 1, (len(rows), len(names)))
        said = np.where(rng.random(len(rows)) < 0.9, truth[rows], rng.integers(0, len(names), len(rows)))
        logits[np.arange(len(rows)), said] += 6
        np.save(training / evaluation.logits_file(split), logits.astype(np.float32))
    (training / "candidates.csv").write_text(
        "learning_rate,weight_decay,label_smoothing,best_step,validation_loss,validation_accuracy\n"
        "0.03,0.001,0.0,40,0.5,0.8\n0.03,0.01,0.0,80,0.4,0.9\n9.0,0.01,0.0,0,,\n"
    )
    points = [(number, curve, step, 1 / step, 0.9) for number in (0, 1) for curve in ("training", "validation") for step in (10, 20, 40)]
    lines = [",".join(map(str, point)) for point in points]
    (training / "curves.csv").write_text("\n".join(["candidate,curve,step,loss,accuracy", *lines, ""]))
    manifest = {
        "key": "0123456789abcdef",
        "labels": names,
        "snapshot": "fedcba9876543210",
        "photos_licence": "CC BY 2.0",
        "backbone": {"name": "tiny-net", "source": "https://example.org/tiny", "licence": "MIT"},
        "graph_sha256": "00" * 32,
        "formats": {"graph": exported_format("output_graph.pb")},
        "versions": {"python": "3"},
    }
    files.write_json(classifier / files.MANIFEST, manifest)
    files.write_json(
        root / "lite" / files.MANIFEST, {"formats": {"lite": exported_format("lite.tflite", 0.5, f"{names[0]}/1.jpg differs")}}
    )
    origin = report.Origin(
        "mine", drawn, [("seed", "3", False)], "luigi --data mine --seed 3", {"Train": 1.5}, ["a <warning>"], live, VERDICT
    )
    says = report.of_training(
        out, packed=packed, training=training, classifier=classifier, formats=[root / "lite"], photos=root / "photos", origin=origin
    )
    files.write_json(root / "says.json", says)
    return out


def evaluated(root: Path, labels: list[str], said: list[tuple[str, str]]) -> str:
    """The page of a classifier on other photos, each with its label and what it is taken for."""
    logits = np.full((len(said), len(labels)), -4, np.float32)
    logits[np.arange(len(said)), [labels.index(guess) for _, guess in said]] = 4
    manifest = {
        "data": "mine",
        "labels": labels,
        "key": "0123456789abcdef",
        "snapshot": "fedcba9876543210",
        "photos_licence": "",
        "backbone": {"name": "tiny-net"},
        "graph_sha256": "00" * 32,
        "versions": {},
    }
    photos = [Photo(f"{label}/{number}.jpg", label, files.sha256_bytes(b"%d" % number)) for number, (label, _) in enumerate(said)]
    report.of_photos(root, classifier=manifest, name="mine/0001", photos=photos, skipped=[], logits=logits, where=root)
    return (root / "report.html").read_text(encoding="utf-8")


HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=1">',
    "{{ 7 * 7 }}",
    "a|b*c_d`e`",
    "\u202egnp.evil",
    "花",
    "وردة",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_report(tmp_path_factory.mktemp("hostile"), HOSTILE, (8, 4, 8), drawn="flowers-sample")


# --- What is in it --------------------------------------------------------------------------------------------------------


def test_page_card_json_csv_and_manifest_have_the_same_figures(finished: Project) -> None:
    folder = finished.live("colours")
    figures, manifest = (json.loads((folder / name).read_text()) for name in ("evaluation.json", "manifest.json"))
    assert figures["accuracy"] == manifest["evaluation"]["accuracy"] == manifest["test_accuracy"]
    assert figures["interval"] == manifest["evaluation"]["interval"] == manifest["test_interval"]
    assert figures["calibrated"]["temperature"] == manifest["temperature"]
    assert np.sum(figures["confusion"]) == figures["count"] == manifest["test_count"]
    words = page.percent(figures["accuracy"])
    for name in ("report.html", "model_card.md"):
        assert words in (folder / name).read_text(encoding="utf-8")
        assert name in manifest["files"]
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)", card, re.M) == ["Data and licences", "Intended use", "Figures", "Limits", "How it was made"]
    assert "Apache 2.0" in card
    assert "Report" in manifest["timings"]


def test_every_mistake_is_listed_with_its_top_three(hostile: Path) -> None:
    figures = json.loads((hostile / "evaluation.json").read_text())
    with open(hostile / "misclassified.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == figures["count"] - figures["correct"] > 0
    for row in rows:
        shares = [float(row[f"probability_{number}"]) for number in (1, 2, 3)]
        assert shares == sorted(shares, reverse=True)
        assert row["label_1"] != row["label"] in HOSTILE


def test_the_command_makes_the_run_again(copy_of_finished: Project) -> None:
    html = (copy_of_finished.live("colours") / "report.html").read_text(encoding="utf-8")
    (command,) = re.findall("<code>(luigi .*)</code></pre>", html)
    assert command == "luigi --module pipeline Export --data colours --how-many-training-steps 300"
    assert "nothing to do" in copy_of_finished.export(*command.split()[4:]).stdout


def test_only_what_a_person_has_set_is_marked_as_changed(finished: Project) -> None:
    html = (finished.live("colours") / "report.html").read_text(encoding="utf-8")
    changed = re.findall(r'<tr><th scope="row">(\w+)</th><td>[^\n]*</td><td>changed</td></tr>', html)
    assert sorted(changed) == ["data", "how_many_training_steps"]


def test_a_later_run_is_compared_with_the_live_model(copy_of_finished: Project) -> None:
    before = copy_of_finished.live("colours")
    assert "No model of this data set was live" in (before / "report.html").read_text(encoding="utf-8")
    assert copy_of_finished.export("--data", "colours", "--how-many-training-steps", "100").returncode == 0
    html = (copy_of_finished.live("colours") / "report.html").read_text(encoding="utf-8")
    assert f"<bdi>{before.name}</bdi></strong> was live" in html
    assert "Both were measured on the same test photos." in html


def test_a_live_model_of_other_photos_is_said_to_be_one(hostile: Path, tmp_path: Path) -> None:
    live = tmp_path / "0007-abc"
    live.mkdir()
    files.write_json(live / files.MANIFEST, {"key": "1", "files": {}, "test_accuracy": 0.5, "test_interval": [0.4, 0.6]})
    html = (make_report(tmp_path / "next", ["a", "b"], (5, 3, 5), live=live) / "report.html").read_text(encoding="utf-8")
    assert "compare with care" in html
    assert page.percent(0.5) in html


def test_nothing_of_a_folder_becomes_markup(hostile: Path) -> None:
    html = (hostile / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<img src=x|<b>bold|<warning>", html)
    assert str(escape(HOSTILE[0])) in html
    assert "{{ 7 * 7 }}" in html
    card = (hostile / "model_card.md").read_text(encoding="utf-8")
    assert not re.search(r"<script|<img", card)
    assert r"a\|b\*c\_d\`e\`" in card
    rows = [line for line in card.splitlines() if line.startswith("| ") and line.endswith("% |")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows if row.count("%") == 3}) == 1  # no cell too many


def test_drawn_pictures_are_said_to_be_drawn(hostile: Path, finished: Project) -> None:
    for name in ("report.html", "model_card.md"):
        assert "Made from drawn pictures." in (hostile / name).read_text(encoding="utf-8")
        assert "drawn" not in (finished.live("colours") / name).read_text(encoding="utf-8").replace("drawn from the same folders", "")
    assert json.loads((hostile / "evaluation.json").read_text())["drawn"] == "flowers-sample"


def test_each_format_has_a_row_and_what_was_left_out_says_why(tmp_path: Path) -> None:
    html = (make_report(tmp_path, ["a<b>", "c"], (5, 3, 5)) / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr><th scope=\"row\"><code>(.*?)</code></th>(.*?)</tr>", html)
    assert [name for name, _ in rows] == ["output_graph.pb", "lite.tflite"]
    published, left_out = ([re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?>(.*?)</td>", cells)] for _, cells in rows)
    assert published == ["12.3", "50", page.percent(0.9), page.percent(0.99), "0.012", "anything", "yes"]
    assert left_out[2] == page.percent(0.5)
    assert left_out[-1] == "no: a&lt;b&gt;/1.jpg differs"


def test_an_empty_folder_is_listed_but_is_no_file_that_was_left_out(hostile: Path) -> None:
    assert "| left out | 1 files |" in (hostile / "model_card.md").read_text(encoding="utf-8")
    assert "<bdi>empty/</bdi>" in (hostile / "report.html").read_text(encoding="utf-8")


def test_the_means_are_those_of_the_classes_that_have_photos(tmp_path: Path) -> None:
    html = evaluated(tmp_path, ["a", "b", "c"], [("a", "a"), ("a", "a"), ("a", "c"), ("b", "b")])
    (last_row,) = re.findall("<tfoot>(.*)</tfoot>", html)
    photos, *means = (re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?>(.*?)</td>", last_row))
    assert photos == "4"
    assert means == [page.percent(1.0), page.percent(5 / 6), page.percent(0.9)]


def test_a_candidate_that_diverged_has_no_figures_and_comes_last(hostile: Path) -> None:
    (sweep,) = re.findall("<caption>What was tried.*?</table>", (hostile / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    figures = [re.findall('<td class="n">([^<]*)</td>', row)[-2:] for row in sweep.split("<tbody>")[1].split("</tr>")[:-1]]
    assert figures == [["0.4000", page.percent(0.9)], ["0.5000", page.percent(0.8)], ["not a number", "–"]]


@pytest.mark.parametrize(("wrong", "outcome"), [(0, "None is suspected."), (1, "1 deserve a look")])
def test_classes_that_cannot_be_suggested_are_named(tmp_path: Path, wrong: int, outcome: str) -> None:
    said = [("a", "a"), ("a", "a"), ("b", "b"), *[("a", "b")] * wrong]
    never = "A class without photos among these is never suggested: "
    html = evaluated(tmp_path / "new", list("abcdefghi"), said)
    assert f"was not trained on them. {never}c, d, e, f, g and 2 more. {outcome}" in html
    assert never not in evaluated(tmp_path / "all", ["a", "b"], said)


def test_a_photo_that_is_gone_or_changed_is_not_shown(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.png")
    photo = Photo("a.png", "a", files.sha256_file(tmp_path / "a.png"))
    assert page.thumbnail(tmp_path, photo).startswith("data:image/jpeg;base64,")
    Image.new("RGB", (300, 200), "blue").save(tmp_path / "a.png")
    assert page.thumbnail(tmp_path, photo) == page.thumbnail(tmp_path, Photo("b.png", "a", "")) == ""


def test_percentages_do_not_round_to_all_or_nothing() -> None:
    words = [page.percent(share).replace(page.NARROW_SPACE, " ") for share in (1.0, 0.9996, 0.5, 0.0001, 0.0)]
    assert words == ["100.0 %", "99.96 %", "50.0 %", "0.01 %", "0.0 %"]


@pytest.mark.parametrize("high", [0.013, 1.0, 7.3, 4000.0])
def test_ticks_are_round_and_few(high: float) -> None:
    found = charts.ticks(0, high)
    assert 2 < len(found) <= 6
    assert found[0] == 0 and found[-1] <= high


# --- In a browser ---------------------------------------------------------------------------------------------------------


def texts(driver: webdriver.Chrome, selector: str) -> list[str]:
    return [element.text for element in driver.find_elements(By.CSS_SELECTOR, selector)]


def test_it_opens_without_an_error_or_a_request_and_has_the_right_numbers(browser: Browser, finished: Project) -> None:
    folder = finished.live("colours")
    driver = browser.open(folder / "report.html")
    assert browser.complaints() == []
    assert browser.requests() == [(folder / "report.html").as_uri()]
    figures = json.loads((folder / "evaluation.json").read_text())
    assert texts(driver, ".figure") == [page.percent(figures["accuracy"])]
    assert f"{figures['correct']} of {figures['count']}" in texts(driver, ".headline")[0]
    cells = [[cell or "0" for cell in texts(row, "td")] for row in driver.find_elements(By.CSS_SELECTOR, ".confusion tbody tr")]  # type: ignore[arg-type]
    assert cells == [[str(count) for count in row] for row in figures["confusion"]]
    support = {one["label"]: str(one["support"]) for one in figures["classes"]}
    rows = driver.find_elements(By.CSS_SELECTOR, "section[aria-labelledby=classes] tbody tr")
    assert {texts(row, "th")[0]: texts(row, "td")[2] for row in rows} == support  # type: ignore[arg-type]


def test_hostile_names_are_shown_as_they_are(browser: Browser, hostile: Path) -> None:
    driver = browser.open(hostile / "report.html")
    assert browser.complaints() == []
    assert browser.requests() == [(hostile / "report.html").as_uri()]
    assert driver.title.startswith("mine: ")
    assert driver.find_elements(By.CSS_SELECTOR, "script, [onerror]") == []
    shown = driver.execute_script("return [...document.querySelectorAll('.confusion tbody th')].map(one => one.textContent)")
    assert sorted(shown) == sorted(HOSTILE)
    assert texts(driver, ".notice")[0].startswith("Made from drawn pictures.")


def cpu_seconds(driver: webdriver.Chrome) -> float:
    """What the process that shows the page has taken of the CPU."""
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "ProcessTime"))


def test_a_hundred_classes_and_ten_thousand_photos_open_at_once(browser: Browser, tmp_path: Path) -> None:
    folder = make_report(tmp_path, [f"class {number:03d}" for number in range(100)], (3, 10, 100))
    assert (folder / "report.html").stat().st_size < 5_000_000
    browser.driver.execute_cdp_cmd("Performance.enable", {})
    before = cpu_seconds(browser.open(folder / "model_card.md"))
    driver = browser.open(folder / "report.html")
    assert cpu_seconds(driver) - before < 2  # of which it takes a tenth, however long the machine does other things meanwhile
    assert browser.complaints() == []
    assert driver.execute_script("return document.getElementsByTagName('*').length") < 20_000
    assert driver.find_elements(By.CSS_SELECTOR, ".confusion") == []
    assert driver.find_element(By.CSS_SELECTOR, ".matrix svg title").get_attribute("textContent") == "Confusion matrix"
    figures = json.loads((folder / "evaluation.json").read_text())
    left_out = figures["count"] - figures["correct"] - page.ROWS_SHOWN
    assert f"{left_out:,} more wrongly named photos stand in misclassified.csv" in texts(driver, "section[aria-labelledby=mistakes]")[0]


@pytest.mark.parametrize("which", ["hostile", "finished"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, which: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which)
    driver = browser.open((found if which == "hostile" else found.live("colours")) / "report.html", width=390)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390


def test_it_is_dark_where_that_is_preferred(browser: Browser, hostile: Path) -> None:
    def brightness(scheme: str) -> tuple[int, int]:
        driver = browser.open(hostile / "report.html", scheme=scheme)
        style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        paper, ink = ([int(number) for number in re.findall(r"\d+", colour)][:3] for colour in driver.execute_script(style))
        return sum(paper), sum(ink)

    light, dark = brightness("light"), brightness("dark")
    assert light[0] > 700 > 200 > light[1]
    assert dark[0] < 100 < 600 < dark[1]


def test_it_can_be_read_by_keyboard_and_screen_reader(browser: Browser, hostile: Path) -> None:
    driver = browser.open(hostile / "report.html")

    def count(selector: str) -> int:
        return len(driver.find_elements(By.CSS_SELECTOR, selector))

    assert [count(selector) for selector in ("html[lang=en]", "header", "nav[aria-label]", "main", "footer", "h1")] == [1] * 6
    levels: list[int] = driver.execute_script("return [...document.querySelectorAll('h1,h2,h3,h4')].map(one => +one.tagName[1])")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert (
        count("img:not([alt])")
        == count("table:not(:has(caption))")
        == count("thead th:not([scope])")
        == count("tbody th:not([scope])")
        == 0
    )
    assert count("svg:not([role=img])") == count("svg:not(:has(title))") == 0
    assert count("section:not([aria-labelledby])") == 0
    ids: list[str] = driver.execute_script("return [...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(set(ids)) == len(ids)
    targets = [link.get_attribute("href") for link in driver.find_elements(By.CSS_SELECTOR, "nav a, .skip")]
    assert {str(target).partition("#")[2] for target in targets} <= set(ids)
    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    focused: Any = driver.switch_to.active_element
    assert focused.text == "Skip to the figures"
    assert focused.rect["x"] >= 0
