"""Where the pocket bundle is: in a checkout beside the package, installed inside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def pocket_path() -> Path:
    """The pocket's directory, whether it is there or not."""
    beside = _PACKAGE.parent / "models" / "pocket"
    inside = _PACKAGE / "pocket"
    return inside if inside.is_dir() and not beside.is_dir() else beside
