"""Chat templates, which are programs that come with a checkpoint, run within bounds.

A template may loop for ever or write gigabytes. Python runs it, so a trace function on its frames
can count what it writes and stop it; library code that it calls is not slowed down.
"""

from __future__ import annotations

import re
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError

from ..errors import RedrafterError
from ..system.visible import visible_line

# Rendering a long conversation takes milliseconds.
SECONDS = 2.0
# What a template may add to its messages: instructions, descriptions of tools.
CHARACTERS = 4_000_000
# Characters out for each that goes in: tools are repeated, texts quoted.
GROWTH = 8
MEMORY_BYTES = 1 << 28
MEMORY_BYTES_BESIDE_OTHERS = 1 << 30
# Jinja works constants out while it compiles, where nothing can stop it.
LARGEST_NUMBER = 10**6
_EXTENSIONS = ("jinja2.ext.loopcontrols", "jinja2.ext.do")
# transformers' own tag, which marks what an assistant says.
_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
_TEMPLATE_FILES = ("<template>", "<unknown>")


class _TooMuch(Exception):
    """A template went beyond its bounds."""


def render(
    tokenizer: Any, messages: Sequence[dict[str, Any]], **arguments: Any
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
    given = len(str(messages)) + len(str(arguments))
    for source in _sources(tokenizer):
        if _computes_too_much(source):
            raise RedrafterError(
                f"The model's chat template computes with numbers above {LARGEST_NUMBER:,}, as no "
                "template has to: replace its chat template, or pass the prompt as text."
            )
    try:
        with _bounds(CHARACTERS + GROWTH * given):
            made: str | Sequence[int] = tokenizer.apply_chat_template(
                list(messages), tokenize=False, **arguments
            )
    except _TooMuch as error:
        raise RedrafterError(
            f"The model's chat template was stopped {error}: replace its chat template, or pass "
            "the prompt as text."
        ) from None
    except Exception as error:  # templates raise errors of their own kinds
        reason = visible_line(str(error), 300) or type(error).__name__
        raise RedrafterError(f"The chat template refused these messages: {reason}") from error
    return made


def _sources(tokenizer: Any) -> list[str]:
    template = getattr(tokenizer, "chat_template", None)
    found = template.values() if isinstance(template, dict) else [template]
    return [source for source in found if isinstance(source, str)]


@lru_cache(maxsize=16)
def _computes_too_much(source: str) -> bool:
    """Whether a template holds powers, or numbers of a size that only a product of text needs."""
    environment = Environment(extensions=_EXTENSIONS)
    try:
        tree = environment.parse(_GENERATION.sub("", source))
    except TemplateError:
        return False  # told when it is rendered
    if any(True for _ in tree.find_all(nodes.Pow)):
        return True
    numbers = [
        abs(number)
        for one in (nodes.Const, nodes.Mul)
        for node in tree.find_all(one)
        if isinstance(number := _number(node), int)
    ]
    return max(numbers, default=0) > LARGEST_NUMBER


def _number(node: nodes.Node) -> int | None:
    """The value of a whole number or of a product of such, None of anything else."""
    if isinstance(node, nodes.Const):
        return node.value if isinstance(node.value, int) else None
    if isinstance(node, nodes.Mul):
        left, right = _number(node.left), _number(node.right)
        return None if left is None or right is None else left * right
    return None


@contextmanager
def _bounds(characters: int) -> Iterator[None]:
    """Stop template code in this thread that writes, computes or keeps too much."""
    before, deadline = sys.gettrace(), time.thread_time() + SECONDS
    # Other threads may compute meanwhile, but not much in the milliseconds that a template takes.
    alone = threading.active_count() == 1
    spare = MEMORY_BYTES if alone else MEMORY_BYTES_BESIDE_OTHERS
    memory = _peak_memory() + spare
    written = 0

    def on_event(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal written
        if event == "call" and frame.f_code.co_filename not in _TEMPLATE_FILES:
            return None  # no lines of library code
        if event == "return" and isinstance(value, str):  # also what a generator yields
            written += len(value)
            if written > characters:
                raise _TooMuch(f"after {characters:,} characters")
        if time.thread_time() > deadline:
            raise _TooMuch(f"after {SECONDS:g} seconds")
        if _peak_memory() > memory:
            raise _TooMuch(f"after it had taken {spare >> 20} MiB of memory")
        return on_event

    sys.settrace(on_event)
    try:
        yield
    finally:
        sys.settrace(before)


def _peak_memory() -> int:
    """Largest memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
