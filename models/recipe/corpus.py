"""Items of the pocket reference: one name, its signature and what its docstring says first.

The items come from the documentation that is installed with Python, NumPy and MLX; nothing is
downloaded. Another version of any of them gives a slightly different corpus.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .files import write_text
from .sources import ALIASES, CLASSES_WITH_METHODS, MODULES

MAX_SIGNATURE = 150  # characters; longer ones are left out, a small model would garble them
MAX_SENTENCE = 200  # characters of the first sentence
MAX_ANSWER_TEXT = 230  # characters up to which further sentences are added
UFUNC_TAIL = re.compile(r", out=None, \*, where=True, casting=.*$")

ROLE = re.compile(r":[a-z:+]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")


@dataclass(frozen=True)
class Item:
    """One thing that the pocket model knows.

    ``name`` is the full dotted name, ``short`` the usual short form (``np.linspace``), ``kind`` one
    of module, class, function. The answer is the signature, a newline and the text.
    """

    name: str
    short: str
    kind: str
    signature: str
    text: str

    @property
    def answer(self) -> str:
        return f"{self.signature}\n{self.text}"


def shorten(name: str) -> str:
    """``numpy.linalg.norm`` -> ``np.linalg.norm``; names without a usual short form stay."""
    for full, short in ALIASES:
        if name == full or name.startswith(full + "."):
            return short + name[len(full) :]
    return name


def plain(text: str) -> str:
    """Docstring markup to plain words on one line."""
    text = re.sub(r"`([^`<>]+?)\s*<[^`>]*>`_+", r"\1", text)
    text = ROLE.sub(r"\1", text)
    text = re.sub(r":math:", "", text)
    text = text.replace("``", "").replace("`", "")
    return re.sub(r"\s+", " ", text).strip()


def paragraphs(doc: str) -> list[str]:
    """The running-text paragraphs of a docstring: no signatures, sections, lists or examples."""
    doc = re.split(r"\n\s*(?:Parameters|Args|Returns|Arguments|Examples?)\s*(?::|\n\s*-+)", doc)[0]
    found = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        first = block.strip().split("\n")[0].strip()
        if not first or re.match(r"^(>>>|\.\. |[-=*+:|]|\d+\.)", first):
            continue
        found.append(block)
    return found


def looks_like_signature(line: str) -> bool:
    """True for a leading docstring line such as ``range(stop) -> range object``."""
    return bool(re.match(r"^(def |class )?[\w.]+\(.*\)?(\s*(->|--|=).*)?$", line)) and "(" in line


def strip_signature(doc: str) -> str:
    """Drop the lines at the top of a docstring that only repeat call forms."""
    lines = inspect.cleandoc(doc).split("\n")
    while lines and (not lines[0].strip() or looks_like_signature(lines[0].strip())):
        head = lines.pop(0).strip()
        while head.count("(") > head.count(")") and lines:
            head += lines.pop(0)
        inline = re.match(r"^[\w.]+\(.*?\)\s*(?:->\s*[\w\[\], ]+\s*)?(?:--|:)\s+(\w.*)$", head)
        if inline:
            lines.insert(0, inline.group(1))
            break
    return "\n".join(lines)


def summary(doc: str) -> str | None:
    """The first sentence of a docstring, with the next ones where all are short."""
    blocks = paragraphs(strip_signature(doc))
    if not blocks:
        return None
    sentences = [s for block in blocks[:2] for s in SENTENCE_END.split(plain(block))]
    first = sentences[0]
    if not re.search(r"[a-z]{2}", first) or len(first) > MAX_SENTENCE or first.startswith("See "):
        return None
    text = sentences[0]
    for sentence in sentences[1:4]:
        whole = re.fullmatch(r"[A-Z`'].*[.!?]", sentence)
        if len(text) + len(sentence) >= MAX_ANSWER_TEXT or not whole:
            break
        text += " " + sentence
    text = text.rstrip(":;, ")
    text = text[0].upper() + text[1:] if text.split(" ")[0].isalpha() else text
    return text if text[-1] in ".!?" else text + "."


def default_text(value: Any) -> str:
    """How a default is written; objects without a readable form become an ellipsis."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__name__
    text = repr(value)
    return text if len(text) <= 24 and "<" not in text and " object" not in text else "..."


class _Literal:
    """A default that prints as given text inside ``inspect.Signature``."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def from_inspect(thing: Any, drop_self: bool) -> str | None:
    """Arguments ``(a, b=1)`` from ``inspect``, without annotations."""
    try:
        signature = inspect.signature(thing)
    except (ValueError, TypeError):
        return None
    parameters = []
    for index, parameter in enumerate(signature.parameters.values()):
        if drop_self and index == 0 and parameter.name in ("self", "cls"):
            continue
        default = parameter.default
        if default is not inspect.Parameter.empty:
            default = _Literal(default_text(default))
        parameters.append(parameter.replace(annotation=inspect.Parameter.empty, default=default))
    return str(inspect.Signature(parameters))


def from_docstring(doc: str, leaf: str) -> str | None:
    """Arguments from the call form that opens a docstring (extension modules)."""
    text = inspect.cleandoc(doc)
    match = re.match(rf"^(?:def |class )?(?:[\w.]+\.)?{re.escape(leaf)}\s*\(", text)
    if not match:
        return None
    depth, end = 0, None
    for end in range(match.end() - 1, min(len(text), 1200)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            break
    arguments = re.sub(r"\s+", " ", text[match.end() - 1 : end + 1])
    try:
        tree = ast.parse(f"def f{arguments}: ...").body[0]
        assert isinstance(tree, ast.FunctionDef)
        for argument in ast.walk(tree.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        arguments = f"({ast.unparse(tree.args)})"
    except SyntaxError:
        pass  # NumPy writes optional arguments in brackets; the raw form is kept
    return re.sub(r"^\(self(?:, /)?(?:, |(?=\)))", "(", arguments)


def arguments_of(thing: Any, doc: str, leaf: str, drop_self: bool) -> str | None:
    """The argument list of a function, class or method, from whichever source has one."""
    found = from_inspect(thing, drop_self)
    if found is None or found == "(*args, **kwargs)":
        found = from_docstring(doc, leaf) or found
    if found is None:
        return None
    found = UFUNC_TAIL.sub(", out=None, **kwargs)", found)
    return found.replace("(/, ", "(").replace("(/)", "()")


def make_item(name: str, thing: Any, kind: str, drop_self: bool = False) -> Item | None:
    """An item, or None where the documentation gives no signature or no sentence."""
    doc = getattr(thing, "__doc__", None)
    if not isinstance(doc, str) or not doc.strip():
        return None
    text = summary(doc)
    short = shorten(name)
    if text is None or not text.isascii():
        return None
    if kind == "module":
        imported = f"import {name}" + (f" as {short}" if short != name and "." not in short else "")
        return Item(name, short, kind, imported, text)
    home, leaf = name.rsplit(".", 1)
    arguments = arguments_of(thing, doc, leaf, drop_self)
    if arguments is None or (home == "typing" and arguments.startswith("(*args, **kw")):
        return None
    shown = short.removeprefix("builtins.")
    signature = shown + arguments
    if len(signature) > MAX_SIGNATURE or not signature.isascii():
        return None
    return Item(name.removeprefix("builtins."), shown, kind, signature, text)


def public_names(module: Any) -> Iterator[str]:
    """Names that a module means to publish."""
    listed = getattr(module, "__all__", None)
    for name in sorted(set(listed) if listed else set(vars(module))):
        if name.startswith("_"):
            continue
        thing = getattr(module, name, None)
        home = getattr(thing, "__module__", None) or module.__name__
        if module.__name__.startswith("mlx.") and not home.startswith(module.__name__):
            continue
        if listed or home.lstrip("_").split(".")[0] == module.__name__.split(".")[0]:
            yield name


def scan() -> Iterator[Item | None]:
    """Every candidate item, in a fixed order."""
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        yield make_item(module_name, module, "module")
        for name in public_names(module):
            thing = getattr(module, name, None)
            if inspect.isclass(thing):
                yield make_item(f"{module_name}.{name}", thing, "class")
            elif callable(thing):
                yield make_item(f"{module_name}.{name}", thing, "function")
    for class_name in CLASSES_WITH_METHODS:
        module_name, leaf = class_name.rsplit(".", 1)
        owner = getattr(importlib.import_module(module_name), leaf)
        for name in sorted(vars(owner)):
            thing = getattr(owner, name)
            if not name.startswith("_") and callable(thing) and not inspect.isclass(thing):
                yield make_item(f"{class_name}.{name}", thing, "function", drop_self=True)


def build_items() -> list[Item]:
    """All items; the first of several with the same short name wins."""
    items: dict[str, Item] = {}
    for item in scan():
        if item is not None:
            items.setdefault(item.short, item)
    return list(items.values())


def save_items(items: list[Item], path: Path) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(asdict(item)) + "\n" for item in items))


def load_items(path: Path) -> list[Item]:
    """The items that ``save_items`` wrote."""
    with path.open() as lines:
        return [Item(**json.loads(line)) for line in lines]
