"""Answers that follow a JSON schema: the same drafted and plain, whatever the model wants."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from live_server import tool_tokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper

import models
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.batch_generate import batch_generate, stream_batch_generate
from mlx_redrafter.text.generate import stream_generate
from mlx_redrafter.text.json_schemas import checked_schema
from mlx_redrafter.text.structured import JsonAnswer
from mlx_redrafter.tree import HostTree

PROMPT = models.prompt_of(7)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "many": {"type": "array", "items": {"enum": [1, 2, 30]}, "maxItems": 3},
        "said": {"type": "boolean"},
    },
    "required": ["name", "many", "said"],
    "additionalProperties": False,
}


def object_of(**properties: Any) -> dict[str, Any]:
    """A schema of an object with these and no others."""
    rest = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **rest}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    """A tokenizer whose template knows tools and thinking."""
    return tool_tokenizer(tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="module")
def model(tokenizer: TokenizerWrapper) -> SpeculativeModel:
    size = len(tokenizer.get_vocab())
    target = models.build("llama", vocab_size=size)
    return SpeculativeModel(target, models.build_drafter(vocab_size=size, seed=1))


def told(model: SpeculativeModel, tokenizer: Any, **options: Any) -> tuple[str, str | None]:
    """A text and why it ended."""
    made = list(stream_generate(model, tokenizer, PROMPT, **{"max_tokens": 200, **options}))
    return "".join(one.text for one in made), made[-1].finish_reason


def is_of_schema(text: str) -> bool:
    said = json.loads(text)
    assert list(said) == ["name", "many", "said"]
    assert len(said["name"]) <= 8
    assert len(said["many"]) <= 3
    return set(said["many"]) <= {1, 2, 30} and isinstance(said["said"], bool)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.5, "top_p": 0.9}])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_drafted_and_plain_answers_are_the_same_json(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, options: dict[str, Any], seed: int
) -> None:
    options = {**options, "seed": seed, "json_schema": SCHEMA}
    plain, reason = told(model, tokenizer, draft=False, copy=False, **options)
    assert reason == "stop"
    assert is_of_schema(plain)
    assert told(model, tokenizer, **options) == (plain, "stop")
    assert told(model, tokenizer, beam_width=3, beam_length=4, **options) == (plain, "stop")


def test_each_text_of_a_batch_follows_its_own(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "max_tokens": 200}
    own: list[dict[str, Any]] = [
        {"json_schema": SCHEMA, "seed": 4},
        {"seed": 5, "max_tokens": 20},
        {"json_schema": {"enum": ["one", "two"]}, "seed": 6},
    ]
    made = batch_generate(model, tokenizer, [PROMPT] * 3, per_prompt=own, **options)
    assert is_of_schema(made.texts[0])
    assert made.texts[2].strip() in ('"one"', '"two"')
    assert made.texts == [told(model, tokenizer, **options | one)[0] for one in own]


def test_a_text_that_is_cut_stays_a_beginning(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    whole, _ = told(model, tokenizer, json_schema=SCHEMA)
    cut, reason = told(model, tokenizer, json_schema=SCHEMA, max_tokens=9)
    assert reason == "length"
    assert len(cut) < len(whole)
    assert whole.startswith(cut)


def test_with_a_processor_of_the_callers_the_answer_is_json_still(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    seen: list[int] = []

    def lowers_braces(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append(tokens.size)
        return logits - 50 * mx.eye(logits.shape[-1])[tokenizer.encode("{")[-1]]

    options: dict[str, Any] = {"json_schema": SCHEMA, "logits_processors": [lowers_braces]}
    drafted = told(model, tokenizer, **options)
    assert seen == list(range(len(PROMPT), len(PROMPT) + len(seen)))
    assert is_of_schema(drafted[0])
    assert told(model, tokenizer, draft=False, **options) == drafted


@pytest.mark.parametrize("said", ["x <|end|> y", "<|user|>", "use <think> tags", "</think>"])
@pytest.mark.parametrize("kind", ["const", "enum", "name"])
def test_texts_that_spell_special_tokens_are_written_out(
    tools: TokenizerWrapper, said: str, kind: str
) -> None:
    schema: dict[str, Any] = {"const": said} if kind == "const" else {"enum": [said, said + "!"]}
    if kind == "name":
        schema = object_of(**{said: {"const": 1}})
    size = len(tools.get_vocab())
    target = models.build("llama", vocab_size=size)
    drafting = SpeculativeModel(target, models.build_drafter(vocab_size=size, seed=1))
    options: dict[str, Any] = {"json_schema": schema, "temperature": 1.0, "seed": 5}
    drafted, reason = told(drafting, tools, **options)
    assert reason == "stop"
    assert json.loads(drafted) in (said, said + "!", {said: 1})
    assert told(drafting, tools, draft=False, **options) == (drafted, "stop")


@pytest.mark.parametrize(
    "schema",
    [
        object_of(next={"$ref": "#/properties/next"}),
        {"anyOf": [object_of(**{f"k{n}": {"type": "string"}, "z": {}}) for n in range(2500)]},
    ],
)
@pytest.mark.parametrize("options", [{"draft": False, "copy": False}, {}])
def test_a_schema_that_leads_nowhere_fails_and_the_others_go_on(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, schema: Any, options: dict[str, Any]
) -> None:
    text = stream_generate(model, tokenizer, PROMPT, json_schema=schema, **options)
    said: list[str] = []
    with pytest.raises(RedrafterError, match="cannot go on by its JSON schema") as caught:
        said.extend(one.text for one in text if one.finish_reason is None)
    assert "\n" not in str(caught.value)
    assert said[0].startswith("{")
    own: list[dict[str, Any]] = [{"json_schema": schema}, {"json_schema": {"enum": ["one"]}}, {}]
    options = {**options, "max_tokens": 30, "per_prompt": own}
    batch = stream_batch_generate(model, tokenizer, [PROMPT] * 3, **options)
    made: list[tuple[int, str]] = []
    with pytest.raises(RedrafterError, match="cannot go on"):
        made.extend((place, one.text) for place, one in batch)
    texts = ["".join(text for place, text in made if place == number) for number in range(3)]
    assert texts == ["".join(said), '"one"', told(model, tokenizer, max_tokens=30)[0]]


def test_the_likeliest_are_those_that_may_come_next(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    options: dict[str, Any] = {"json_schema": {"const": "ab"}, "logprobs": 50}
    made = list(stream_generate(model, tokenizer, PROMPT, max_tokens=20, **options))
    for one in made:
        assert 1 <= len(one.top_logprobs) < 50
        assert all(-1e4 < value <= 0 for _, value in one.top_logprobs)
        assert one.token in dict(one.top_logprobs)


def test_several_patterns_may_be_asked_of_a_text(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    rules = ["a.{9}b", "c.{9}d", "[A-Z]"]
    schema = {"type": "string", "allOf": [{"pattern": rule} for rule in rules], "maxLength": 60}
    options: dict[str, Any] = {"json_schema": schema, "temperature": 1.0, "seed": 2}
    plain, reason = told(model, tokenizer, draft=False, copy=False, **options)
    assert reason == "stop"
    assert all(re.search(rule, json.loads(plain)) for rule in rules)
    assert told(model, tokenizer, **options) == (plain, "stop")


def test_processors_that_ban_all_that_is_allowed_are_told(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    def bans(_tokens: mx.array, logits: mx.array) -> mx.array:
        return mx.where(mx.arange(logits.shape[-1]) == 2, logits, -mx.inf)

    with pytest.raises(RedrafterError, match="leave no token that is allowed"):
        told(model, tokenizer, json_schema=SCHEMA, logits_processors=[bans])


class Text:
    """A text that is written token by token under a constraint."""

    def __init__(self, tokenizer: TokenizerWrapper, prompt: str, schema: Any, **options: Any):
        self.tokenizer = tokenizer
        self.answer = JsonAnswer(tokenizer, checked_schema(schema), **options)
        self.tokens = list(tokenizer.encode(prompt, add_special_tokens=False))
        self.allowed = self._ask()

    def _ask(self) -> set[int]:
        root = HostTree((self.tokens[-1],), (-1,), (0.0,))
        size = len(self.tokenizer.get_vocab())
        return set(np.flatnonzero(self.answer.allowed(self.tokens[:-1], root, size)[0]).tolist())

    def write(self, text: str) -> Text:
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            assert token in self.allowed, self.tokenizer.decode([token])
            self.tokens.append(token)
            self.allowed = self._ask()
        return self

    @property
    def is_free(self) -> bool:
        return len(self.allowed) == len(self.tokenizer.get_vocab())

    @property
    def goes_on_freely(self) -> bool:
        return self.allowed == set(range(len(self.tokenizer.get_vocab()))) - self.ends

    @property
    def ends(self) -> set[int]:
        return set(self.tokenizer.eos_token_ids)


def test_only_the_end_comes_after_complete_json(tools: TokenizerWrapper) -> None:
    text = Text(tools, "question", SCHEMA).write('{"name": "a", "many": [30], "said": true')
    assert not text.allowed & set(tools.eos_token_ids)
    assert text.write("}").allowed == set(tools.eos_token_ids)
    assert text.write(tools.decode(list(tools.eos_token_ids))).allowed == set(tools.eos_token_ids)


def test_a_number_may_end_or_go_on(tools: TokenizerWrapper) -> None:
    text = Text(tools, "question", {"type": "integer"}).write("12")
    digits = {tools.encode(digit, add_special_tokens=False)[0] for digit in "0123456789"}
    assert set(tools.eos_token_ids) | digits <= text.allowed


def test_thoughts_that_the_prompt_opened_are_free_but_for_the_end(tools: TokenizerWrapper) -> None:
    text = Text(tools, "question<think>", SCHEMA)
    assert text.goes_on_freely
    assert text.write("Is it lazy? {").goes_on_freely
    assert not text.write("</think>").goes_on_freely
    text.write('{"name": "a", "many": [], "said": false}')


def test_an_answer_may_be_a_call_where_tools_are_offered(tools: TokenizerWrapper) -> None:
    call = "<tool_call>anything"
    first = tools.encode(call, add_special_tokens=False)[0]
    assert first not in Text(tools, "question", SCHEMA).allowed
    text = Text(tools, "question", SCHEMA, calls=True)
    assert first in text.allowed
    mark = tools.encode("<tool_call>", add_special_tokens=False)
    assert len(mark) > 1, "of several tokens"
    for token in mark:
        assert not text.is_free
        text.write(tools.decode([token]))
        assert text.is_free or len(text.allowed) == 1
    assert text.write("anything").is_free
    other = Text(tools, "question", SCHEMA, calls=True).write("{")
    assert first not in other.allowed


def test_tools_without_a_mark_of_their_own_are_refused_beside_a_schema(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    tools: list[Mapping[str, Any]] = [{"type": "function", "function": {"name": "look"}}]
    with pytest.raises(RedrafterError, match="give tools or the schema"):
        stream_generate(model, tokenizer, PROMPT, json_schema=SCHEMA, tools=tools)


def test_without_the_package_its_name_is_told(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(RedrafterError, match="pip install llguidance"):
        stream_generate(model, tokenizer, PROMPT, json_schema={"const": "of no other test"})


def test_a_tokenizer_that_cannot_be_followed_is_told(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Only fast tokenizers are supported")

    monkeypatch.setattr("llguidance.hf.from_tokenizer", refuse)
    with pytest.raises(RedrafterError, match="Only fast tokenizers"):
        JsonAnswer(copy.deepcopy(tokenizer), checked_schema(SCHEMA))


@pytest.mark.parametrize("prompt", ["question", "question<think>"])
def test_the_nodes_of_a_draft_are_allowed_what_texts_of_their_own_are(
    tools: TokenizerWrapper, prompt: str
) -> None:
    """Whichever branch is asked about first, and whatever else cannot come next."""
    said = '{"name": "a", "many": [30]' if prompt == "question" else 'Well.</think>{"name": "'
    path = tools.encode(said, add_special_tokens=False)
    wrong = tools.encode("}", add_special_tokens=False)[0]
    tokens, parents = [tools.encode(prompt)[-1]], [-1]
    for token in path:
        tokens += [token, wrong]
        parents += [max(0, len(parents) - 2), max(0, len(parents) - 2)]
    tree = HostTree(tuple(tokens), tuple(parents), (0.0,) * len(tokens))
    size = len(tools.get_vocab())
    text = Text(tools, prompt, SCHEMA)
    before = text.tokens[:-1]
    rows = JsonAnswer(tools, checked_schema(SCHEMA)).allowed(before, tree, size)
    assert set(np.flatnonzero(rows[0]).tolist()) == text.allowed
    for place, token in enumerate(path):
        assert token in text.allowed
        text.tokens.append(token)
        text.allowed = text._ask()
        assert set(np.flatnonzero(rows[1 + 2 * place]).tolist()) == text.allowed
    assert rows.any(axis=1).all()


def test_texts_of_one_schema_stand_apart(tools: TokenizerWrapper) -> None:
    first, second = Text(tools, "question", SCHEMA), Text(tools, "question", SCHEMA)
    begun = set(second.allowed)
    first.write('{"name": "a"')
    assert second.allowed == second._ask() == begun
