"""What a conversation offers beyond asking: another answer, the rest of one, and its manners."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from chat_fakes import FakeStream, RecordingFrontEnd, make_session
from rich.console import Console
from shells import interactive_shell

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.ui.chat import main as chat
from mlx_redrafter.ui.chat import views
from mlx_redrafter.ui.chat.commands import run_command
from mlx_redrafter.ui.chat.main import load_session
from mlx_redrafter.ui.chat.session import Session
from mlx_redrafter.ui.chat.settings import ChatSettings
from mlx_redrafter.ui.chat.status import afterwords
from mlx_redrafter.ui.theme import THEME

pytestmark = pytest.mark.usefixtures("no_hint")

ROOT = Path(__file__).resolve().parents[2]


def run(line: str, session: Session, front: RecordingFrontEnd | None = None) -> RecordingFrontEnd:
    front = front or RecordingFrontEnd()
    run_command(line, session, front)
    return front


def ask(session: Session, question: str) -> str:
    return "".join(response.text for response in session.ask(question))


# Another answer, and the rest of one.


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("draft", [False, True])
def test_an_answer_that_is_gone_on_with_is_the_one_that_was_not_cut(
    bundle: Path, temperature: float, draft: bool
) -> None:
    sampling = SamplingConfig(temperature=temperature, seed=5)
    settings = {"sampling": sampling, "draft": draft, "beam_width": 2}
    whole = load_session(str(bundle), ChatSettings(max_tokens=24, **settings))
    cut = load_session(str(bundle), ChatSettings(max_tokens=5, **settings))
    wanted = ask(whole, "hello")
    ask(cut, "hello")
    while cut.last is not None and cut.last.cut and len(cut.last.token_ids) < 24:
        run("/max-tokens 5", cut)
        list(cut.resume())
    assert cut.last is not None
    ends = whole.last.token_ids, cut.last.token_ids
    assert ends[1][:24] == ends[0]
    assert cut.last.text.startswith(wanted.rstrip("\ufffd"))
    assert cut.messages == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": cut.last.text},
    ]


def test_what_ended_by_itself_is_not_gone_on_with() -> None:
    session = make_session()
    with pytest.raises(RedrafterError, match="no answer yet to go on with: ask a question first"):
        run("/continue", session)
    list(session.ask("why"))
    with pytest.raises(RedrafterError, match="was not cut, so there is nothing to go on with"):
        run("/continue", session)


def test_a_retry_takes_the_place_of_the_answer_and_has_another_seed() -> None:
    stream = FakeStream()
    session = make_session(stream, ChatSettings(SamplingConfig(temperature=1.0, seed=7)))
    with pytest.raises(RedrafterError, match="no question yet"):
        run("/retry", session)
    list(session.ask("why"))
    run("/retry", session)
    run("/retry", session)
    assert [call["seed"] for call in stream.calls] == [7, 8, 9]
    assert len({call["prompt"] for call in stream.calls}) == 1
    assert [message["role"] for message in session.messages] == ["user", "assistant"]


def test_a_retry_draws_with_a_seed_that_was_named_since_and_tells_another() -> None:
    stream = FakeStream()
    session = make_session(stream, ChatSettings(SamplingConfig(temperature=1.0)))
    list(session.ask("why"))
    run("/seed 7", session)
    run("/retry", session)
    assert session.last is not None
    assert not afterwords(session, session.last)
    run("/retry", session)
    assert [call["seed"] for call in stream.calls[1:]] == [7, 8]
    assert "Drawn with seed 8" in " ".join(afterwords(session, session.last))


def test_a_loaded_conversation_is_compared_with_one_seed(tmp_path: Path) -> None:
    stream = FakeStream()
    session = make_session(stream, ChatSettings(SamplingConfig(temperature=1.0)))
    list(session.ask("why"))
    run(f"/save {tmp_path / 'talk.json'}", session)
    run(f"/load {tmp_path / 'talk.json'}", session)
    run("/compare", session)
    plain, drafted = (call["seed"] for call in stream.calls[1:])
    assert plain == drafted


def test_a_retry_that_is_stopped_at_once_changes_nothing() -> None:
    stream = FakeStream()
    session = make_session(stream)
    list(session.ask("why"))
    before = list(session.messages)

    def stop(_count: int) -> None:
        raise KeyboardInterrupt

    stream.on_token = stop
    run("/retry", session)
    assert session.messages == before


def test_without_a_named_seed_every_answer_draws_its_own_and_says_which(bundle: Path) -> None:
    session = load_session(
        str(bundle), ChatSettings(SamplingConfig(temperature=1.5), max_tokens=12)
    )
    texts, seeds = set(), set()
    for _ in range(3):
        texts.add(ask(session, "hello"))
        assert session.last is not None
        seeds.add(session.last.seed)
        session.reset()
    assert len(texts) == len(seeds) == 3
    run(f"/seed {session.totals.answers}", session)
    first = ask(session, "hello")
    session.reset()
    assert ask(session, "hello") == first
    assert run("/seed none", session).said == ["Every answer draws a seed of its own."]


# Settings.


def test_settings_of_answers_are_told_and_changed() -> None:
    session = make_session()
    assert run("/max-tokens 9", session).said == ["Answers are 9 tokens long at most."]
    assert run("/marks off", session).said == ["Marks are off."]
    assert run("/marks on", session).said == ["Marks are on."]
    assert run("/thoughts off", session).said == ["Thoughts are folded away."]
    for clear in ("none", "clear"):
        run("/system Be brief.", session)
        assert run(f"/system {clear}", session).said == ["There is no system message."]


def test_saving_asks_before_it_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk.json"
    path.write_text("mine")
    session = make_session()
    list(session.ask("why"))
    front = RecordingFrontEnd()
    with pytest.raises(RedrafterError, match="is a directory: name a file in it"):
        run(f"/save {tmp_path}", session, front)
    assert not front.said
    with pytest.raises(RedrafterError, match="--overwrite"):
        run(f"/save {path}", session, front)
    assert "Replace it?" in front.said[0]
    assert path.read_text() == "mine"
    run(f"/save --overwrite {path}", session)
    assert json.loads(path.read_text())["messages"]
    path.write_text("mine")
    monkeypatch.chdir(tmp_path)
    run("/save --overwritetalk.json", session)
    assert path.read_text() == "mine"
    assert (tmp_path / "--overwritetalk.json").is_file()


def test_a_conversation_that_an_editor_marked_as_unicode_is_read(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text('[{"role": "user", "content": "é"}]', "utf-8-sig")
    session = make_session()
    run(f"/load {tmp_path / 'talk.json'}", session)
    assert session.messages == [{"role": "user", "content": "é"}]


def test_a_huge_file_is_not_read_as_a_conversation(tmp_path: Path) -> None:
    with (tmp_path / "talk.json").open("wb") as file:
        file.truncate(1 << 27)  # of zeros, which take no room
    with pytest.raises(RedrafterError, match="is larger than"):
        run(f"/load {tmp_path / 'talk.json'}", make_session())


def test_any_white_space_parts_a_command_from_its_argument() -> None:
    session = make_session()
    assert run("/seed\t7", session).said == ["The seed is 7."]
    run("/system\nBe brief.\nBe kind.", session)
    assert session.settings.system == "Be brief.\nBe kind."


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"messages": [{"role": "user", "content": "half \\ud83d"}]}']
)
def test_a_strange_file_neither_ends_nor_spoils_a_conversation(
    bundle: Path, tmp_path: Path, content: str
) -> None:
    session = load_session(str(bundle), ChatSettings(max_tokens=3))
    ask(session, "hello")
    (tmp_path / "talk.json").write_text(content)
    with suppress(RedrafterError):
        run(f"/load {tmp_path / 'talk.json'}", session)
    ask(session, "and?")
    assert session.last is not None
    assert session.last.tokens


# What is shown.


@pytest.mark.parametrize("width", [40, 80])
def test_statistics_fit_a_small_screen_and_cut_no_numbers(width: int) -> None:
    session = make_session(FakeStream("x" * 150), ChatSettings(max_tokens=500))
    list(session.ask("why"))
    drafting = session.totals.drafting
    for depth in range(1, 13):
        drafting.record(range(1, 13), depth, depth + 1)
    console = Console(theme=THEME, width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(views.session_stats(session))
    lines = captured.get().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for number in (f"{drafting.steps:,}", f"{drafting.drafted:,}", f"{drafting.accepted:,}"):
        assert number in text


def test_the_header_says_how_to_leave_and_what_the_model_is_for(bundle: Path) -> None:
    (bundle / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# tiny\n\nA model for tests. More.\n"
    )
    session = load_session(str(bundle), ChatSettings())
    (bundle / "README.md").unlink()
    console = Console(theme=THEME, width=90)
    with console.capture() as captured:
        console.print(views.header(session))
    assert "A model for tests." in captured.get()
    assert "More" not in captured.get()
    assert "q or Ctrl-D leaves" in " ".join(captured.get().split())


def pipe(bundle: Path, text: str, *arguments: str, **environment: str):
    return subprocess.run(
        [sys.executable, "chat.py", "--model", str(bundle), *arguments],
        cwd=ROOT, input=text.encode(), capture_output=True, timeout=120, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def talk(monkeypatch: pytest.MonkeyPatch, bundle: Path, text: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return chat.main(["--model", str(bundle), *arguments])


def test_a_prompt_may_come_from_stdin(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max-tokens", "6", "--no-draft")
    assert talk(monkeypatch, bundle, "hello\n", "-p", "-", *flags) == 0
    from_stdin = capsys.readouterr()
    assert talk(monkeypatch, bundle, "", "--prompt", "hello", *flags) == 0
    assert capsys.readouterr().out == from_stdin.out != ""
    assert "tok/s" in from_stdin.err
    assert talk(monkeypatch, bundle, "", "-p", "-", *flags) == 2


def test_a_conversation_whose_questions_were_all_refused_is_a_failure(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "word " * 900 + "\n"
    flags = ("--max-tokens", "4", "--no-draft")
    assert talk(monkeypatch, bundle, long * 2, *flags) == 2
    assert talk(monkeypatch, bundle, long + "hello\n", *flags) == 0
    assert talk(monkeypatch, bundle, "/help\n", *flags) == 0


def test_a_locale_without_letters_is_survived(bundle: Path, tmp_path: Path) -> None:
    history = tmp_path / ".local" / "state" / "mlx-redrafter" / "chat_history"
    history.parent.mkdir(parents=True)
    history.write_text(json.dumps("an emoji \U0001f600", ensure_ascii=False) + "\n", "utf-8")
    flags = ("--max-tokens", "4", "--no-draft")
    done = pipe(bundle, "é \U0001f600\n", *flags, LC_ALL="C", HOME=str(tmp_path))
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_ctrl_z_gives_the_terminal_back_and_fg_goes_on(bundle: Path, tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    shell = interactive_shell(tmp_path)
    shell.sendline(
        f"{sys.executable} chat.py --model {bundle} --no-draft --max-tokens 350 --seed 1"
    )
    shell.expect("leaves")
    shell.expect("> ")
    shell.sendline("hello there")
    shell.expect("tok/s")
    shell.send("\x1a")
    shell.expect("Stopped")
    shell.sendline("stty -a | tr ' ' '\\n' | grep -x -- '-\\?echo'")
    shell.expect("\n-?echo")
    assert shell.after.strip() == "echo"
    shell.sendline("fg")
    shell.expect(r"\d+ tokens · ")
    shell.sendline("q")
    shell.expect_exact("shell> ")
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    shell.close()
