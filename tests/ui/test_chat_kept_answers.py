"""Answers that outlive their session, that are asked for again, and that are seen uncoloured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_fakes import FakeStream, RecordingFrontEnd, make_session
from rich.console import Console

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.ui.chat.commands import run_command
from mlx_redrafter.ui.chat.main import load_session
from mlx_redrafter.ui.chat.session import Session
from mlx_redrafter.ui.chat.settings import ChatSettings
from mlx_redrafter.ui.theme import THEME


def run(line: str, session: Session) -> RecordingFrontEnd:
    front = RecordingFrontEnd()
    run_command(line, session, front)
    return front


def ask(session: Session, question: str) -> None:
    list(session.ask(question))


# An answer that was cut, on disk.


def saved_and_loaded(session: Session, path: Path, fresh: Session) -> Session:
    run(f"/save {path}", session)
    run(f"/load {path}", fresh)
    return fresh


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_cut_answer_goes_on_after_it_was_saved_and_loaded(
    bundle: Path, tmp_path: Path, temperature: float
) -> None:
    sampling = SamplingConfig(temperature=temperature)
    settings = ChatSettings(sampling=sampling, max_tokens=12)
    session = load_session(str(bundle), settings)
    ask(session, "what is this?")
    fresh = load_session(str(bundle), settings)
    saved_and_loaded(session, tmp_path / "talk.json", fresh)
    rest = [list(one.resume()) for one in (session, fresh)]
    assert [r.token for r in rest[0]] == [r.token for r in rest[1]]
    assert session.messages == fresh.messages
    assert session.last is not None
    assert fresh.last is not None
    assert session.last.seed == fresh.last.seed


def test_another_models_tokens_do_not_stand_for_the_text(bundle: Path, tmp_path: Path) -> None:
    session = load_session(str(bundle), ChatSettings(max_tokens=5))
    ask(session, "what is this?")
    path = tmp_path / "talk.json"
    run(f"/save {path}", session)
    document = json.loads(path.read_text("utf-8"))
    for ids in ([10**9], [-1], [3, 3, 3], []):
        document["cut"]["token_ids"] = ids
        path.write_text(json.dumps(document), "utf-8")
        run(f"/load {path}", session)
        begun = session.messages[-1]["content"]
        list(session.resume())
        assert session.messages[-1]["content"].startswith(begun)


def test_an_answer_that_was_not_cut_is_not_gone_on_with_from_a_file(tmp_path: Path) -> None:
    session = make_session()
    ask(session, "why")
    with pytest.raises(RedrafterError, match="does not say that its last answer was cut"):
        run("/continue", saved_and_loaded(session, tmp_path / "whole.json", make_session()))


def test_a_file_that_was_written_before_there_were_marks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    messages = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "he"}]
    path.write_text(json.dumps({"model": "fake", "messages": messages}), "utf-8")
    session = make_session()
    run(f"/load {path}", session)
    assert session.messages == messages
    for damaged in (5, {}, {"token_ids": ["a"], "seed": 1}, {"token_ids": [1]}):
        path.write_text(json.dumps({"messages": messages, "cut": damaged}), "utf-8")
        with pytest.raises(RedrafterError, match=r"old\.json: 'cut' is not what /save writes"):
            run(f"/load {path}", session)


# The same words again.


def test_a_greedy_retry_that_says_the_same_tells_why() -> None:
    session = make_session()
    ask(session, "why")
    told = ["The same words again, since answers are greedy: /temp X lets others be drawn."]
    assert run("/retry", session).said == told
    run("/temp 0.7", session)
    assert run("/retry", session).said == []
    run("/temp 0", session)
    session._stream = FakeStream("other")
    assert run("/retry", session).said == []


# Without colours.


def test_who_supplied_a_token_is_told_without_colours() -> None:
    console = Console(theme=THEME, force_terminal=True, no_color=True, color_system="standard")
    kinds = ("answer.drafted", "answer.copied", "answer.target", "answer.thought")
    shown = set()
    for kind in kinds:
        with console.capture() as captured:
            console.print("text", style=kind)
        shown.add(captured.get())
    assert len(shown) == len(kinds)
