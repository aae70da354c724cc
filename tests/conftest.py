"""What several tests share: small folders of pictures, a project to run the real ``luigi`` in, and one backbone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import luigi
import numpy as np
import pytest
from luigi.configuration import get_config
from PIL import Image

if TYPE_CHECKING:
    from browser import Browser

# The pipeline is compiled once, as for a user, and not by each of the programs that the tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A proxy, which pip may need, would be asked for the servers that the tests start on this machine.
for variable in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(variable, None)
    os.environ.pop(variable.upper(), None)

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

COLOURS = {"blue": (40, 60, 200), "green": (40, 160, 60), "red": (200, 50, 40), "yellow": (220, 200, 50)}


def make_photos(folder: Path, per_class: int, labels: tuple[str, ...] = ("blue", "green", "red"), size: int = 48) -> None:
    """A folder for each label with pictures in about one colour, all of them different, and the same in every run."""
    for label in labels:
        rng = np.random.default_rng([len(label), *map(ord, label)])
        (folder / label).mkdir(parents=True, exist_ok=True)
        colour = COLOURS.get(label, tuple(rng.integers(0, 256, 3)))
        for number in range(per_class):
            pixels = np.clip(np.array(colour) + rng.normal(0, 40, (size, size, 3)) + rng.normal(0, 20, 3), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number:03d}.png")


class Project:
    """A project's folder in which the real ``luigi`` and ``python -m pipeline`` are run, as its user would."""

    def __init__(self, root: Path, model_dir: Path) -> None:
        self.root = root
        (root / "configs").mkdir(parents=True)
        config = (REPOSITORY / "luigi.cfg").read_text()
        (root / "luigi.cfg").write_text(f"{config}\nmodel_dir = {model_dir}\n")

    def photos(self, name: str, per_class: int = 10, **kwargs: object) -> Path:
        make_photos(self.root / "data" / name, per_class, **kwargs)  # type: ignore[arg-type]
        return self.root / "data" / name

    def profile(self, name: str, text: str) -> None:
        (self.root / "configs" / f"{name}.cfg").write_text(text)

    def command(self, *arguments: str) -> list[str]:
        return [str(BIN / "luigi"), "--module", "pipeline", "Export", *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if name != "LUIGI_CONFIG_PATH"}
        return {**clean, **variables}

    def run(self, command: list[str], *, given: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder, with the text ``given`` on its standard input."""
        return subprocess.run(
            command, cwd=self.root, env=self.environment(**variables), input=given, capture_output=True, text=True, timeout=900, check=False
        )

    def export(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.command(*arguments), **variables)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``luigi`` in a process group of its own, and on one core, so that it can be caught at work on any machine."""

        def one_core() -> None:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=one_core,
        )

    def pipeline(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return self.run([sys.executable, "-m", "pipeline", *arguments], given=given)

    def own_models(self, model_dir: Path) -> Path:
        """Give the project a copy of the models, to be damaged; return the folder of the default one."""
        shutil.copytree(model_dir, self.root / "models")
        config = (self.root / "luigi.cfg").read_text()
        (self.root / "luigi.cfg").write_text(config.replace(f"model_dir = {model_dir}", "model_dir = models"))
        (folder,) = (self.root / "models").glob("efficientnet-lite0-*")
        return folder

    def live(self, name: str) -> Path:
        return (self.root / "exports" / name / "latest").resolve()

    def runs(self, task: str) -> list[Path]:
        return sorted((self.root / "store" / "runs" / task).glob("*"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of backbones for all projects: making one takes seconds."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def project(tmp_path: Path, model_dir: Path) -> Project:
    return Project(tmp_path / "project", model_dir)


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Stand in the project's folder, with its luigi.cfg read, as after ``cd``."""
    monkeypatch.chdir(project.root)
    config = get_config()
    config.read(project.root / "luigi.cfg")
    luigi.task_register.Register.clear_instance_cache()
    yield project
    config.defaults().clear()
    for section in config.sections():
        config.remove_section(section)
    luigi.task_register.Register.clear_instance_cache()


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default backbone, made once."""
    from pipeline import backbones

    folder = tmp_path_factory.mktemp("backbone")
    backbones.make("efficientnet-lite0", folder, folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Project:
    """A project in which ``colours`` was exported. Tests copy it (``copy_of_finished``) before they change anything."""
    project = Project(tmp_path_factory.mktemp("finished") / "project", model_dir)
    project.photos("colours")
    done = project.export("--data", "colours", "--how-many-training-steps", "300")
    assert done.returncode == 0, done.stderr
    project.first_output = done  # type: ignore[attr-defined]
    return project


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from browser import Browser

    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()


@pytest.fixture
def copy_of_finished(finished: Project, tmp_path: Path) -> Project:
    copy = object.__new__(Project)
    copy.root = tmp_path / "copy"
    # Times are kept, and links as they are, so that the copy is as good as the original.
    shutil.copytree(finished.root, copy.root, symlinks=True)
    return copy
