"""What goes wrong among processes: all end within seconds, and say which one it was."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from bundles import make_bundle
from rank_bundles import make_rank_bundle
from rank_group import SUPPORT, Group, free_ports

import models
from mlx_redrafter.conversion import convert
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.server.work.engine_thread import REST_SECONDS
from mlx_redrafter.system import rendezvous
from mlx_redrafter.text.sharding import check_same, refuse_layers, shard

PATIENCE = 40.0  # of a machine that has other things to do


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("ranks") / "tiny")


class FakeRanks:
    """Ranks whose exchanges are written down beforehand."""

    def __init__(self, size: int, differing: int | None = None, place: int = -5):
        self.rank, self.size, self._differing, self._place = 0, size, differing, place

    def gather(self, values: list[float]) -> list[list[float]]:
        rows = [list(values) for _ in range(self.size)]
        if self._differing is not None:
            rows[self._differing][self._place] += 1
        return rows


def test_heads_that_do_not_divide() -> None:
    model = models.build("llama")
    config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
    with pytest.raises(RedrafterError, match="4 attention heads cannot be divided among 3"):
        shard(model, config, FakeRanks(3), pipeline=False)
    with pytest.raises(RedrafterError, match="2 key value heads cannot be divided among 4"):
        shard(model, config, FakeRanks(4), pipeline=False)


def test_what_mlx_lm_does_not_share() -> None:
    model, config = models.build("llama"), {"model_type": "llama"}
    with pytest.raises(RedrafterError, match=r"'llama' by layers.*without --pipeline"):
        shard(model, config, FakeRanks(2), pipeline=True)
    model, config = models.build("gemma2"), {"model_type": "gemma2"}
    with pytest.raises(RedrafterError, match="'gemma2' within layers among machines"):
        shard(model, config, FakeRanks(2), pipeline=False)
    with pytest.raises(RedrafterError, match="inner layers, which a pipeline leaves"):
        refuse_layers((0, 1))


def test_weights_that_differ_are_named(bundle: Path) -> None:
    files = sorted(bundle.glob("model*.safetensors"))
    check_same(FakeRanks(3), {}, files, [], {})
    with pytest.raises(RedrafterError, match="Rank 2 has another version of the weights"):
        check_same(FakeRanks(3, differing=2), {}, files, [], {})


def test_a_model_that_is_loaded_otherwise_is_told() -> None:
    with pytest.raises(RedrafterError, match="Rank 2 loads the model with other options than rank"):
        check_same(FakeRanks(3, differing=2, place=0), {}, [], [], {"pipeline": True})


@pytest.mark.parametrize(
    ("each", "words"),
    [
        (
            [["chat", "--prompt", "hi"], ["chat", "--prompt", "hi", "--no-draft"]],
            "Rank 1 was started with other flags than rank 0 (--no-draft): start the same command",
        ),
        (
            [["chat", "--prompt", "hi"], ["server", "--port", "0"]],
            "Rank 1 was started as another program than rank 0: start the same command",
        ),
        ([["plan", "--tokens", "1"]] * 2, "argument --tokens: a whole number of at least 8"),
    ],
)
def test_commands_that_cannot_run_together_are_told_once(
    each: list[list[str]], words: str, tmp_path: Path
) -> None:
    with Group(tmp_path, 2, "-m", "mlx_redrafter", each=each) as group:
        assert group.wait(PATIENCE) == [2, 2]
        assert words in group.err(0)
        assert len(group.err(0).splitlines()) == 1
        assert group.err(1) == ""


@pytest.mark.parametrize(
    ("fault", "sentence", "codes"),
    [
        ("ends", "Rank 2 has ended: start", [2, 2, 3]),
        ("hangs", "Rank 2 has not answered for 4 seconds", [2, 2, 2]),
        ("leaves", "Rank 2 has ended while others still need it", [2, 2, 0]),
    ],
)
def test_a_rank_that_is_gone_is_named(
    fault: str, sentence: str, codes: list[int], tmp_path: Path
) -> None:
    with Group(tmp_path, 3, SUPPORT / "rank_faults.py", fault) as group:
        assert group.wait(PATIENCE) == codes
        assert sentence in group.err(0)
        assert sentence in group.err(1)


def test_a_rank_that_takes_longer_to_load_is_waited_for(tmp_path: Path) -> None:
    with Group(tmp_path, 3, SUPPORT / "rank_faults.py", "loads") as group:
        assert group.wait(PATIENCE) == [0, 0, 0], group.err(0) + group.err(1)


@pytest.mark.parametrize("program", ["server", "chat"])
def test_ranks_that_rest_need_no_processor(program: str, tmp_path: Path) -> None:
    with Group(tmp_path, 4, SUPPORT / "rank_rests.py", program) as group:
        assert group.wait(PATIENCE) == [0] * 4, [group.err(rank) for rank in range(4)]
        busy = [float(group.out(rank).split()[-1]) for rank in range(4)]
    assert max(busy) < 2, busy  # of six seconds


def test_a_machine_that_falls_silent_is_named(tmp_path: Path) -> None:
    with Group(tmp_path, 2, SUPPORT / "rank_faults.py", "nothing") as group:
        group.wait_for(1, "under way")
        group.processes[1].send_signal(signal.SIGSTOP)
        assert group.processes[0].wait(PATIENCE) == 2
        assert "Rank 1 has not " in group.err(0)


def test_a_rank_that_never_comes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "hosts.json"
    first, second = free_ports(2)
    hosts.write_text(json.dumps([[f"127.0.0.1:{first}"], [f"127.0.0.1:{second}"]]))
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    for rank, sentence in ((0, "Rank 1 cannot be reached at 127"), (1, "Rank 0 cannot be")):
        monkeypatch.setenv("MLX_RANK", str(rank))
        with pytest.raises(RedrafterError, match=sentence):
            rendezvous.meet(seconds=0.2)


def test_other_files_and_too_many_ranks_are_told_once(bundle: Path, tmp_path: Path) -> None:
    """Through a command: rank 0 says it, all end with code 2, and no traceback is seen."""
    make_bundle(tmp_path / "1" / "tiny", seed=2)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "tiny").symlink_to(bundle)
    home = tmp_path / "home"
    script = SUPPORT / "rank_loads.py"
    with Group(home, 3, script, bundle, tmp_path) as group:
        assert group.wait(4 * PATIENCE) == [2, 2, 2]
        said = [json.loads(line) for line in group.out(0).splitlines()]
    assert [one["code"] for one in said] == [2, 2, 2]
    for one, words in zip(
        said,
        [
            "4 attention heads cannot be divided among 3",
            "Rank 1 has another version of the weights than rank 0",
            "Rank 2 fails: ",
        ],
        strict=True,
    ):
        assert words in one["err"]
        assert len(one["err"].splitlines()) == 1
    assert [group.err(rank) for rank in range(3)] == ["", "", ""]


@pytest.mark.parametrize("interrupted", [[0], [0, 1]])
def test_ctrl_c_ends_all(interrupted: list[int], bundle: Path, tmp_path: Path) -> None:
    with Group(tmp_path, 2, SUPPORT / "rank_endless.py", bundle) as group:
        group.wait_for(0, "token")
        group.interrupt(*interrupted)
        codes = group.wait(PATIENCE)
    assert codes[0] in (130, -signal.SIGINT)
    if interrupted == [0]:  # the other misses it
        assert codes[1] == 2, group.err(1)
        assert "Rank 0 has ended" in group.err(1)
    else:
        assert codes[1] in (2, 130, -signal.SIGINT)


def ask(port: int, prompt: Any, **options: Any) -> list[str]:
    body = json.dumps({"prompt": prompt, "max_tokens": 10, "seed": 1, **options}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [choice["text"] for choice in json.load(answer)["choices"]]


def served(kind: str, bundle: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A bundle, and the flags with which two ranks share it."""
    if kind == "layers":
        return make_rank_bundle(tmp_path / "layers", "qwen2"), ["--pipeline"]
    if kind == "4 bits":
        wide, quantised = make_bundle(tmp_path / "wide", hidden_size=64), tmp_path / "quantised"
        convert(
            hf_path=wide, mlx_path=quantised, drafter=wide / "drafter", quantize=True,
            q_group_size=32,
        )  # fmt: skip
        return quantised, []
    return bundle, []


@pytest.mark.parametrize("kind", ["heads", "layers", "4 bits"])
def test_the_server_answers_over_two_ranks_and_ends_with_ctrl_c(
    kind: str, bundle: Path, tmp_path: Path
) -> None:
    from mlx_redrafter import generate, load

    bundle, flags = served(kind, bundle, tmp_path)
    model, tokenizer = load(bundle, plan=False)
    prompts = ["the quick brown fox jumps over the lazy dog and the dog", "a drafter"]
    expected = [
        generate(model, tokenizer, prompt, max_tokens=10, seed=1, temperature=0.7)
        for prompt in prompts
    ]
    (port,) = free_ports(1)
    serve = ["-m", "mlx_redrafter.server", "--model", bundle, "--port", port, "--no-plan"]
    with Group(tmp_path, 2, *serve, *flags) as group:
        group.wait_for(0, "/v1")
        for _ in range(2):  # the second time from the prefix that was kept
            assert ask(port, prompts[0], temperature=0.7) == expected[:1]
        time.sleep(REST_SECONDS + 0.5)  # and the other rank has been sent to rest
        assert ask(port, prompts, temperature=0.7) == expected
        group.interrupt(0, 1)  # as Ctrl-C in a terminal reaches all
        codes = group.wait(PATIENCE)
    assert codes[1] == 0, group.err(1)
    assert codes[0] in (0, 130)
    assert "Traceback" not in group.err(0) + group.err(1)
