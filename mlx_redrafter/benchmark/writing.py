"""Reports as JSON and CSV, written atomically, so that what was there survives an interruption."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import RedrafterError
from ..system.directories import require_directories
from ..system.disk import writing
from ..system.files import atomic_path, behind_link, is_stream, is_there, write_json

FORMAT = 1  # of reports as JSON, whatever their kind


class Report(Protocol):
    """Anything with a document and a table."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""

    def rows(self) -> list[dict[str, Any]]:
        """The measurements as rows with the same keys."""


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys, a header line above them; None is an empty cell."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def write_report(report: Report, json_path: Path | None, csv_path: Path | None) -> None:
    """Write a report to the paths that are given.

    Raises:
        RedrafterError: If one cannot be written.
    """
    if json_path is not None:
        with writing(json_path):
            write_json(json_path, finite(report.to_dict()))
    if csv_path is not None:
        with writing(csv_path):
            write_csv(csv_path, report.rows())


def write_text(path: Path, text: str) -> None:
    """Write a page.

    Raises:
        RedrafterError: If that is not possible.
    """
    with writing(path), atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def check_writable(*paths: Path | None) -> None:
    """Refuse paths that cannot be written, before anything is measured.

    Raises:
        RedrafterError: Naming the path.
    """
    named: set[Path] = set()
    for path in filter(None, paths):
        place = behind_link(path).absolute()
        if place in named and not is_stream(path):
            raise RedrafterError(f"{path} is named twice: give each report a file of its own.")
        named.add(place)
        if path.is_dir():
            raise RedrafterError(f"{path} is a directory: pass the name of a file.")
        if is_stream(path) and os.access(path, os.W_OK):
            continue
        parent = next(parent for parent in place.parents if is_there(parent))
        try:
            require_directories(place.parent)
            with tempfile.TemporaryFile(dir=parent):
                pass
        except OSError as error:
            raise RedrafterError(
                f"{path} cannot be written ({error.strerror or error}): choose another place."
            ) from error


def finite(value: Any) -> Any:
    """A document without infinities and NaN, which JSON has not; they become None."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
