from __future__ import annotations

import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from chat_fakes import FakeStream, RecordingFrontEnd, make_session

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.ui.chat.commands import COMMANDS, Quit, run_command
from mlx_redrafter.ui.chat.main import converse
from mlx_redrafter.ui.chat.settings import ChatSettings


def run(line, session=None, front=None):
    front = front or RecordingFrontEnd()
    run_command(line, session or make_session(), front)
    return front


def test_help_lists_every_command():
    (shown,) = run("/help").shown
    assert all(command.usage in shown and command.words in shown for command in COMMANDS.values())


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/tre", "did you mean /tree"),
        ("/temperature 1", "did you mean /temp[?]"),
        ("/hlep", "did you mean /help[?]"),
        ("/nope", "There is no command /nope: /help lists them"),
        ("/xyz", "/help lists them"),
        ("/temp hot", "temperature needs 0, or a finite number from 1e-37, not 'hot'"),
        ("/temp -1", "0, or a finite number"),
        ("/temp nan", "finite number"),
        ("/beam 4", "the length L is missing"),
        ("/beam 0 5", "whole number of at least 1"),
        ("/beam 4 900", "at most 64"),
        ("/beam 1024 64", "may draft 8192 at most"),
        ("/beam 4 5 6", "whole number"),
        ("/draft maybe", "/draft takes 'on' or 'off', not 'maybe'"),
        ("/copy maybe", "/copy takes 'on' or 'off', not 'maybe'"),
        ("/thoughts maybe", "/thoughts takes 'on' or 'off', not 'maybe'"),
        ("/marks maybe", "/marks takes 'on' or 'off', not 'maybe'"),
        ("/save", "name of a file"),
        ("/save x.json", "no conversation to save"),
        ("/load", "name of a file"),
        ("/stats", "ask a question first"),
        ("/tree", "ask a question first"),
        ("/compare", "no question"),
        ("/compare What is it", "/compare stands alone, so 'What is it' would be for nothing"),
        ("/retry hotter", "/retry stands alone"),
        ("/RESET all", "/RESET stands alone"),
        ("/quit smoking", "/quit stands alone"),
    ],
)
def test_what_is_impossible_is_told_in_a_sentence(line, sentence):
    with pytest.raises(RedrafterError, match=sentence):
        run(line)


def test_settings_change_as_asked_and_are_told_when_not():
    session = make_session()
    assert run("/temp 0.7", session).said == [
        "Answers are now temperature 0.7, a seed of each answer's own."
    ]
    assert run("/temp", session).said == [
        "Answers are now temperature 0.7, a seed of each answer's own."
    ]
    assert run("/beam 3 6", session).said == ["Drafts: beam 3 × 6."]
    assert run("/draft off", session).said == ["Drafting is off."]
    assert run("/system Be brief, please.", session).said == ["System message: Be brief, please."]
    assert session.settings == ChatSettings(
        SamplingConfig(temperature=0.7),
        beam_width=3,
        beam_length=6,
        draft=False,
        system="Be brief, please.",
    )
    assert run("/system none", session).said == ["There is no system message."]
    assert run("/DRAFT on", session).said == ["Drafting is on."]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("name", "on", "off"),
    [
        ("draft", "Drafting is on", "Drafting is off"),
        ("copy", "Copying from the text is on", "Copying from the text is off"),
        ("thoughts", "Thoughts are shown", "Thoughts are folded away"),
        ("marks", "Marks are on", "Marks are off"),
    ],
)
def test_what_is_on_or_off_alone_says_how_it_stands_and_what_changes_it(name, on, off, given):
    session = make_session(settings=ChatSettings(**{name: given}))
    session.facts = replace(session.facts, copies=True)
    before = session.settings
    stands = on if given else off
    assert run(f"/{name}", session).said == [f"{stands}: /{name} on|off changes that."]
    assert session.settings == before
    other = "off" if given else "on"
    assert run(f"/{name} {other}", session).said == [f"{off if given else on}."]
    assert session.settings == replace(before, **{name: not given})


def test_help_says_what_settings_alone_do():
    assert "Settings alone, such as /marks or /temp, say how they stand" in run("/help").shown[0]


def test_draft_on_needs_a_drafter():
    with pytest.raises(RedrafterError, match="no drafter"):
        run("/draft on", make_session(drafter=None))


def test_tree_marks_the_accepted_path_and_the_targets_own_token():
    session = make_session()
    list(session.ask("q"))
    (shown,) = run("/tree", session).shown
    lines = shown.splitlines()
    assert lines[0].startswith("e  ")
    assert "✓ l  -0.10" in shown
    assert "→ p  supplied by the model" in shown
    assert "✓ o" not in shown
    assert "✓ a" not in shown
    assert "1 of 4 drafted tokens accepted" in shown


def test_tree_that_ends_the_text_has_nothing_after_its_end():
    session = make_session()
    session.tokenizer.eos_token_ids = {ord("l")}
    list(session.ask("q"))
    (shown,) = run("/tree", session).shown
    assert "supplied" not in shown


def test_tree_of_a_plain_answer_does_not_exist():
    session = make_session(settings=ChatSettings(draft=False))
    list(session.ask("q"))
    with pytest.raises(RedrafterError, match="Nothing was drafted"):
        run("/tree", session)


def test_stats_show_counts_and_the_histogram():
    session = make_session()
    list(session.ask("q"))
    (shown,) = run("/stats", session).shown
    for words in ("tokens per step", "2.00", "accepted at each depth", "100%", "not measured yet"):
        assert words in shown
    assert "without a draft" not in shown


def test_stats_tell_of_steps_without_a_draft():
    session = make_session()
    list(session.ask("q"))
    drafting = session.totals.drafting
    drafting.record([], accepted=0, emitted=1)
    (shown,) = run("/stats", session).shown
    assert re.search(rf"\bsteps +{drafting.steps}, 1 without a draft\b", shown)


def test_compare_shows_both_speeds_and_the_verdict():
    session = make_session(FakeStream("x" * 20))
    list(session.ask("q"))
    (shown,) = run("/compare", session).shown
    assert "2.00×" in shown
    assert "identical" in shown


def test_save_and_load_bring_the_conversation_back(tmp_path):
    path = tmp_path / "talk.json"
    session = make_session(settings=ChatSettings(system="be brief"))
    list(session.ask("grüß dich \U0001f600"))
    run(f"/save {path}", session)
    assert json.loads(path.read_text("utf-8"))["messages"][0]["role"] == "system"
    assert list(tmp_path.iterdir()) == [path]

    stream = FakeStream()
    other = make_session(stream)
    run(f"/load {path}", other)
    assert other.messages == session.messages
    assert other.settings.system == "be brief"
    list(other.ask("and?"))
    assert stream.calls[0]["prompt"].startswith("<system>be brief<user>grüß dich \U0001f600")


def test_one_message_is_told_as_one(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text('[{"role": "user", "content": "hello"}]')
    (said,) = run(f"/load {path}").said
    assert said.startswith(f"Loaded 1 message from {path}; the conversation goes on")
    path.write_text("[]")
    assert run(f"/load {path}").said == [f"Loaded 0 messages from {path}."]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        ("not json", "holds no JSON"),
        ('{"a": 1}', "no list of messages"),
        ('[{"role": "robot", "content": "x"}]', "message 1"),
        ('[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]', "message 2"),
        ('[{"role": "user", "content": 3}]', "message 1"),
    ],
)
def test_a_file_without_a_conversation_changes_nothing(tmp_path, content, sentence):
    path = tmp_path / "talk.json"
    if content is not None:
        path.write_text(content)
    session = make_session()
    list(session.ask("q"))
    with pytest.raises(RedrafterError, match=sentence):
        run(f"/load {path}", session)
    assert len(session.messages) == 2


def test_saving_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    session = make_session()
    list(session.ask("q"))
    for name in ("file/talk.json", "file/deeper/talk.json"):
        for command in ("save", "load"):
            with pytest.raises(RedrafterError, match="/file is a file, not a directory"):
                run(f"/{command} {tmp_path / name}", session)
    assert (tmp_path / "file").read_text() == ""


def test_saving_that_fails_leaves_no_directory(tmp_path, monkeypatch):
    session = make_session()
    list(session.ask("q"))

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RedrafterError, match="No space left"):
        run(f"/save {tmp_path}/new/place/talk.json", session)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["/save", "/save --overwrite", "/load"])
def test_a_name_that_no_file_can_have_is_told(tmp_path, command):
    session = make_session()
    list(session.ask("q"))
    with pytest.raises(RedrafterError, match="holds a zero byte"):
        run(f"{command} {tmp_path}/ta\0lk.json", session)
    assert len(session.messages) == 2
    assert not list(tmp_path.iterdir())


def test_quit_leaves_and_the_rest_is_not_read():
    with pytest.raises(Quit):
        run("/quit")
    front = RecordingFrontEnd(["/nope", "why", "  ", "q", "never"])
    session = make_session()
    converse(session, front, measured=False)
    assert front.answers == [*"hello", "|"]
    assert len(front.complaints) == 1


def test_a_space_in_front_makes_a_question_of_a_slash():
    stream = FakeStream()
    converse(make_session(stream), RecordingFrontEnd([" /etc is what?"]), measured=False)
    assert stream.calls[0]["prompt"] == "<user>/etc is what?"


def test_a_question_that_does_not_fit_is_told_and_the_session_goes_on():
    front = RecordingFrontEnd(["y" * 300, "short"])
    session = make_session()
    converse(session, front, measured=False)
    assert "/reset" in front.complaints[0]
    assert front.answers == [*"hello", "|"]


def interrupting(at):
    stream = FakeStream()

    def on_token(count):
        if count == at:
            raise KeyboardInterrupt

    stream.on_token = on_token
    return stream


def test_ctrl_c_ends_a_comparison_and_not_the_session():
    stream = FakeStream()
    session = make_session(stream)
    list(session.ask("q"))
    stream.on_token = interrupting(2).on_token
    assert run("/compare", session).said == ["Stopped comparing."]
    assert len(session.messages) == 2


@pytest.mark.parametrize(("at", "kept"), [(1, 0), (3, 2)])
def test_ctrl_c_ends_an_answer_where_a_person_types_and_the_program_elsewhere(at, kept):
    session = make_session(interrupting(at))
    front = RecordingFrontEnd(["why"])
    converse(session, front, measured=False)
    assert len(session.messages) == kept

    front = RecordingFrontEnd(["why", "never"])
    front.attended = False
    session = make_session(interrupting(at))
    with pytest.raises(KeyboardInterrupt):
        converse(session, front, measured=False)
    assert session.totals.answers == bool(kept)
