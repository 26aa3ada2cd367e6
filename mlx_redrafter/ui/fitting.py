"""Views in several widths: the first that a terminal shows whole."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement

# Wider than any view, so that measuring does not cut what it measures.
UNBOUNDED = 1 << 12


@dataclass(frozen=True, init=False)
class FirstThatFits:
    """One of several drawings of the same: Rich would cut figures to make a wide one narrow.

    Attributes:
        choices: From the widest to the narrowest, which is drawn where none fits.
    """

    choices: tuple[RenderableType, ...]

    def __init__(self, *choices: RenderableType):
        object.__setattr__(self, "choices", choices)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the first that fits."""
        unbounded = options.update(max_width=UNBOUNDED)
        for choice in self.choices[:-1]:
            if Measurement.get(console, unbounded, choice).maximum <= options.max_width:
                yield choice
                return
        yield self.choices[-1]
