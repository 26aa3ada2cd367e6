"""Commands that run as several processes: rank 0 reads, shows and writes, all compute alike."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import SharedError
from .entry import INTERRUPTED

if TYPE_CHECKING:
    from types import FrameType

    from ..system.ranks import Ranks


class Together:
    """A command among the processes that run it; one process alone is rank 0 of one.

    Args:
        ranks: All of them; None where this one is alone.

    Attributes:
        ranks: As given.
    """

    def __init__(self, ranks: Ranks | None = None):
        self.ranks = ranks
        self._interrupted = False

    @property
    def leads(self) -> bool:
        """Whether this process shows and writes what comes out."""
        return self.ranks is None or self.ranks.leads

    def read(self, read: Callable[[], Any]) -> Any:
        """What rank 0 reads, as JSON has it; an error of its is everybody's.

        Raises:
            RedrafterError: If rank 0 cannot read it.
        """
        from ..text.sharding import fail_together

        if self.ranks is None:
            return read()
        data = b""
        with fail_together(self.ranks):
            data = json.dumps(read()).encode() if self.leads else b""
        return json.loads(self.ranks.share(data))

    def check(self) -> None:
        """Where every rank has come equally far: end all of them if rank 0 was interrupted.

        Raises:
            KeyboardInterrupt: On every rank.
        """
        if self.ranks is not None and self.ranks.share_int(int(self._interrupted)):
            self._interrupted = False
            raise KeyboardInterrupt

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-C: of several ranks only rank 0 heeds it, and a second one does not wait."""
        if self.leads and self._interrupted:
            os._exit(INTERRUPTED)
        self._interrupted = True


def started_alike(program: str, flags: Mapping[str, Any]) -> Ranks | None:
    """The processes of this run, of which every one was started by the same command.

    Args:
        program: Its name.
        flags: What they have to have in common, from ``flags.compared``.

    Returns:
        The processes; None where this one is alone.

    Raises:
        RedrafterError: On every rank, if one was not.
    """
    from ..system.rank_watch import current_ranks

    ranks = current_ranks()
    if ranks is None:
        return None
    said = ranks.gather_texts(json.dumps([program, flags], default=repr))
    for rank, text in enumerate(said):
        if text != said[0]:
            raise SharedError(
                f"Rank {rank} was started {_difference(said[0], text)}: start the same command on "
                "every machine."
            )
    return ranks


def _difference(first: str, other: str) -> str:
    """What differs from rank 0's command, in words."""
    try:
        (program, flags), (other_program, other_flags) = json.loads(first), json.loads(other)
    except (ValueError, TypeError):  # it is no command of this package's
        program, other_program, flags, other_flags = "", " ", {}, {}
    if program != other_program:
        return "as another program than rank 0"
    names = [name for name in {**flags, **other_flags} if flags.get(name) != other_flags.get(name)]
    return f"with other flags than rank 0 ({', '.join(names)})"


@contextmanager
def together() -> Iterator[Together]:
    """Inside the block Ctrl-C reaches all processes of a run at the same place."""
    from ..system.rank_watch import current_ranks

    ranks = current_ranks()
    group = Together(ranks)
    if ranks is None or threading.current_thread() is not threading.main_thread():
        yield group
        return
    before = signal.signal(signal.SIGINT, group.interrupt)
    try:
        yield group
    finally:
        signal.signal(signal.SIGINT, before)


def refuse_ranks(what: str) -> None:
    """Refuse to run as several processes.

    Args:
        what: The command in words, with a capital letter.

    Raises:
        RedrafterError: If there are several.
    """
    from ..system.rank_watch import current_ranks

    if current_ranks() is not None:
        raise SharedError(f"{what} runs in one process: start it without mlx.launch.")
