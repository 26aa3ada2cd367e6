"""Several processes that share a target over mlx's ring backend, each a real one.

One group of processes goes through many steps, since starting one takes longer than what it does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rank_steps
from rank_bundles import make_rank_bundle
from rank_group import SUPPORT, Group

from mlx_redrafter import load
from mlx_redrafter.benchmark.agreement import decision, first_difference
from mlx_redrafter.sampling import SamplingConfig

REPEATED = "the quick brown fox jumps over " * 4 + "the quick"
PIPELINES = ["qwen2", "ministral3", "deepseek_v3", "qwen3_next"]
Step = tuple[str, list[Any], dict[str, Any]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bundles")
    made = {kind: make_rank_bundle(home / kind, kind) for kind in ["llama", *PIPELINES]}
    return {**made, "bare": make_rank_bundle(home / "bare", "llama", drafter=False)}


def text_steps(bundles: dict[str, Path]) -> dict[str, Step]:
    """What every group, and one process alone, writes the same with."""
    llama, steps = str(bundles["llama"]), {}
    steps["llama"] = ("texts", [llama, ["plain", "chain", "tree"], 12], {"pipeline": False})
    steps["llama together"] = ("together", [llama], {"pipeline": False})
    for kind in PIPELINES:
        path = str(bundles[kind])
        steps[kind] = ("texts", [path, ["plain", "tree"], 8], {"pipeline": True})
        steps[f"{kind} together"] = ("together", [path], {"pipeline": True})
    return steps


def other_steps(bundles: dict[str, Path], home: Path) -> dict[str, Step]:
    """Commands, and what has no counterpart alone."""
    llama, questions = str(bundles["llama"]), home / "questions.txt"
    questions.write_text("the quick brown fox\nwhat does this do?\n", "utf-8")
    chat = ["--model", llama, "--prompt", "the quick", "--max-tokens", "8", "--temp", "0.8"]
    copies = ["--model", str(bundles["bare"]), "--prompt", REPEATED, "--max-tokens", "24"]
    talk = ["--model", llama, "--no-draft", "--max-tokens", "8", "--seed", "5"]
    lines = "the quick\n/draft on\nthe quick\n/compare\nq\n"
    bench = ["run", "--model", llama, "--prompts", str(questions), "--max-tokens", "8"]
    bench += ["--repeats", "1", "--beam-width", "2", "--beam-length", "2", "--no-copy"]
    bench += ["--json", str(home / "run.json"), "--temperature", "0"]
    plan = [llama, "--tokens", "8", "--prompt", "the quick"]
    ui = "mlx_redrafter.ui"
    return {
        "planned": ("planned", [llama], {}),
        "differing": ("differing", [llama], {}),
        "chat": ("command", [f"{ui}.chat.main", *chat, "--seed", "5", "--json"], {}),
        "copies": ("command", [f"{ui}.chat.main", *copies, "--json"], {}),
        "talk": ("command", [f"{ui}.chat.main", *talk], {"stdin": lines}),
        "benchmark": ("command", [f"{ui}.cli.benchmark", *bench], {}),
        "plan": ("command", [f"{ui}.cli.plan", *plan], {}),
        "train": ("command", [f"{ui}.cli.train", "--model", llama, "--data", str(questions)], {}),
    }


def run(home: Path, ranks: int, steps: dict[str, Step]) -> list[dict[str, Any]]:
    """What each rank says to each step."""
    script = SUPPORT / "rank_steps.py"
    with Group(home, ranks, script, json.dumps(list(steps.values()))) as group:
        codes = group.wait()
        assert codes == [0] * ranks, [group.err(rank) for rank in range(ranks)]
        said = [[json.loads(line) for line in group.out(r).splitlines()] for r in range(ranks)]
    return [dict(zip(steps, (value for _, value in own), strict=True)) for own in said]


@pytest.fixture(scope="module")
def alone(bundles: dict[str, Path]) -> dict[str, Any]:
    steps = text_steps(bundles).items()
    return {
        name: getattr(rank_steps, function)(*arguments, **{**options, "pipeline": False})
        for name, (function, arguments, options) in steps
    }


@pytest.fixture(scope="module")
def pair(
    bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    home = tmp_path_factory.mktemp("pair")
    return home, run(home, 2, {**text_steps(bundles), **other_steps(bundles, home)})


Pair = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize("name", ["llama", *PIPELINES])
def test_two_ranks_write_what_one_process_writes(
    name: str, pair: Pair, alone: dict[str, Any]
) -> None:
    """Greedy and sampled; plain, as chains, as trees, with accepted drafts; pipelines too."""
    for rank in pair[1]:
        assert rank[name] == alone[name]
    drafted = [text for way, text in alone[name].items() if way.endswith("at 0.9")]
    assert all(text == drafted[0] for text in drafted)


@pytest.mark.parametrize("name", ["llama", *PIPELINES])
def test_batches_and_second_turns(name: str, pair: Pair, alone: dict[str, Any]) -> None:
    for rank in pair[1]:
        assert rank[f"{name} together"] == alone[f"{name} together"]


def test_costs_and_seeds_are_rank_0s(pair: Pair, alone: dict[str, Any]) -> None:
    first, second = (rank["planned"] for rank in pair[1])
    assert first == second
    assert first["planned"] == alone["llama"]["plain at 0.0"][: rank_steps.MOST]
    assert first["rank"]["seed"] is not None


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("prompt", "Rank 1 was given another prompt than rank 0: make the same calls"),
        ("cache", "Rank 1's cache holds another text than rank 0's: give every rank the cache"),
        ("batch_size", "Rank 1 was given other options than rank 0: make the same calls"),
        ("processors", "Rank 1 was given other options than rank 0: make the same calls"),
        ("sampler", "Rank 1 chose other tokens than rank 0: make the same calls on every rank, w"),
    ],
)
def test_ranks_that_are_given_something_else_say_so(what: str, words: str, pair: Pair) -> None:
    for rank in pair[1]:
        assert rank["differing"][what].startswith(words)


def test_ranks_go_on_together_after_a_refusal(pair: Pair) -> None:
    first, second = (rank["differing"]["after"] for rank in pair[1])
    assert first == second != ""


def test_the_chat_is_rank_0s(pair: Pair, bundles: dict[str, Path], tmp_path: Path) -> None:
    """With drafts, and without a drafter with copies."""
    for name in ("chat", "copies"):
        leads, follows = (rank[name] for rank in pair[1])
        assert follows == {"code": 0, "out": "", "err": ""}
        _, arguments, options = other_steps(bundles, tmp_path)[name]
        expected = rank_steps.command(*arguments, **options)
        assert leads["code"] == expected["code"] == 0
        assert json.loads(leads["out"])["text"] == json.loads(expected["out"])["text"]


def test_drafting_that_is_switched_on_is_planned_on_every_rank(
    pair: Pair, bundles: dict[str, Path], tmp_path: Path
) -> None:
    leads, follows = (rank["talk"] for rank in pair[1])
    assert follows == {"code": 0, "out": "", "err": ""}
    _, arguments, options = other_steps(bundles, tmp_path)["talk"]
    expected = rank_steps.command(*arguments, **options)
    assert leads["code"] == expected["code"] == 0, leads["err"]
    said = [one["out"].splitlines()[:3] for one in (leads, expected)]
    assert said[0] == said[1]
    assert "identical" in leads["out"]


def test_the_benchmark_is_rank_0s(pair: Pair) -> None:
    home, (leads, follows) = pair[0], (rank["benchmark"] for rank in pair[1])
    assert leads["code"] == 0, leads["err"]
    assert follows == {"code": 0, "out": "", "err": ""}
    report = json.loads((home / "run.json").read_text())
    assert report["settings"]["processes"] == 2
    (drafted,) = (one for one in report["contestants"] if one["name"] == "drafted")
    assert drafted["agreement_with_plain"]["identical"] == 2


def test_the_plan_is_rank_0s(pair: Pair) -> None:
    leads, follows = (rank["plan"] for rank in pair[1])
    assert leads["code"] == 0, leads["err"]
    assert "plain" in leads["out"]
    assert follows == {"code": 0, "out": "", "err": ""}


def test_training_is_refused_once(pair: Pair) -> None:
    leads, follows = (rank["train"] for rank in pair[1])
    assert (leads["code"], follows["code"]) == (2, 2)
    assert "Training runs in one process" in leads["err"]
    assert follows["err"] == ""


def test_four_ranks_part_from_one_process_within_rounding_only(
    bundles: dict[str, Path], alone: dict[str, Any], tmp_path: Path
) -> None:
    """Sums of four parts may round otherwise; then the two best scores are all but equal."""
    steps = {"llama": ("texts", [str(bundles["llama"]), ["tree"], 12], {"pipeline": False})}
    ranks = run(tmp_path, 4, steps)
    assert all(rank == ranks[0] for rank in ranks)
    model, tokenizer = load(bundles["llama"], plan=False)
    prompt = tokenizer.encode(rank_steps.PROMPT)
    for way, found in ranks[0]["llama"].items():
        expected = alone["llama"][way]
        place = first_difference(expected, found)
        if place is not None:
            sampling = SamplingConfig(temperature=float(way.rsplit(" ", 1)[-1]), seed=3)
            context = [*prompt, *expected[:place]]
            gap, _, best = decision(model, context, sampling, expected[place], found[place])
            assert gap < 1e-5 * max(1.0, abs(best)), f"{way} parts at token {place} by {gap}"
