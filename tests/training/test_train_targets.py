"""Training against targets of all kinds, and drafters of all shapes."""

from __future__ import annotations

import shutil

import architectures
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architecture_files import write_architecture
from mlx.utils import tree_flatten
from training_cases import make_rows
from training_files import TINY

from mlx_redrafter import SpeculativeModel, Target, load
from mlx_redrafter.conversion import convert
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.drafter_files import load_drafter, save_drafter
from mlx_redrafter.training import (
    DistillationConfig,
    TrainingCallback,
    compute_features,
    draft_sizes,
    hardware,
    make_drafter,
    measure_decoding,
    prompts_of,
    regeneration,
    target_texts,
    teacher,
    train,
    train_drafter,
)
from mlx_redrafter.training import rows as rows_module
from mlx_redrafter.tree import DraftTree
from models import build


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen3_next"])
def test_any_target_is_taught_from_and_left_alone(kind):
    target = hybrid() if kind == "qwen3_next" else Target(build(kind, intermediate_size=64))
    if kind == "llama":
        nn.quantize(target.model, group_size=32, bits=4)
    before = digest_of(target)
    rows = make_rows(8, length=30)
    config = DistillationConfig(
        unroll=2, steps=60, positions_per_step=64, top_k=16, learning_rate=1e-2, temperature=0.5
    )
    drafter = make_drafter(target, exit_dim=target.hidden_size, num_draft_layers=1)
    features = compute_features(target, drafter, rows, config)
    prompts = prompts_of(rows, 3)
    reports = []
    train(
        target, drafter, features, config, evaluate_every=30, report_every=10,
        measure=lambda d: measure_decoding(
            target, d, prompts, beam=BeamShape(2, 2), max_tokens=12
        ),
        progress=reports.append,
    )  # fmt: skip
    assert reports[-1].loss < 0.8 * reports[0].loss
    assert reports[-1].decoded.tokens_per_step >= 1
    assert digest_of(target) == before
    model = SpeculativeModel(target, drafter)
    drafted, plain = (
        [t.token for t in decode(model, prompts[0], DecodingConfig(max_tokens=8, draft=draft))]
        for draft in (True, False)
    )
    assert drafted == plain


def digest_of(target: Target) -> str:
    from mlx_redrafter.training.hashes import target_hash

    return target_hash(target)


def hybrid() -> Target:
    """A model with recurrent state in one layer and attention in the other."""
    from mlx_lm.models import qwen3_next

    args = {
        "model_type": "qwen3_next", "hidden_size": 32, "num_hidden_layers": 2,
        "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32,
        "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "num_experts": 0,
        "num_experts_per_tok": 0, "decoder_sparse_step": 1, "shared_expert_intermediate_size": 32,
        "mlp_only_layers": [], "moe_intermediate_size": 32, "rms_norm_eps": 1e-5, "vocab_size": 64,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "max_position_embeddings": 1000,
        "head_dim": 8, "full_attention_interval": 2,
    }  # fmt: skip
    from models import randomise

    model = qwen3_next.Model(qwen3_next.ModelArgs.from_dict(args))
    randomise(model, 0)
    return Target(model)


@pytest.mark.parametrize("bits", [None, 4])
def test_shares_are_those_of_one_precision(bundle, bits):
    """On a CPU targets are opened in float32, whatever their drafter is saved in."""
    model, _ = load(bundle, drafter=False)
    target = model.target
    if bits:
        nn.quantize(target.model, group_size=32, bits=bits)
    drafter = make_drafter(target, num_draft_layers=1)
    opened = draft_sizes(target, drafter, mx.bfloat16)
    target.model.set_dtype(mx.bfloat16)
    assert draft_sizes(target, drafter, mx.bfloat16) == opened
    wide = draft_sizes(target, drafter, mx.float32)
    assert wide.bytes_per_drafted_token == 2 * opened.bytes_per_drafted_token
    if not bits:
        assert wide.share == opened.share


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("bits", [None, 4])
def test_shared_rows_are_the_targets_and_are_not_stored(bundle, tmp_path, size, bits):
    model, _ = load(bundle, drafter=False)
    target = model.target
    if bits:
        nn.quantize(target.model, group_size=32, bits=bits)
    counts = np.arange(target.vocab_size)
    drafter = make_drafter(
        target, counts, num_draft_layers=1, draft_vocab_size=size, shared_rows=True
    )
    own = make_drafter(target, counts, exit_dim=32, num_draft_layers=1, draft_vocab_size=size)
    state = mx.ones((2, 32))
    np.testing.assert_allclose(
        drafter.logits(state, state), own.logits(state, state), rtol=1e-4, atol=1e-4
    )
    assert not any("lm_head.1" in name for name, _ in tree_flatten(drafter.parameters()))
    own_sizes, sizes = draft_sizes(target, own), draft_sizes(target, drafter)
    assert sizes.drafter_bytes < own_sizes.drafter_bytes
    assert sizes.bytes_per_drafted_token <= own_sizes.bytes_per_drafted_token
    save_drafter(tmp_path / "d", drafter)
    alone = load_drafter(tmp_path / "d")
    assert alone.needs_rows
    with pytest.raises(RedrafterError, match="none are bound"):
        alone.logits(state, state)


def test_a_run_with_shared_rows_decodes_when_loaded(bundle, data, tmp_path):
    settings = {k: v for k, v in TINY.items() if k != "exit_dim"} | {"steps": 2}
    out = tmp_path / "out"
    train_drafter(bundle, data, out, shared_rows=True, **settings)
    model, _ = load(bundle, drafter=out)
    assert model.drafter.config.shared_rows
    drafted = [t.token for t in decode(model, [5, 6, 7], DecodingConfig(max_tokens=8))]
    plain = [t.token for t in decode(model, [5, 6, 7], DecodingConfig(max_tokens=8, draft=False))]
    assert drafted == plain


def test_a_head_that_is_the_embeddings_weight_is_taught_from_and_shared(data, tmp_path):
    """Such a target calls no layer for its logits; it reads the embedding whole."""
    source, out = write_architecture(tmp_path / "target", "seed_oss:tied"), tmp_path / "out"
    settings = {k: v for k, v in TINY.items() if k != "exit_dim"} | {"steps": 2}
    train_drafter(source, data, out, shared_rows=True, **settings)
    for lazy in (False, True):
        model, _ = load(source, drafter=out, lazy=lazy)
        assert model.target.refusal is None
        drafted, plain = (
            [t.token for t in decode(model, [5, 6, 7], DecodingConfig(max_tokens=8, draft=draft))]
            for draft in (True, False)
        )
        assert drafted == plain
    sizes = draft_sizes(model.target, model.drafter)
    embedding = model.target.model.model.embed_tokens.weight.nbytes
    assert sizes.bytes_per_drafted_token == sizes.drafter_bytes + embedding
    whole = sum(value.nbytes for _, value in tree_flatten(model.target.model.parameters()))
    assert sizes.target_bytes_per_token == whole


def test_an_embedding_beside_rows_of_the_models_own_is_not_read_whole():
    target = Target(architectures.build("talkie"))
    assert target.output_head.layer is None
    sizes = draft_sizes(target, make_drafter(target, num_draft_layers=1, exit_dim=32))
    whole = sum(value.nbytes for _, value in tree_flatten(target.model.parameters()))
    assert sizes.target_bytes_per_token < whole


def test_independent_heads_see_no_drafted_token_and_decode(bundle, data, tmp_path):
    settings = {k: v for k, v in TINY.items() if k != "exit_dim"} | {"beam_length": 4}
    out = tmp_path / "out"
    report = train_drafter(bundle, data, out, independent=True, **settings)
    model, _ = load(bundle, drafter=out)
    drafter = model.drafter
    assert drafter.config.independent_heads == 2
    hidden = mx.ones((1, 32))
    found = []
    for token in (3, 4):
        state = drafter.initial_state(1)
        logits = []
        for _ in range(3):
            state = drafter.advance(model.target.embed(mx.array([token])), state)
            logits.append(np.array(drafter.logits(hidden, state)))
        found.append(logits)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(found[0][0], found[0][1])
    np.testing.assert_array_equal(found[0][1], found[0][2])  # the last head goes on
    drafted = [t.token for t in decode(model, [5, 6, 7], DecodingConfig(max_tokens=8))]
    plain = [t.token for t in decode(model, [5, 6, 7], DecodingConfig(max_tokens=8, draft=False))]
    assert drafted == plain
    heads = sum(v.size for n, v in tree_flatten(drafter.parameters()) if n.startswith("heads.0"))
    assert report.sizes.drafter_parameters == 2 * heads
    assert report.sizes.bytes_per_drafted_token == 2 * heads  # two bytes each, one head a depth


def test_long_rows_go_through_the_target_in_pieces(monkeypatch):
    for kind in ("llama:sliding", "qwen3_next"):
        target = hybrid() if kind == "qwen3_next" else Target(build(kind))
        drafter = make_drafter(target)
        rows = make_rows(3, length=60)
        config = DistillationConfig(top_k=8)
        whole = compute_features(target, drafter, rows, config, dtype=np.float32)
        monkeypatch.setattr(teacher, "MAX_LOGITS", 16 * 64)
        pieces = compute_features(target, drafter, rows, config, dtype=np.float32)
        monkeypatch.undo()
        np.testing.assert_allclose(pieces.hidden, whole.hidden, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(pieces.best, whole.best)


def test_on_a_cpu_passes_are_short_and_can_be_ended_after_each(monkeypatch):
    """Python heeds a signal between passes only."""
    target, passes = Target(build("llama")), []
    real = target.teach

    def teach(tokens, *more):
        passes.append(tokens.size)
        return real(tokens, *more)

    def stop(done, _total):
        if len(passes) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(target, "teach", teach)
    monkeypatch.setattr(teacher, "CPU_TOKENS", 64)
    drafter, config = make_drafter(target), DistillationConfig(top_k=8)
    rows = make_rows(2, length=200)
    with pytest.raises(KeyboardInterrupt):
        compute_features(target, drafter, rows, config, progress=stop)
    assert passes == [64, 64]
    passes.clear()
    whole = compute_features(target, drafter, make_rows(6, length=30), config)
    assert passes == [64, 64, 64]
    monkeypatch.setattr(teacher, "on_gpu", lambda: True)
    passes.clear()
    once = compute_features(target, drafter, make_rows(6, length=30), config)
    assert passes == [6 * 32]
    np.testing.assert_allclose(whole.hidden, once.hidden, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["shared_rows", "independent"])
def test_the_converter_quantises_either_kind(bundle, data, tmp_path, kind):
    settings = {k: v for k, v in TINY.items() if k != "exit_dim"} | {"steps": 2, kind: True}
    train_drafter(bundle, data, tmp_path / "drafter", **settings)
    quantised = tmp_path / "bundle"
    shutil.copytree(bundle, quantised)
    report = convert(
        drafter=tmp_path / "drafter",
        mlx_path=quantised,
        drafter_q_bits=8,
        q_group_size=32,
        check=True,
    )
    model, _ = load(quantised)
    assert any("scales" in name for name, _ in tree_flatten(model.drafter.parameters()))
    assert report.check.passed
    assert report.check.drafter_agreement > 0.9


@pytest.mark.parametrize("kind", ["gemma3_text", "qwen3_next", "llama4"])
def test_any_target_answers_as_it_decodes(kind):
    """Side by side with windows and recurrent state, and one by one where mlx-lm has to."""
    model = hybrid().model if kind == "qwen3_next" else architectures.build(kind)
    target = Target(model)
    prompts = [[5, 6, 7, 9], [8, 9, 3], [4] * 12]
    answers = regeneration.decode_batch(
        target.model, Plain(), prompts, 12, lambda x: mx.argmax(x, axis=-1), lambda: None
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        config = DecodingConfig(max_tokens=12, draft=False)
        plain = [t.token for t in decode(SpeculativeModel(target), prompt, config)]
        assert answer == regeneration.Answer(plain, None)


class Plain:
    """A tokenizer without an end."""

    eos_token_ids: frozenset[int] = frozenset()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_bigcode", "qwen3_next"])
def test_an_unpacked_target_is_followed_as_a_packed_one(name, monkeypatch):
    """Its tables of positions and recurrent layers are other modules than before."""
    monkeypatch.setattr(hardware, "_has_own_memory", lambda: True)
    monkeypatch.setattr(hardware, "gpu_memory", lambda: 1 << 40)
    built = architectures.build(name)
    fits = lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % 32 == 0  # noqa: E731
    nn.quantize(built, group_size=32, bits=8, class_predicate=fits)
    packed = SpeculativeModel(built, name="its name", config={"model_type": name})
    tree = DraftTree.from_parents([7, 3, 9, 4, 5], [-1, 0, 0, 1, 2])

    def verified(target):
        held = target.make_cache()
        target.prefill(mx.array([1, 2, 3]), held)
        held.extend([1, 2, 3])
        return target.verify(tree, held)[0]

    before = np.array(verified(packed.target))
    model = hardware.unpacked(packed)
    assert model is not None
    assert (model.name, model.config) == (packed.name, packed.config)
    assert not any(name.endswith("scales") for name, _ in tree_flatten(built.parameters()))
    assert any(model.target._embedding is module for _, module in built.named_modules())
    assert model.target.verifies == packed.target.verifies
    np.testing.assert_allclose(verified(model.target), before, atol=1e-3)


def packed_model(mode: str = "affine") -> SpeculativeModel:
    built = build("llama", intermediate_size=64)
    nn.quantize(built, group_size=32, bits=4, mode=mode)
    built.set_dtype(mx.float32)
    return SpeculativeModel(built)


def test_a_target_stays_packed_where_there_is_no_room(monkeypatch):
    packed = packed_model()
    monkeypatch.setattr(hardware, "usable_memory", lambda: 1000)
    assert hardware.unpacked(packed) is None
    monkeypatch.setattr(hardware, "usable_memory", lambda: None)
    assert hardware.unpacked(packed) is None
    monkeypatch.setattr(hardware, "_has_own_memory", lambda: True)
    monkeypatch.setattr(hardware, "gpu_memory", lambda: 1000)
    assert hardware.unpacked(packed) is None
    monkeypatch.setattr(hardware, "gpu_memory", lambda: 1 << 40)
    assert hardware.unpacked(SpeculativeModel(build("llama"))) is None, "it is as it was"


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_on_a_cpu_a_target_is_unpacked_to_the_values_it_had(mode):
    packed, tokens = packed_model(mode), mx.array([[5, 6, 7, 9]])
    before = np.array(packed.target.teach(tokens)[0])
    model = hardware.unpacked(packed)
    assert model is not None
    assert not hardware.is_packed(model)
    assert {v.dtype for _, v in tree_flatten(model.target.model.parameters())} == {mx.float32}
    np.testing.assert_allclose(np.array(model.target.teach(tokens)[0]), before, atol=1e-4)


@pytest.mark.parametrize("room", [1 << 40, 1000])
def test_a_run_on_a_cpu_unpacks_its_target_before_it_answers(
    bundle, data, tmp_path, monkeypatch, room
):
    packed = tmp_path / "packed"
    convert(hf_path=bundle, mlx_path=packed, quantize=True, q_bits=4, q_group_size=32)
    monkeypatch.setattr(hardware, "usable_memory", lambda: room)
    notes, seen = [], []

    def answers(path, model, *arguments, **more):
        seen.append(any("scales" in module for _, module in model.named_modules()))
        return target_texts.answer_file(path, model, *arguments, **more)

    monkeypatch.setattr(rows_module, "answer_file", answers)

    class Ears(TrainingCallback):
        def note(self, text):
            notes.append(text)

    settings = TINY | {"steps": 2, "regenerate": True, "regenerate_max_tokens": 8}
    report = train_drafter(packed, data, tmp_path / "out", callback=Ears(), **settings)
    model, _ = load(packed, drafter=tmp_path / "out")
    as_stored = draft_sizes(model.target, model.drafter, mx.bfloat16)
    assert report.sizes.target_bytes_per_token == as_stored.target_bytes_per_token
    assert report.sizes.target_parameters == as_stored.target_parameters
    fits = room > 1000
    assert seen == [not fits]
    assert any("is unpacked for its passes" in note for note in notes) == fits
    told = "quantised, which takes a CPU a hundred times as long"
    assert any(told in note for note in notes) != fits
