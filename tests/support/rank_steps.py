"""Run as each of several ranks, or imported by what is compared with them: texts and commands.

rank_steps.py STEPS, a JSON list; each step is the name of a function here and its arguments, and
prints what it returns as a line of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import mlx.core as mx

import models
from mlx_redrafter import batch_generate, generate, load, stream_generate
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning import measuring
from mlx_redrafter.ui.cli import plan as plan_command

PROMPT = "the quick brown"
MOST = 8
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"draft": False, "copy": False},
    "chain": {"beam_width": 1, "beam_length": 3},
    "tree": {"beam_width": 3, "beam_length": 3, "node_budget": 8},
}


def texts(path: str, ways: list[str], most: int, *, pipeline: bool) -> dict[str, list[int]]:
    """Token ids that a bundle writes, one prompt at a time."""
    model, tokenizer = load(path, plan=False, pipeline=pipeline)
    made = {}
    for temperature, way in product((0.0, 0.9), ways):
        made[f"{way} at {temperature}"] = _tokens(
            model, tokenizer, PROMPT, max_tokens=most, temperature=temperature, seed=3, **WAYS[way]
        )
    for temperature in (0.0, 0.9):
        written = made[f"{ways[0]} at {temperature}"]
        source = models.ScriptedSource(
            [*tokenizer.encode(PROMPT), *written], vocab_size=model.target.vocab_size
        )
        sure = SpeculativeModel(model.target, source, ranks=model.ranks)
        made[f"accepted drafts at {temperature}"] = _tokens(
            sure, tokenizer, PROMPT, max_tokens=most, temperature=temperature, seed=3, copy=False
        )
        assert sum(source.expected) > 0, "nothing was accepted"
    return made


def together(path: str, *, pipeline: bool) -> dict[str, Any]:
    """Texts of a batch, and of two turns of which the second resumes from the first's cache."""
    model, tokenizer = load(path, plan=False, pipeline=pipeline)
    made: dict[str, Any] = {
        "batch": batch_generate(
            model, tokenizer, [PROMPT, "a drafter", "what does"], max_tokens=[9, 5, 7], seed=4,
            temperature=0.7,
        ).token_ids
    }  # fmt: skip
    cache, said, turns = model.make_cache(), tokenizer.encode(PROMPT), []
    for _ in range(2):
        turns.append(_tokens(model, tokenizer, said, cache=cache, max_tokens=5))
        said = [*said, *turns[-1], *tokenizer.encode(" and")]
    return {**made, "turns": turns}


def planned(path: str) -> dict[str, Any]:
    """With shapes by costs that are measured on the group, and without a seed of one's own."""
    with patch.object(measuring, "BUDGET", 0.05):
        model, tokenizer = load(path)
        greedy = _tokens(model, tokenizer, PROMPT)
        own = list(stream_generate(model, tokenizer, PROMPT, max_tokens=8, temperature=1.0))
    seen = {"own": [one.token for one in own], "seed": own[0].seed}
    return {"planned": greedy, "rank": seen, "costs": model.planner.costs.to_dict()}


def differing(path: str) -> dict[str, str]:
    """What is said where one rank is given something else; text where nothing is."""
    model, tokenizer = load(path, plan=False)
    rank = model.ranks.rank if model.ranks is not None else 0
    cache, said = model.make_cache(), dict[str, str]()
    write = partial(generate, model, tokenizer, max_tokens=4)
    write(PROMPT, cache=cache)

    def least(scores: mx.array) -> mx.array:
        return mx.argmin(scores, axis=-1)

    def most(scores: mx.array) -> mx.array:
        return mx.argmax(scores, axis=-1)

    calls: dict[str, Callable[[], Any]] = {
        "prompt": lambda: write("the dog" if rank else PROMPT),
        "cache": lambda: write(PROMPT + " fox", cache=model.make_cache() if rank else cache),
        "batch_size": lambda: batch_generate(
            model, tokenizer, [PROMPT] * 3, max_tokens=4, batch_size=1 if rank else 3
        ),
        "processors": lambda: write(PROMPT, logits_processors=[lambda _, x: x] * rank),
        "sampler": lambda: write(PROMPT, sampler=least if rank else most),
    }
    for name, call in calls.items():
        try:
            said[name] = str(call())
        except RedrafterError as error:
            said[name] = str(error)
    return {**said, "after": write(PROMPT)}


def command(module: str, *arguments: str, stdin: str = "") -> dict[str, Any]:
    """What a command line shows on this rank, and its exit code."""
    main = importlib.import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(measuring, "BUDGET", 0.05),
        patch.object(sys, "stdin", io.StringIO(stdin)),
        patch.object(plan_command, "MOST_TOKENS", 16),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def _tokens(model: SpeculativeModel, tokenizer: Any, prompt: Any, **options: Any) -> list[int]:
    given = {"max_tokens": MOST, **options}
    return [one.token for one in stream_generate(model, tokenizer, prompt, **given)]


if __name__ == "__main__":
    for name, arguments, options in json.loads(sys.argv[1]):
        print(json.dumps([name, globals()[name](*arguments, **options)]), flush=True)
