"""``python -m mlx_redrafter.plan``: goes on until it can say something."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planning_machines import BABBLE, CPU, FLAT, KNOWN, LINEAR, OPENBLAS, Chat, costs_of
from rich.console import Console

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.ui.cli import plan
from mlx_redrafter.ui.cli.plan import PlanFlags
from mlx_redrafter.ui.cli.plan_view import DOUBTED, plan_report
from mlx_redrafter.ui.flags import options_of
from mlx_redrafter.ui.prompts import given_prompts
from mlx_redrafter.ui.together import Together


def flags(*words: str) -> PlanFlags:
    return options_of(PlanFlags, plan.build_parser().parse_args(words))


def test_the_model_is_named_by_a_flag_as_everywhere_or_by_itself() -> None:
    assert flags("some/model").path == "some/model"
    assert flags("--model", "some/model").path == "some/model"
    assert flags("some/model", "--model", "some/model", "--prompt", "x").path == "some/model"
    with pytest.raises(RedrafterError, match="Two models are named, one and other"):
        _ = flags("one", "--model", "other").path


def test_an_empty_prompt_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        plan.main(["no/model", "--prompt", "a question", "--prompt", " "])
    assert caught.value.code == 2
    assert "--prompt is empty" in capsys.readouterr().err


def test_a_prompt_may_come_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" from a pipe\n"))
    assert given_prompts(["one", "-"]) == ["one", "from a pipe"]
    assert given_prompts(()) == []


@pytest.mark.parametrize(
    ("stdin", "prompts", "sentence"),
    [("", ["-"], "there was none"), ("text", ["-", "x", "-"], "given twice")],
)
def test_stdin_that_gives_no_prompt_is_told_before_anything_is_loaded(
    stdin: str,
    prompts: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert plan.main(["no/model", *asked]) == 2
    assert sentence in capsys.readouterr().err


class Tokenizer:
    """As much of one as the samples need."""

    has_chat_template = True


def planned(
    monkeypatch: pytest.MonkeyPatch, curve: str, kind: Any, options: PlanFlags
) -> tuple[Planner, list[str]]:
    """Decode samples whose answers are drawn, not computed; returns the prompts asked."""
    planner, asked = Planner(costs_of(curve)), []
    chat = Chat(planner.costs, planner)

    def decode(
        _model: Any, _tokenizer: Any, _planner: Any, _options: Any, text: str, seed: int
    ) -> Any:
        asked.append(text)
        since = len(chat.steps)
        chat.answers(kind, 1, seed=seed)
        yield from range(sum(tokens for _, tokens, _ in chat.steps[since:]))

    monkeypatch.setattr(plan, "_decode", decode)
    console = Console(quiet=True)
    tokenizer, model = Tokenizer(), SimpleNamespace(agreed=lambda seconds: seconds)
    plan._decode_samples(model, tokenizer, planner, options, console, Together())  # type: ignore[arg-type]
    return planner, asked


@pytest.mark.parametrize(
    ("curve", "kind", "words"),
    [
        (OPENBLAS, KNOWN, "Drafting pays here"),
        (FLAT, KNOWN, "Drafting pays here"),
        (CPU, BABBLE, "does not pay here so far"),
        (LINEAR, KNOWN, "No draft could gain much here, so decoding is plain and none is tried"),
    ],
)
def test_one_prompt_is_gone_on_with_until_something_can_be_said(
    monkeypatch: pytest.MonkeyPatch, curve: str, kind: Any, words: str, tmp_path: Path
) -> None:
    options = flags("--model", str(tmp_path), "--prompt", "hello")
    planner, asked = planned(monkeypatch, curve, kind, options)
    assert planner.known, (planner.state, planner.choice, len(asked))
    assert set(asked) == {"hello"}
    console = Console(width=200)
    with console.capture() as shown:
        console.print(plan_report(planner, 60))
    assert words in " ".join(shown.get().split())
    assert "measured: steps" in shown.get()


def test_a_bundles_own_questions_may_be_of_any_kind_that_the_benchmark_reads(
    tmp_path: Path,
) -> None:
    rows = ('{"question": "a\u2028b"}', "", '{"turns": ["c", "d"]}', '{"text": "e"}')
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(rows), "utf-8-sig")
    assert plan._own_questions(str(tmp_path)) == ["a\u2028b", "c", "e"]
    file.write_text("no JSON")
    with pytest.raises(RedrafterError, match="line 1 is not JSON"):
        plan._own_questions(str(tmp_path))


def test_forecast_and_measured_stand_side_by_side() -> None:
    planner = Planner(costs_of(OPENBLAS))
    Chat(planner.costs, planner).answers(KNOWN, 20)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(plan_report(planner, 60))
    (row,) = [line for line in shown.get().splitlines() if line.lstrip().startswith("→")]
    made = planner.prices.made(planner.choice)
    assert f"{made.steps:,}" in row
    assert f"{made.tokens / made.seconds:.1f}" in row


def test_the_table_says_why_something_else_is_drafted_than_promises_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planner = Planner(costs_of(OPENBLAS))
    Chat(planner.costs, planner).answers(KNOWN, 20)
    forecasts = planner.forecasts(60)
    told = []
    for more in (0.5, 2.0):
        other = next(one for one in forecasts if one.shape not in (None, planner.choice))
        chosen = next(one for one in forecasts if one.shape == planner.choice)
        seconds = chosen.step_seconds * other.tokens_per_step / chosen.tokens_per_step / more
        both = [forecasts[0], chosen, replace(other, step_seconds=seconds)]
        monkeypatch.setattr(planner, "forecasts", lambda _context, both=both: both)
        console = Console(width=200)
        with console.capture() as shown:
            console.print(plan_report(planner, 60))
        told.append(DOUBTED in shown.get())
    assert told == [False, True]
