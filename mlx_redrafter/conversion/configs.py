"""The config.json of what is converted: read, and its entries seen to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RedrafterError

RIGHT_ONE = "use the config.json that belongs to the weights"


def check_objects(values: Mapping[str, Any], path: Path) -> None:
    """Refuse what is looked into as an object, but is none.

    Raises:
        RedrafterError: Naming the entry.
    """
    text = values.get("text_config")
    if text is not None and not isinstance(text, Mapping):
        raise RedrafterError(
            f"text_config in {path} is {shown(text)}, but has to be an object: {RIGHT_ONE}."
        )


def shown(value: Any) -> str:
    """A value as its file has it, the beginning of a long one."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
