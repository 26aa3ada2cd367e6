"""Whose turn it is: a prompt waits for another's that makes much of it known, and for no other.

Who cannot begin keeps no place.
"""

from __future__ import annotations

from typing import Any

import pytest
from live_server import ScriptedSequences
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_redrafter.server.metrics import Metrics
from mlx_redrafter.server.protocol.answer import Failed
from mlx_redrafter.server.work.answering import Job
from mlx_redrafter.server.work.host import SAME_BEGINNING, Host, Work
from mlx_redrafter.server.work.prompts import Encoded
from mlx_redrafter.server.work.sequences import Decoding

INSTRUCTIONS = list(range(5, 5 + 3 * SAME_BEGINNING))


def begun_together(tokenizer: TokenizerWrapper, prompts: list[list[int]], kept: int) -> int:
    """How many of these begin in one step, where so many tokens are known."""
    engine = ScriptedSequences(lambda _: [7], tokenizer.eos_token_id, kept=kept)
    host = Host("tiny", tokenizer, lambda: engine, 4, Metrics())
    for prompt in prompts:
        job = Job(0, Encoded(prompt, continues=True), Decoding(prompt, 9, {}))
        host.submit(Work([job], lambda _: None))
    host.step()
    begun = len(engine.added)
    while host.busy:
        host.step()
    assert len(engine.added) == len(prompts)
    return begun


@pytest.mark.parametrize(
    ("shared", "kept", "begun"),
    [
        (SAME_BEGINNING - 1, 0, 3),
        (SAME_BEGINNING, 0, 1),
        (3 * SAME_BEGINNING, 0, 1),
        (3 * SAME_BEGINNING, SAME_BEGINNING, 1),
        (3 * SAME_BEGINNING, 3 * SAME_BEGINNING, 3),
        (3 * SAME_BEGINNING, 2 * SAME_BEGINNING + 1, 3),
    ],
)
def test_what_is_known_of_instructions_is_not_waited_for(
    tokenizer: TokenizerWrapper, shared: int, kept: int, begun: int
) -> None:
    """Those of an agent are the same in all its requests."""
    prompts = [[*INSTRUCTIONS[:shared], last, *range(300)] for last in (1, 2, 3)]
    assert begun_together(tokenizer, prompts, kept) == begun


def test_a_prompt_that_is_known_but_for_its_end_waits_for_no_equal_one(
    tokenizer: TokenizerWrapper,
) -> None:
    assert begun_together(tokenizer, [INSTRUCTIONS] * 2, len(INSTRUCTIONS) - 1) == 2
    assert begun_together(tokenizer, [INSTRUCTIONS] * 2, 0) == 1


def test_a_sequence_whose_answer_cannot_begin_is_stopped(tokenizer: TokenizerWrapper) -> None:
    """Else it would decode to its end in a slot of the batch, for nobody."""
    engine = ScriptedSequences(lambda _: [7] * 5, tokenizer.eos_token_id)
    unreadable: Any = None
    host = Host("tiny", unreadable, lambda: engine, 4, Metrics())
    told: list[Any] = []
    host.submit(Work([Job(0, Encoded([5], continues=True), Decoding([5], 9, {}))], told.extend))
    host.step()
    assert [type(event) for event in told] == [Failed]
    assert engine.stopped == [1]
    assert not host.busy
