"""The chat: ``python chat.py``, ``mlx_redrafter.chat`` and ``python -m mlx_redrafter chat``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import RedrafterError
from ..entry import INTERRUPTED, SUCCESS, USER_ERROR, command_line, told_once
from ..opening import prepare
from ..together import started_alike
from .interrupt import heed
from .options import NAME, ChatOptions, parse_chat_options
from .planning import plan
from .turns import answer_question

if TYPE_CHECKING:
    from .frontend import FrontEnd
    from .session import Session
    from .settings import ChatSettings


@command_line(NAME)
def main(arguments: Sequence[str]) -> int:
    """Run the chat; returns the exit code."""
    with told_once():
        options = parse_chat_options(arguments)
    ranks = started_alike(NAME, options.compared())
    if ranks is not None and not ranks.leads:
        return follow_chat(options)
    front, on_screen = make_front_end(options)
    if front.attended:
        heed()
    session = open_session(options, front)
    begin_planning(session, front, options)
    with leading(session):
        return hold(session, front, options, on_screen)


def hold(session: Session, front: FrontEnd, options: ChatOptions, on_screen: bool) -> int:
    """Answer the prompt, or whatever a person asks; returns the exit code."""
    if options.prompt is not None:
        return answer_once(session, front, options)
    if on_screen and session.drafts:
        measure(session, front, first=True)
    front.welcome(session)
    asked, answered = converse(session, front, measured=on_screen)
    # A script has to learn that none of its questions was answered.
    return USER_ERROR if asked and not answered and not front.attended else SUCCESS


@contextmanager
def leading(session: Session) -> Iterator[None]:
    """Inside the block other processes that share the model decode what this one decodes."""
    leader = session.model.lead() if session.model.ranks is not None else None
    try:
        yield
    finally:
        if leader is not None:
            leader.leave()


def follow_chat(options: ChatOptions) -> int:
    """Compute with rank 0, where the person is, until it leaves; returns the exit code."""
    from ...engine.following import follow

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides what Ctrl-C ends
    prepare(options.model, options.flags.revision)
    session = session_of(options)
    begin_planning(session, make_front_end(replace(options, json=True))[0], options)
    session.model.planner = session.planner
    follow(session.model)
    return SUCCESS


def make_front_end(options: ChatOptions) -> tuple[FrontEnd, bool]:
    """A screen where there is a terminal, else plain text; and whether it is a screen."""
    from ..output import make_console
    from ..theme import PROMPT
    from .commands import COMMANDS
    from .lines import LineEditor, history_path
    from .plain import PlainFrontEnd
    from .screen import ScreenFrontEnd

    console = make_console()
    reads = options.prompt is not None or sys.stdin.isatty()
    if not (reads and sys.stdout.isatty()) or console.is_dumb_terminal or options.json:
        return PlainFrontEnd(silent=options.json), False
    with console.capture() as captured:
        console.print(PROMPT, style="chat.prompt", end="")
    errors = make_console(errors=True)
    if options.prompt is not None:
        return ScreenFrontEnd(console, errors, input), True
    editor = LineEditor(list(COMMANDS), history_path(), captured.get())
    return ScreenFrontEnd(console, errors, editor.read), True


def open_session(options: ChatOptions, front: FrontEnd) -> Session:
    """Load the model while the front end says so.

    Raises:
        RedrafterError: If that is not possible.
    """
    prepare(options.model, options.flags.revision)
    with front.busy(f"Loading {options.model} ..."):
        session = session_of(options)
    from ... import blas_loaded
    from ...system import blas
    from ...system.device import on_gpu

    if sys.platform.startswith("linux") and not on_gpu() and not blas_loaded:
        front.complain(blas.INSTALL_HINT)
    return session


def begin_planning(session: Session, front: FrontEnd, options: ChatOptions) -> None:
    """Make who plans the drafts, at once where several processes have to measure together."""
    converses = options.prompt is None
    shared = session.model.ranks is not None
    plan(session, front, wanted=session.drafts or (shared and converses))


def session_of(options: ChatOptions) -> Session:
    """The conversation that the command line asked for, or the one answer.

    Raises:
        RedrafterError: If the model cannot be loaded.
    """
    return load_session(
        options.model,
        options.settings,
        goes_on=options.prompt is None,
        recalibrate=options.recalibrate,
        **options.flags.load_options(),
    )


def load_session(
    model: str,
    settings: ChatSettings,
    *,
    goes_on: bool = True,
    recalibrate: bool = False,
    **load_options: Any,
) -> Session:
    """A conversation with a model from a path or the Hub.

    Args:
        model: Directory or Hub repo.
        settings: How answers are made, to begin with.
        goes_on: Whether questions and commands can follow an answer.
        recalibrate: Whether the machine is measured again for the planner.
        **load_options: Further arguments of :func:`mlx_redrafter.load`.

    Raises:
        RedrafterError: If the model cannot be loaded.
    """
    # Slow to import, and not needed to tell that a flag is wrong.
    from ...text.generate import stream_generate
    from ...text.loading import load
    from ..quiet import quiet_libraries
    from .describe import describe
    from .session import Session

    quiet_libraries()
    loaded, tokenizer = load(model, plan=False, **load_options)
    return Session(
        loaded, tokenizer, describe(loaded, model), settings, stream_generate,
        goes_on=goes_on, recalibrate=recalibrate,
    )  # fmt: skip


def answer_once(session: Session, front: FrontEnd, options: ChatOptions) -> int:
    """Answer ``--prompt``; returns the exit code."""
    from ..output import write_json

    assert options.prompt is not None
    answer_question(session, front, options.prompt)
    if session.last is None or session.last.interrupted:
        return INTERRUPTED
    if options.json:
        write_json(session.last.to_dict())
    return SUCCESS


def converse(session: Session, front: FrontEnd, measured: bool) -> tuple[int, int]:
    """Questions and commands until the person leaves.

    Args:
        session: The conversation.
        front: Where it is held.
        measured: Whether to keep the measurement of plain decoding up to date.

    Returns:
        How many questions were asked, and how many of them were answered.
    """
    from .commands import Quit, is_command, run_command

    asked, told = 0, False
    while True:
        try:
            line = front.read()
            if is_command(line):
                run_command(line, session, front)
            elif line.strip():
                asked += 1
                answer_question(session, front, line.strip())
                told = explain_plan(session, front, told)
                if measured:
                    measure(session, front, first=False)
        except RedrafterError as error:
            front.complain(str(error))
        except KeyboardInterrupt:
            if not front.attended:
                raise
        except (EOFError, Quit):
            return asked, session.totals.answers


def explain_plan(session: Session, front: FrontEnd, told: bool) -> bool:
    """Say that drafting does not pay, unless that was ``told``; returns whether it is known now."""
    from ..theme import DOES_NOT_PAY

    given_up = session.beam_planner is not None and session.beam_planner.drafting_disabled
    if given_up and not told:
        front.say(DOES_NOT_PAY)
    return given_up


def measure(session: Session, front: FrontEnd, first: bool) -> None:
    """Measure plain decoding, at the start and when the conversation has outgrown that."""
    from ..theme import MEASURING
    from . import baseline

    # Where shapes are planned, plain decoding is timed by plain steps as they happen.
    if session.beam_planner is not None or (not first and not baseline.outgrown(session)):
        return
    try:
        with front.busy(f"{MEASURING} ..."):
            (baseline.measure_opening if first else baseline.measure_again)(session)
    except KeyboardInterrupt:
        front.say("Not measured; /compare does it.")


if __name__ == "__main__":
    sys.exit(main())
