"""The server: what it answers, whom it refuses, what it does under load while the live version changes, and its page in a browser."""

from __future__ import annotations

import base64
import contextlib
import gc
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from browser import Browser
from conftest import Project, make_photos
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_images import encoded, huge_png, picture

from pipeline import classifier, files, images, registry, serve, settings
from pipeline.errors import UserError
from pipeline.serve import app
from pipeline.serve.live import Live, Served

PHOTO = encoded(picture(), "JPEG")
HOSTILE = ["<script>document.title='owned'</script>", '<img src=x onerror="document.title=1">', "\u202egnp.evil"]


class Answer:
    """What a server said."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(port: int, path: str, body: object = None, method: str | None = None, **headers: str) -> Answer:
    """Ask in a connection of its own; a ``body`` that is not bytes is sent as JSON."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(
            method or ("GET" if data is None else "POST"), path, data, {name.replace("_", "-"): text for name, text in headers.items()}
        )
        return Answer(connection.getresponse())


def of_photos(*photos: bytes) -> dict[str, object]:
    return {"instances": [{"image_bytes": {"b64": base64.b64encode(photo).decode()}} for photo in photos]}


# --- A server in a thread, whose classifier is none ---------------------------------------------------------------------


class Pretended:
    """Says that all photos are of its first label, after it was allowed to."""

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels
        self.allowed = threading.Event()
        self.allowed.set()

    def probabilities(self, data: bytes) -> np.ndarray:
        images.readable_bytes(data)
        assert self.allowed.wait(60)
        return np.eye(len(self.labels), dtype=np.float32)[0]


@contextlib.contextmanager
def serving(live: Live, **options: Any) -> Iterator[int]:
    """The port of a server in this process."""
    bound = serve.listen("127.0.0.1", 0)
    server = uvicorn.Server(serve.configuration(live, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)


def pretended(*labels: str) -> Live:
    return Live("my flowers", Path("0007-abc"), None, lambda folder: Served(folder, Pretended(list(labels))))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pretending() -> Iterator[int]:
    with serving(pretended(*HOSTILE), hosts=["flowers.example"]) as port:
        yield port


MODEL = "/v1/models/my%20flowers"


def test_the_answer_has_the_shape_of_tensorflow_serving(pretending: int) -> None:
    answer = ask(pretending, f"{MODEL}:predict", of_photos(PHOTO, PHOTO))
    assert answer.status == 200
    assert answer.json == {"predictions": [{"classes": HOSTILE, "scores": [1, 0, 0]}] * 2}
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Model-Version"] == "0007-abc"
    alone = {"instances": [{"b64": base64.b64encode(PHOTO).decode()}], "signature_name": "serving_default"}
    assert ask(pretending, f"{MODEL}:predict", alone).json == {"predictions": [{"classes": HOSTILE, "scores": [1, 0, 0]}]}
    state = {"version": "7", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert ask(pretending, MODEL).json == {"model_version_status": [state]}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", "the request is not JSON: Expecting property name"),
        (b"\xff\xfe", "the request is not JSON: "),
        (b"[" * 200_000, "the request is not JSON: "),
        (b"[1" + b"0" * 10_000 + b"]", "the request is not JSON: "),
        (b"", "the request is not JSON: "),
        ([], "wanted is"),
        ({"inputs": []}, "wanted is"),
        ({"instances": []}, "wanted is"),
        (of_photos(*[PHOTO] * 65), "wanted is"),
        ({**of_photos(PHOTO), "signature_name": "image"}, "signature_name = 'image': 'serving_default' is allowed; or leave it out"),
        ({**of_photos(PHOTO), "signature_name": ["x"] * 1000}, "signature_name = "),
        ({"instances": ["/etc/passwd"]}, "instances[0]: wanted is"),
        ({"instances": [{"image_bytes": {"path": "/etc/passwd"}}]}, "instances[0]: wanted is"),
        ({"instances": [{"b64": "a"}]}, "instances[0]: b64 is not base64"),
        (of_photos(PHOTO, b"<html>"), "instances[1]: not an image that is read here (an HTML page)"),
        (of_photos(b""), "instances[0]: the file is empty"),
        (of_photos(huge_png(50_000)), "instances[0]: more than 100,000,000 pixels"),
        (of_photos(huge_png(8_000)), "instances[0]: 8000 × 8000 pixels are more than 50,000,000"),
    ],
)
def test_what_cannot_be_answered_is_said_with_its_reason(pretending: int, body: object, error: str) -> None:
    answer = ask(pretending, f"{MODEL}:predict", body)
    assert answer.status == 400
    assert answer.json.keys() == {"error"}
    assert answer.json["error"].startswith(error)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/flowers", 404),
        ("POST", "/v1/models/flowers:predict", 404),
        ("GET", f"{MODEL}:predict", 405),
        ("PUT", f"{MODEL}:predict", 405),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/page.js", 404),
        ("DELETE", MODEL, 405),
        ("POST", "/", 405),
    ],
)
def test_what_is_not_there_is_an_error_as_json(pretending: int, method: str, path: str, status: int) -> None:
    answer = ask(pretending, path, b"{}" if method == "POST" else None, method)
    assert (answer.status, list(answer.json)) == (status, ["error"])


def test_a_request_that_is_too_large_is_refused(pretending: int) -> None:
    answer = ask(pretending, f"{MODEL}:predict", b" " * (app.MAX_BODY + 1))
    assert answer.status == 413
    assert answer.json["error"].startswith("the request is larger than 33,554,432 bytes")


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("identity", 200), ("IDENTITY", 200), ("", 200)])
def test_a_compressed_request_is_refused(pretending: int, encoding: str, status: int) -> None:
    assert ask(pretending, f"{MODEL}:predict", of_photos(PHOTO), Content_Encoding=encoding).status == status


def test_a_client_that_is_slow_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SECONDS_TO_SEND", 0.2)
    with serving(pretended("a")) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"POST {MODEL}:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{{".encode())
        assert b" 408 " in connection.recv(1000)


GET = f"GET {MODEL} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.mark.parametrize(("asked", "begun"), [(False, b""), (False, GET[:-2]), (True, GET[:-2])], ids=["nothing", "half", "one and a half"])
def test_a_connection_that_does_not_ask_is_closed(monkeypatch: pytest.MonkeyPatch, asked: bool, begun: bytes) -> None:
    monkeypatch.setattr(serve, "SECONDS_TO_ASK", 0.5)
    closed_early = contextlib.suppress(ConnectionError)  # where this machine is too slow to ask
    with serving(pretended("a")) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as connection, closed_early:
        if asked:
            connection.sendall(GET)
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.read()
        connection.sendall(begun)
        assert connection.recv(1) == b""


def test_a_connection_too_many_is_told_to_come_again_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CONNECTIONS", 1)
    with serving(pretended("a")) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as first:
        answer = ask(port, MODEL)
        assert (answer.status, answer.json) == (503, {"error": "1 connections are open; try again"})
        assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")
        first.sendall(GET)
        assert b" 200 OK" in first.recv(1000)


OWN = ("localhost", "LOCALHOST:8501", "127.0.0.1:1", "[::1]:8501", "192.168.1.7", "flowers.example", socket.gethostname())
OTHER = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[", "127.0.0.1@evil.example")


@pytest.mark.parametrize(("host", "status"), [*((host, 200) for host in OWN), *((host, 421) for host in OTHER)])
def test_a_name_that_was_pointed_here_gets_nothing(pretending: int, host: str, status: int) -> None:
    for path in ("/", MODEL):
        assert ask(pretending, path, Host=host).status == status


def test_pages_of_other_sites_get_nothing(pretending: int) -> None:
    path, body = f"{MODEL}:predict", of_photos(PHOTO)
    own = f"http://127.0.0.1:{pretending}"
    assert ask(pretending, path, body, Origin=own, Sec_Fetch_Site="same-origin").status == 200
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://["},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "http://evil.example", "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},
    ):
        answer = ask(pretending, path, body, **headers)
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert ask(pretending, path, method="OPTIONS", Origin="http://evil.example").status == 403
    assert ask(pretending, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200  # a link


def test_one_request_too_many_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "usable_cores", lambda: 2)  # on fifty cores there are too many connections before that
    live = pretended("a", "b")
    busy: Any = live.now.classifier
    busy.allowed.clear()
    most, too_many, answers = app.REQUESTS_PER_CORE * app.usable_cores(), 5, []
    with serving(live) as port:

        def client() -> None:
            answers.append(ask(port, f"{MODEL}:predict", of_photos(PHOTO)))

        threads = [threading.Thread(target=client) for _ in range(most + too_many)]
        for thread in threads:
            thread.start()
        give_up = time.monotonic() + 60
        while len(answers) < too_many and time.monotonic() < give_up:
            time.sleep(0.01)
        refused = list(answers)
        assert ask(port, MODEL).status == 200  # the rest goes on
        busy.allowed.set()
        for thread in threads:
            thread.join(60)
    assert [answer.status for answer in refused] == [503] * too_many
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert [answer.status for answer in answers[too_many:]] == [200] * most


def test_a_failure_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    live = pretended("a")
    live.now.classifier.probabilities = lambda data: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with serving(live) as port:
        answer = ask(port, f"{MODEL}:predict", of_photos(PHOTO))
        assert (answer.status, answer.json) == (500, {"error": "the server failed; its log says why"})
    assert "ZeroDivisionError" in caplog.text


# --- The live version ---------------------------------------------------------------------------------------------------


def point(exports: Path, version: str) -> None:
    link = files.beside(exports / registry.LATEST)
    link.symlink_to(version)
    link.replace(exports / registry.LATEST)


def make_versions(exports: Path, *names: str) -> None:
    for name in names:
        (exports / name).mkdir(parents=True)
        files.write_manifest(exports / name, {"key": name})
    point(exports, names[0])


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_versions(tmp_path, "0001-a", "0002-b", "0003-c")
    loaded: list[str] = []

    def load(folder: Path) -> Served:
        loaded.append(folder.name)
        if folder.name == "0002-b":
            raise UserError("it is damaged")
        return Served(folder, Pretended(["a"]))  # type: ignore[arg-type]

    live = Live("mine", tmp_path / "0001-a", tmp_path, load)
    for version in ("0001-a", "0002-b", "0002-b", "0003-c", "0003-c"):
        point(tmp_path, version)
        live.look()
    assert loaded == ["0001-a", "0002-b", "0003-c"]  # each once
    assert live.now.version == "0003-c"
    (tmp_path / registry.LATEST).unlink()
    live.look()
    assert live.now.version == "0003-c"
    assert capsys.readouterr().err.splitlines() == [
        "warning: still serving mine 0001-a, since 0002-b cannot be loaded: it is damaged",
        "serving mine 0003-c from now on",
    ]


def test_a_replaced_version_leaves_the_memory(tmp_path: Path) -> None:
    make_versions(tmp_path, "0001-a", "0002-b")

    def load(folder: Path) -> Served:
        pretended = Pretended(["a"])
        pretended.itself = pretended  # type: ignore[attr-defined]  # as TensorFlow's graphs do
        return Served(folder, pretended)  # type: ignore[arg-type]

    live = Live("mine", tmp_path / "0001-a", tmp_path, load)
    before = weakref.ref(live.now.classifier)
    gc.disable()
    try:
        point(tmp_path, "0002-b")
        live.look()
        live.look()
        assert before() is None
    finally:
        gc.enable()


def test_every_answer_is_from_one_version_while_they_change_all_the_time(tmp_path: Path) -> None:
    make_versions(tmp_path, "0001-a", "0002-b")
    live = Live("m", tmp_path / "0001-a", tmp_path, lambda folder: Served(folder, Pretended([f"{folder.name} {n}" for n in range(50)])))  # type: ignore[arg-type]
    stop = threading.Event()

    def flip() -> None:
        for version in itertools.cycle(("0002-b", "0001-a")):
            if stop.wait(0.001):
                return
            point(tmp_path, version)
            live.look()

    flipping = threading.Thread(target=flip)
    with serving(live) as port:
        flipping.start()
        try:
            answers = under_load(port, "/v1/models/m:predict", of_photos(PHOTO, PHOTO), lambda answers: len(answers) >= 400)
        finally:
            stop.set()
            flipping.join()
    for answer in answers:
        version = answer.headers["Model-Version"]
        assert answer.status == 200
        assert [prediction["classes"] for prediction in answer.json["predictions"]] == [[f"{version} {n}" for n in range(50)]] * 2
    assert {answer.headers["Model-Version"] for answer in answers} == {"0001-a", "0002-b"}


def under_load(port: int, path: str, body: object, enough: Callable[[list[Answer]], bool]) -> list[Answer]:
    """The answers to the same request of eight threads, half of which keep their connection, until it is enough."""
    answers: list[Answer] = []
    failures: list[BaseException] = []
    give_up = time.monotonic() + 120
    data = json.dumps(body).encode()

    def client(keeps: bool) -> None:
        try:
            kept = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while not enough(answers) and not failures and time.monotonic() < give_up:
                if keeps:
                    kept.request("POST", path, data)
                    answers.append(Answer(kept.getresponse()))
                else:
                    answers.append(ask(port, path, data))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number % 2 == 0,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    return answers


# --- A server of its own, with a real classifier ------------------------------------------------------------------------


class Server:
    """``python -m pipeline serve`` on a project, with its port and what it printed."""

    def __init__(self, project: Project, *arguments: str) -> None:
        command = [sys.executable, "-m", "pipeline", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(
            command, cwd=project.root, env=project.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.first_line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.first_line)
        assert found, self.process.communicate()[1]
        self.port = int(found[1])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what it wrote to standard error."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture(scope="module")
def published(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with nothing but exports: that of ``finished``, and a second version whose labels are in German."""
    project = object.__new__(Project)
    project.root = tmp_path_factory.mktemp("published")
    shutil.copy(finished.root / "luigi.cfg", project.root)
    shutil.copytree(finished.root / "exports", project.root / "exports", symlinks=True)
    other = project.root / "exports/colours/0002-0123abcd"
    shutil.copytree(project.live("colours"), other)
    (other / "labels.txt").write_text("blau\ngrün\nrot\n", encoding="utf-8")
    files.write_manifest(other, {**files.read_json(other / files.MANIFEST), "key": "0123abcd"})
    return project


@pytest.fixture(scope="module")
def server(published: Project) -> Iterator[Server]:
    started = Server(published, "colours")
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    make_photos(folder, 1)
    (folder / "page.jpg").write_text("<html>")
    return folder


def test_it_answers_as_predict_does(server: Server, published: Project, photos: Path) -> None:
    assert server.first_line.startswith(f"serving colours {published.live('colours').name}: http://127.0.0.1:")
    photo = photos / "red/000.png"
    (predicted,) = classifier.load(published.live("colours")).predict(photo)
    (answered,) = ask(server.port, "/v1/models/colours:predict", of_photos(photo.read_bytes())).json["predictions"]
    scores = dict(zip(answered["classes"], answered["scores"]))
    assert scores == pytest.approx({score.label: score.probability for score in predicted.scores}, abs=1e-5)


def test_no_request_fails_under_load_while_the_live_version_changes(server: Server, published: Project, photos: Path) -> None:
    exports = published.root / "exports/colours"
    first = published.live("colours").name
    labels = {first: ["blue", "green", "red"], "0002-0123abcd": ["blau", "grün", "rot"]}
    flipped: list[str] = []

    def flip() -> None:
        try:
            for version in ("0002-0123abcd", first) * 2:
                point(exports, version)
                give_up = time.monotonic() + 60
                while ask(server.port, "/v1/models/colours").headers["Model-Version"] != version and time.monotonic() < give_up:
                    time.sleep(0.05)
                flipped.append(version)
        finally:
            flipped.append("done")

    flipping = threading.Thread(target=flip)
    flipping.start()
    photo = of_photos((photos / "blue/000.png").read_bytes())
    answers = under_load(server.port, "/v1/models/colours:predict", photo, lambda answers: len(answers) >= 300 and flipped[-1:] == ["done"])
    flipping.join()
    assert flipped == ["0002-0123abcd", first, "0002-0123abcd", first, "done"]
    assert len(answers) >= 300
    assert {answer.headers["Model-Version"] for answer in answers} == {first, "0002-0123abcd"}
    for answer in answers:
        assert answer.status == 200
        (prediction,) = answer.json["predictions"]
        assert prediction["classes"] == labels[answer.headers["Model-Version"]]
        assert prediction["classes"][int(np.argmax(prediction["scores"]))] in ("blue", "blau")


def named(driver: webdriver.Chrome, count: int) -> list[str]:
    """What stands below each photo on the page, when all are named."""
    WebDriverWait(driver, 60).until(lambda _: driver.find_element(By.ID, "status").text.startswith(f"{count} photo"))
    return [item.text for item in driver.find_elements(By.CSS_SELECTOR, "#answers li")]


def test_photos_are_named_in_a_browser(browser: Browser, server: Server, photos: Path) -> None:
    address = f"http://127.0.0.1:{server.port}/"
    driver = browser.open(address)
    assert driver.title == "colours: what is in a photo?"
    names = [photos / "red/000.png", photos / "page.jpg", photos / "blue/000.png"]
    driver.find_element(By.ID, "photos").send_keys("\n".join(map(str, names)))
    red, page, blue = named(driver, 3)
    assert re.match(r"(red|rot)\n(9\d\.\d|100\.0)\u202f%", red)
    assert re.match(r"(blue|blau)\n", blue)
    assert page.startswith("not an image that is read here (an HTML page)\npage.jpg")
    assert driver.find_element(By.ID, "status").text == "3 photos, 1 could not be named."
    assert {request for request in browser.requests() if not request.startswith("blob:")} == {
        address,
        f"{address}v1/models/colours:predict",
    }
    assert all("400 (Bad Request)" in complaint for complaint in browser.complaints())  # which the browser says of page.jpg


def test_photos_can_be_dropped_on_the_page(browser: Browser, server: Server, photos: Path) -> None:
    driver = browser.open(f"http://127.0.0.1:{server.port}/")
    driver.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), one => one.charCodeAt(0)), data = new DataTransfer();
        data.items.add(new File([bytes], "green.png"));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        """,
        base64.b64encode((photos / "green/000.png").read_bytes()).decode(),
    )
    (answer,) = named(driver, 1)
    assert re.match(r"(green|grün)\n", answer)
    assert browser.complaints() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_finishes_what_it_has_begun_when_it_is_stopped(published: Project, photos: Path, number: signal.Signals) -> None:
    server = Server(published, str(published.live("colours")))
    assert "and no other version" in server.first_line
    body = json.dumps(of_photos((photos / "red/000.png").read_bytes())).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = f"POST /v1/models/colours:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:100])
        ask(server.port, "/v1/models/colours")  # what came before it has been read when this is answered
        os.kill(server.process.pid, number)
        with pytest.raises(ConnectionRefusedError):
            for _ in range(600):
                with contextlib.suppress(ConnectionResetError):  # one that waited to be accepted when the server stopped to
                    ask(server.port, "/v1/models/colours")
                time.sleep(0.05)
        connection.sendall(body[100:])
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 200
        assert json.loads(response.read())["predictions"][0]["classes"] == ["blue", "green", "red"]
    _, err = server.process.communicate(timeout=60)
    assert (server.process.returncode, err) == (0, "stopped\n")


# --- The command ----------------------------------------------------------------------------------------------------------


def test_what_is_followed_is_a_data_set_and_not_a_version(published: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(published.root)
    exports, version = published.root / "exports/colours", published.live("colours")
    for name in ("colours", "exports/colours", "exports/colours/latest"):
        assert settings.followed(name) == exports
    assert settings.followed(str(version)) is None
    monkeypatch.chdir(version)
    assert settings.followed(".") is None
    assert settings.followed(str(exports / "latest")) == exports


def test_a_mistake_is_one_line(published: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = published.pipeline("serve", "colours", "--port", str(port))
    assert (done.returncode, done.stderr) == (
        30,
        f"error: port {port} of 127.0.0.1 is in use; choose another with --port, or stop what uses it\n",
    )
    for host, port in (("256.1.1.1", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(UserError, match=rf"^cannot listen on port {port} of {host}: .*; choose others with --host and --port$"):
            serve.listen(host, port)


def test_without_the_extra_the_error_says_how_to_install_it(published: Project) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from pipeline.__main__ import main; sys.exit(main(['serve', 'colours']))"
    done = published.run([sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (
        30,
        "error: serve needs uvicorn, not installed yet; install with: .venv/bin/pip install -e '.[serve]'\n",
    )


# --- The page -------------------------------------------------------------------------------------------------------------


def test_hostile_labels_are_shown_as_they_are(browser: Browser, pretending: int, photos: Path) -> None:
    driver = browser.open(f"http://127.0.0.1:{pretending}/")
    driver.find_element(By.ID, "photos").send_keys(str(photos / "red/000.png"))
    named(driver, 1)
    shown = driver.execute_script("return [...document.querySelectorAll('.guess bdi')].map(one => one.textContent)")
    assert shown == HOSTILE
    assert driver.title == "my flowers: what is in a photo?"
    assert len(driver.find_elements(By.CSS_SELECTOR, "script")) == 1
    assert driver.find_elements(By.CSS_SELECTOR, "[onerror]") == []
    assert browser.complaints() == []


def test_a_name_is_no_markup_and_nothing_else_may_run_or_load() -> None:
    live = Live("<b>'\"&", Path("0001-a"), None, lambda folder: Served(folder, Pretended(["a"])))  # type: ignore[arg-type]
    with serving(live) as port:
        answer = ask(port, "/")
    html = answer.body.decode()
    assert "<b>" not in html
    assert "/v1/models/%3Cb%3E%27%22%26:predict" in html
    assert not re.search(r"""(src|href)=["']?(http|//|/)""", html)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'; ")
    assert "script-src 'sha256-" in policy


def test_a_phone_the_dark_and_the_keyboard(browser: Browser, pretending: int, photos: Path) -> None:
    address = f"http://127.0.0.1:{pretending}/"
    driver = browser.open(address, width=390, scheme="dark")
    driver.find_element(By.ID, "photos").send_keys(str(photos / "red/000.png"))
    named(driver, 1)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert sum(int(number) for number in re.findall(r"\d+", paper)[:3]) < 100

    def count(selector: str) -> int:
        return len(driver.find_elements(By.CSS_SELECTOR, selector))

    assert [count(one) for one in ("html[lang=en]", "header", "main", "h1", "[role=status]", "label input[type=file]")] == [1] * 6
    assert count("img:not([alt])") == count("section:not([aria-labelledby])") == 0
    driver = browser.open(address)
    body = driver.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert driver.switch_to.active_element.text == "Skip to the photos"
    driver.switch_to.active_element.send_keys(Keys.TAB)
    assert driver.switch_to.active_element.get_attribute("id") == "photos"
    assert driver.execute_script("return getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
