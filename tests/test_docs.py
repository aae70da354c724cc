"""The Python of the documentation, run on a finished project as a reader would paste it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, Project

from pipeline import checkpoint
from pipeline.tensorflow_v1 import tf


def snippets(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def paste(finished: Project, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a snippet in the project's folder, after those before it, with the keys filled in."""
    monkeypatch.chdir(finished.root)
    (training,) = (path.name for path in finished.runs("TrainFinalLayer"))
    (model,) = Path((finished.root / "luigi.cfg").read_text().rpartition("model_dir = ")[2].strip()).glob("efficientnet-lite0-*")
    names: dict[str, Any] = {}

    def run(code: str) -> dict[str, Any]:
        filled = (
            code.replace("TrainFinalLayer/<key>", f"TrainFinalLayer/{training}")
            .replace("exports/mine", "exports/colours")
            .replace("flowers", "colours")
        )
        filled = filled.replace("store/models/efficientnet-lite0-<key>", str(model)).replace(
            "store/models/efficientnet-lite0-…", str(model)
        )
        exec(compile(filled, "snippet", "exec"), names)
        return names

    return run


def test_the_page_on_checkpoints(paste: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for snippet in snippets("docs/checkpoints.md"):
        names = paste(snippet)
    assert names["values"]["global_step"] == 300
    np.testing.assert_array_equal(names["mine"], names["values"]["chosen/weights"])
    np.testing.assert_array_equal(names["biases"], names["values"]["chosen/biases"])
    assert capsys.readouterr().out.splitlines()[0] == "300 (3, 1280)"
    with tf.Session(graph=names["step"].graph) as running:
        variables = [variable for variable in names["variables"] if "/classes/" not in variable.name]  # ImageNet's own classes
        tf.train.Saver(tf.global_variables()).restore(running, checkpoint.latest(names["exported"]))
        photo = Path("data/colours/green/000.png").read_bytes()  # far from blue, whose loss it is, and not so far that that is infinite
        before = running.run([names["loss"], *variables], {names["joined"].image_bytes: [photo]})
        gradients = running.run(tf.gradients(names["loss"], variables), {names["joined"].image_bytes: [photo]})
        still = running.run(variables)
        assert all((one == other).all() for one, other in zip(before[1:], still))  # evaluating gradients changes nothing
        assert sum(bool(np.any(gradient)) for gradient in gradients) == len(variables)  # all of them would be trained
        running.run(names["step"], {names["joined"].image_bytes: [photo]})
        assert running.run(names["loss"], {names["joined"].image_bytes: [photo]}) < before[0]


def test_the_page_on_exports_and_a_format_on_request(
    paste: Any, copy_of_finished: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = copy_of_finished
    before = {task: project.runs(task) for task in ("TrainFinalLayer", "ExportGraph")}
    arguments = ("--data", "colours", "--how-many-training-steps", "300")
    done = project.export(*arguments, "--formats", "tflite-int8")
    assert done.returncode == 0, done.stderr
    assert {task: project.runs(task) for task in before} == before  # nothing was trained, and no graph exported
    version = project.live("colours")
    formats = json.loads((version / "manifest.json").read_text())["formats"]
    assert list(formats) == ["graph", "saved-model", "tflite-int8"]
    assert all((version / said["file"]).exists() and said["checked"]["accuracy"] == 1 for said in formats.values())
    assert "classifier_int8.tflite" in (version / "report.html").read_text(encoding="utf-8")
    assert "nothing to do" in project.export(*arguments).stdout  # what is live has all that is asked for, and more

    monkeypatch.chdir(project.root)
    shutil.copy("data/colours/green/000.png", "photo.jpg")
    for snippet in snippets("docs/export.md"):
        names = paste(snippet)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["green", "green"]
    assert names["scores"].argmax() == 1
    assert names["scores"].shape == (1, 3)


def test_the_readme_and_the_page_on_models(paste: Any, finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    use, graph, restored = snippets("README.md")
    (finished.root / "photo.jpg").write_bytes((finished.root / "data/colours/blue/000.png").read_bytes())
    assert paste(use)["prediction"].scores[0].label == "blue"
    paste(graph)
    assert "latest" in paste(restored)
    (of_models,) = snippets("docs/models.md")
    set_up = "batch = __import__('numpy').zeros((1, 224, 224, 3), 'float32')\ndef loss_of(bottleneck): return tf.reduce_sum(bottleneck)\n"
    paste(set_up)
    assert paste(of_models)["vectors"].shape == (1, 1280)
