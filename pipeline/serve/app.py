"""What is answered to whom.

GET  /                         the page
GET  /v1/models/NAME           which version is served
POST /v1/models/NAME:predict   {"instances": [{"image_bytes": {"b64": …}}]} → {"predictions": [{"classes": […], "scores": […]}]}

An error is ``{"error": …}``. Nothing in a request names a file.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline import images
from pipeline.classifier import Classifier
from pipeline.errors import BadImage
from pipeline.machine import usable_cores
from pipeline.serve import page
from pipeline.serve.live import Live

MAX_BODY = 32 << 20
"""Bytes of a request. A photo of 24 MB takes them, as base64 has it."""

MAX_PIXELS = 50_000_000
"""Of a photo, by its header: while it is decoded they are up to 750 MB."""

MAX_INSTANCES = 64
"""Photos in a request."""

REQUESTS_PER_CORE = 8
"""That are read, computed, or wait for it; one more is told to come again. Each holds its body in memory."""

SECONDS_TO_SEND = 30
"""That a client has for its body."""

VERSION_HEADER = "Model-Version"

SIGNATURE = "serving_default"
"""Of those that the SavedModel has, the one that takes photos as files hold them."""


def application(live: Live, hosts: Sequence[str] = ()) -> Starlette:
    """The page and the endpoint of a model. ``hosts`` are names that this machine is called by, beside its own."""
    endpoint = _Endpoint(live)
    return Starlette(
        routes=[
            Route("/", endpoint.page),
            Route("/v1/models/{name}:predict", endpoint.predict, methods=["POST"]),
            Route("/v1/models/{name}:predict", endpoint.refuse_to_get),  # the next one would take it for a model's name
            Route("/v1/models/{name}", endpoint.status),
        ],
        middleware=[Middleware(_Guard, hosts=hosts)],
        exception_handlers={HTTPException: _error, Exception: _failure},
    )


def one_too_many(connections: int) -> ASGIApp:
    """What a connection is answered that comes while so many are open."""
    headers = {"Retry-After": "1", "Connection": "close"}
    return JSONResponse({"error": f"{connections} connections are open; try again"}, 503, headers)


def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says why"}, 500)


class _Endpoint:
    def __init__(self, live: Live) -> None:
        self._live = live
        # Twice as many as cores: one reads JSON and headers while another computes.
        self._pool = ThreadPoolExecutor(2 * usable_cores(), thread_name_prefix="predict")
        self._most = REQUESTS_PER_CORE * usable_cores()
        self._requests = 0

    async def page(self, request: Request) -> Response:
        address = f"{request.url.scheme}://{request.headers['host']}"
        html = page.render(name=self._live.name, version=self._live.now.version, address=address, most_bytes=MAX_BODY // 4 * 3 - 1000)
        return HTMLResponse(html, headers={"Content-Security-Policy": page.POLICY})

    async def status(self, request: Request) -> Response:
        self._refuse_others(request)
        number = str(int(found[0])) if (found := re.match(r"\d+(?=-)", self._live.now.version)) else self._live.now.version
        status = {"version": number, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return JSONResponse({"model_version_status": [status]}, headers={VERSION_HEADER: _in_a_header(self._live.now.version)})

    async def predict(self, request: Request) -> Response:
        self._refuse_others(request)
        if self._requests >= self._most:
            await _body(request, keep=False)
            raise HTTPException(503, f"{self._most} requests are being answered; try again", {"Retry-After": "1"})
        self._requests += 1
        try:
            body = await _body(request)
            served = self._live.now  # once: the answer is from one version
            predictions = await asyncio.get_running_loop().run_in_executor(self._pool, predict, served.classifier, body)
        finally:
            self._requests -= 1
        return JSONResponse({"predictions": predictions}, headers={VERSION_HEADER: _in_a_header(served.version)})

    async def refuse_to_get(self, request: Request) -> Response:
        raise HTTPException(405, headers={"Allow": "POST"})

    def _refuse_others(self, request: Request) -> None:
        if request.path_params["name"] != self._live.name:
            raise HTTPException(404, f"there is no model {request.path_params['name']!r} here, there is {self._live.name!r}")


def _in_a_header(text: str) -> str:
    return text.encode("ascii", "replace").decode()


async def _body(request: Request, keep: bool = True) -> bytes:
    """The body of a request, or nothing of it where it is not to be kept. Raises HTTPException."""
    if request.headers.get("content-encoding", "").lower() not in ("", "identity"):
        raise HTTPException(415, "Content-Encoding is not understood; send the JSON as it is")
    try:
        body = await asyncio.wait_for(_read(request, MAX_BODY if keep else 0), SECONDS_TO_SEND)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {SECONDS_TO_SEND} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client went away") from None
    if body is None and keep:
        raise HTTPException(413, f"the request is larger than {MAX_BODY:,} bytes; send fewer or smaller photos")
    return body or b""


async def _read(request: Request, most: int) -> bytes | None:
    """The body, or None where it is larger. That is read, too, within limits: a client that still sends would miss the answer."""
    kept, length = bytearray(), 0
    async for piece in request.stream():
        length += len(piece)
        if length <= most:
            kept += piece
        elif length > 4 * MAX_BODY:
            break
    return bytes(kept) if length <= most else None


# --- The JSON -----------------------------------------------------------------------------------------------------------


def predict(classifier: Classifier, body: bytes) -> list[dict[str, Any]]:
    """The answers for the photos in a request, classes and scores in the order of the labels. Raises HTTPException 400."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the request is not JSON: {str(error)[:200]}") from None
    instances = asked.get("instances") if isinstance(asked, dict) else None
    if not isinstance(instances, list) or not 0 < len(instances) <= MAX_INSTANCES:
        raise HTTPException(400, f'wanted is {{"instances": [{{"image_bytes": {{"b64": …}}}}]}}, with 1 to {MAX_INSTANCES} photos')
    if (signature := asked.get("signature_name", SIGNATURE)) not in ("", SIGNATURE):  # "" is the same to TensorFlow Serving
        raise HTTPException(400, f"signature_name = {str(signature)[:200]!r}: {SIGNATURE!r} is allowed; or leave it out")
    encoded = [_encoded(instance, number) for number, instance in enumerate(instances)]
    predictions = []
    for number, data in enumerate(encoded):
        try:
            _refuse_large(data)
            scores = classifier.probabilities(data).tolist()
        except BadImage as error:
            raise HTTPException(400, f"instances[{number}]: {error}") from None
        predictions.append({"classes": classifier.labels, "scores": scores})
    return predictions


def _encoded(instance: Any, number: int) -> bytes:
    """The bytes of an image, which may stand under the input's name, as TensorFlow Serving has it."""
    if isinstance(instance, dict):
        instance = instance.get("image_bytes", instance)
    text = instance.get("b64") if isinstance(instance, dict) else None
    if not isinstance(text, str):
        raise HTTPException(400, f'instances[{number}]: wanted is {{"image_bytes": {{"b64": …}}}}')
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise HTTPException(400, f"instances[{number}]: b64 is not base64 ({error})") from None


def _refuse_large(data: bytes) -> None:
    header = images.read_header(data)
    if header.width * header.height > MAX_PIXELS:
        raise BadImage(f"{header.width} × {header.height} pixels are more than {MAX_PIXELS:,}")


# --- Who may ask --------------------------------------------------------------------------------------------------------


class _Guard:
    """Keeps out pages of other sites, which a browser on this machine may have open.

    A name that an attacker has pointed at this machine (DNS rebinding) shows in ``Host``: only addresses, and names known
    to be this machine's, may stand there. A page of another site that sends something shows in ``Sec-Fetch-Site`` and
    ``Origin``, and gets nothing computed. Programs that are no browsers send neither.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_ALWAYS]
            await send(message)

        if not self._is_own(headers.get("host", "")):
            refused = JSONResponse({"error": "this machine is not called that; start the server with --allowed-host NAME"}, 421)
            await refused(scope, receive, send_with_headers)
        elif _is_of_another_site(headers):
            await JSONResponse({"error": "pages of other sites may not ask"}, 403)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name in self._hosts


def _is_of_another_site(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        # A link from elsewhere to the page is fine.
        return headers.get("sec-fetch-mode") != "navigate" or "origin" in headers
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
