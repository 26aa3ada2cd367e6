"""What tables and trees show on terminals of few columns: whole figures and whole tokens."""

from __future__ import annotations

import pytest
from chat_fakes import make_session
from planning_machines import KNOWN, OPENBLAS, Chat, costs_of
from rich.console import Console, RenderableType
from rich.table import Table

from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.tree import HostTree
from mlx_redrafter.ui.chat import views
from mlx_redrafter.ui.cli.plan_view import plan_report
from mlx_redrafter.ui.fitting import FirstThatFits
from mlx_redrafter.ui.theme import THEME

WIDTHS = (40, 60, 80, 120)


def drawn(view: RenderableType, width: int) -> str:
    console = Console(theme=THEME, width=width, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_is_shown_without_a_figure_cut(width: int) -> None:
    planner = Planner(costs_of(OPENBLAS))
    Chat(planner.costs, planner).answers(KNOWN, 6, seed=0)
    shown = drawn(plan_report(planner, 60), width)
    assert "…" not in shown
    plain, *_ = planner.forecasts(60)
    assert f"{1000 * plain.step_seconds:.2f}" in shown
    made = planner.prices.made(planner.choice)
    assert made.steps
    assert f"{made.tokens / made.steps:.2f}" in shown
    assert "measured" in shown


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_is_shown_without_a_figure_cut(width: int) -> None:
    session = make_session()
    list(session.ask("q"))
    result = session.compare()
    shown = drawn(views.comparison(result), width)
    assert "…" not in shown
    for run in (result.plain, result.drafted):
        assert f"{run.tps:,.1f}" in shown
        assert f"{run.stats.tokens_per_step:.2f}" in shown
    assert "tokens/step" in shown


def chain(length: int, accepted: int) -> StepRecord:
    """A chain of guesses, of which so many were accepted."""
    names = [chr(ord("a") + place % 26) for place in range(length + 1)]
    tree = HostTree(
        tokens=tuple(map(ord, names)),
        parents=tuple(range(-1, length)),
        log_probs=tuple(-place / 100 for place in range(length + 1)),
    )
    return StepRecord(tree, tuple(map(ord, names)), tuple(range(accepted + 1)), frozenset())


def test_a_long_chain_of_guesses_is_a_line_where_levels_do_not_fit() -> None:
    tokenizer = make_session().tokenizer
    narrow = drawn(views.draft_tree(chain(20, 12), tokenizer), 60).splitlines()
    assert "└── ✓ bcdefghijklm  -0.12" in narrow
    assert any(line.endswith("  nopqrstu  -0.20") for line in narrow)
    assert any(line.endswith("→ m  supplied by the model") for line in narrow)
    wide = drawn(views.draft_tree(chain(20, 12), tokenizer), 120)
    assert "✓ m  -0.12" in wide


def test_the_last_choice_is_drawn_where_nothing_fits() -> None:
    table = Table("one", "another")
    assert drawn(FirstThatFits("a long sentence", table), 9) == drawn(table, 9)
    assert drawn(FirstThatFits("a long sentence", table), 20) == "a long sentence\n"
