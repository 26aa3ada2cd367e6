"""What all command lines share: how they are called, how they end."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Protocol, TextIO, TypeGuard

from ..errors import RedrafterError, SharedError
from ..system.files import out_of_reach
from ..system.launched import launched_rank
from .ending import lost_ends_repeated
from .programs import INTERRUPTED as INTERRUPTED

SUCCESS = 0
# A traceback stands above it; also a result that is not what it has to be (convert.py --check).
BUG = 1
USER_ERROR = 2
LOST = "another process of this run is gone: start all of them again."
OUT_OF_MEMORY = (
    "there is not enough memory for this: take a smaller or more strongly quantised model, or "
    "shorter texts."
)


class Main(Protocol):
    """A command line's entry point."""

    def __call__(self, arguments: Sequence[str] | None = None, /) -> int:
        """Run it on arguments, by default the process's own; return the exit code."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_SCRIPTS = ("chat.py", "convert.py")
_PACKAGE = "mlx_redrafter"


def command_line(name: str) -> Callable[[Callable[[Sequence[str]], int]], Main]:
    """Make a ``main`` of a function that takes arguments and returns an exit code.

    Input that has to be changed is one sentence on stderr and code 2; Ctrl-C is code 130; a reader
    that has left is no error; a bug keeps its traceback, and is code 1.

    Args:
        name: How error sentences begin where the program was not started by a name of its own.
    """

    def wrap(run: Callable[[Sequence[str]], int]) -> Main:
        @wraps(run)
        def main(arguments: Sequence[str] | None = None) -> int:
            from .output import complain, forgive_encodings, open_streams, write

            try:
                open_streams()
                forgive_encodings()
                _check_directory()
                with lost_ends_repeated():
                    code = run(sys.argv[1:] if arguments is None else arguments)
                sys.stdout.flush()
                return code
            except SharedError as error:
                if not launched_rank():
                    complain(f"{short_name(name)}: {error}")
                return USER_ERROR
            except RedrafterError as error:
                complain(f"{short_name(name)}: {error}")
                return USER_ERROR
            except KeyboardInterrupt as stop:
                if str(stop):
                    complain(f"{short_name(name)}: {stop}")
                return INTERRUPTED
            except MemoryError:
                complain(f"{short_name(name)}: {OUT_OF_MEMORY}")
                return USER_ERROR
            except BrokenPipeError:
                _drop(sys.stdout)
                return SUCCESS
            except Exception as error:
                if _is_output(error):
                    _drop(sys.stdout)
                    if (ending := _signalled(error)) is not None:
                        return ending
                    complain(f"{short_name(name)}: the output cannot be written: {error.strerror}.")
                    return USER_ERROR
                if isinstance(error, PermissionError) and error.filename is not None:
                    complain(f"{short_name(name)}: {out_of_reach(error)}.")
                    return USER_ERROR
                if _is_lost(error):
                    complain(f"{short_name(name)}: {LOST}")
                    return USER_ERROR
                write(traceback.format_exc(), errors=True)
                return BUG
            finally:
                _drop_complaints()

        return main

    return wrap


def _check_directory() -> None:
    """Refuse to start where libraries cannot even be imported."""
    try:
        Path.cwd()
    except OSError:
        raise RedrafterError(
            "the current directory does not exist any more: change to another one."
        ) from None


@contextmanager
def told_once() -> Iterator[None]:
    """Have rank 0 alone tell errors of the block, which reads the same flags on every rank.

    Raises:
        RedrafterError: As the block raises it.
    """
    try:
        yield
    except RedrafterError as error:
        raise SharedError(str(error)) from error


def _is_output(error: Exception) -> TypeGuard[OSError]:
    """Whether a stream took no more of what was written to it; other files' errors have names."""
    return isinstance(error, OSError) and error.errno in _FULL and error.filename is None


def _signalled(error: BaseException) -> int | None:
    """The exit code of a signal that ended the program, whose terminal went with it."""
    cause = error.__context__
    while cause is not None and not isinstance(cause, SystemExit):
        cause = cause.__context__
    return cause.code if cause is not None and isinstance(cause.code, int) else None


def _is_lost(error: Exception) -> bool:
    """Whether mlx says that another process of the run is gone; waits for who can name it."""
    if not isinstance(error, RuntimeError):
        return False
    from ..system.rank_watch import current_ranks

    ranks = current_ranks()
    if ranks is None:
        return False
    try:
        with ranks.told():
            raise error
    except RedrafterError:
        return True
    except RuntimeError:
        return False


def _drop(stream: TextIO) -> None:
    """Python flushes once more at exit, which would complain that nobody reads."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _drop_complaints() -> None:
    """Drop what stderr did not take: at exit Python would try again, and make code 120 of it."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _drop(sys.stderr)


def as_typed(name: str) -> str:
    """The command as the person typed it, for --help; ``name`` where that cannot be known."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name.split(".")[0] == _PACKAGE:
        module = spec.name.removesuffix(".__main__")
        command = sys.argv[1:2] if module == _PACKAGE else []
        command = [word for word in command if not word.startswith("-")]
        return " ".join(["python -m", module, *command])
    script = Path(sys.argv[0]).name if sys.argv else ""
    if script in _SCRIPTS:
        return f"python {sys.argv[0]}"
    return script if script.startswith(f"{_PACKAGE}.") else name


def short_name(name: str) -> str:
    """How an error sentence begins."""
    return last_name(as_typed(name))


def last_name(command: str) -> str:
    """The last word of a command without its directories, to begin an error sentence with."""
    return Path(command.split()[-1]).name
