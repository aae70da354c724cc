"""Settings: where the project lies, its paths, and the profiles of its data sets.

Command line beats profile beats luigi.cfg beats default. A profile is ``configs/<data>.cfg``, found by the name of the
data set however the run was started:

    [Export]   values for the parameters of the task Export
    [images]   where the photos come from (``ImageSource``)
    [paths]    image_dir, exports, output_graph, output_labels for this data set alone
"""

from __future__ import annotations

import configparser
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import luigi
from luigi.configuration import get_config

from pipeline import files, registry, tables
from pipeline.errors import UserError

PROFILES = "configs"
FOR_LUIGI = ("cron", "luigid")
"""Files there that are no profiles: LUIGI_CONFIG_PATH names them."""

DATA_NAME = r"\w([\w. -]{0,58}\w)?"  # which names files, with more behind it
DATA_NAME_IN_WORDS = "up to 60 letters, digits, '-', '_', '.' and spaces"


@dataclass(frozen=True)
class Paths:
    """Where things lie. Relative paths in ``[paths]`` start at the project's folder."""

    store: Path
    image_dir: Path
    model_dir: Path
    bottleneck_dir: Path
    exports: Path
    output_graph: Path | None
    output_labels: Path | None

    def run(self, family: str, key: str) -> Path:
        return self.store / "runs" / family / key

    def runs(self, family: str) -> list[Path]:
        """The outputs of all runs of a task."""
        folder = self.store / "runs" / family
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []

    def work(self, family: str, key: str) -> Path:
        return self.store / "work" / family / key

    def snapshot(self, data: str, snapshot: str) -> Path:
        return self.store / "snapshots" / f"{data}-{snapshot}.csv"

    def torn(self, key: str) -> Path:
        """There where the output of this key lacks photos that went away, or became others, before the run had read them."""
        return self.store / "torn" / key

    def scan(self, data: str) -> Path:
        return self.store / "scans" / f"{data}.csv"

    def fallback(self, data: str) -> Path:
        return self.store / "fallbacks" / f"{data}.json"

    def night(self, data: str, date: str) -> Path:
        return self.store / "nights" / data / f"{date}.json"


_DEFAULT_PATHS = {
    "store": "store",
    "image_dir": "data",
    "model_dir": "{store}/models",
    "bottleneck_dir": "{store}/vectors",
    "exports": "exports",
    "output_graph": "",
    "output_labels": "",
}
_PATHS_OF_A_PROFILE = ("image_dir", "exports", "output_graph", "output_labels")


@dataclass(frozen=True)
class ImageSource:
    """Where the photos of a data set come from when their folder is not there, and what names them.

    Attributes:
        url, sha256, bytes: an archive with a folder per class, what it hashes to, and its size.
        licence: of the photos.
        fallback: the data set that is used while the archive's host cannot be reached.
        package: of Python, by the name it is imported by, that ships the photos; a folder in it may follow, ``name/folder``.
        draw_per_class, draw_seed: pictures of flowers to draw, of each kind, and the seed of the drawing.
        table: the file, from the data set's folder, that names the photos and their labels, where folders do not.
        path_column, label_column, label_rule: of the table, as ``tables.Table`` and ``tables.parse_rule`` have them.
    """

    url: str = ""
    sha256: str = ""
    bytes: int = 0
    licence: str = ""
    fallback: str = ""
    package: str = ""
    draw_per_class: int = 0
    draw_seed: int = 0
    table: str = ""
    path_column: str = "1"
    label_column: str = "2"
    label_rule: str = ""


@dataclass(frozen=True)
class Profile:
    """What ``configs/<data>.cfg`` says; ``file`` is None where there is none."""

    file: Path | None
    export: dict[str, str]
    images: ImageSource
    paths: dict[str, str]


def project() -> Path:
    """The project's folder: the one whose ``luigi.cfg`` was read. Raises UserError outside a project."""
    for candidate in _configuration_files():
        if candidate.name == "luigi.cfg" and candidate.is_file() and get_config().has_section("paths"):
            return candidate.resolve().parent
    raise UserError(
        f"no luigi.cfg with a section [paths] that can be read in {Path.cwd()}; "
        "start from the project's folder, or name its luigi.cfg in LUIGI_CONFIG_PATH"
    )


def in_project(path: Path) -> str:
    """A path from the project's folder, where it lies below: as it is best kept, and true after the project was moved."""
    root = project()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


@dataclass(frozen=True)
class Notify:
    """``[notify]`` of luigi.cfg: who is told about scheduled runs (``pipeline.notify``).

    Attributes:
        when: ``always``, ``changes`` (all but "nothing to do") or ``failures``.
        webhook_env: the environment variable with the address that a summary is posted to. The address itself is a secret.
        address: under which the project's folder is served, for links to reports; without it they are paths.
    """

    when: str = "changes"
    webhook_env: str = "RETRAIN_WEBHOOK"
    address: str = ""


NOTIFY_WHEN = ("always", "changes", "failures")


def notify() -> Notify:
    """Who is told. Raises UserError for an unknown key or value."""
    config = get_config()
    given = {key: config.get("notify", key) for key in config.options("notify")} if config.has_section("notify") else {}
    check_section(given, [field.name for field in dataclasses.fields(Notify)], "[notify] of luigi.cfg")
    found = Notify(**given)
    if found.when not in NOTIFY_WHEN:
        raise UserError(f"when = {found.when} in [notify] of luigi.cfg: {', '.join(NOTIFY_WHEN[:-1])} or {NOTIFY_WHEN[-1]} is allowed")
    if not re.fullmatch(r"[A-Za-z_]\w*", found.webhook_env):
        # It may be the address itself: it is not said.
        raise UserError(
            "webhook_env in [notify] of luigi.cfg is no name of an environment variable; put the address into one, and name that"
        )
    return found


def address_of(report: str, address: str) -> str:
    """A link to a report, whose path starts at the project's folder, which is served under ``address``, or nowhere."""
    return f"{address.rstrip('/')}/{quote(report)}" if address and not Path(report).is_absolute() else (project() / report).as_uri()


def _configuration_files() -> list[Path]:
    """What Luigi reads for this project: luigi.cfg, and the one file that LUIGI_CONFIG_PATH names."""
    named = os.environ.get("LUIGI_CONFIG_PATH")
    return [Path("luigi.cfg"), *([Path(named)] if named else [])]


def paths(data: str | None = None) -> Paths:
    """The paths of the project, with what the profile of ``data`` moves."""
    root = project()
    config = get_config()
    given = {key.replace("-", "_"): config.get("paths", key) for key in config.options("paths")}
    check_section(given, _DEFAULT_PATHS, "[paths] of luigi.cfg")
    texts = {**_DEFAULT_PATHS, **given, **(profile(data).paths if data else {})}

    def resolved(name: str) -> Path:
        return root / Path(texts[name].replace("{store}", texts["store"])).expanduser()

    optional = {name: resolved(name) if texts[name] else None for name in ("output_graph", "output_labels")}
    return Paths(**{name: resolved(name) for name in _DEFAULT_PATHS if name not in optional}, **optional)  # type: ignore[arg-type]


def copies(data: str) -> dict[str, Path]:
    """Where further copies of the live version's files are wanted, by their names there."""
    wanted = {"output_graph.pb": paths(data).output_graph, "labels.txt": paths(data).output_labels}
    return {name: path for name, path in wanted.items() if path}


def exports_of(name: str) -> Path:
    """Where the exports of ``name`` would lie, if it is a data set: its profile may move them."""
    return paths(name if re.fullmatch(DATA_NAME, name) else None).exports


def export_named(name: str) -> Path:
    """The folder of the export that a person means: by its path, or by the name of a data set of this project, if this is one.

    Raises UserError that lists what there is.
    """
    try:
        project()
    except UserError as outside:  # a folder can still be named
        try:
            return registry.find(name, Path("exports"))
        except UserError:
            if Path("exports").is_dir():
                raise
            raise UserError(f"{name!r} is not the folder of an export, nor a data set: {outside}") from None
    return registry.find(name, exports_of(name))


def followed(name: str) -> Path | None:
    """The folder whose ``latest`` says which export ``name`` means; None where it means one version for good."""
    path = Path(name)
    if path.name != registry.LATEST and files.read_manifest(path):
        return None
    try:
        exports = exports_of(name)
    except UserError:  # outside a project
        exports = Path("exports")
    candidates = (path.parent if path.name == registry.LATEST else path, exports / name)
    return next((folder.resolve() for folder in candidates if registry.live(folder)), None)


def profiles() -> list[str]:
    """The data sets that have a profile."""
    return sorted(file.stem for file in (project() / PROFILES).glob("*.cfg") if file.stem not in FOR_LUIGI)


def check_name(data: str) -> None:
    """Raise UserError for what cannot name a data set."""
    if not re.fullmatch(DATA_NAME, data):
        raise UserError(f"data = {data!r} cannot name a data set, {DATA_NAME_IN_WORDS} can; for a folder elsewhere use --images PATH")


def profile(data: str) -> Profile:
    """The profile of a data set. Raises UserError for a name that cannot be one, or an unknown section or key."""
    check_name(data)
    file = project() / PROFILES / f"{data}.cfg"
    if not file.is_file():
        return Profile(None, {}, ImageSource(), {})
    parser = configparser.ConfigParser(default_section="")  # so that [DEFAULT] is refused as any other unknown section
    try:
        parser.read_string(file.read_text(encoding="utf-8-sig"), source=str(file))
        sections = {name: {key.replace("-", "_"): value for key, value in parser.items(name)} for name in parser.sections()}
    except configparser.MissingSectionHeaderError:
        raise UserError(f"{file} begins without a section; put [Export] above the settings") from None
    except configparser.InterpolationError as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}; a % is written %%") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    refuse_unknown(sections, ("Export", "images", "paths"), str(file))
    check_section(sections.get("paths", {}), _PATHS_OF_A_PROFILE, f"[paths] of {file}")
    return Profile(file, sections.get("Export", {}), _image_source(sections.get("images", {}), file), sections.get("paths", {}))


def _image_source(texts: dict[str, str], file: Path) -> ImageSource:
    fields = {field.name: field for field in dataclasses.fields(ImageSource)}
    check_section(texts, fields, f"[images] of {file}")
    values: dict[str, Any] = dict(texts)
    for name, text in texts.items():
        if isinstance(fields[name].default, int):
            if not text.isdecimal():
                raise UserError(f"{name} = {text!r} in [images] of {file}: a whole number is wanted")
            values[name] = int(text)
    source = ImageSource(**values)
    _check_table(source, texts, file)
    given = [name for name in ("url", "package", "draw_per_class") if texts.get(name)]
    if len(given) > 1:
        raise UserError(f"[images] of {file} has {' and '.join(given)}, which are different ways to come by photos; keep one of them")
    if source.url and not (source.sha256 and source.bytes):
        raise UserError(f"[images] of {file} has a url but not its sha256 and bytes; both are needed to know the right archive")
    if source.fallback and not source.url:
        raise UserError(f"[images] of {file} has a fallback but no url, whose host it could stand in for; name the archive, or remove it")
    return source


def _check_table(source: ImageSource, given: Iterable[str], file: Path) -> None:
    alone = [name for name in ("path_column", "label_column", "label_rule") if name in given and not source.table]
    if alone:
        raise UserError(f"[images] of {file} has {alone[0]} but no table; name the table, or remove it")
    try:
        tables.parse_rule(source.label_rule)
    except UserError as error:
        raise UserError(f"[images] of {file}: {error}") from None


def check_fallback(profile_of: Profile) -> None:
    """Raise UserError where a profile's fallback has no photos of its own."""
    name = profile_of.images.fallback
    if not name:
        return
    instead, folder = profile(name).images, paths(name).image_dir / name
    where = f"fallback = {name} in [images] of {profile_of.file}"
    if instead.fallback:
        raise UserError(f"{where}: it has a fallback itself; name a data set that has none")
    if not (instead.url or instead.package or instead.draw_per_class or folder.is_dir()):
        raise UserError(f"{where}: there is no folder {folder}, and no profile that says where its photos come from; name another")


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise UserError for a name in ``given`` that is not in ``known``, with the nearest one."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"is {near[0]} meant?" if near else f"known are: {', '.join(known)}"
            raise UserError(f"{name!r} is unknown in {where}; {hint}")


_SECTIONS_OF_LUIGI = (
    *("batch_notifier", "core", "cors", "datadog", "email", "execution_summary", "logging", "prometheus", "resources", "retcode"),
    *("scheduler", "sendgrid", "smtp", "task_history", "worker"),
)
"""Of Luigi's own documentation, those that have a meaning for local tasks."""

_SECRETS = {"smtp": ("password",), "sendgrid": ("apikey",)}
"""What may stand in a file as the name of an environment variable only."""


# --- Parameters that say what is wrong with a value -----------------------------------------------------------------


class Checked(luigi.Parameter[Any]):
    """A parameter that takes a text it cannot use as it is, for ``check`` to refuse in one line.

    Luigi would end in a traceback while it parses, and does not look at values given in Python at all.
    """

    def __init__(self, convert: Callable[[str], Any], allows: Callable[[Any], bool], allowed: str, **kwargs: Any) -> None:
        default = kwargs.get("default")
        if "description" in kwargs:
            words = f"{allowed}; {'not set' if default is None else self.serialize(default)} by default"
            kwargs["description"] += f" ({words})".replace("%", "%%")
        super().__init__(positional=False, **kwargs)
        self._convert, self._allows, self._allowed = convert, allows, allowed

    def parse(self, x: str) -> Any:
        try:
            return self._convert(x)
        except ValueError:
            return x

    def check(self, name: str, value: Any) -> None:
        """Raise UserError unless ``value`` is allowed."""
        if not self._allows(value):
            raise UserError(f"{name} = {self.serialize(value)}: {self._allowed} is allowed")


def number(low: float, high: float, **kwargs: Any) -> Checked:
    """A parameter that is a number from ``low`` to ``high``, both included; or None, if that is its default."""
    optional = "default" in kwargs and kwargs["default"] is None

    def convert(text: str) -> float | None:
        return None if optional and text in ("", "None") else float(text)

    def allows(value: Any) -> bool:
        if value is None:
            return optional
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    return Checked(convert, allows, f"a number from {low:g} to {high:g}", **kwargs)


class Numbers(Checked):
    """A parameter of one or more numbers, written with commas between them."""

    def normalize(self, x: Any) -> Any:
        return (x,) if isinstance(x, (int, float)) and not isinstance(x, bool) else tuple(x) if isinstance(x, list) else x

    def serialize(self, x: Any) -> str:
        return ",".join(repr(number) for number in x) if isinstance(x, tuple) else str(x)


def numbers(low: float, high: float, *, default: tuple[float, ...], **kwargs: Any) -> Checked:
    """A parameter that is one or more different numbers from ``low`` to ``high``, both included: ``0.01,0.03``."""

    def convert(text: str) -> tuple[float, ...]:
        return tuple(float(number) for number in text.split(","))

    def allows(value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and 0 < len(set(value)) == len(value)
            and all(isinstance(number, (int, float)) and not isinstance(number, bool) and low <= number <= high for number in value)
        )

    return Numbers(
        convert, allows, f"a number from {low:g} to {high:g}, or several different ones with commas between,", default=default, **kwargs
    )


def whole_number(low: int, high: int, **kwargs: Any) -> Checked:
    """A parameter that is a whole number from ``low`` to ``high``, both included."""

    def allows(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Checked(int, allows, f"a whole number from {low} to {high}", **kwargs)


def choice(values: Sequence[str], **kwargs: Any) -> Checked:
    """A parameter that is one of ``values``."""
    return Checked(str, lambda value: value in values, ", ".join(values[:-1]) + f" or {values[-1]}", **kwargs)


class Choices(Checked):
    """A parameter of several names, written with commas between them; ``none`` is none of them."""

    def normalize(self, x: Any) -> Any:
        return tuple(x) if isinstance(x, list) else x

    def serialize(self, x: Any) -> str:
        return ",".join(map(str, x)) or "none" if isinstance(x, tuple) else str(x)


def choices(values: Sequence[str], *, default: tuple[str, ...], **kwargs: Any) -> Checked:
    """A parameter that is any number of ``values``, in their order: ``photos,labels``; or ``none``."""

    def convert(text: str) -> tuple[str, ...]:
        return () if text == "none" else tuple(sorted((name.strip() for name in text.split(",")), key=values.index))

    def allows(value: Any) -> bool:
        return isinstance(value, tuple) and all(name in values for name in value) and len(set(value)) == len(value)

    return Choices(convert, allows, f"none, or any of {', '.join(values)} with commas between", default=default, **kwargs)


def switch(**kwargs: Any) -> Checked:
    """A parameter that is ``true`` or ``false``."""
    return Checked(_to_bool, lambda value: isinstance(value, bool), "true or false", **kwargs)


def _to_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def text(pattern: str, allowed: str, **kwargs: Any) -> Checked:
    """A parameter that is a text which matches ``pattern`` as a whole."""
    return Checked(str, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, allowed, **kwargs)


def check_parameters(task: luigi.Task) -> None:
    """Raise UserError for the first parameter of ``task`` whose value is not allowed."""
    for name, parameter in task.get_params():
        if isinstance(parameter, Checked):
            parameter.check(name, getattr(task, name))


def check_section(given: Mapping[str, str], known: Iterable[str], where: str) -> None:
    """Raise UserError for a setting that is unknown, or that Luigi would take for not given since it is empty."""
    refuse_unknown(given, known, where)
    for name, value in given.items():
        if not value:
            raise UserError(f"{name} in {where} has no value; give it one, or remove the line")


def check_secrets() -> None:
    """Raise UserError for a password that stands in a file of Luigi's configuration."""
    for file, parser in _parsed_configuration():
        for section, keys in _SECRETS.items():
            for key in keys:
                if not parser.get(section, key, fallback="${").startswith("${"):
                    raise UserError(
                        f"{key} in [{section}] of {file} is a secret; put it into the environment, and write {key} = ${{ITS_NAME}}"
                    )


def unset_secrets() -> list[str]:
    """The environment variables that secrets in Luigi's configuration are to come from, and that are not there."""
    values = [
        parser.get(section, key, fallback="") for _, parser in _parsed_configuration() for section in _SECRETS for key in _SECRETS[section]
    ]
    return sorted({name for value in values for name in re.findall(r"\$\{([^}]+)\}", value) if name not in os.environ})


def _parsed_configuration() -> Iterator[tuple[Path, configparser.ConfigParser]]:
    for file in _configuration_files():
        parser = configparser.ConfigParser(default_section="", interpolation=None)
        parser.read(file)  # Luigi has read it, so it can be read
        yield file, parser


def check_configuration(known: Iterable[str]) -> None:
    """Raise UserError for what luigi.cfg sets in vain: a key of [Export], or a section that is neither ours nor Luigi's.

    And for a file that LUIGI_CONFIG_PATH names and that is not there: Luigi passes it over, and what keeps a night safe stands there.
    """
    _, *named = _configuration_files()
    if missing := [file for file in named if not file.is_file()]:
        raise UserError(f"LUIGI_CONFIG_PATH names {missing[0]}, and there is no such file; correct it, or leave it out")
    config = get_config()
    if config.has_section("Export"):
        given = {key.replace("-", "_"): config.get("Export", key) for key in config.options("Export")}
        check_section(given, known, "[Export] of luigi.cfg")
    check_secrets()
    for file, parser in _parsed_configuration():
        for section in parser.sections():
            if section not in ("Export", "notify", "paths", *_SECTIONS_OF_LUIGI):
                near = difflib.get_close_matches(section, ("Export", "notify", "paths"), 1)
                hint = f"is [{near[0]}] meant?" if near else "every setting of a training belongs into [Export]"
                raise UserError(f"[{section}] in {file} has no effect; {hint}")
    notify()
