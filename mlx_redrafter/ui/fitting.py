"""Views in several widths: the first that a terminal shows whole."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement

# Wider than any view, so that measuring does not cut what it measures.
UNBOUNDED = 1 << 12


class FirstThatFits:
    """One of several drawings of the same: Rich would cut figures to make a wide one narrow.

    Args:
        *choices: From the widest to the narrowest, which is drawn where none fits.
    """

    def __init__(self, *choices: RenderableType):
        self._choices = choices

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the first that fits."""
        unbounded = options.update(max_width=UNBOUNDED)
        for choice in self._choices[:-1]:
            if Measurement.get(console, unbounded, choice).maximum <= options.max_width:
                yield choice
                return
        yield self._choices[-1]
