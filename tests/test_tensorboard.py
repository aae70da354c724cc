"""The real TensorBoard on a training's event files, asked through HTTP for each kind of what it shows."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import BIN, Project

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def tensorboard(finished: Project) -> Iterator[str]:
    """The address of a TensorBoard that serves all trainings, started by the command that a run prints."""
    command = [str(BIN / "tensorboard"), "--logdir", "store/runs/TrainFinalLayer", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen([*command, "--reload_interval", "1"], cwd=finished.root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if found := re.search(r"http://\S+:\d+", line):
                yield found[0].rstrip("/")
                break
        process.terminate()


@pytest.fixture(scope="module")
def ask(tensorboard: str) -> Ask:
    """Ask for something until it is there: TensorBoard reads the files in the background."""

    def once(path: str, parameters: dict[str, Any], post: Any) -> bytes:
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        headers = {"Content-Type": "application/json"}
        data = None if post is None else json.dumps(post).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{tensorboard}/data/{path}{query}", data, headers), timeout=30) as answer:
            return answer.read()

    def until(path: str, ready: Callable[[Any], bool] = bool, post: Any = None, raw: bool = False, **parameters: Any) -> Any:
        answer: Any = None
        for _ in range(120):
            try:
                body = once(path, parameters, post)
                answer = body if raw else json.loads(body)
                if ready(answer):
                    return answer
            except urllib.error.HTTPError as error:
                answer = error
            time.sleep(0.5)
        raise AssertionError(f"{path}: {answer}")

    return until


@pytest.fixture(scope="module")
def run(ask: Ask) -> str:
    """The name of the one training's run."""
    runs = ask("runs", lambda runs: any(name.endswith("summaries") for name in runs))
    return next(name for name in runs if name.endswith("summaries"))


def test_scalars_of_each_candidate(ask: Ask, run: str) -> None:
    for candidate in range(3):
        for curve in ("training", "validation"):
            name = f"{run}/candidate-{candidate}/{curve}"
            tags = ask("plugin/scalars/tags", lambda tags, name=name: len(tags.get(name, [])) == 2)
            assert set(tags[name]) == {"loss", "accuracy"}
            points = ask("plugin/scalars/scalars", lambda points: len(points) == 6, run=name, tag="loss")
            assert [step for _, step, _ in points] == [50, 100, 150, 200, 250, 300]


def test_histograms(ask: Ask, run: str) -> None:
    tags = ask("plugin/histograms/tags", lambda tags: len(tags.get(run, [])) == 3)
    assert set(tags[run]) == {"weights_histogram", "biases_histogram", "logits_histogram"}
    assert ask("plugin/histograms/histograms", run=run, tag="weights_histogram")


def test_pictures(ask: Ask, run: str) -> None:
    wanted = {"training_photos", "confusion_matrix"}
    tags = ask("plugin/images/tags", lambda tags: wanted <= set(tags.get(run, [])))
    for tag in tags[run]:
        (image,) = ask("plugin/images/images", run=run, tag=tag, sample=0)
        query = dict(urllib.parse.parse_qsl(image["query"]))
        data = ask("plugin/images/individualImage", raw=True, **query)
        assert data.startswith((b"\x89PNG", b"\xff\xd8\xff"))


def test_the_graph(ask: Ask, run: str) -> None:
    info = ask("plugin/graphs/info", lambda info: info.get(run, {}).get("run_graph"))
    assert info[run]["run_graph"]
    assert b"final_layer/weights" in ask("plugin/graphs/graph", raw=True, run=run)


def test_the_table_of_the_sweep(ask: Ask, run: str) -> None:
    experiment = ask("plugin/hparams/experiment", lambda found: len(found["hparamInfos"]) == 3, post={"experimentName": ""})
    assert {info["name"] for info in experiment["hparamInfos"]} == {"learning_rate", "weight_decay", "label_smoothing"}
    asked = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [{"metric": info["name"]} for info in experiment["metricInfos"]],
        "startIndex": 0,
        "sliceSize": 10,
    }

    def are_all_read(found: Any) -> bool:
        """A candidate is in the table once its parameters are read, and its figures are read after that."""
        return [len(group.get("metricValues", [])) for group in found.get("sessionGroups", [])] == [2, 2, 2]

    groups = ask("plugin/hparams/session_groups", are_all_read, post=asked)["sessionGroups"]
    assert sorted(group["hparams"]["weight_decay"] for group in groups) == pytest.approx([0.001, 0.003, 0.01])
    assert all({value["name"]["tag"] for value in group["metricValues"]} == {"accuracy", "loss"} for group in groups)


def test_the_projector(ask: Ask, run: str) -> None:
    assert run in ask("plugin/projector/runs", lambda runs: run in runs)
    embeddings = ask("plugin/projector/info", run=run)["embeddings"]
    (embedding,) = (found for found in embeddings if found["tensorName"] == "bottlenecks")
    assert embedding["tensorShape"][1] == 1280
    count = embedding["tensorShape"][0]
    vectors = ask("plugin/projector/tensor", raw=True, run=run, name=embedding["tensorName"])
    assert len(vectors) == 4 * 1280 * count
    metadata = ask("plugin/projector/metadata", raw=True, run=run, name=embedding["tensorName"]).decode().splitlines()
    assert metadata[0] == "label\tpredicted\tsplit\tphoto"
    assert len(metadata) == count + 1
    assert ask("plugin/projector/sprite_image", raw=True, run=run, name=embedding["tensorName"]).startswith(b"\xff\xd8\xff")
