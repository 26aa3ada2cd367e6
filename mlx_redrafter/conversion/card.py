"""The README.md of a bundle, which is its model card on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..system.files import size_words
from .report import PartReport

DRAFTER_HEADING = "## Drafter"


def write_card(
    bundle: Path,
    source: Path | None,
    target: PartReport | None,
    drafter: PartReport | None,
    base_model: str | None,
    name: str,
) -> str:
    """The card of a bundle.

    Args:
        bundle: Where an existing README.md is kept but for its drafter section.
        source: The target's own README.md, whose licence and languages are taken over.
        target: The target, None where only a drafter was added.
        drafter: The drafter, None where there is none.
        base_model: Hub repository of the target, None for a local one.
        name: What the bundle is called.

    Returns:
        The text; the caller writes it.
    """
    existing = bundle / "README.md"
    if target is None and existing.is_file():
        text = existing.read_text("utf-8", errors="replace")
    else:
        text = _new_card(source, target, base_model, name)
    if drafter is not None:
        text = _with_section(text, _drafter_section(drafter))
    return text


def _new_card(
    source: Path | None, target: PartReport | None, base_model: str | None, name: str
) -> str:
    data = ModelCardData()
    if source is not None and source.is_file():
        try:
            data = ModelCard.load(source, ignore_metadata_errors=True).data
        except Exception:  # whatever YAML makes of another's README
            data = ModelCardData()  # a README without a card's header
    data.library_name = "mlx"
    data.pipeline_tag = "text-generation"
    data.tags = sorted({*(data.tags or []), "mlx"})
    if base_model is not None:
        data.base_model = base_model
    made = "" if target is None else f"Converted from {target.name}: {_size(target)}.\n"
    return f"""---
{data.to_yaml()}
---

# {name}

{made}
```python
from mlx_redrafter import generate, load

model, tokenizer = load("{name if "/" in name else "path/to/" + name}")
print(generate(model, tokenizer, "Hello"))
```

The directory is in mlx-lm's layout, so `mlx_lm.load` opens it too.
"""


def _drafter_section(drafter: PartReport) -> str:
    return (
        f"{DRAFTER_HEADING}\n\n"
        "`drafter/` holds a recurrent drafter (ReDrafter, arXiv 2403.09919) for this model, "
        f"converted from {drafter.name}: {_size(drafter)}.\n"
    )


def _with_section(text: str, section: str) -> str:
    """Put the drafter's section in place of an earlier one, or at the end."""
    pattern = re.compile(rf"^{DRAFTER_HEADING}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: section, text, count=1)
    return f"{text.rstrip()}\n\n{section}"


def _size(part: PartReport) -> str:
    millions, bits = f"{part.parameters / 1e6:,.1f}", f"{part.bits_per_weight:.2f}"
    return f"{millions} million parameters at {bits} bits, {size_words(part.bytes_after)}"
