"""Telling people about scheduled runs: what is said, whether it is worth saying, and a webhook that it is posted to.

The webhook's address is a secret, which often stands in the address's path. So no message here repeats the address, nor what
another library says about it.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO, Any

from pipeline import nights
from pipeline.nights import Record
from pipeline.words import percent

SECONDS = 10.0
"""How long a server may take to answer."""

ATTEMPTS = 3
WAIT_SECONDS = 2.0
"""Between the first two attempts; twice as long before the next."""


class Undelivered(Exception):
    """A summary did not arrive. The message says why, without any address."""


@dataclass(frozen=True)
class Summary:
    """What is said about a run: a line, a text, and the same for programs."""

    subject: str
    text: str
    payload: dict[str, Any]


def is_wanted(when: str, records: Sequence[Record]) -> bool:
    """Whether a run is worth a message.

    Args:
        when: ``always``; ``changes``: unless there was nothing to do for any data set; ``failures``: where one failed, or no
            new version went live though there should have been one.
    """
    statuses = {record.outcome.status for record in records}
    if when == "changes":
        return bool(statuses - {nights.NOTHING})
    return when == "always" or bool(statuses & {nights.FAILED, nights.REJECTED, nights.NOT_LIVE})


def summary(records: Sequence[Record], link: Callable[[str], str]) -> Summary:
    """What is said of the nights of a run. ``link`` makes an address of a report's path."""
    host = socket.gethostname()
    heads = [f"{record.data} {record.outcome.status}" for record in records]
    subject = f"retrain on {host}: {', '.join(heads)}"
    lines = []
    for record in records:
        lines.append(record.sentence)
        lines.extend(f"  {name}: {value}" for name, value in _in_words(record.outcome.figures))
        if record.outcome.report:
            lines.append(f"  report: {link(record.outcome.report)}")
    said = [
        {
            **{name: value for name, value in nights.flat(record).items() if name != "id"},
            "report": link(record.outcome.report) if record.outcome.report else "",
            "sentence": record.sentence,
        }
        for record in records
    ]
    text = "\n".join(lines)
    return Summary(subject, text + "\n", {"text": f"{subject}\n{text}", "host": host, "status": nights.worst(records), "data_sets": said})


def _in_words(figures: dict[str, Any]) -> list[tuple[str, str]]:
    if not figures:
        return []
    low, high = figures["test_interval"]
    accuracy = f"{percent(figures['test_accuracy'])} of {figures['test_count']} photos, 95 % interval {percent(low)} to {percent(high)}"
    return [
        ("photos", f"{figures['photos']} in {len(figures['classes'])} classes, {figures['skipped']} left out"),
        ("test accuracy", accuracy),
    ]


def persistently(send: Callable[[], None], *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Try to send a few times. Raises Undelivered where it did not succeed."""
    for attempt in range(ATTEMPTS):
        try:
            return send()
        except Undelivered:
            if attempt + 1 == ATTEMPTS:
                raise
            sleep(WAIT_SECONDS * 2**attempt)


class Refused(Exception):
    """The server does not want it, and will not want it the next time. The message says why, without any address."""


def post(address: str, payload: dict[str, Any], *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Post ``payload`` as JSON to a webhook, a few times where the server cannot be reached or has a trouble of its own.

    Raises Undelivered or Refused.
    """
    if not address.startswith(("http://", "https://")):
        raise Refused("it is no http or https address")
    body = json.dumps(payload, ensure_ascii=False).encode()
    persistently(lambda: _post_once(address, body), sleep=sleep)


def _post_once(address: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "retraining-pipeline"}
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        opener.open(urllib.request.Request(address, body, headers, method="POST"), timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        kind = Undelivered if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code == HTTPStatus.TOO_MANY_REQUESTS else Refused
        raise kind(f"HTTP {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise Undelivered(f"it cannot be reached, {type(reason).__name__}") from None
    except ValueError as error:  # the address is none
        raise Refused(type(error).__name__) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What was meant for one server is sent to no other."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None
