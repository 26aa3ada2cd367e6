"""Answers that have ended are copied by later texts, where both may be remembered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

import models
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.lockstep import _decode, _encode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.headless_planner import HeadlessPlanner
from mlx_redrafter.sampling import SamplingConfig

PROMPT = models.prompt_of(9)
TOKENS = 40
SIZES = (1, 2, 4, 8, 16, 32)
SEED = SamplingConfig(1.0, seed=5)
CONFIG = DecodingConfig(TOKENS, SEED, copy=True, remember=True)
# Whose target's random text repeats nothing of itself.
TARGET = models.build("llama")


def planner() -> HeadlessPlanner:
    """Of a machine on which a node costs little."""
    costs = CostModel(SIZES, (64,), (tuple(1.0 + 0.02 * (n - 1) for n in SIZES),), {}, (1.0,))
    return HeadlessPlanner(lambda: costs)


def told(plans: HeadlessPlanner, config: DecodingConfig = CONFIG) -> tuple[list[int], int]:
    """A text, and how many of its tokens were copied."""
    stats, model = AcceptanceStats(), SpeculativeModel(TARGET)
    made = [one.token for one in decode(model, PROMPT, config, stats=stats, planner=plans)]
    return made, stats.by_source["copied"]


@pytest.fixture(scope="module")
def plain() -> list[int]:
    made = told(planner(), replace(CONFIG, copy=False))[0]
    assert len(made) == TOKENS
    return made


def test_what_was_answered_before_is_copied(plain: list[int]) -> None:
    plans = planner()
    assert told(plans) == (plain, 0)
    again, copied = told(plans)
    assert again == plain
    assert copied > TOKENS // 2


def test_nothing_is_kept_of_a_text_that_is_not_remembered_nor_copied_for_it(
    plain: list[int],
) -> None:
    apart = replace(CONFIG, remember=False)
    plans = planner()
    assert told(plans, apart) == told(plans) == (plain, 0)
    assert told(plans, apart) == (plain, 0)
    assert told(plans)[1] > 0


def test_others_that_draw_otherwise_are_their_own(plain: list[int]) -> None:
    plans = planner()
    told(plans)
    other = replace(CONFIG, sampling=replace(SEED, seed=6))
    wanted = told(planner(), replace(other, copy=False))[0]
    assert wanted != plain
    assert told(plans, other)[0] == wanted


def test_an_abandoned_text_is_not_kept(plain: list[int]) -> None:
    plans = planner()
    text = decode(SpeculativeModel(TARGET), PROMPT, CONFIG, planner=plans)
    assert [next(text).token for _ in range(30)] == plain[:30]
    text.close()
    assert len(plans.copied.answers) == 0


@pytest.mark.parametrize("end", [12, 25])
def test_an_answer_is_kept_with_its_end(plain: list[int], end: int) -> None:
    ends = replace(CONFIG, eos_token_ids=frozenset([plain[end]]))
    wanted = plain[: plain.index(plain[end]) + 1]
    plans = planner()
    assert told(plans, ends)[0] == wanted
    assert len(plans.copied.answers) == len(wanted) + 1
    assert told(plans, ends)[0] == wanted


def test_texts_of_a_batch_copy_those_that_ended_before_them(plain: list[int]) -> None:
    texts: list[list[int]] = [[], [], []]
    decoder = BatchDecoder(
        SpeculativeModel(TARGET), [PROMPT] * 3, CONFIG, planner=planner(), batch_size=1
    )
    for place, one in decoder:
        texts[place].append(one.token)
    assert texts == [plain] * 3
    assert decoder.stats[0].by_source["copied"] == 0
    assert decoder.stats[2].by_source["copied"] > TOKENS // 2


def test_eight_threads_share_them(plain: list[int]) -> None:
    plans = planner()
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: told(plans)[0], range(16)))
    assert made == [plain] * 16
    assert len(plans.copied.answers) == 16 * (TOKENS + 1)


def test_other_processes_are_told() -> None:
    for remember in (True, False):
        config = replace(CONFIG, remember=remember)
        assert _decode(_encode(config)) == config
