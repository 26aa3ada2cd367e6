from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from mlx.utils import tree_flatten
from refusals import refusal

import models
from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.drafter import Drafter
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning import measuring
from mlx_redrafter.planning.headless_planner import HeadlessPlanner
from mlx_redrafter.system.files import atomic_path, write_json
from mlx_redrafter.text import drafter_files, loading, places
from mlx_redrafter.text.drafter_files import load_drafter, save_drafter, tokenizer_hash
from mlx_redrafter.text.generate import generate
from mlx_redrafter.text.loading import load, resolve_path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return bundles.make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return bundles.make_bundle(tmp_path / "tiny")


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**values, **changes}), "utf-8")


def parameters(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.parameters()))


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    first, second = parameters(one), parameters(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert mx.array_equal(first[name], second[name])


# Bundles


def test_a_bundle_loads_and_answers(original: Path) -> None:
    model, tokenizer = load(original)
    assert isinstance(model.drafter, Drafter)
    assert model.name == "tiny"
    assert model.target.vocab_size == len(tokenizer.get_vocab())
    drafted = generate(model, tokenizer, "the dog", max_tokens=12)
    assert drafted == generate(model, tokenizer, "the dog", max_tokens=12, draft=False)


def test_a_bundle_drafts_as_far_as_that_pays(
    original: Path, measurements: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine times contradict each other, and are not stored.
    monkeypatch.setattr(measuring, "agree", lambda _before, _after: True)
    model, tokenizer = load(original)
    before = set(measurements.iterdir())
    fixed = generate(model, tokenizer, "the dog", max_tokens=6, beam_width=2)
    plain = generate(model, tokenizer, "the dog", max_tokens=6, draft=False)
    assert set(measurements.iterdir()) == before, "the machine was measured without need"
    assert generate(model, tokenizer, "the dog", max_tokens=6) == fixed == plain
    assert model.planner is model.planner
    assert list(measurements.iterdir())
    assert load(original, plan=False)[0].planner is None
    assert load(original, drafter=False, plan=False)[0].planner is None
    headless = load(original, drafter=False)[0]
    assert isinstance(headless.planner, HeadlessPlanner)
    assert generate(headless, tokenizer, "the dog", max_tokens=6) == plain


def test_mlx_lm_opens_a_bundle(original: Path) -> None:
    theirs, tokenizer = mlx_lm.load(str(original))[:2]
    model, mine = load(original)
    assert_equal_weights(theirs, model.target.model)
    wanted = mlx_lm.generate(theirs, tokenizer, "the dog", max_tokens=12)
    assert generate(model, mine, "the dog", max_tokens=12) == wanted


def test_without_a_drafter_decoding_is_plain(tmp_path: Path) -> None:
    model, tokenizer = load(bundles.make_bundle(tmp_path / "bare", drafter=False))
    assert model.drafter is None
    assert generate(model, tokenizer, "the dog", max_tokens=3)


def test_a_training_run_that_is_not_finished_is_no_drafter(tmp_path: Path) -> None:
    bare = bundles.make_bundle(tmp_path / "bare", drafter=False)
    (bare / "drafter" / "training").mkdir(parents=True)
    (bare / "drafter" / "training" / "run.json").write_text("{}", "utf-8")
    assert load(bare)[0].drafter is None
    with pytest.raises(RedrafterError, match=r"has no config\.json"):
        load(bare, drafter=bare / "drafter")
    (bare / "drafter" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(RedrafterError, match="hidden_size"):
        load(bare)


def test_a_drafter_from_elsewhere(tmp_path: Path, original: Path) -> None:
    bare = bundles.make_bundle(tmp_path / "bare", drafter=False)
    model, _ = load(bare, drafter=original / "drafter")
    assert isinstance(model.drafter, Drafter)
    assert_equal_weights(model.drafter, load_drafter(original / "drafter"))


def test_a_given_drafter_replaces_the_bundles_own(tmp_path: Path, original: Path) -> None:
    size = json.loads((original / "config.json").read_text())["vocab_size"]
    save_drafter(tmp_path, models.build_drafter(vocab_size=size, num_draft_layers=0))
    model, _ = load(original, drafter=tmp_path)
    assert isinstance(model.drafter, Drafter)
    assert model.drafter.config.num_draft_layers == 0


def test_paths_may_be_text(original: Path) -> None:
    assert load(str(original))[0].name == "tiny"


# Precision


@pytest.fixture
def half(bundle: Path) -> Path:
    """A bundle stored in bfloat16."""
    for path in (bundle / "model.safetensors", bundle / "drafter" / "model.safetensors"):
        weights = {k: v.astype(mx.bfloat16) for k, v in mx.load(str(path)).items()}
        mx.save_safetensors(str(path), weights, {"format": "mlx"})
    return bundle


def precisions(module: nn.Module) -> set[mx.Dtype]:
    return {
        value.dtype
        for value in parameters(module).values()
        if mx.issubdtype(value.dtype, mx.floating)
    }


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu, 0), reason="of CPU devices")
def test_on_a_cpu_weights_become_float32(half: Path) -> None:
    model, _ = load(half)
    assert precisions(model.target.model) == precisions(model.drafter) == {mx.float32}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_precision_may_be_asked_for(half: Path, dtype: mx.Dtype) -> None:
    model, _ = load(half, dtype=dtype)
    assert precisions(model.target.model) == precisions(model.drafter) == {dtype}
    assert model.target.dtype == dtype


def test_a_quantised_target_keeps_what_it_has(bundle: Path) -> None:
    model, _ = mlx_lm.load(str(bundle))[:2]
    nn.quantize(model, group_size=32, bits=8)
    model.set_dtype(mx.bfloat16)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(bundle / "model.safetensors"), weights, {"format": "mlx"})
    edit(bundle / "config.json", quantization={"group_size": 32, "bits": 8})
    loaded, tokenizer = load(bundle)
    assert parameters(loaded.target.model)["model.embed_tokens.weight"].dtype == mx.uint32
    drafted = generate(loaded, tokenizer, "the dog", max_tokens=6, beam_width=2, beam_length=2)
    assert drafted == generate(loaded, tokenizer, "the dog", max_tokens=6, draft=False)


# Drafters to and from disk


VARIANTS: dict[str, dict[str, Any]] = {
    "apple": {},
    "plain sum": {"rnn": False, "num_draft_layers": 0},
    "projected": {"exit_dim": 32, "num_draft_layers": 2},
    "small head": {"draft_vocab_size": 20},
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    drafter = models.build_drafter(**VARIANTS[kind])
    save_drafter(tmp_path / "new" / "drafter", drafter)
    loaded = load_drafter(tmp_path / "new" / "drafter")
    assert loaded.config == drafter.config
    assert_equal_weights(loaded, drafter)
    assert not loaded.training
    assert sorted(path.name for path in (tmp_path / "new" / "drafter").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_place_that_takes_no_drafter_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    drafter = models.build_drafter(num_draft_layers=1)
    with pytest.raises(RedrafterError, match=r"drafter could not be .*/file is a file, not a dir"):
        save_drafter(tmp_path / "file" / "drafter", drafter)
    (tmp_path / "new" / "drafter" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(RedrafterError, match="could not be written"):
        save_drafter(tmp_path / "new" / "drafter", drafter)


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("partly", [False, True])
def test_round_trip_of_a_quantised_drafter(kind: str, partly: bool, tmp_path: Path) -> None:
    drafter = models.build_drafter(**VARIANTS[kind])
    quantization: dict[str, Any] = {"group_size": 32, "bits": 8}
    if partly:  # only the output rows, with bits of their own
        head = f"lm_head.{len(drafter.lm_head) - 1}"
        quantization[head] = {"group_size": 32, "bits": 4}

        def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
            return quantization[head] if path == head else False

        nn.quantize(drafter, group_size=32, bits=8, class_predicate=chosen)
    else:
        nn.quantize(drafter, group_size=32, bits=8)
    drafter.config = DrafterConfig(**{**drafter.config.to_dict(), "quantization": quantization})
    save_drafter(tmp_path, drafter)
    loaded = load_drafter(tmp_path)
    assert loaded.config == drafter.config
    assert_equal_weights(loaded, drafter)
    states = mx.random.normal((3, models.HIDDEN), key=mx.random.key(0))
    assert mx.array_equal(loaded.logits(states[0], states), drafter.logits(states[0], states))


def test_a_quantised_drafter_drafts(tmp_path: Path) -> None:
    drafter = models.build_drafter(draft_vocab_size=20)
    nn.quantize(drafter, group_size=32, bits=8)
    drafter.config = DrafterConfig(
        **{**drafter.config.to_dict(), "quantization": {"group_size": 32, "bits": 8}}
    )
    save_drafter(tmp_path, drafter)
    model = loading.SpeculativeModel(models.shared("llama"), load_drafter(tmp_path))
    config = DecodingConfig(6, beam=BeamShape(3, 2))
    drafted = [decoded.token for decoded in decode(model, [1, 2, 3], config)]
    plain = decode(model, [1, 2, 3], DecodingConfig(6, draft=False))
    assert drafted == [decoded.token for decoded in plain]


# Pairs that do not fit


@pytest.mark.parametrize(
    ("sizes", "words"),
    [({"hidden_size": 16}, "hidden size of 16"), ({"vocab_size": 100}, "vocabulary size of 100")],
)
def test_a_drafter_for_another_target(
    sizes: dict[str, int], words: str, original: Path, tmp_path: Path
) -> None:
    size = json.loads((original / "config.json").read_text())["vocab_size"]
    save_drafter(tmp_path, models.build_drafter(**{"vocab_size": size, **sizes}))
    assert words in refusal(lambda: load(original, drafter=tmp_path))


def test_a_drafter_for_another_tokenizer_is_refused_by_name(bundle: Path) -> None:
    config = bundle / "drafter" / "config.json"
    edit(config, target={"name": "somebody/else", "tokenizer_hash": "0" * 64})
    assert "somebody/else" in refusal(lambda: load(bundle))
    _, tokenizer = mlx_lm.load(str(bundle))[:2]
    edit(config, target={"name": "somebody/else", "tokenizer_hash": tokenizer_hash(tokenizer)})
    assert load(bundle)[0].drafter is not None
    edit(config, target={"name": "somebody/else"})
    assert load(bundle)[0].drafter is not None


class Vocabulary:
    def __init__(self, entries: dict[str, int]):
        self._entries = entries

    def get_vocab(self) -> dict[str, int]:
        return self._entries


def test_tokenizer_hash_is_of_the_vocabulary() -> None:
    one = tokenizer_hash(Vocabulary({"a": 0, "b": 1, "é漢": 2}))
    assert one == tokenizer_hash(Vocabulary({"é漢": 2, "b": 1, "a": 0}))
    assert one != tokenizer_hash(Vocabulary({"a": 1, "b": 0, "é漢": 2}))
    assert one != tokenizer_hash(Vocabulary({"a": 0, "b": 1}))
    assert one != tokenizer_hash(Vocabulary({"a": 0, "c": 1, "é漢": 2}))
    assert len(one) == 64


# What is missing or broken


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


BROKEN: dict[str, Callable[[Path], Any]] = {
    "no config": lambda b: (b / "config.json").unlink(),
    "config is no JSON": lambda b: (b / "config.json").write_text('{"model_type": '),
    "config is no text": lambda b: (b / "config.json").write_bytes(b"\xff\xfe\x00\xff"),
    "config is a list": lambda b: (b / "config.json").write_text("[1, 2]"),
    "config is empty": lambda b: (b / "config.json").write_text(""),
    "no model type": lambda b: (b / "config.json").write_text('{"hidden_size": 32}'),
    "unknown model type": lambda b: edit(b / "config.json", model_type="no_such_model"),
    "a size is missing": lambda b: (b / "config.json").write_text('{"model_type": "llama"}'),
    "a size is wrong": lambda b: edit(b / "config.json", hidden_size=64),
    "a size is text": lambda b: edit(b / "config.json", hidden_size="wide"),
    "more layers than weights": lambda b: edit(b / "config.json", num_hidden_layers=3),
    "fewer layers than weights": lambda b: edit(b / "config.json", num_hidden_layers=1),
    "no weights": lambda b: (b / "model.safetensors").unlink(),
    "weights cut short": lambda b: truncate(b / "model.safetensors", 0.7),
    "weights cut in the header": lambda b: truncate(b / "model.safetensors", 0.01),
    "weights empty": lambda b: (b / "model.safetensors").write_bytes(b""),
    "no tokenizer": lambda b: [path.unlink() for path in b.glob("tokenizer*")],
    "tokenizer is no JSON": lambda b: (b / "tokenizer.json").write_text("{"),
    "no drafter config": lambda b: (b / "drafter" / "config.json").unlink(),
    "drafter config is no JSON": lambda b: (b / "drafter" / "config.json").write_text("{'a': 1}"),
    "drafter config of a llama": lambda b: edit(b / "drafter" / "config.json", model_type="llama"),
    "drafter without a size": lambda b: (b / "drafter" / "config.json").write_text("{}"),
    "drafter with a bad size": lambda b: edit(b / "drafter" / "config.json", exit_dim="32"),
    "drafter with a bad head": lambda b: edit(b / "drafter" / "config.json", draft_vocab_size=-1),
    "drafter with bad quantisation": lambda b: edit(b / "drafter" / "config.json", quantization=8),
    "drafter with a bad target": lambda b: edit(b / "drafter" / "config.json", target="x"),
    "drafter without weights": lambda b: (b / "drafter" / "model.safetensors").unlink(),
    "drafter cut short": lambda b: truncate(b / "drafter" / "model.safetensors", 0.6),
    "drafter cut in the header": lambda b: truncate(b / "drafter" / "model.safetensors", 0.005),
    "drafter lacks a tensor": lambda b: edit(b / "drafter" / "config.json", num_draft_layers=2),
    "drafter has a tensor too many": lambda b: edit(b / "drafter" / "config.json", rnn=False),
    "drafter of another shape": lambda b: edit(b / "drafter" / "config.json", exit_dim=48),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_bundle_is_refused_in_one_sentence(what: str, bundle: Path) -> None:
    BROKEN[what](bundle)
    refusal(lambda: load(bundle))


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save_drafter(tmp_path, models.build_drafter(num_draft_layers=1))
    edit(tmp_path / "config.json", num_draft_layers=2)
    assert "lm_head.1.linear.weight" in refusal(lambda: load_drafter(tmp_path))
    edit(tmp_path / "config.json", num_draft_layers=1, vocab_size=65)
    message = refusal(lambda: load_drafter(tmp_path))
    assert "lm_head.1.weight has shape (64, 64)" in message
    assert "(65, 64)" in message
    edit(tmp_path / "config.json", vocab_size=64, rnn=False)
    assert "rnn_u" in refusal(lambda: load_drafter(tmp_path))


def test_a_map_to_other_than_ascending_tokens_is_refused(tmp_path: Path) -> None:
    drafter = models.build_drafter(draft_vocab_size=4)
    for tokens in ([0, 1, 2, 64], [-1, 0, 1, 2], [0, 2, 1, 3], [0, 1, 1, 2]):
        drafter.draft_tokens = mx.array(tokens, dtype=mx.int32)
        save_drafter(tmp_path, drafter)
        assert "draft_tokens" in refusal(lambda: load_drafter(tmp_path))


@pytest.mark.parametrize(
    "path",
    ["./nowhere", "/no/such/directory", "no where", "a/b/c", "~/no such model", ""],
)
def test_paths_that_lead_nowhere(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(places, "snapshot_download", refuse)
    refusal(lambda: load(path))


def test_a_file_is_no_model(original: Path) -> None:
    refusal(lambda: load(original / "config.json"))
    refusal(lambda: load(original, drafter=original / "config.json"))


def test_a_drafter_that_is_not_there(original: Path) -> None:
    refusal(lambda: load(original, drafter=original / "no_such"))
    refusal(lambda: load(original, drafter=original))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path_or_repo": None}, "path_or_repo has to be a path"),
        ({"path_or_repo": ""}, "model is empty"),
        ({"drafter": ""}, "drafter is empty"),
        ({"adapter_path": ""}, "adapter_path is empty"),
        ({"drafter": True}, "drafter has to be a path"),
        ({"adapter_path": 5}, "adapter_path has to be a path"),
        ({"tokenizer_config": 5}, "tokenizer_config has to be a mapping"),
        ({"model_config": [1]}, "model_config has to be a mapping"),
        ({"dtype": "float32"}, "dtype has to be mx.float32"),
        ({"dtype": mx.int32}, "dtype has to be mx.float32"),
        ({"plan": 5}, "plan has to be True or False, and is 5"),
        ({"lazy": "no"}, "lazy has to be True or False, and is 'no'"),
        ({"trust_remote_code": "no"}, "trust_remote_code has to be True or False"),
        ({"return_config": mx.array([1, 2])}, "return_config has to be True or False"),
        ({"pipeline": None}, "pipeline has to be True or False"),
        ({"revision": 5}, "revision has to be text, and is 5"),
        ({"progress": 5}, "progress has to be a function"),
    ],
)
def test_arguments_of_the_wrong_kind(original: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RedrafterError, match=words):
        load(**{"path_or_repo": original, **options})


def test_overrides_that_do_not_fit_the_files_are_named(original: Path) -> None:
    with pytest.raises(RedrafterError, match=r"^With num_hidden_layers from model_config: "):
        load(original, model_config={"num_hidden_layers": 7})


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no\nroute to host")

    monkeypatch.setattr(places, "snapshot_download", unreachable)
    message = refusal(lambda: resolve_path("owner/name"))
    assert "owner/name" in message
    assert "no route to host" in message


def test_a_hub_repo_is_downloaded(monkeypatch: pytest.MonkeyPatch, original: Path) -> None:
    asked = []

    def download(repo: str, **options: Any) -> str:
        asked.append(repo)
        return str(original)

    monkeypatch.setattr(places, "snapshot_download", download)
    model, _ = load("owner/name")
    assert asked == ["owner/name"]
    assert model.name == "owner/name"
    assert model.drafter is not None


def test_old_names_without_an_owner_are_the_hubs(
    monkeypatch: pytest.MonkeyPatch, original: Path
) -> None:
    monkeypatch.setattr(places, "snapshot_download", lambda repo, **_: str(original))
    assert load("gpt2")[0].name == "gpt2"


def test_a_revision_is_passed_on(monkeypatch: pytest.MonkeyPatch, original: Path) -> None:
    asked = []

    def download(repo: str, revision: str | None, **_: Any) -> str:
        asked.append((repo, revision))
        return str(original)

    monkeypatch.setattr(places, "snapshot_download", download)
    load("owner/name", revision="v1", plan=False)
    load("owner/name@v2", plan=False)
    resolve_path("owner/head@v3")
    assert asked == [("owner/name", "v1"), ("owner/name", "v2"), ("owner/head", "v3")]


def test_offline_what_mlx_lm_fetched_is_complete(
    monkeypatch: pytest.MonkeyPatch, original: Path
) -> None:
    def download(repo: str, allow_patterns: list[str], **_: Any) -> str:
        if any(pattern.startswith("drafter/") for pattern in allow_patterns):
            raise LocalEntryNotFoundError("the drafter's files were never asked for")
        return str(original)

    monkeypatch.setattr(places, "snapshot_download", download)
    assert load("owner/name", plan=False)[0].name == "owner/name"


def test_nothing_is_fetched_twice() -> None:
    files = [
        "config.json", "model-00001-of-00002.safetensors", "consolidated.safetensors",
        "original/model.safetensors", "tokenizer.jsonl", "drafter/config.json",
        "drafter/model.safetensors", "adapters/adapters.safetensors", "x.gguf",
    ]  # fmt: skip
    wanted = list(filter_repo_objects(files, allow_patterns=places.HUB_FILES))
    assert wanted == [
        "config.json", "model-00001-of-00002.safetensors", "tokenizer.jsonl",
        "drafter/config.json", "drafter/model.safetensors",
    ]  # fmt: skip


def test_a_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    assert resolve_path("~/here") == tmp_path / "here"


# Writing


class Stopped(Exception):
    pass


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise Stopped

    with pytest.raises(Stopped):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_write_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    for value in ({"a": "é"}, [1, 2]):
        write_json(path, value)
        assert json.loads(path.read_text("utf-8")) == value
        assert list(path.parent.iterdir()) == [path]


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "model.safetensors") as temporary:
        assert temporary.suffix == ".safetensors"
        assert temporary.parent == tmp_path
        temporary.write_text("x")


@pytest.mark.parametrize("interrupted", ["save_safetensors", "write_json"])
def test_an_interrupted_save_loses_no_drafter(
    interrupted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = models.build_drafter(seed=1)
    save_drafter(tmp_path, old)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    new = models.build_drafter(seed=2)
    with monkeypatch.context() as patch:
        owner = mx if interrupted == "save_safetensors" else drafter_files
        patch.setattr(owner, interrupted, stop)
        with pytest.raises(KeyboardInterrupt):
            save_drafter(tmp_path, new)
    assert_equal_weights(load_drafter(tmp_path), old if interrupted == "save_safetensors" else new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_drafters_place_is_read_as_a_models_is(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_drafter("~/mine", load_drafter(original / "drafter"))
    assert (tmp_path / "mine" / "config.json").is_file()
    assert load_drafter("~/mine").config.hidden_size
    with pytest.raises(RedrafterError, match="is empty"):
        load_drafter("")


@pytest.mark.parametrize("overrides", [None, {"rms_norm_eps": 1e-6}])
def test_the_configuration_is_the_one_that_mlx_lm_returns(
    bundle: Path, overrides: dict[str, Any] | None
) -> None:
    (bundle / "generation_config.json").write_text('{"eos_token_id": [0, 7]}', "utf-8")
    options: dict[str, Any] = {"model_config": overrides, "return_config": True}
    theirs = mlx_lm.load(str(bundle), **options)[2]
    assert load(bundle, plan=False, **options)[2] == theirs
    assert theirs["eos_token_id"] == [0, 7]
