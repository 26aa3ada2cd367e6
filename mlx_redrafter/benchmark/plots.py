"""Reports as PNG pictures, drawn with matplotlib, which only this needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from ..system.disk import writing
from ..system.files import atomic_path
from .comparison import Comparison
from .curve import CostCurve
from .sweep import Point, Sweep

DPI = 150
PANEL = (5.0, 3.8)  # inches
TOKENS_PER_STEP = "tokens per step"
RATIO = "speed over plain decoding"


def check_matplotlib() -> None:
    """Refuse to plan pictures that cannot be drawn.

    Raises:
        RedrafterError: If matplotlib is missing.
    """
    _figure_class()


def plot_comparison(comparison: Comparison, directory: Path) -> list[Path]:
    """Speed of each contestant, and acceptance by depth; returns the picture's path."""
    figure = _figure(1)
    speeds, depths = figure.subplots(1, 2)
    names = [result.name for result in comparison.results]
    rates = [result.tokens_per_second for result in comparison.results]
    medians = [rate.median for rate in rates]
    below = [rate.median - rate.low for rate in rates]
    above = [rate.high - rate.median for rate in rates]
    speeds.barh(names, medians, xerr=[below, above], color="tab:green", capsize=3)
    speeds.invert_yaxis()
    speeds.set_xlabel("tokens per second, prefill included (median, quartiles)")
    for result in comparison.results:
        if result.stats is not None and result.stats.drafted:
            rate_by_depth = result.stats.acceptance_by_depth
            depths.plot(range(1, len(rate_by_depth) + 1), rate_by_depth, "o-", label=result.name)
    depths.set(xlabel="depth", ylabel="share of steps that accepted a token there", ylim=(0, 1.05))
    _whole_numbers(depths)
    if depths.lines:
        depths.legend()
    return [_save(figure, directory / "run.png")]


def plot_sweep(sweep: Sweep, directory: Path) -> list[Path]:
    """For each precision heat maps and curves of what is there; returns the pictures' paths."""
    paths = []
    for precision in dict.fromkeys(point.precision for point in sweep.points):
        points = [point for point in sweep.points if point.precision == precision]
        paths.append(_save(_heat_maps(points), directory / f"heat-{precision}.png"))
        paths.append(_save(_curves(points), directory / f"curves-{precision}.png"))
    return paths


def plot_costs(curve: CostCurve, directory: Path) -> list[Path]:
    """T(n), and what it takes to break even; returns the picture's path."""
    figure = _figure(1)
    seconds, even = figure.subplots(1, 2)
    costs = curve.costs
    for context, row, plain in zip(costs.contexts, costs.verify, costs.plain, strict=True):
        label = f"behind {context:,}"
        seconds.plot(costs.sizes, [1000 * value for value in row], "o-", label=label)
        even.plot(costs.sizes, [value / plain for value in row], "o-", label=label)
    seconds.set(xlabel="tokens in a forward", ylabel="milliseconds", ylim=(0, None))
    even.set(
        xlabel="tokens in a forward",
        ylabel="tokens per step to break even,\ndrafting not counted",
        ylim=(0, None),
    )
    for axes in (seconds, even):
        axes.grid(alpha=0.3)
        axes.legend()
    return [_save(figure, directory / "cost.png")]


def _heat_maps(points: Sequence[Point]) -> Any:
    """A row for each temperature: tokens per step and speed over plain, width against length."""
    temperatures = list(dict.fromkeys(point.temperature for point in points))
    figure = _figure(len(temperatures))
    grid = figure.subplots(len(temperatures), 2, squeeze=False)
    for axes, temperature in zip(grid, temperatures, strict=True):
        here = [point for point in points if point.temperature == temperature]
        for panel, title, value in (
            (axes[0], TOKENS_PER_STEP, lambda point: point.tokens_per_step),
            (axes[1], RATIO, lambda point: point.ratio.median),
        ):
            _heat_map(figure, panel, here, value)
            panel.set_title(f"{title}, temperature {temperature:g}", fontsize="medium")
    figure.suptitle(points[0].precision)
    return figure


def _heat_map(
    figure: Any, axes: Any, points: Sequence[Point], value: Callable[[Point], float]
) -> None:
    widths = sorted({point.shape.width for point in points})
    lengths = sorted({point.shape.length for point in points})
    cells = [[float("nan")] * len(lengths) for _ in widths]
    for point in points:
        row, column = widths.index(point.shape.width), lengths.index(point.shape.length)
        cells[row][column] = value(point)
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
    middle = (min(map(value, points)) + max(map(value, points))) / 2
    for point in points:
        where = lengths.index(point.shape.length), widths.index(point.shape.width)
        colour = "white" if value(point) <= middle else "black"
        axes.text(*where, f"{value(point):.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(lengths)), lengths)
    axes.set_yticks(range(len(widths)), widths)
    axes.set(xlabel="beam length", ylabel="beam width")
    figure.colorbar(image, ax=axes)


def _curves(points: Sequence[Point]) -> Any:
    """A row for each temperature: the same two against the length, a line for each width."""
    temperatures = list(dict.fromkeys(point.temperature for point in points))
    figure = _figure(len(temperatures))
    grid = figure.subplots(len(temperatures), 2, squeeze=False)
    for axes, temperature in zip(grid, temperatures, strict=True):
        here = [point for point in points if point.temperature == temperature]
        for width in sorted({point.shape.width for point in here}):
            line = [point for point in here if point.shape.width == width]
            line.sort(key=lambda point: point.shape.length)
            lengths = [point.shape.length for point in line]
            label = f"width {width}"
            axes[0].plot(lengths, [point.tokens_per_step for point in line], "o-", label=label)
            ratios = [point.ratio for point in line]
            below = [ratio.median - ratio.low for ratio in ratios]
            above = [ratio.high - ratio.median for ratio in ratios]
            medians = [ratio.median for ratio in ratios]
            axes[1].errorbar(
                lengths, medians, yerr=[below, above], marker="o", capsize=3, label=label
            )
        axes[1].axhline(1.0, color="grey", linestyle="--", linewidth=1)
        for panel, title in zip(axes, (TOKENS_PER_STEP, RATIO), strict=True):
            panel.set(xlabel="beam length", ylabel=title)
            _whole_numbers(panel)
            panel.set_title(f"temperature {temperature:g}", fontsize="medium")
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small")
    figure.suptitle(points[0].precision)
    return figure


def _whole_numbers(axes: Any) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RedrafterError(
            "Pictures need matplotlib: run pip install matplotlib, or pass --no-plots."
        ) from error
    return Figure


def _figure(rows: int) -> Any:
    """An empty figure of its own, two panels wide: no window, and nothing kept by matplotlib."""
    size = (PANEL[0] * 2, PANEL[1] * rows)
    return _figure_class()(figsize=size, layout="constrained")


def _save(figure: Any, path: Path) -> Path:
    with writing(path), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
    return path
