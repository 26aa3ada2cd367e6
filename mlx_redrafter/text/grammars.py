"""JSON schemas over a tokenizer's vocabulary, by llguidance: compiled once, followed by copies."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import RedrafterError
from .json_schemas import Schema, refusal, subschemas

# Between JSON's tokens: models break lines and indent, and some would never stop to.
WHITESPACE = r"[ \n]{0,16}"
# Named one and all, since a schema's own settings come before what is left out here.
SETTINGS = {
    "whitespace_flexible": True,
    "whitespace_pattern": WHITESPACE,
    "item_separator": ",",
    "key_separator": ":",
    "lenient": False,
    "coerce_one_of": False,
}
MISSING = "Answers that follow a JSON schema need llguidance: pip install llguidance."
# On one mask, in llguidance's measure: 0.1 s at worst. Its own tenth of that is too little for a
# password's rules; and where it runs out depends on what copies of a matcher were asked before.
MOST_WORK = 2_000_000
KEPT_CHARACTERS = 1_000_000  # of schemas that are kept compiled: 30 MB of words


class Grammars:
    """Schemas over one vocabulary; for several threads.

    Args:
        tokenizer: transformers'.
        ends: Tokens that end a text.

    Raises:
        RedrafterError: If llguidance is not there, or cannot read the tokenizer.
    """

    def __init__(self, tokenizer: Any, ends: tuple[int, ...]):
        self.ends = ends
        self._vocabulary = _vocabulary(tokenizer, ends)
        self._compiled: OrderedDict[str, Any] = OrderedDict()  # the latest last
        self._lock = threading.Lock()

    def start(self, schema: str, name: str) -> Any:
        """llguidance's matcher, before the first token; the caller's own.

        Args:
            schema: As JSON.
            name: What it is called in errors.

        Raises:
            RedrafterError: If it cannot be followed.
        """
        with self._lock:
            matcher = self._compiled.get(schema)
            if matcher is not None:
                self._compiled.move_to_end(schema)
        if matcher is None:  # not under the lock: it may take a second
            matcher = _compile(self._vocabulary, schema, name)
            self._keep(schema, matcher)
        return matcher.deep_copy()

    def _keep(self, schema: str, matcher: Any) -> None:
        with self._lock:
            self._compiled[schema] = matcher
            while len(self._compiled) > 1 and sum(map(len, self._compiled)) > KEPT_CHARACTERS:
                self._compiled.popitem(last=False)


# Each is made in a second, and is the same for all texts of a tokenizer, as long as that is there.
_made: WeakKeyDictionary[Any, Grammars] = WeakKeyDictionary()


def grammars_of(tokenizer: Any, ends: tuple[int, ...]) -> Grammars:
    """A tokenizer's, made once; arguments and errors as for :class:`Grammars`."""
    known = _made.get(tokenizer)
    if known is None or known.ends != ends:
        known = _made[tokenizer] = Grammars(tokenizer, ends)
    return known


def _fault(schema: str) -> str:
    """Why llguidance does not take a schema; "" where it does."""
    matcher = _llguidance().LLMatcher
    try:
        grammar = matcher.grammar_from_json_schema(schema, overrides=SETTINGS)
    except ValueError as error:  # nested too deep, or numbers that are too large
        return str(error)
    _, faults = matcher.validate_grammar_with_warnings(grammar)
    return " ".join(faults)  # what is only warned of would not be enforced


def _known(schema: str) -> Schema:
    """A schema without formats that are not known: JSON Schema takes them for remarks."""
    whole: Schema = json.loads(schema)
    known: dict[str, bool] = {}
    for _, part in subschemas(whole):
        form = part.get("format")
        if isinstance(form, str):
            if form not in known:
                known[form] = not _fault(json.dumps({"type": "string", "format": form}))
            if not known[form]:
                del part["format"]
    return whole


def _compile(vocabulary: Any, schema: str, name: str) -> Any:
    followed = _known(schema)
    fault = _fault(json.dumps(followed))
    if fault:
        raise refusal(fault, schema, name)
    # Bytes that must come are not to be tokenised beforehand: they may spell a special token.
    whole = json.dumps({**followed, "x-guidance": SETTINGS})
    guidance = _llguidance()
    matcher = guidance.LLMatcher(
        vocabulary,
        f'%llguidance {{"no_forcing": true}}\nstart: %json {whole}',
        log_level=0,
        limits=guidance.LLParserLimits(step_lexer_fuel=MOST_WORK),
    )
    if not matcher.is_error():
        first = matcher.deep_copy()
        first.compute_bitmask()
        if first.is_error():
            raise RedrafterError(f"{name} cannot be followed: {trouble(first)}.")
        return matcher
    raise refusal(trouble(matcher), schema, name)


def trouble(matcher: Any) -> str:
    """Why a matcher allows no token."""
    said = matcher.get_error().partition("\n")[0].rstrip(". ")
    if said in ("", "NoExtensionBias"):
        return "nothing satisfies it, as where a reference leads back to itself"
    return f"llguidance gives up ({said:.200})"


def _vocabulary(tokenizer: Any, ends: tuple[int, ...]) -> Any:
    _llguidance()
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, eos_token=list(ends))
    except (ValueError, AttributeError, TypeError) as error:
        raise RedrafterError(
            f"This model's tokenizer cannot be followed by llguidance ({error!s:.200})."
        ) from error


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise RedrafterError(MISSING) from error
    return llguidance
