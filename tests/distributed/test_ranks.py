"""Several processes that share a target over mlx's ring backend, each a real one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import make_bundle

import models
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.sharding import check_same, shard

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
LAUNCH = Path(sys.executable).parent / "mlx.launch"

pytestmark = pytest.mark.skipif(not LAUNCH.exists(), reason="mlx.launch is not installed here")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("ranks") / "tiny")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 60_000)


def launch(tmp_path: Path, ranks: int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a Python command on so many ranks, at home in ``tmp_path``."""
    return subprocess.run(
        [
            LAUNCH, "-n", str(ranks), "--backend", "ring", "-p", str(free_port()),
            "--env", f"PYTHONPATH={ROOT}", "--env", f"HOME={tmp_path}", "--",
            sys.executable, *map(str, command),
        ],
        capture_output=True, text=True, timeout=280, check=False, stdin=subprocess.DEVNULL,
        cwd=tmp_path,
    )  # fmt: skip


def alone(tmp_path: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=280,
        check=True, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}, cwd=tmp_path,
    )  # fmt: skip


def test_a_script_writes_the_same_texts_on_two_ranks(bundle: Path, tmp_path: Path) -> None:
    """Greedy and sampled, plain and drafted, planned; a seed not named is one for all ranks."""
    script = SUPPORT / "rank_texts.py"
    *expected, _ = alone(tmp_path, script, bundle).stdout.splitlines()
    done = launch(tmp_path, 2, script, bundle)
    lines = done.stdout.splitlines()
    texts = [line for line in lines if not line.startswith("own ")]
    assert texts == expected, done.stderr
    assert expected[0] == expected[1]
    assert expected[2] == expected[3]
    own = [line for line in lines if line.startswith("own ")]
    assert len(own) == 2
    assert own[0] == own[1]


def test_the_chat_leads_and_the_other_rank_follows(bundle: Path, tmp_path: Path) -> None:
    command = [
        ROOT / "chat.py", "--model", bundle, "--prompt", "the quick", "--max-tokens", "12",
        "--temp", "0.8", "--seed", "5", "--json",
    ]  # fmt: skip
    expected = json.loads(alone(tmp_path, *command).stdout)
    done = launch(tmp_path, 2, *command)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line)["text"] == expected["text"]


class FakeRanks:
    """Ranks whose exchanges are written down beforehand."""

    def __init__(self, size: int, differing: int | None = None):
        self.rank, self.size, self._differing = 0, size, differing

    def gather(self, values: list[float]) -> list[list[float]]:
        rows = [list(values) for _ in range(self.size)]
        if self._differing is not None:
            rows[self._differing][-1] += 1
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


def test_ranks_with_different_files_are_named(bundle: Path) -> None:
    files = sorted(bundle.glob("model*.safetensors"))
    check_same(FakeRanks(3), {}, files)
    with pytest.raises(RedrafterError, match="Rank 2 has another version of the weights"):
        check_same(FakeRanks(3, differing=2), {}, files)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [("ends", "Rank 2 has ended"), ("hangs", "Rank 2 has not answered for 2 seconds")],
)
def test_a_rank_that_is_gone_is_named(fault: str, sentence: str, tmp_path: Path) -> None:
    done = launch(tmp_path, 3, SUPPORT / "rank_faults.py", fault)
    assert f"rank 0 says: {sentence}" in done.stderr
