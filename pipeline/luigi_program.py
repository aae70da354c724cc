"""Mistakes on the command line of ``luigi``, said in one line where Luigi has a traceback or a page of usage.

What goes wrong before ``--module pipeline`` is imported is out of reach: a ``luigi.cfg`` that cannot be parsed, another module.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config
from luigi.task_register import TaskClassNotFoundException

from pipeline import console, settings
from pipeline.errors import UserError

FAILED = 30
WRONG_USAGE = 2  # as argparse has it

EXPORT = "luigi --module pipeline Export"


def is_running() -> bool:
    """Whether this process is the ``luigi`` program, or ``python -m luigi``, and not a library's user."""
    program = Path(sys.argv[0])
    return program.name == "luigi" or program.parts[-2:] == ("luigi", "__main__.py")


def has_central_scheduler() -> bool:
    """Whether the work is shared with the workers of other processes, by ``luigid``."""
    return not get_config().getboolean("core", "local_scheduler", False)


def say_in_one_line() -> None:
    """From here on, a wrong option, an unknown task and a start outside a project are a line each."""

    def wrong_option(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        known = [option for option in parser._option_string_actions if not option.startswith("--Export-")]
        wrong = re.search(r"(--[\w-]+)", message)
        near = difflib.get_close_matches(wrong[1].replace("_", "-"), known, 1) if wrong and wrong[1] not in known else []
        hint = f"is {near[0]} meant?" if near else ""
        console.complain(f"{message}; {hint or f'{EXPORT} --help lists the options'}")
        raise SystemExit(WRONG_USAGE)

    build = CmdlineParser._build_parser

    def without_abbreviations(**options: Any) -> argparse.ArgumentParser:
        parser = build(**options)
        parser.allow_abbrev = False  # a part of a name would be taken for the whole, and a misspelt one for another
        return parser

    def unknown_task(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, TaskClassNotFoundException):
            return sys.__excepthook__(kind, error, trace)
        console.complain(f"{str(error).partition('. ')[0]}; the one to run is: {EXPORT}")
        raise SystemExit(FAILED)

    make_task = CmdlineParser.get_task_obj

    def in_a_project(parser: CmdlineParser) -> Any:
        try:
            settings.project()
        except UserError as error:  # without luigi.cfg Luigi would look for a central scheduler, and might end with 0
            refuse(str(error))
        return make_task(parser)

    CmdlineParser._build_parser = staticmethod(without_abbreviations)
    CmdlineParser.get_task_obj = in_a_project
    argparse.ArgumentParser.error = wrong_option  # type: ignore[assignment, method-assign]
    sys.excepthook = unknown_task


def refuse(line: str) -> None:
    """End the ``luigi`` program with an error, before any task exists that could fail; elsewhere do nothing."""
    if CmdlineParser.get_instance():
        console.complain(line)
        raise SystemExit(FAILED) from None


def given_empty(family: str, names: Iterable[str]) -> list[str]:
    """The options of the task ``family`` that stand on the command line with an empty value, which Luigi takes for not given."""
    given = vars(getattr(CmdlineParser.get_instance(), "known_args", argparse.Namespace()))
    return [name for name in names if "" in (given.get(name), given.get(f"{family}_{name}"))]
