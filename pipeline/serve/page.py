"""The page to drop photos on: one document, with its style and its script inside."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


_STYLE = _read("pipeline.report", "page.css") + _read("pipeline.serve", "page.css")
_SCRIPT = _read("pipeline.serve", "page.js")

POLICY = (
    f"default-src 'none'; connect-src 'self'; img-src blob: data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: this script, and nothing from elsewhere."""

_ENVIRONMENT = Environment(
    loader=PackageLoader("pipeline.serve", "."),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


def render(*, name: str, version: str, address: str, most_bytes: int) -> str:
    """The page of a model's version; ``address`` is where it is asked for, and ``most_bytes`` how large a photo may be."""
    return _ENVIRONMENT.get_template("page.html").render(
        name=name,
        version=version,
        path=f"/v1/models/{quote(name, safe='')}:predict",
        address=address,
        most_bytes=most_bytes,
        style=Markup(_STYLE),
        script=Markup(_SCRIPT),
    )
