"""Bounds on single operations of a chat template: what one makes has a largest size.

Python cannot stop ``"x" * n`` or ``"x"|center(n)`` under way, so sizes are looked at before.
Jinja's sandbox sends operators, calls and filters through its environment, and compiled templates
keep theirs; what it sends nowhere, its code generator is made to. Where Jinja works constants out,
while it compiles, the source itself is looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Environment, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

# Characters or entries that one operation may make of a number, or of several texts.
LARGEST = 1 << 24
LARGEST_TEXT = 1 << 26
# Entries of nested values: one that holds itself twice, over and over, is walked for ever.
LARGEST_NESTED = 1 << 18
# Constants are small: what Jinja may make of them while it compiles.
LARGEST_CONSTANT = 10**7
BITS = 4096  # of whole numbers
_EXTENSIONS = ("jinja2.ext.loopcontrols", "jinja2.ext.do")
# transformers' own tag, which marks what an assistant says.
_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
_DIGITS = re.compile(r"\d+")
# Filters whose numbers are values and no sizes.
_VALUES = ("default", "d", "int", "float", "string", "abs")
# Filters that look at no more than the entries of what they are given.
_SHALLOW = (
    "length", "count", "first", "last", "list", "map", "select", "selectattr", "reject",
    "rejectattr", "reverse", "items", "default", "d", "attr", "batch", "slice", "random",
)  # fmt: skip


# Of the rendering under way; what is rendered elsewhere has none.
_TICK: ContextVar[Callable[[int], None] | None] = ContextVar("tick", default=None)


class TooMuch(Exception):
    """A template went beyond its bounds."""


@contextmanager
def guarded(sources: Iterable[str], tick: Callable[[int], None]) -> Iterator[None]:
    """Bound the operations of templates, as transformers compiles them, in this thread's block.

    Args:
        sources: The templates.
        tick: Called with the characters that each call and filter made; raises :class:`TooMuch`
            when that, or the time that went by, is too much.

    Raises:
        TooMuch: If a template's constants are too large to be worked out.
    """
    for source in sources:
        _install(source)
    before = _TICK.set(tick)
    try:
        yield
    finally:
        _TICK.reset(before)


def _install(source: str) -> None:
    """Let the template that transformers keeps for a source check its operations."""
    if _folds_too_much(source):
        raise TooMuch("because it computes with large numbers, as no template has to")
    template = _compile_jinja_template(source)
    environment = template.environment
    if "call_binop" not in vars(environment):
        _Guard(environment).install()
        again = environment.from_string(source)
        template.root_render_func, template.blocks = again.root_render_func, again.blocks


class _Guard:
    """The checks of one environment."""

    def __init__(self, environment: Any):
        self._environment = environment
        self._call = environment.call
        self._operators = dict(environment.binop_table)

    def install(self) -> None:
        """Let the environment's operators, calls and filters be checked first."""
        environment = self._environment
        environment.intercepted_binops = frozenset(("+", "*", "**", "%"))
        environment.call_binop = self._on_operator
        environment.code_generator_class = _GuardedCode
        environment.finalize = environment.weighed = _weighed
        environment.concat = self._joined
        environment.joined = lambda parts: self._joined([str(_weighed(part)) for part in parts])
        environment.call = self._on_call
        environment.filters = {
            name: self._filter(name, one) for name, one in environment.filters.items()
        }
        environment.globals.pop("lipsum", None)  # texts of any length

    def _on_operator(self, _context: Any, operator: str, left: Any, right: Any) -> Any:
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "**":
            bits = left.bit_length() * abs(right) if whole else 0
            _at_most(bits, BITS)
        elif operator == "*" and whole:
            _at_most(left.bit_length() + right.bit_length(), BITS)
        elif operator == "+":
            if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                _at_most(len(left) + len(right), LARGEST_TEXT)
        elif operator == "*":
            _at_most(_size(left) * _number(right) if isinstance(right, int) else 0, LARGEST)
            _at_most(_size(right) * _number(left) if isinstance(left, int) else 0, LARGEST)
        elif isinstance(left, str):
            _check("format", left, [right])
        return self._made(self._operators[operator](left, right))

    def _joined(self, parts: Iterable[str]) -> str:
        """The parts of a text, or of a part of it that is kept, put together."""
        texts = list(parts)
        _at_most(sum(map(len, texts)), LARGEST_TEXT)
        return str(self._made("".join(texts)))

    def _on_call(self, context: Any, called: Any, *values: Any, **named: Any) -> Any:
        owner = getattr(getattr(called, "__wrapped__", called), "__self__", None)
        arguments = [*values, *named.values()]
        if isinstance(owner, str | bytes | list | tuple | dict):
            _check(getattr(called, "__name__", ""), owner, arguments)
        return self._made(self._call(context, called, *values, **named))

    def _filter(self, name: str, one: Callable[..., Any]) -> Callable[..., Any]:
        # Jinja hands its context, evaluation context or environment to some, as the first argument.
        skipped = int(hasattr(one, "jinja_pass_arg"))

        @wraps(one)
        def checked(*values: Any, **named: Any) -> Any:
            given = [*values[skipped:], *named.values()]
            if given and name not in _SHALLOW:
                _weighed(given[0])
            if given and name not in _VALUES:
                _check(name, given[0], given[1:])
            return self._made(one(*values, **named))

        return checked

    def _made(self, value: Any) -> Any:
        tick = _TICK.get()
        if tick is not None:
            tick(len(value) if isinstance(value, str) else 0)
        return value


class _GuardedCode(CodeGenerator):
    """Jinja's code generator, which has what it makes without its environment looked at."""

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._weigh(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._weigh(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._weigh(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(")
        self._weigh(self.visit, node.expr, frame)
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def _weigh(self, visit: Callable[[Any, Frame], Any], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.weighed(")
        visit(node, frame)
        self.write(")")


def _weighed(value: Any) -> Any:
    """The value, if whoever walks through it comes to an end."""
    if isinstance(value, list | tuple | Mapping):
        _size(value)
    return value


def _check(name: str, owner: Any, arguments: Sequence[Any]) -> None:
    """Refuse an operation on ``owner`` whose result might be too large."""
    if name in ("format", "format_map") and isinstance(owner, str):
        _at_most(_formatted(owner, arguments), LARGEST)
        fields = owner.count("%") + owner.count("{")
        _at_most(fields * max(map(_size, arguments), default=0), LARGEST_TEXT)
    elif name == "replace" and len(arguments) > 1 and isinstance(owner, str):
        old, new = str(arguments[0]), str(arguments[1])
        _at_most(len(owner) + owner.count(old) * len(new), LARGEST_TEXT)
    elif name == "join":
        texts, between = (arguments[:1], owner) if isinstance(owner, str) else ([owner], arguments)
        parts = texts[0] if texts and isinstance(texts[0], Sequence) else ()
        each = _size(between)
        _at_most(_size(parts) + len(parts) * each, LARGEST_TEXT)
    else:
        numbers = [_number(one) for one in arguments if isinstance(one, int)]
        _at_most(max(1, _size(owner)) * math.prod(numbers) if numbers else 0, LARGEST)


def _formatted(text: str, values: Iterable[Any]) -> int:
    """Bound of what formatting a text makes: widths stand in it, or among the values."""
    inner = [
        one
        for value in values
        for one in (
            value.values() if isinstance(value, Mapping)
            else value if isinstance(value, list | tuple) else [value]
        )
    ]  # fmt: skip
    widths = [int(found[-12:]) for found in _DIGITS.findall(text)]
    asked = [_number(one) for one in inner if isinstance(one, int)] if "*" in text else []
    nested = [_number(one) for one in inner if isinstance(one, int)] if "{" in text else []
    return len(text) * max([1, *widths, *asked, *nested]) if widths or asked or nested else 0


def _number(value: int) -> int:
    return max(1, abs(value))


def _size(value: Any) -> int:
    """Characters or entries of a value, those of what it holds among them.

    Raises:
        TooMuch: If it holds more than can be walked through.
    """
    size = entries = 0
    open_values = [value]
    while open_values:
        one = open_values.pop()
        if isinstance(one, str | bytes):
            size += len(one)
        elif isinstance(one, Mapping):
            entries += 2 * len(one)
            open_values += [part for entry in one.items() for part in entry]
        elif isinstance(one, list | tuple):
            entries += len(one)
            open_values += one
        else:
            size += 1
        _at_most(entries, LARGEST_NESTED)
    return size + entries


def _at_most(size: int, limit: int) -> None:
    if size > limit:
        raise TooMuch("because one of its operations would make something far too large")


@lru_cache(maxsize=16)
def _folds_too_much(source: str) -> bool:
    """Whether constants of a template would be worked out to something large, or a power is."""
    environment = Environment(extensions=_EXTENSIONS)
    try:
        tree = environment.parse(_GENERATION.sub("", source))
    except TemplateError:
        return False  # told when it is rendered
    if any(True for _ in tree.find_all(nodes.Pow)):
        return True
    found = tree.find_all((nodes.BinExpr, nodes.Concat, nodes.Filter))
    return any(_constant(node) > LARGEST_CONSTANT for node in found)


def _constant(node: nodes.Node) -> int:
    """Bound of the size of a constant expression; 0 of one that is none."""
    if isinstance(node, nodes.Const):
        return abs(node.value) if isinstance(node.value, int) else 1
    if isinstance(node, nodes.TemplateData):
        return len(node.data)
    parts = [_leaf(child) for child in node.iter_child_nodes()]
    if not parts or not isinstance(node, nodes.Expr | nodes.Pair | nodes.Keyword) or 0 in parts:
        return 0
    if isinstance(node, nodes.Filter) and node.name in _VALUES:
        return max(map(len, map(str, parts)))
    adds = isinstance(node, nodes.Add | nodes.Sub | nodes.Concat | nodes.List | nodes.Tuple)
    return sum(parts) if adds else math.prod(one + 1 for one in parts)


def _leaf(node: nodes.Node) -> int:
    """As :func:`_constant`; a text counts its characters, and the numbers that stand in it."""
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        widths = [int(found[-12:]) for found in _DIGITS.findall(node.value)]
        return max([1, len(node.value), *widths])
    return _constant(node)
