"""Tables that name the photos of a data set and their labels, where folders do not.

table = Table(file, "path", "probability", parse_rule("functional < 0.5, defective >= 0.5"))
rows = table.read()                           a path and a label each, or the reason why there is no label
"""

from __future__ import annotations

import csv
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.errors import UserError

SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "=": operator.eq}

_CASE = re.compile(rf"([^<>=]+?)\s*({'|'.join(SIGNS)})\s*([^<>=]+)")


class Case(NamedTuple):
    """A part of a rule: the label of a text for which ``text sign value`` holds. Two numbers are compared as numbers."""

    label: str
    sign: str
    value: str

    def holds(self, text: str) -> bool:
        one, other = _number(text), _number(self.value)
        if one is None or other is None:
            return self.sign == "=" and text == self.value
        return bool(SIGNS[self.sign](one, other))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def parse_rule(text: str) -> tuple[Case, ...]:
    """A rule that makes labels, ``functional < 0.5, defective >= 0.5``; of an empty text, one that takes them as they are.

    Raises UserError for what is no rule.
    """
    cases = []
    for part in text.split(",") if text.strip() else []:
        match = _CASE.fullmatch(" ".join(part.split()))
        case = Case(*match.groups()) if match else None
        if case is None or (case.sign != "=" and _number(case.value) is None):
            raise UserError(
                f"label_rule has {part.strip()!r}; write LABEL = VALUE, or LABEL < NUMBER with <, <=, > or >=, and commas between: "
                "functional < 0.5, defective >= 0.5"
            )
        cases.append(case)
    return tuple(cases)


class Row(NamedTuple):
    """A photo that a table names: its path from the table's folder, and its label; or, without one, the problem."""

    path: str
    label: str
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """A table of photos.

    Attributes:
        file: a line for each photo, with commas, semicolons, tabs or spaces between the columns; the first line tells which.
        path_column, label_column: a column's name, or its number from 1. The first line is a header if one of them is a name.
        rule: how the text in the label's column becomes the label; empty where it is the label.
    """

    file: Path
    path_column: str
    label_column: str
    rule: tuple[Case, ...] = ()

    @property
    def folder(self) -> Path:
        """Where relative paths in the table start."""
        return self.file.parent

    def read(self) -> list[Row]:
        """What the table names, in its order; a line that says again what one before it said is left out.

        Raises UserError for a table that is not there or cannot be understood.
        """
        lines = self._lines()
        header = [] if self.path_column.isdigit() and self.label_column.isdigit() else next(lines, (0, []))[1]
        path_at, label_at = self._place(self.path_column, header), self._place(self.label_column, header)
        rows: dict[Row, None] = {}
        for number, texts in lines:
            if len(texts) <= max(path_at, label_at) or not texts[path_at]:
                wanted = f"the path in column {path_at + 1} and the label in column {label_at + 1}"
                raise UserError(f"{self.file}, line {number}: {len(texts)} columns, where {wanted} are wanted; mend it")
            rows[Row(PurePosixPath(texts[path_at]).as_posix(), *self._label(texts[label_at]))] = None
        return list(rows)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """The number of each line that is not empty, and its columns."""
        try:
            with open(self.file, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                first = file.readline()
                file.seek(0)
                delimiter = next((sign for sign in "\t,;" if sign in first), " ")
                lines = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
                for texts in lines:
                    if any("\0" in text for text in texts):  # Python 3.10 says it itself
                        raise csv.Error("line contains NUL")
                    if any(texts):
                        yield lines.line_num, [text.strip() for text in texts]
        except FileNotFoundError:
            raise UserError(f"there is no table {self.file}; put it there, or correct table in [images] of the profile") from None
        except OSError as error:
            raise UserError(f"the table {self.file} cannot be read ({error.strerror}); name another in [images] of the profile") from None
        except csv.Error as error:
            raise UserError(f"{self.file}, line {lines.line_num}: {error}; mend the line") from None

    def _place(self, column: str, header: list[str]) -> int:
        if column in header:
            return header.index(column)
        if column.isdigit() and int(column) > 0:
            return int(column) - 1
        raise UserError(f"{column!r} is no column of {self.file}; its columns are: {', '.join(header) or 'numbered from 1'}")

    def _label(self, text: str) -> tuple[str, str]:
        """The label, or an empty one and the problem."""
        label = next((case.label for case in self.rule if case.holds(text)), "") if self.rule else text
        problem = "" if label else f"label_rule has no label for {text!r}" if text else "the table has no label for it"
        return label, problem
