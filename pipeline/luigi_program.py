"""Mistakes on the command line of ``luigi``, said in one line where Luigi has a traceback or a page of usage.

What goes wrong before ``--module pipeline`` is imported is out of reach: a ``luigi.cfg`` that cannot be parsed, another module.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import luigi
from luigi import lock
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config
from luigi.task_register import TaskClassNotFoundException

from pipeline import console, settings
from pipeline.errors import FAILED, UserError

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
    """From here on, a wrong option, an unknown task, a start outside a project and a folder that Luigi cannot write are a line each."""
    argparse.ArgumentParser.error = _wrong_option  # type: ignore[assignment, method-assign]
    CmdlineParser._build_parser = staticmethod(_without_abbreviations(CmdlineParser._build_parser))
    CmdlineParser.get_task_obj = _in_a_project(CmdlineParser.get_task_obj)
    lock.acquire_for = _or_refused(lock.acquire_for)
    sys.excepthook = _unknown_task


def _wrong_option(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    wrong = re.search(r"(--[\w-]+)", message)
    near = _meant(wrong[1], parser._option_string_actions) if wrong else ""
    console.complain(f"{message}; {f'is {near} meant?' if near else f'{EXPORT} --help lists the options'}")
    raise SystemExit(WRONG_USAGE)


def _meant(wrong: str, options: Collection[str]) -> str:
    """The option that is most like a wrong one, if any is. Of those with a task's name in them only Export's are for a person."""
    if wrong in options:
        return ""
    known = {option.replace("--Export-", "--"): option for option in options if option.startswith("--Export-")}
    known |= {option: option for option in options if not re.match("--[A-Z]", option)}
    near = difflib.get_close_matches(wrong.replace("_", "-"), known, 1)
    return known[near[0]] if near else ""


def _without_abbreviations(build: Callable[..., argparse.ArgumentParser]) -> Callable[..., argparse.ArgumentParser]:
    """A part of a name would be taken for the whole, and a misspelt one for another."""

    def built(**options: Any) -> argparse.ArgumentParser:
        parser = build(**options)
        parser.allow_abbrev = False
        return parser

    return built


def _in_a_project(make_task: Callable[[CmdlineParser], Any]) -> Callable[[CmdlineParser], Any]:
    """Without luigi.cfg Luigi would look for a central scheduler, and might end with 0; without the paths there is no place to note what
    went wrong."""

    def made(parser: CmdlineParser) -> Any:
        try:
            settings.paths()
        except UserError as error:
            refuse(str(error))
        return make_task(parser)

    return made


def _or_refused(acquire: Callable[..., bool]) -> Callable[..., bool]:
    """Luigi notes in a folder what runs, before any task is looked at."""

    def acquired(folder: str, *options: Any) -> bool:
        try:
            is_free = bool(acquire(folder, *options))
        except OSError as error:
            refuse(
                f"{error.filename or folder}: {error.strerror}; Luigi notes there what runs: mend that, "
                "or name another folder as lock_pid_dir in [core] of luigi.cfg"
            )
            raise
        if not is_free:
            console.complain("the same command is running already, in the process named above; wait for it, or stop it and run again")
        return is_free

    return acquired


def _unknown_task(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, TaskClassNotFoundException):
        return sys.__excepthook__(kind, error, trace)
    console.complain(f"{str(error).partition('. ')[0]}; the one to run is: {EXPORT}")
    raise SystemExit(FAILED)


def refuse(line: str) -> None:
    """End the ``luigi`` program with an error, before any task exists that could fail; elsewhere do nothing."""
    if CmdlineParser.get_instance():
        console.complain(line)
        raise SystemExit(FAILED) from None


def refuse_empty(task: type[luigi.Task], params: Iterable[tuple[str, luigi.Parameter]]) -> None:
    """Refuse options of a task that stand on the command line with an empty value, which Luigi takes for not given."""
    given = vars(getattr(CmdlineParser.get_instance(), "known_args", argparse.Namespace()))
    for name, _ in params:
        if "" in (given.get(name), given.get(f"{task.get_task_family()}_{name}")):
            refuse(f"--{name.replace('_', '-')} is given without a value; give it one, or leave it out")
