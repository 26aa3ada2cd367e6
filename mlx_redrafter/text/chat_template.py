"""Chat templates, which are programs that come with a checkpoint, run within bounds.

A template may loop for ever or write gigabytes. Python runs it, so a trace function on its frames
can count what it writes and stop it; library code that it calls is not slowed down. Single
operations, which nothing can stop, are bounded by :mod:`template_guard`.
"""

from __future__ import annotations

import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..errors import RedrafterError
from ..system.visible import visible_line
from .template_guard import TooMuch, guarded

# Rendering a long conversation takes milliseconds.
SECONDS = 2.0
# What a template may add to its messages: instructions, descriptions of tools.
CHARACTERS = 4_000_000
# Characters out for each that goes in: tools are repeated, texts quoted.
GROWTH = 8
MEMORY_BYTES = 1 << 28
MEMORY_BYTES_BESIDE_OTHERS = 1 << 30
_TEMPLATE_FILES = ("<template>", "<unknown>")
_UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")
# Left out, these would make another prompt of the messages than the one that is wanted.
_SAYS_WHAT = frozenset({"tools", "add_generation_prompt", "continue_final_message"})


def render(
    tokenizer: Any, messages: Sequence[dict[str, Any]], /, **arguments: Any
) -> str | Sequence[int]:
    """What the tokenizer's chat template makes of messages: text, or ids where it makes these.

    Args:
        tokenizer: With a chat template.
        messages: Role and content each, see :func:`mlx_redrafter.text.prompts.plain_messages`.
        **arguments: For ``apply_chat_template``: ``add_generation_prompt``, ``tools``, the
            template's own.

    Raises:
        RedrafterError: If the template refuses the messages, or does not come to an end.
    """
    try:
        with bounded(tokenizer, len(str(messages)) + len(str(arguments))):
            made: str | Sequence[int] = apply_template(
                tokenizer, messages, tokenize=False, **arguments
            )
    except RedrafterError:
        raise
    except Exception as error:  # templates raise errors of their own kinds
        reason = visible_line(str(error), 300) or type(error).__name__
        raise RedrafterError(f"The chat template refused these messages: {reason}") from error
    return made


def apply_template(tokenizer: Any, messages: Sequence[dict[str, Any]], /, **arguments: Any) -> Any:
    """Render messages without what the renderer does not take.

    A template ignores arguments that it does not know. Some checkpoints' renderers are Python
    functions instead, which hand all of them on to others: only the error tells what these take.

    Args:
        tokenizer: With a chat template.
        messages: Role and content each.
        **arguments: For ``apply_chat_template``.
    """
    while True:
        try:
            return tokenizer.apply_chat_template(list(messages), **arguments)
        except TypeError as error:
            unknown = _UNKNOWN_ARGUMENT.search(str(error))
            name = unknown[1] if unknown else ""
            if name not in arguments or (name in _SAYS_WHAT and arguments[name]):
                raise
            del arguments[name]


@contextmanager
def bounded(tokenizer: Any, given: int, times: int = 1) -> Iterator[None]:
    """Bound what a tokenizer's chat template does in the block, whoever renders it there.

    Args:
        tokenizer: With a chat template.
        given: Characters of the messages.
        times: How often they are rendered.

    Raises:
        RedrafterError: If the template does not come to an end, or makes too much.
    """
    try:
        bounds = _bounds((CHARACTERS + GROWTH * given) * times, SECONDS * times)
        with bounds as tick, guarded(_sources(tokenizer), tick):
            yield
    except TooMuch as error:
        raise RedrafterError(
            f"The model's chat template was stopped {error}: replace its chat template, or pass "
            "the prompt as text."
        ) from None


def _sources(tokenizer: Any) -> list[str]:
    template = getattr(tokenizer, "chat_template", None)
    found = template.values() if isinstance(template, dict) else [template]
    return [source for source in found if isinstance(source, str)]


@contextmanager
def _bounds(characters: int, seconds: float) -> Iterator[Callable[[int], None]]:
    """Stop template code in this thread that writes, computes or keeps too much.

    Yields:
        What looks at time and memory, for operations that no trace function sees; it is told how
        many characters each made.
    """
    before, deadline = sys.gettrace(), time.thread_time() + seconds
    # Other threads may compute meanwhile, but not much in the milliseconds that a template takes.
    alone = threading.active_count() == 1
    spare = MEMORY_BYTES if alone else MEMORY_BYTES_BESIDE_OTHERS
    memory = _peak_memory() + spare
    written = kept = 0
    most = max(MEMORY_BYTES, GROWTH * characters)

    def tick(made: int = 0) -> None:
        nonlocal kept
        kept += made
        if kept > most:
            raise TooMuch(f"after it had made {most:,} characters")
        if time.thread_time() > deadline:
            raise TooMuch(f"after {seconds:g} seconds")
        if _peak_memory() > memory:
            raise TooMuch(f"after it had taken {spare >> 20} MiB of memory")

    def on_event(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal written
        if event == "call" and frame.f_code.co_filename not in _TEMPLATE_FILES:
            return None  # no lines of library code
        if event == "return" and isinstance(value, str):  # also what a generator yields
            written += len(value)
            if written > characters:
                raise TooMuch(f"after {characters:,} characters")
        tick()
        return on_event

    sys.settrace(on_event)
    try:
        yield tick
    finally:
        sys.settrace(before)


def _peak_memory() -> int:
    """Largest memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
