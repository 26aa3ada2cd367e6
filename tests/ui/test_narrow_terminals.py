"""What tables and trees show on terminals of few columns: whole figures and whole tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chat_fakes import make_session
from planning_machines import KNOWN, OPENBLAS, Chat, costs_of
from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.table import Table

from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.tree import HostTree
from mlx_redrafter.ui.bars import WordsColumn, bar_column
from mlx_redrafter.ui.chat import views
from mlx_redrafter.ui.chat.commands import COMMANDS
from mlx_redrafter.ui.cli.plan_view import cost_table, plan_report
from mlx_redrafter.ui.fitting import Fields, Figures, FirstThatFits
from mlx_redrafter.ui.theme import CALIBRATING, THEME

WIDTHS = (20, 30, 40, 60, 80, 120)


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


def words_of(text: str) -> list[str]:
    """Words as they were before lines were broken, without a frame."""
    return text.replace("│", " ").split()


@pytest.mark.parametrize("width", WIDTHS)
def test_costs_after_several_contexts_are_shown_without_a_figure_cut(width: int) -> None:
    costs = costs_of(OPENBLAS)
    one = costs.verify[0]
    contexts = (0, 64, 512, 2048, 16384)
    verify = tuple(tuple(seconds * (1 + n) for seconds in one) for n in range(len(contexts)))
    shown = drawn(cost_table(replace(costs, contexts=contexts, verify=verify)), width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "…" not in shown
    for context in contexts:
        assert f"{context:,}" in words_of(shown)
    for row in verify:
        assert f"{1000 * row[-1]:.2f}" in shown
    assert " ".join(words_of(shown)).endswith("at width 8")


@pytest.mark.parametrize("width", WIDTHS)
def test_help_header_and_statistics_are_shown_in_whole_words(width: int) -> None:
    session = make_session()
    list(session.ask("q"))
    rows = [(command.usage, command.words) for command in COMMANDS.values()]
    told = {word for usage, words in rows for word in f"{usage} {words}".split()}
    shown = drawn(views.help_table(rows), width)
    assert told <= set(words_of(shown))
    assert "…" not in shown
    facts = session.facts
    header = words_of(drawn(views.header(session), width))
    assert {"model", "drafter", "device", "answers", f"{facts.device},"} <= set(header)
    statistics = drawn(views.session_stats(session), width)
    assert "…" not in statistics
    assert {"accepted", "drafting,", "checking", "share", "steps"} <= set(words_of(statistics))


def test_words_stand_below_their_label_where_there_is_no_room_beside_it() -> None:
    fields = Fields([("a long label", "some words of it"), ("", "and more"), ("b", "1")])
    assert drawn(fields, 40).split("\n")[0].rstrip() == "a long label  some words of it"
    lines = [line.rstrip() for line in drawn(fields, 20).splitlines()]
    assert lines == ["a long label", "  some words of it", "  and more", "b", "  1"]


def test_a_wide_table_is_drawn_in_parts_that_each_name_their_rows() -> None:
    table = Figures("", "first", "second", "third", title="all of it", box=None)
    table.add_row("a row", "1,234.5", "12.34", "0.99")
    assert len(drawn(table, 80).splitlines()) == 3
    lines = [line.rstrip() for line in drawn(table, 20).splitlines()]
    assert lines == [
        "all of it",
        "        first second", "a row 1,234.5  12.34",
        "      third", "a row  0.99",
    ]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_words_beside_a_bar_are_not_cut(width: int) -> None:
    console = Console(theme=THEME, width=width, color_system=None)
    bar = Progress(WordsColumn("{task.description}"), bar_column(console), console=console)
    bar.add_task(CALIBRATING, total=3, completed=3)
    shown = drawn(bar.get_renderable(), width)
    assert "━━━" in shown
    assert shown.replace("━", "").split() == CALIBRATING.split()


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
