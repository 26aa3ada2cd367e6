"""The chat: ``python chat.py`` and ``mlx_redrafter.chat``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ...errors import RedrafterError
from ..parsing import ChatOptions, parse_chat_options
from .interrupt import heed, stoppable

if TYPE_CHECKING:
    from .frontend import FrontEnd
    from .session import Session
    from .settings import ChatSettings

# In a checkout the models stand beside the package.
POCKET = Path(__file__).resolve().parents[3] / "models" / "pocket"
BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chat; returns the exit code."""
    options = parse_chat_options(sys.argv[1:] if arguments is None else arguments, POCKET)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        _forgive(stream)
    try:
        code = _run(options)
        sys.stdout.flush()
        return code
    except RedrafterError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left. Python flushes once more at exit, which would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _forgive(stream: TextIO) -> None:
    """Show what the stream's encoding lacks as '?' instead of failing."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _run(options: ChatOptions) -> int:
    front, on_screen = make_front_end(options)
    if front.attended:
        heed()
    session = open_session(options, front)
    plan(session, front, options)
    if options.prompt is not None:
        return answer_once(session, front, options)
    if on_screen and session.model.drafter is not None:
        measure(session, front, first=True)
    front.welcome(session)
    converse(session, front, measured=on_screen)
    return 0


def make_front_end(options: ChatOptions) -> tuple[FrontEnd, bool]:
    """A screen where there is a terminal, else plain text; and whether it is a screen."""
    from rich.console import Console

    from ..theme import PROMPT, THEME
    from .commands import COMMANDS
    from .lines import LineEditor, history_path
    from .plain import PlainFrontEnd
    from .screen import ScreenFrontEnd

    console = Console(theme=THEME, highlight=False)
    reads = options.prompt is not None or sys.stdin.isatty()
    if not (reads and sys.stdout.isatty()) or console.is_dumb_terminal or options.json:
        return PlainFrontEnd(summaries=options.prompt is None), False
    with console.capture() as captured:
        console.print(PROMPT, style="chat.prompt", end="")
    errors = Console(theme=THEME, highlight=False, stderr=True)
    if options.prompt is not None:
        return ScreenFrontEnd(console, errors, input), True
    editor = LineEditor(list(COMMANDS), history_path(), captured.get())
    return ScreenFrontEnd(console, errors, editor.read), True


def open_session(options: ChatOptions, front: FrontEnd) -> Session:
    """Load the model while the front end says so.

    Raises:
        RedrafterError: If that is not possible.
    """
    with front.busy(f"Loading {options.model} ..."):
        session = load_session(options.model, options.drafter, options.settings, options.adapter)
    from ... import blas_loaded
    from ...system import blas
    from ...system.device import on_gpu

    if sys.platform.startswith("linux") and not on_gpu() and not blas_loaded:
        front.complain(blas.INSTALL_HINT)
    return session


def plan(session: Session, front: FrontEnd, options: ChatOptions) -> None:
    """Give the session a planner, measuring the machine where that was never done."""
    from ...drafting.drafter import Drafter
    from ...planning.planner import Planner
    from ..theme import CALIBRATING

    if not session.drafts or not isinstance(session.model.drafter, Drafter):
        return
    with front.busy(f"{CALIBRATING} ..."):
        session.planner = Planner.for_model(session.model, recalibrate=options.recalibrate)


def load_session(
    model: str, drafter: str | None, settings: ChatSettings, adapter: str | None = None
) -> Session:
    """A conversation with a model from a path or the Hub.

    Raises:
        RedrafterError: If the model cannot be loaded.
    """
    # Slow to import, and not needed to tell that a flag is wrong.
    from ...text.generate import stream_generate
    from ...text.loading import load
    from .describe import describe
    from .session import Session

    loaded, tokenizer = load(model, drafter, adapter_path=adapter, plan=False)
    return Session(loaded, tokenizer, describe(loaded), settings, stream_generate)


def answer_once(session: Session, front: FrontEnd, options: ChatOptions) -> int:
    """Answer ``--prompt``; returns the exit code."""
    from .lines import clean

    assert options.prompt is not None
    answer_question(session, front, clean(options.prompt))
    if session.last is None or session.last.interrupted:
        return INTERRUPTED
    if options.json:
        print(json.dumps(session.last.to_dict(), ensure_ascii=False), flush=True)
    return 0


def converse(session: Session, front: FrontEnd, measured: bool) -> None:
    """Questions and commands until the person leaves.

    Args:
        session: The conversation.
        front: Where it is held.
        measured: Whether to keep the measurement of plain decoding up to date.
    """
    from .commands import Quit, is_command, run_command

    told = False
    while True:
        try:
            line = front.read()
            if is_command(line):
                run_command(line, session, front)
            elif line.strip():
                answer_question(session, front, line.strip())
                if session.last is not None and session.last.interrupted and not front.attended:
                    raise KeyboardInterrupt
                told = explain_plan(session, front, told)
                if measured:
                    measure(session, front, first=False)
        except RedrafterError as error:
            front.complain(str(error))
        except KeyboardInterrupt:
            if not front.attended:
                raise
        except (EOFError, Quit):
            return


def answer_question(session: Session, front: FrontEnd, question: str) -> None:
    """Answer one question, as far as the person lets it go."""
    before = session.totals.answers
    try:
        with closing(session.ask(question)) as responses, closing(stoppable(responses)) as shown:
            front.stream(session, shown)
    except KeyboardInterrupt:
        if session.totals.answers == before:
            if not front.attended:
                raise
            front.say("Stopped before the first word; the question was taken back.")
            return
    if session.last is not None:
        front.conclude(session, session.last)


def explain_plan(session: Session, front: FrontEnd, told: bool) -> bool:
    """Say that drafting does not pay, unless that was ``told``; returns whether it is known now."""
    from ..theme import DOES_NOT_PAY

    given_up = session.plans and session.planner is not None and session.planner.drafting_disabled
    if given_up and not told:
        front.say(DOES_NOT_PAY)
    return given_up


def measure(session: Session, front: FrontEnd, first: bool) -> None:
    """Measure plain decoding, at the start and when the conversation has outgrown that."""
    from ..theme import MEASURING
    from . import baseline

    if not first and not baseline.outgrown(session):
        return
    try:
        with front.busy(f"{MEASURING} ..."):
            (baseline.measure_opening if first else baseline.measure_again)(session)
    except KeyboardInterrupt:
        front.say("Not measured; /compare does it.")


if __name__ == "__main__":
    sys.exit(main())
