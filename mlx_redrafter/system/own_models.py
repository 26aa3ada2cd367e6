"""Models that come with the package: inside it, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def own_models() -> Path:
    """Their directory; a checkout's comes first, where they are made."""
    beside = _PACKAGE.parent / "models"
    return beside if (beside / "README.md").is_file() else _PACKAGE / "models"


def pocket_path() -> Path:
    """The pocket's directory, whether it is there or not."""
    return own_models() / "pocket"
