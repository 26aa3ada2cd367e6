"""What a front end can do: the one seam between the conversation and its appearance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ...text.responses import GenerationResponse
    from .answer import Answer
    from .session import Session


class FrontEnd(Protocol):
    """A screen, or a pair of pipes."""

    @property
    def attended(self) -> bool:
        """Whether a person types, so that Ctrl-C ends an answer and not the program."""

    def welcome(self, session: Session, /) -> None:
        """Say who is talking."""

    def read(self) -> str:
        """The next question or command.

        Raises:
            EOFError: If there is no more.
            KeyboardInterrupt: If the person took the line back.
        """

    def stream(self, session: Session, responses: Iterable[GenerationResponse], /) -> None:
        """Show an answer while it comes."""

    def conclude(self, session: Session, answer: Answer, /) -> None:
        """Sum an answer up."""

    def show(self, view: RenderableType, /) -> None:
        """Show a table or a tree."""

    def say(self, sentence: str, /) -> None:
        """Confirm something."""

    def complain(self, sentence: str, /) -> None:
        """Tell what was wrong, on the error stream."""

    def confirm(self, question: str, /) -> bool:
        """Whether the person says yes; where nobody can be asked, no."""

    def progress(self, words: str, /) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show ``words`` and a bar, where there is a terminal; gives what is told (done, to do).

        The bar appears when it is first told something.
        """

    def busy(self, words: str, /) -> AbstractContextManager[None]:
        """Show ``words`` as long as the block runs, where there is a terminal."""
