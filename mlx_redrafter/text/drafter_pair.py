"""Whether a drafter's weights were written with the config.json that lies beside them.

The two files are replaced one after the other. Where a process was killed in between, the new
weights lie under the old configuration, and where the shapes are the same nothing else would show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..drafting.config import DrafterConfig
from ..errors import RedrafterError

_KEY = "drafter_config"
_TOKENIZER = "tokenizer_hash"


def config_note(config: DrafterConfig) -> dict[str, str]:
    """What the metadata of the weights' file says of the configuration.

    All of it, not a digest: entries that later releases add are then no difference.
    """
    return {_KEY: json.dumps(config.to_dict(), separators=(",", ":"))}


def check_note(path: Path, metadata: Mapping[str, str], config: DrafterConfig) -> None:
    """Refuse weights that were written with another configuration.

    Args:
        path: Their file.
        metadata: Of it; Apple's drafters and those of earlier releases say nothing there.
        config: What the config.json beside it says.

    Raises:
        RedrafterError: Naming the entries that differ.
    """
    if _KEY not in metadata:
        return
    try:
        noted = DrafterConfig.from_dict(json.loads(metadata[_KEY]))
    except (ValueError, AttributeError, RecursionError, RedrafterError) as error:
        raise RedrafterError(
            f"{path} is damaged: it does not say with which configuration it was written; make or "
            "fetch the drafter again."
        ) from error
    differing = _differences(asdict(noted), asdict(config))
    if differing:
        raise RedrafterError(
            f"{path} was written with another config.json than the one beside it (not the same: "
            f"{', '.join(differing)}), as where writing was cut off: make or fetch the drafter "
            "again."
        )


def _differences(noted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Entries that shape the head, and the target's tokenizer; the target may be renamed."""
    hashes = [(target or {}).get(_TOKENIZER) for target in (noted.pop("target"), found["target"])]
    differing = [name for name, value in noted.items() if found[name] != value]
    if None not in hashes and hashes[0] != hashes[1]:
        differing.append(_TOKENIZER)
    return differing
