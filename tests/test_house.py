"""What holds for the project as a whole."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from pipeline.__main__ import _parser


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("statement", ["import pipeline", "import pipeline.tasks, pipeline.settings, pipeline.__main__, pipeline.fetch"])
def test_nothing_that_luigi_imports_imports_tensorflow(statement: str) -> None:
    loaded = modules_after(statement)
    assert "luigi" in loaded
    assert not {"tensorflow", "keras", "tensorboard"} & loaded


@pytest.mark.parametrize("path", sorted((REPOSITORY / "pipeline").rglob("*.py")), ids=lambda path: path.name)
def test_each_module_says_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith('"""')


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The names of all options of a command line and its verbs."""
    names = set()
    for action in parser._actions:
        names |= {option.removeprefix("--") for option in action.option_strings}
        if isinstance(action, argparse._SubParsersAction):
            names |= set().union(*map(options_of, action.choices.values()))
    return names


def test_the_readme_names_nothing_that_is_not_there() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make (\w+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), target
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (REPOSITORY / path).exists(), path
    from pipeline import Export

    ours = {name.replace("_", "-") for name, _ in Export.get_params()}
    others = {"module", "help", "logdir", "Export", *options_of(_parser())}
    for file in (REPOSITORY / "benchmarks").glob("*.py"):
        others |= set(re.findall(r'add_argument\("--([a-z-]+)"', file.read_text()))
    rows = [line.split("|") for line in readme.splitlines() if line.startswith("| `--")]
    assert len(rows) > 5  # the table for those who come from retrain.py: its flags stand in the first column
    text = readme
    for row in rows:
        text = text.replace(row[1], "")
    assert set(re.findall(r"--([a-z][a-z-]+)", text)) - others <= ours
