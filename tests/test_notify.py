"""Who is told of a scheduled run: by a webhook and by e-mail, when it is worth it, and no secret anywhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from conftest import BIN, Project

from pipeline import nights, notify
from pipeline.nights import FAILED, NOT_LIVE, NOTHING, PUBLISHED, REJECTED, Outcome, Record

SECRET, PASSWORD = "T0pS3cret-webhook-path", "T0pS3cret-smtp-password"
FIGURES = {"photos": 30, "classes": {"a": 10, "b": 20}, "skipped": 1, "test_accuracy": 0.9, "test_interval": [0.8, 0.95], "test_count": 10}


class Webhook:
    """A server that keeps what is posted to it, and answers as it is told."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, Any]] = []
        self.answers: list[int] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.posted.append((self.path, json.loads(body)))
                self.send_response(hook.answers.pop(0) if hook.answers else 200)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{SECRET}"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    hook = Webhook()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


class Mailbox:
    """Keeps what an SMTP server gets."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], str]] = []

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802
        self.mails.append((envelope.rcpt_tos, envelope.content.decode()))
        return "250 OK"


class AnyPort(Controller):
    """A mail server on a port that is free, which it has to know to say that it is up."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@pytest.fixture
def mail_server() -> Iterator[tuple[Mailbox, int]]:
    mailbox = Mailbox()

    def login(server: object, session: object, envelope: object, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"robot", PASSWORD.encode()), handled=False)

    # It is waited for until it is up; its own five seconds are few on a busy machine.
    patient = {"ready_timeout": 60, "auth_required": True, "auth_require_tls": False}
    controller = AnyPort(mailbox, hostname="127.0.0.1", port=0, authenticator=login, **patient)
    controller.start()
    yield mailbox, controller.port
    controller.stop()


def outcome(status: str, **said: Any) -> Record:
    return Record("mine", "2026-11-01", Outcome(status, "0001-aa", "exports/mine/0001-aa/report.html", FIGURES, **said))


@pytest.mark.parametrize(
    ("when", "wanted"),
    [
        ("always", {PUBLISHED, REJECTED, NOT_LIVE, NOTHING, FAILED}),
        ("changes", {PUBLISHED, REJECTED, NOT_LIVE, FAILED}),
        ("failures", {REJECTED, NOT_LIVE, FAILED}),
    ],
)
def test_when_it_is_worth_a_message(when: str, wanted: set[str]) -> None:
    assert {status for status in nights.STATUSES if notify.is_wanted(when, [outcome(NOTHING), outcome(status)])} == wanted


def test_what_is_said_holds_verdict_figures_changes_and_the_report() -> None:
    records = [
        outcome(PUBLISHED, changed=["6 photos more (24 before)"]),
        Record("other", "2026-11-01", Outcome(FAILED, reasons=["no disk"])),
    ]
    said = notify.summary(records, lambda report: f"https://reports/{report}")
    assert said.subject.endswith(": mine published, other failed")
    assert said.text.splitlines() == [
        "mine: published 0001-aa, test accuracy 90.0 %: 6 photos more (24 before)",
        "  photos: 30 in 2 classes, 1 left out",
        "  test accuracy: 90.0 % of 10 photos, 95 % interval 80.0 % to 95.0 %",
        "  report: https://reports/exports/mine/0001-aa/report.html",
        "other: failed: no disk",
    ]
    assert said.payload["status"] == FAILED
    mine, other = said.payload["data_sets"]
    assert (mine["status"], mine["figures"], mine["report"]) == (PUBLISHED, FIGURES, "https://reports/exports/mine/0001-aa/report.html")
    assert (other["reasons"], other["report"]) == (["no disk"], "")
    json.dumps(said.payload)


def test_a_webhook_that_has_a_trouble_is_tried_again_and_not_for_ever(webhook: Webhook) -> None:
    waits: list[float] = []
    webhook.answers = [500, 429, 200]
    notify.post(webhook.address, {"a": "ü"}, sleep=waits.append)
    assert webhook.posted == [(f"/{SECRET}", {"a": "ü"})] * 3
    assert waits == [2, 4]
    webhook.answers = [503] * 9
    with pytest.raises(notify.Undelivered, match="^HTTP 503$"):
        notify.post(webhook.address, {}, sleep=waits.append)
    assert len(webhook.posted) == 3 + notify.ATTEMPTS
    for code in (404, 302, 307):  # it will not be otherwise the next time; and nothing is sent to another address
        webhook.answers = [code]
        with pytest.raises(notify.Refused, match=f"^HTTP {code}$"):
            notify.post(webhook.address, {})
    assert {path for path, _ in webhook.posted} == {f"/{SECRET}"}


@pytest.mark.parametrize(
    "address", [f"file:///{SECRET}", SECRET, f"http://127.0.0.1:1/{SECRET}", f"http://[{SECRET}", f"http://x:{SECRET}/"]
)
def test_no_address_is_repeated(address: str) -> None:
    with pytest.raises((notify.Undelivered, notify.Refused)) as raised:
        notify.post(address, {}, sleep=lambda seconds: None)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
def test_a_run_tells_by_webhook_and_email_and_keeps_the_secrets(
    copy_of_finished: Project, webhook: Webhook, mail_server: tuple[Mailbox, int]
) -> None:
    project, (mailbox, port) = copy_of_finished, mail_server
    project.profile("colours", "[Export]\nhow_many_training_steps = 300\n")
    config = (project.root / "luigi.cfg").read_text().replace("when = changes", "when = changes\naddress = https://reports.example/x/")
    email = "[email]\nreceiver = one@example.com, two@example.com\nsender = robot@example.com\n"
    smtp = f"[smtp]\nhost = 127.0.0.1\nport = {port}\nno_tls = true\nusername = robot\npassword = ${{MAIL_PASSWORD}}\n"
    (project.root / "luigi.cfg").write_text(email + smtp + config)
    secrets = {"RETRAIN_WEBHOOK": webhook.address, "MAIL_PASSWORD": PASSWORD}
    said = []

    def retrain(date: str, **environment: str) -> int:
        done = project.run(
            [str(BIN / "luigi"), "--module", "pipeline", "Retrain", "--data", "colours", "--date", date, "--log-level", "DEBUG"],
            **environment,
        )
        said.append(done.stdout + done.stderr)
        return done.returncode

    assert retrain("2026-11-01", **secrets) == 0
    ((_, payload),) = webhook.posted
    assert payload["status"] == "published"
    version = project.live("colours").name
    report = f"https://reports.example/x/exports/colours/{version}/report.html"
    assert payload["data_sets"][0]["report"] == report
    ((receivers, mail),) = mailbox.mails
    assert receivers == ["one@example.com", "two@example.com"]
    assert "colours published" in mail.replace("\n ", " ")

    assert retrain("2026-11-02", **secrets) == 0  # nothing to do: nobody is woken
    assert (len(webhook.posted), len(mailbox.mails)) == (1, 1)

    (project.root / "data/colours").rename(project.root / "away")
    webhook.answers = [404]
    assert retrain("2026-11-03", **{**secrets, "MAIL_PASSWORD": "wrong"}) == 20
    assert "warning: the webhook of $RETRAIN_WEBHOOK did not get the summary (HTTP 404)" in said[-1]
    assert "warning: the summary could not be sent by e-mail (SMTPAuthenticationError)" in said[-1]
    assert webhook.posted[-1][1]["status"] == "failed"
    assert len(mailbox.mails) == 1
    assert retrain("2026-11-03", RETRAIN_WEBHOOK=webhook.address) == 20
    assert "warning: the summary could not be sent by e-mail (MAIL_PASSWORD is not set in the environment); look at [smtp]" in said[-1]

    written = [path.read_bytes() for path in project.root.rglob("*") if path.is_file()]
    for secret in (SECRET, PASSWORD):
        assert not [text for text in said if secret in text]
        assert not [data for data in written if secret.encode() in data]

    (project.root / "luigi.cfg").write_text((project.root / "luigi.cfg").read_text().replace("${MAIL_PASSWORD}", PASSWORD))
    assert retrain("2026-11-04", **secrets) == 30
    assert "password in [smtp] of luigi.cfg is a secret" in said[-1] and PASSWORD not in said[-1]
    assert len(mailbox.mails) == 1  # it was not used for all that
    ((night, failed),) = [(one["date"], one["reasons"]) for one in webhook.posted[-1][1]["data_sets"]]
    assert (night, failed[0].partition(" is a secret")[0]) == ("2026-11-04", "password in [smtp] of luigi.cfg")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[smtp]\npassword = hunter2\n", "password in [smtp] of luigi.cfg is a secret; put it into the environment"),
        ("[notify]\nwhen = never\n", "when = never in [notify] of luigi.cfg: always, changes or failures is allowed"),
        ("[notify]\nwebhook = x\n", "'webhook' is unknown in [notify] of luigi.cfg; is webhook_env meant?"),
        (f"[notify]\nwebhook_env = https://hooks/{SECRET}\n", "webhook_env in [notify] of luigi.cfg is no name of an environment variable"),
    ],
)
def test_a_mistake_or_a_secret_in_the_configuration_is_refused_before_any_work(project: Project, config: str, words: str) -> None:
    project.photos("mine", 4)
    text = (project.root / "luigi.cfg").read_text().replace("[notify]", "[execution_summary]").replace("when = changes\n", "")
    (project.root / "luigi.cfg").write_text(config + text)
    done = project.run([str(BIN / "luigi"), "--module", "pipeline", "Retrain", "--data", "mine", "--date", "2026-11-01"])
    assert done.returncode == 30
    assert words in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert SECRET not in done.stderr + done.stdout
    assert not (project.root / "store/runs").exists()
