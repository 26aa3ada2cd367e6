"""JSON schemas that are refused, and where; and those that are kept compiled."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

import models
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text import grammars
from mlx_redrafter.text.generate import stream_generate
from mlx_redrafter.text.json_schemas import checked_schema
from mlx_redrafter.text.structured import prepare

PROMPT = models.prompt_of(7)


def nested(part: Any) -> dict[str, Any]:
    """As what some items may be."""
    return {"$defs": {"a": {}}, "properties": {"k": {"items": {"anyOf": [{"type": "null"}, part]}}}}


def deep(levels: int) -> Any:
    """Lists of lists."""
    return reduce(lambda part, _: {"items": part}, range(levels), {})


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (3, "a JSON schema as a mapping"),
        ({"type": "objekt"}, "json_schema cannot be followed: objekt is no type"),
        (nested({"type": ["string", "text"]}), r"json_schema.properties.k.items.anyOf.1 .* text"),
        (nested({"not": {}}), r"properties.k.items.anyOf.1 cannot be followed: leave out not,"),
        (nested({"uniqueItems": True}), r"anyOf.1 cannot be followed: leave out uniqueItems,"),
        (
            nested({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}),
            r"properties.k.items.anyOf.1.oneOf cannot .*: use anyOf",
        ),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "cannot be satisfied: minimum"),
        ({"$ref": "#"}, "json_schema cannot be followed: nothing satisfies it"),
        ({"$ref": "#/nope"}, "does not exist"),
        ({"const": {1, 2}}, "cannot be written as JSON"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ({"const": "\ud800"}, "cannot be written as JSON"),
        ({"const": 10**400}, "json_schema cannot be followed"),
        (deep(130), "json_schema cannot be followed"),
        (deep(9999), "cannot be written as JSON"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        (nested({"x-guidance": {"item_separator": ";"}}), "anyOf.1 has settings in x-guidance"),
        ({"enum": ["a" * 500_000]}, "characters, but 500000 are the most"),
        (
            nested({"patternProperties": {f"^a{n}": {} for n in range(101)}}),
            r"anyOf.1.patternProperties has 101 patterns, but 100",
        ),
        ({"allOf": [{"pattern": f"a{n}"} for n in range(13)]}, "joins more than 12 patterns"),
        (
            {
                "$defs": {f"{n}": {"pattern": "a", "$ref": f"#/$defs/{n + 1}"} for n in range(20)},
                "properties": {"k": {"$ref": "#/$defs/0"}},
            },
            r"json_schema.\$defs.0 joins more than 12 patterns",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused(
    tokenizer: TokenizerWrapper, schema: Any, words: str
) -> None:
    size = len(tokenizer.get_vocab())
    model = SpeculativeModel(models.build("llama", vocab_size=size))
    with pytest.raises(RedrafterError, match=words) as caught:
        stream_generate(model, tokenizer, PROMPT, json_schema=schema)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x-guidance": {"type": "string"}, "not": {"const": 1}}},
        {"type": "string", "format": "path"},
        {"items": {"type": "string", "format": "of my own"}},
        {"type": "integer", "format": "int64"},
        {"allOf": [{"pattern": "a"}, {"pattern": "b"}]},
        {"anyOf": [{"type": "string", "pattern": f"^a{n}$"} for n in range(50)]},
    ],
)
def test_what_only_looks_like_that_is_followed(tokenizer: TokenizerWrapper, schema: Any) -> None:
    assert prepare(tokenizer, checked_schema(schema)) is not None


def test_formats_that_are_known_are_kept(tokenizer: TokenizerWrapper) -> None:
    day = prepare(tokenizer, checked_schema({"type": "string", "format": "date"}))
    assert not day.validate_tokens(tokenizer.encode('"fox', add_special_tokens=False)) > 1
    for token in tokenizer.encode('"2024-01-01"', add_special_tokens=False):
        assert day.consume_token(token)


def test_a_schema_is_compiled_once_and_the_latest_are_kept(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def compile_(vocabulary: Any, schema: str, name: str) -> Any:
        compiled.append(schema)
        return one(vocabulary, schema, name)

    one = grammars._compile
    monkeypatch.setattr(grammars, "_compile", compile_)
    schemas = [checked_schema({"const": str(n) * 100}) for n in range(4)]
    monkeypatch.setattr(grammars, "KEPT_CHARACTERS", 3 * len(schemas[0]))
    for n in (0, 1, 0, 2, 0, 3, 0, 2, 1):
        prepare(tokenizer, schemas[n])
    assert compiled == [schemas[n] for n in (0, 1, 2, 3, 1)]
