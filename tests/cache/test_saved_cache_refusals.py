"""Files of caches that are refused, caches that no file can hold, and places that take none."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import pytest
from architectures import prompt_of
from mlx_lm.models.cache import make_prompt_cache, save_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_redrafter.cache import cache_file
from mlx_redrafter.cache.model_identity import identity_of
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.target.target import Target

TOKENS = 16
PROMPT = prompt_of(13)


def build(name: str, **overrides: Any) -> SpeculativeModel:
    return SpeculativeModel(architectures.build(name, **overrides))


def write(
    model: SpeculativeModel, prompt: list[int], cache: PromptCache | None = None
) -> tuple[list[int], int]:
    """A plain text, and how much of its prompt was held already."""
    told: list[int] = []
    config = DecodingConfig(TOKENS, draft=False)
    stream = decode(model, prompt, config, cache=cache, progress=lambda *done: told.append(done[0]))
    return [one.token for one in stream], told[0]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A cache of the architecture llama's."""
    model = build("llama")
    cache = model.make_cache()
    write(model, PROMPT, cache)
    cache.save(tmp_path / "cache")
    return tmp_path / "cache"


def refused(model: SpeculativeModel, path: Path, words: str) -> None:
    with pytest.raises(RedrafterError, match=words) as told:
        model.load_cache(path)
    assert str(told.value).count(". ") == 0
    assert str(told.value).endswith(".")


def test_caches_of_other_models_and_other_weights_are_refused(saved: Path) -> None:
    refused(build("qwen3"), saved, "another model")
    refused(build("llama", rope_theta=500.0), saved, "another model, or another configuration")
    refused(build("llama", seed=1), saved, "other weights of this model")
    model = build("llama")
    attention = model.target.model.model.layers[0].self_attn
    attention.q_proj = attention.q_proj.to_quantized(32, 8)
    refused(model, saved, "another configuration or quantisation")
    model = build("llama")
    model.target.model.model.norm.weight[3] += 0.5  # within an array
    refused(model, saved, "other weights of this model")


def test_each_part_of_a_shared_model_has_files_of_its_own(saved: Path, tmp_path: Path) -> None:
    """What differs is whose part it is, before it is the weights."""

    def part(seed: int, which: str = "") -> SpeculativeModel:
        return SpeculativeModel(Target(architectures.build("llama", seed=seed), which))

    first, second, file = part(0, "rank 0 of 2"), part(1, "rank 1 of 2"), tmp_path / "rank 1"
    cache = second.make_cache()
    write(second, PROMPT, cache)
    cache.save(file)
    remedy = "give each rank a file of its own"
    refused(first, file, f"saved by rank 1 of 2, and this is rank 0 of 2: {remedy}")
    refused(part(0), file, f"saved by rank 1 of 2, and this is a process of its own: {remedy}")
    refused(first, saved, f"saved by a process of its own, and this is rank 0 of 2: {remedy}")
    assert len(part(1, "rank 1 of 2").load_cache(file)) == len(cache)


@pytest.mark.parametrize("name", ["plamo2", "plamo3", "youtu_llm", "baichuan_m1"])
def test_configurations_are_compared_wherever_a_model_keeps_its_own(
    name: str, tmp_path: Path
) -> None:
    model = build(name)
    cache = model.make_cache()
    write(model, PROMPT, cache)
    cache.save(tmp_path / "cache")
    refused(build(name, rms_norm_eps=0.1), tmp_path / "cache", "another configuration")
    assert len(build(name).load_cache(tmp_path / "cache")) == len(cache)


@pytest.mark.parametrize("dora", [False, True])
def test_caches_of_adapters_with_another_scale_are_refused(dora: bool, tmp_path: Path) -> None:
    def adapted(scale: float) -> SpeculativeModel:
        model = architectures.build("llama")
        mx.random.seed(1)
        linear_to_lora_layers(model, 2, {"rank": 4, "scale": scale, "dropout": 0.0}, use_dora=dora)
        model.eval()
        return SpeculativeModel(model)

    model = adapted(20.0)
    cache = model.make_cache()
    write(model, PROMPT, cache)
    cache.save(tmp_path / "cache")
    refused(adapted(2.0), tmp_path / "cache", "another configuration")
    assert len(adapted(20.0).load_cache(tmp_path / "cache")) == len(cache)


def test_the_identity_of_a_model_without_adapters_stays_what_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files that were saved by earlier releases go on being read."""
    monkeypatch.setattr("mlx_lm.__version__", "0")
    assert identity_of(architectures.build("llama"))["model"].startswith("4dace5e3")


def test_caches_of_other_releases_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    with monkeypatch.context() as patch:
        patch.setattr("mlx_lm.__version__", "0.0.1")
        refused(model, saved, "another release of mlx-lm")
    with monkeypatch.context() as patch:
        patch.setattr(cache_file, "VERSION", "2")
        refused(model, saved, "release of mlx_redrafter that keeps caches otherwise")
    assert len(model.load_cache(saved)) == len(PROMPT) + TOKENS - 1


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    model = build("llama")
    raw = make_prompt_cache(model.target.model)
    model.target.model(mx.array([PROMPT]), cache=raw)
    save_prompt_cache(str(tmp_path / "theirs.safetensors"), raw)
    refused(model, tmp_path / "theirs.safetensors", "no cache that save wrote .mlx-lm's")
    (tmp_path / "text").write_text("a text of some words")
    refused(model, tmp_path / "text", "does not describe its contents; let a new cache read")
    (tmp_path / "empty").touch()
    refused(model, tmp_path / "empty", "does not describe its contents")
    refused(model, tmp_path / "missing", "There is no file")
    refused(model, tmp_path, "There is no file")
    with pytest.raises(RedrafterError, match="empty"):
        model.load_cache("")


def test_damaged_files_are_refused(saved: Path, tmp_path: Path) -> None:
    model, whole, chance = build("llama"), saved.read_bytes(), random.Random(4)
    header = 8 + int.from_bytes(whole[:8], "little")
    damaged = tmp_path / "damaged"
    for length in (3, 8, 200, header - 1, header, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        refused(model, damaged, "is damaged")
    refusals = 0
    for number in range(300):
        at = chance.randrange(8, header if number % 2 else len(whole))
        data = bytearray(whole)
        data[at] ^= 1 << chance.randrange(8)
        damaged.write_bytes(data)
        try:  # a byte of padding may change, or a name's that nobody reads
            loaded = model.load_cache(damaged)
        except RedrafterError:
            refusals += 1
        else:
            assert loaded.tokens == model.load_cache(saved).tokens
            assert write(model, [*PROMPT, 3], loaded) == write(
                model, [*PROMPT, 3], model.load_cache(saved)
            )
    assert refusals > 290


def test_contents_that_no_layer_takes_are_refused(saved: Path) -> None:
    model = build("llama")
    identity = model.target.weights.identity()
    content = cache_file.read_cache(saved, identity)
    short, fewer = json.loads(json.dumps({"layers": []})), dict(content)
    fewer["layers"] = content["layers"][:1]
    layer = content["layers"][0]
    rows = {**layer, "rows": [part[..., :-1, :] for part in layer["rows"]]}
    states = {"offset": 3, "state": {}, "points": [[], []]}
    packed = {**content, "layers": [{**layer, "packed": [9, 9, 9]}] * 2}
    swapped = [{**content, "layers": [one, one]} for one in (rows, states)]
    for wrong in (short, fewer, packed, *swapped):
        cache_file.write_cache(saved, identity, wrong)
        refused(model, saved, "does not hold what was saved")


def test_bounded_caches_are_refused(tmp_path: Path) -> None:
    model = build("qwen3")
    cache = model.target.make_cache(max_kv_size=8)
    write(model, PROMPT, cache)
    with pytest.raises(RedrafterError, match=r"a RotatingKVCache of mlx-lm's.*its tokens"):
        cache.save(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    model = build("mamba")
    cache = model.make_cache()
    write(model, PROMPT, cache)
    cache.layers[0].mlx_cache.extra = object()
    with pytest.raises(RedrafterError, match="it holds a object that no file can hold"):
        cache.save(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_weights_that_are_gone_are_not_saved(tmp_path: Path) -> None:
    model = build("llama")
    cache = model.make_cache()
    write(model, PROMPT, cache)
    old = model.target.model.model.norm.weight
    model.target.model.model.norm.weight = old + 0.5
    with pytest.raises(RedrafterError, match="other weights than those that this cache"):
        cache.save(tmp_path / "cache")
    write(model, PROMPT, cache)  # they are read again
    cache.save(tmp_path / "cache")
    loaded = model.load_cache(tmp_path / "cache")
    following = [*PROMPT, 3]
    model.target.model.model.norm.weight = old
    assert write(model, following, loaded) == (write(model, following)[0], 0)


def test_a_model_that_is_gone_saves_nothing(tmp_path: Path) -> None:
    cache = build("llama").make_cache()
    for nobodys in (cache, PromptCache([])):
        with pytest.raises(RedrafterError, match="model of this cache is not there any more"):
            nobodys.save(tmp_path / "cache")


# Places


def test_places_are_made_and_a_home_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = build("llama")
    cache = model.make_cache()
    write(model, PROMPT, cache)
    for name in ("~/new/place/talk.safetensors", "~/new/place/talk.of.today", "~/new/place/talk"):
        cache.save(name)
        assert model.load_cache(name).tokens == cache.tokens
    made = sorted(path.name for path in (tmp_path / "new" / "place").iterdir())
    assert made == ["talk", "talk.of.today", "talk.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_in_a_sentence() -> None:
    model = build("llama")
    cache = model.make_cache()
    write(model, PROMPT, cache)
    with pytest.raises(RedrafterError, match=r"/dev/full could not be written .*make room"):
        cache.save("/dev/full")


def test_what_cannot_be_written_leaves_the_old_file(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = build("llama"), saved.read_bytes()
    cache = model.make_cache()
    with pytest.raises(RedrafterError, match="could not be written"):
        cache.save(tmp_path)
    told = r"cache is a file, not a directory\): choose another directory\.$"
    for place in (saved / "below", saved / "far" / "below"):
        with pytest.raises(RedrafterError, match=told):
            cache.save(place)
    with pytest.raises(RedrafterError, match="empty"):
        cache.save("")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", full)
    for place in (saved, tmp_path / "new" / "place" / "cache"):
        with pytest.raises(RedrafterError, match="No space left on device"):
            cache.save(place)
    assert saved.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [saved]
