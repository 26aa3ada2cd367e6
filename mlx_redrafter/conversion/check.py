"""The check after a conversion: does the written bundle do what its source did?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load as mlx_lm_load

from ..drafting.drafter import Drafter
from ..drafting.shared_head import share_rows
from ..engine.model import SpeculativeModel
from ..engine.statistics import AcceptanceStats
from ..errors import RedrafterError
from ..target.experts import make_computable
from ..target.target import Target
from ..text.boundary import first_forward
from ..text.generate import stream_generate
from ..text.loading import load
from ..text.prompts import encode_prompt
from .report import CheckReport, Progress

PROMPTS = (
    "Write three sentences about the sea.",
    "Explain why the sky is blue.",
    "def fibonacci(n):",
    "List the months of the year.",
)
MAX_TOKENS = 32
DEPTHS = 4


def check_bundle(
    path: Path,
    reference: Callable[[], nn.Module] | None,
    original: Drafter | None,
    progress: Progress,
    *,
    drafter: Path | None = None,
    trusted: bool = False,
) -> CheckReport:
    """Load a bundle, decode, and compare.

    Args:
        path: The bundle.
        reference: Makes mlx-lm's conversion of the same checkpoint in memory, None where there is
            no checkpoint. It and the bundle are never in memory together.
        original: The unquantised drafter, None where the drafter was not quantised.
        progress: Told the work done.
        drafter: Directory of a drafter to decode with instead of the bundle's own.
        trusted: Whether Python files of the bundle may be run.

    Raises:
        RedrafterError: If mlx-lm cannot open the bundle.
    """
    steps = (2 if reference else 0) + len(PROMPTS) + (1 if original else 0)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress("Checking the bundle", done, steps)

    difference, failure = None, None
    if reference is not None:
        difference, failure = _logit_difference(path, reference, tick, trusted)
    report = CheckReport(
        prompts=len(PROMPTS),
        tokens=0,
        target_matches=None if difference is None else difference == 0.0,
        target_difference=difference,
        failure=failure,
    )
    try:
        model, tokenizer = load(path, drafter, plan=False, trust_remote_code=trusted)
        return _decode_all(model, tokenizer, original, report, tick)
    except RedrafterError as error:
        undecoded = f"The bundle could not be decoded: {error}"
        return replace(report, failure=report.failure or undecoded)


def _decode_all(
    model: SpeculativeModel,
    tokenizer: Any,
    original: Drafter | None,
    report: CheckReport,
    tick: Callable[[], None],
) -> CheckReport:
    """Fill in what decoding tells."""
    tokens, same, stats = 0, 0, AcceptanceStats()
    texts: list[list[int]] = []
    for prompt in PROMPTS:
        ids = encode_prompt(tokenizer, _messages(tokenizer, prompt))
        plain, _ = _decode(model, tokenizer, ids, draft=False)
        texts.append(ids + plain)
        tokens += len(plain)
        if model.drafter is not None:
            drafted, counted = _decode(model, tokenizer, ids, draft=True)
            same += drafted == plain
            stats.merge(counted)
        tick()
    agreed, positions = 0, 0
    if original is not None and model.head is not None:
        agreed, positions = _agreement(model.target, model.head, original, texts)
        tick()
    drafting = model.drafter is not None
    return replace(
        report,
        tokens=tokens,
        draft_matches=same / len(PROMPTS) if drafting else None,
        tokens_per_step=stats.tokens_per_step if drafting else None,
        drafter_agreement=agreed / positions if positions else None,
        drafter_positions=positions,
    )


def _messages(tokenizer: Any, prompt: str) -> Any:
    return [{"role": "user", "content": prompt}] if tokenizer.has_chat_template else prompt


def _decode(
    model: SpeculativeModel, tokenizer: Any, ids: list[int], draft: bool
) -> tuple[list[int], AcceptanceStats]:
    tokens, stats = [], AcceptanceStats()
    for response in stream_generate(
        model, tokenizer, ids, max_tokens=MAX_TOKENS, draft=draft, copy=False
    ):
        tokens.append(response.token)
        stats = response.stats
    return tokens, stats


def _logit_difference(
    path: Path, reference: Callable[[], nn.Module], tick: Callable[[], None], trusted: bool
) -> tuple[float, str | None]:
    """Largest difference of next-token scores between the bundle and mlx-lm's own conversion.

    NaN where either computes NaN; with it, what to tell of scores that are no numbers.
    """
    # Loaded by mlx-lm, not by us: that the bundle is an ordinary mlx-lm directory is checked too.
    try:
        model, tokenizer = mlx_lm_load(
            str(path), {"trust_remote_code": trusted}, trust_remote_code=trusted
        )[:2]
    except (ValueError, OSError, KeyError) as error:
        raise RedrafterError(
            f"mlx-lm cannot open the bundle it should be able to open ({error}): convert it again."
        ) from error
    ids = [encode_prompt(tokenizer, _messages(tokenizer, prompt)) for prompt in PROMPTS]
    make_computable(model)
    with first_forward(path):
        written = [model(mx.array([tokens])) for tokens in ids]
        mx.eval(written)
    failure = _no_numbers(written)
    del model
    tick()
    mx.clear_cache()
    model = make_computable(reference())
    differences = []
    for tokens, scores in zip(ids, written, strict=True):
        expected = model(mx.array([tokens]))
        apart = mx.abs(expected.astype(mx.float32) - scores.astype(mx.float32))
        # Minus infinity, by which some models rule tokens out, has no difference from itself.
        differences.append(mx.where(expected == scores, 0, apart).max())
    # mlx's maximum carries NaN along; Python's depends on the order.
    largest = float(mx.stack(differences).max())
    del model
    mx.clear_cache()
    tick()
    return largest, failure


def _no_numbers(written: list[mx.array]) -> str | None:
    """What to tell of scores that are NaN or infinite; None where all are numbers."""
    # Here, too, minus infinity may be meant.
    if all(mx.all(scores < mx.inf).item() for scores in written):
        return None
    cause = "its configuration is not that of its weights, or its training diverged"
    if written[0].dtype == mx.float16:
        cause = "float16 is too narrow for it, so convert it with --dtype bfloat16 or float32"
    return f"The bundle's target computes scores that are NaN or infinite: {cause}."


def _agreement(
    target: Target, quantised: Drafter, original: Drafter, texts: list[list[int]]
) -> tuple[int, int]:
    """How often both heads find the same token likeliest, and of how many positions.

    Every position of the texts is a root from which the following tokens are fed to both heads,
    up to DEPTHS of them.
    """
    agreed, positions = 0, 0
    if original.needs_rows:
        share_rows(original, target)
    for text in texts:
        tokens = mx.array([text])
        _, hidden = target.teach(tokens, layers=original.config.target_layers)
        embeddings, depth = target.embed(tokens), min(DEPTHS, len(text) - 1)
        choices = [_likeliest(head, hidden, embeddings, depth) for head in (quantised, original)]
        agreed += int(mx.sum(choices[0] == choices[1]))
        positions += choices[0].size
    return agreed, positions


def _likeliest(head: Drafter, hidden: mx.array, embeddings: mx.array, depth: int) -> mx.array:
    """Likeliest head columns after 1 to depth tokens from every position of a text."""
    guesses = head.logits_along(hidden, embeddings, depth)
    return mx.concatenate([mx.argmax(logits, axis=-1) for logits in guesses])
