"""Draw the README's picture of the chat: a real question, answered and measured in this run.

python experiments/chat_svg.py [--model PATH_OR_REPO] [--question TEXT] [--output docs/chat.svg]
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning.planner_for import planner_for
from mlx_redrafter.system.files import atomic_path
from mlx_redrafter.system.own_models import pocket_path
from mlx_redrafter.ui.chat import views
from mlx_redrafter.ui.chat.answer_text import AnswerText
from mlx_redrafter.ui.chat.baseline import measure_opening
from mlx_redrafter.ui.chat.main import load_session
from mlx_redrafter.ui.chat.screen import mark
from mlx_redrafter.ui.chat.session import Session
from mlx_redrafter.ui.chat.settings import ChatSettings
from mlx_redrafter.ui.chat.status import read, status_line, summary
from mlx_redrafter.ui.theme import PROMPT, THEME

WIDTH = 96
ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ("What does itertools.chain do?", "How do I use np.linspace?")


def draw(session: Session, questions: list[str]) -> str:
    """Ask the questions and return the screen as it looks after the last token, as SVG."""
    console = Console(
        theme=THEME, width=WIDTH, record=True, force_terminal=True, color_system="truecolor",
        highlight=False, file=io.StringIO(),
    )  # fmt: skip
    console.print(views.header(session))
    for number, question in enumerate(questions, start=1):
        answer_one(console, session, question, live=number == len(questions))
    return console.export_svg(title="python chat.py")


def answer_one(console: Console, session: Session, question: str, live: bool) -> None:
    """Print a question and its answer, below it the live line or the summary."""
    console.print()
    console.print(Text(PROMPT, "chat.prompt").append(question, "default"))
    console.print()
    text = AnswerText()
    figures = Text()
    for response in session.ask(question):
        for line in text.feed(response.text, mark(session, response), WIDTH):
            console.print(line)
        figures = status_line(read(session, response), WIDTH)
    console.print(text.tail)
    console.print()
    assert session.last is not None
    words = summary(session.last, session.speedup(session.last.tps))
    console.print(figures if live else Text(words, "chat.note"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(pocket_path()))
    parser.add_argument("--question", action="append", help="may be given several times")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "chat.svg")
    options = parser.parse_args()
    questions = options.question or list(QUESTIONS)
    try:
        session = load_session(options.model, ChatSettings())
        if session.model.drafter is not None:
            session.plan_with(planner_for(session.model))
            # Once for the caches and the beam search to warm up, as after a minute of chatting.
            for question in questions:
                list(session.ask(question))
            session.reset()
            measure_opening(session)
        picture = draw(session, questions)
    except RedrafterError as error:
        print(error, file=sys.stderr)
        return 2
    with atomic_path(options.output) as temporary:
        temporary.write_text(picture, "utf-8")
    print(f"Wrote {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
