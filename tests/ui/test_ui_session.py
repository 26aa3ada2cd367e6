from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import pytest
from chat_fakes import FACTS, CharTokenizer, FakeStream, make_session

from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning.trials import PlannerState
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.ui.chat.answer import Baseline
from mlx_redrafter.ui.chat.main import load_session
from mlx_redrafter.ui.chat.session import Session
from mlx_redrafter.ui.chat.settings import ChatSettings
from mlx_redrafter.ui.chat.status import read, summary


def test_turns_build_a_conversation_on_one_cache():
    stream = FakeStream()
    session = make_session(stream, ChatSettings(system="be brief"))
    for question in ("one", "two"):
        assert "".join(r.text for r in session.ask(question)) == "hello"
    assert [call["prompt"] for call in stream.calls] == [
        "<system>be brief<user>one",
        "<system>be brief<user>one<assistant>hello<user>two",
    ]
    assert stream.calls[0]["cache"] is stream.calls[1]["cache"] is session.cache
    assert session.totals.answers == 2
    assert session.totals.tokens == 10
    assert session.totals.drafting.steps == 10


def test_settings_reach_the_engine():
    stream = FakeStream()
    settings = ChatSettings(
        SamplingConfig(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=3), max_tokens=9,
        draft=False,
        beam_width=2, beam_length=3, node_budget=4,
    )  # fmt: skip
    list(make_session(stream, settings).ask("q"))
    call = stream.calls[0]
    assert (call["temperature"], call["top_p"], call["top_k"]) == (0.5, 0.9, 7)
    assert (call["min_p"], call["seed"], call["max_tokens"]) == (0.1, 3, 9)
    assert (call["beam_width"], call["beam_length"], call["node_budget"]) == (2, 3, 4)
    assert call["draft"] is False


def test_an_abandoned_answer_closes_the_engine_and_stays_as_far_as_it_went():
    stream = FakeStream()
    session = make_session(stream)
    answer = session.ask("q")
    assert next(answer).text + next(answer).text == "he"
    answer.close()
    assert stream.closed == 1
    assert session.messages == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "he"},
    ]
    assert session.last is not None
    assert session.last.interrupted
    list(session.ask("more"))
    assert stream.calls[1]["prompt"] == "<user>q<assistant>he<user>more"


def test_an_answer_that_never_began_takes_its_question_back():
    stream = FakeStream()

    def fail(count: int) -> None:
        raise KeyboardInterrupt

    stream.on_token = fail
    session = make_session(stream)
    with pytest.raises(KeyboardInterrupt):
        list(session.ask("q"))
    assert session.messages == []
    assert session.last is None
    assert stream.closed == 1


def test_the_context_limit_is_told_before_and_heeded_during_an_answer():
    stream = FakeStream("x" * 500)
    session = make_session(stream)
    with pytest.raises(RedrafterError, match=r"/reset"):
        list(session.ask("y" * 300))
    assert session.messages == []
    list(session.ask("y" * 144))  # 150 with the role; 200 fit
    assert stream.calls[0]["max_tokens"] == 50
    assert session.last is not None
    assert session.last.at_limit


@pytest.mark.parametrize(("limit", "room"), [(160, 10), (400, 250)])
def test_a_context_limit_of_ones_own_takes_the_models_place(limit, room):
    stream = FakeStream("x" * 500)
    session = make_session(stream, ChatSettings(context_limit=limit))
    list(session.ask("y" * 144))  # 150 with the role; the model states 200
    assert stream.calls[0]["max_tokens"] == room
    assert session.last.at_limit
    with pytest.raises(RedrafterError, match=f"reads {limit} at most"):
        list(session.ask("y" * 300))


def test_a_conversation_as_long_as_the_context_leaves_no_room():
    session = make_session(FakeStream("x"), ChatSettings(context_limit=150))
    with pytest.raises(RedrafterError, match="no room for an answer, as this model reads 150"):
        list(session.ask("y" * 144))  # 150 with the role


def test_max_tokens_is_no_context_limit():
    session = make_session(FakeStream("x" * 50), ChatSettings(max_tokens=10))
    list(session.ask("q"))
    assert session.last is not None
    assert not session.last.at_limit
    assert session.last.to_dict()["finish_reason"] == "length"


def test_speedup_needs_a_measurement():
    session = make_session()
    assert session.speedup(200.0) is None
    session.take_baseline(Baseline(tps=100.0, tokens=48, context=20))
    assert session.speedup(250.0) == 2.5
    assert session.speedup(0.0) is None


def test_a_plain_answer_measures_plain_decoding_if_it_is_long_enough():
    session = make_session(FakeStream("short"), ChatSettings(draft=False))
    list(session.ask("q"))
    assert session.baseline is None
    session = make_session(FakeStream("x" * 20), ChatSettings(draft=False))
    list(session.ask("q"))
    assert session.baseline == Baseline(tps=pytest.approx(100.0), tokens=20, context=7)
    assert session.totals.plain_answers == 1


def test_compare_answers_the_last_question_both_ways_and_keeps_the_conversation():
    stream = FakeStream("x" * 20)
    session = make_session(stream)
    with pytest.raises(RedrafterError, match="no question"):
        session.compare()
    list(session.ask("q"))
    before = list(session.messages)
    result = session.compare()
    assert [call["draft"] for call in stream.calls] == [True, False, True]
    # What was just answered would be copied.
    assert [call["remember"] for call in stream.calls] == [True, False, False]
    assert stream.calls[1]["prompt"] == stream.calls[2]["prompt"] == "<user>q"
    assert result.identical
    assert result.drafted.tps == pytest.approx(2 * result.plain.tps)
    assert session.messages == before
    assert session.baseline is not None


def test_compare_needs_a_drafter():
    session = make_session(drafter=None)
    list(session.ask("q"))
    with pytest.raises(RedrafterError, match="no drafter"):
        session.compare()


def test_reset_forgets_the_conversation_and_its_caches():
    session = make_session()
    list(session.ask("q"))
    session.cache.tokens.append(1)
    session.reset()
    assert session.messages == []
    assert len(session.cache) == 0
    assert session.totals.answers == 1


def test_a_model_without_a_chat_template_goes_on_from_the_bare_text():
    stream = FakeStream()
    session = make_session(stream)
    session.tokenizer.has_chat_template = False
    list(session.ask("once upon"))
    list(session.ask("then"))
    assert [call["prompt"] for call in stream.calls] == ["once upon", "once upon\n\nhello\n\nthen"]


class Planning:
    """A planner as far as the chat asks it."""

    def __init__(self, plain: float | None, state: PlannerState, choice: object = None):
        self.plain, self.state, self.choice = plain, state, choice

    def plain_speed(self, context: int) -> float | None:
        return None if self.plain is None else self.plain - context


def answer_of(tokens: int, drafted: int, session: Any) -> Any:
    """An answer at 200 tokens a second."""
    stats = AcceptanceStats(
        steps=10, drafted=drafted, accepted=drafted // 2, tokens=tokens, verify_seconds=tokens / 200
    )
    list(session.ask("hello"))
    final = replace(session.last.final, generation_tokens=tokens)
    return replace(session.last, drafted=True, stats=stats, final=final, prompt_tokens=10)


def test_a_ratio_needs_tokens_and_drafts_and_plain_steps() -> None:
    session = make_session()
    planner: Any = Planning(None, PlannerState.DRAFTING, choice="a shape")
    session.plan_with(planner)
    answer = answer_of(40, 30, session)
    assert session.ratio(answer) is None  # no plain step was timed yet
    planner.plain = 130.0  # at 10 + 40 / 2 tokens, 100
    assert session.ratio(answer) == pytest.approx(2.0)
    assert session.ratio(answer_of(15, 30, session)) is None
    assert session.ratio(answer_of(40, 0, session)) is None


def test_the_line_under_an_answer_says_what_the_planner_is_about() -> None:
    session = make_session()
    planner: Any = Planning(130.0, PlannerState.TRYING)
    session.plan_with(planner)
    answer = answer_of(40, 30, session)
    assert "trying shapes" in summary(answer, None, session.planning)
    planner.choice = "a shape"
    assert session.planning is None
    planner.choice, planner.state = None, PlannerState.OFF
    assert session.planning == "not on this machine so far"


def test_a_context_limit_leads_past_no_table_of_positions() -> None:
    model = SpeculativeModel(architectures.build("gpt2"))
    table = model.target.max_positions
    assert table is not None
    stream = FakeStream("x" * 500)
    settings = ChatSettings(context_limit=10 * table)
    session = Session(model, CharTokenizer(), FACTS, settings, stream)
    with pytest.raises(RedrafterError, match=f"this model reads {table:,} at most"):
        list(session.ask("y" * table))
    list(session.ask("y" * (table - 16)))  # 10 less than the table with the role
    assert stream.calls[0]["max_tokens"] == 10


def test_a_retry_that_is_never_read_loses_nothing() -> None:
    session = make_session()
    list(session.ask("q"))
    before = list(session.messages)
    session.retry().close()
    assert session.messages == before
    list(session.ask("more"))
    assert len(session.messages) == 4


@pytest.mark.parametrize("draft", [False, True])
def test_an_answer_is_gone_on_with_as_drafts_are_set_now(bundle: Path, draft: bool) -> None:
    shape = {"beam_width": 2, "beam_length": 2}
    session = load_session(str(bundle), ChatSettings(max_tokens=5, draft=not draft, **shape))
    list(session.ask("the dog"))
    session.settings = replace(session.settings, draft=draft)
    list(session.resume())
    assert session.last is not None
    assert session.last.drafted is draft
    assert (session.last.stats.drafted > 0) is draft


def test_the_live_line_counts_what_was_gone_on_with(bundle: Path) -> None:
    session = load_session(str(bundle), ChatSettings(max_tokens=5, draft=False))
    list(session.ask("the dog"))
    assert session.last is not None
    held = len(session.prompt) + len(session.last.token_ids)
    contexts = [read(session, response).context for response in session.resume()]
    assert contexts == list(range(held + 1, held + 1 + len(contexts)))
