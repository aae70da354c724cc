"""``serve``: a page and a JSON endpoint that name photos."""

from __future__ import annotations

import argparse
import importlib.util
import re

from pipeline import console, files, settings
from pipeline.commands import Verbs
from pipeline.errors import UserError

NEEDED = ("starlette", "uvicorn")


def add(verbs: Verbs) -> None:
    serve = verbs.add_parser("serve", help="a page to drop photos on, and a JSON endpoint, on this machine")
    serve.add_argument("classifier", metavar="EXPORT|DATA", help="as of predict; of a data set, the live version, also when it changes")
    serve.add_argument("--port", type=int, default=8501, help="(default: 8501, as TensorFlow Serving has it; 0 for any that is free)")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine alone)")
    serve.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that browsers may call this machine by; more than one may be given",
    )
    serve.epilog = "There is no password. Whoever reaches the address can use it; for more than this machine put a proxy before it."
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve needs {' and '.join(missing)}, not installed yet; install with: .venv/bin/pip install -e '.[serve]'")
    folder, followed = settings.export_named(options.classifier), settings.followed(options.classifier)
    data = files.read_json(folder / files.MANIFEST).get("parameters", {}).get("data")
    name = data or re.sub(r"[/\\]", "-", folder.name)
    from pipeline import serve

    bound = serve.listen(options.host, options.port)
    live = serve.Live(name, folder, followed)
    version = f"{name} {live.now.version}" + ("" if followed else ", and no other version")
    serve.run(
        live, bound, hosts=options.allowed_host, started=lambda address: console.say(f"serving {version}: {address} (stop with Ctrl-C)")
    )
    console.note("stopped")
    return 0
