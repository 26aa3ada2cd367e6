"""Training a drafter from its target: alignment, loss, shapes, the loop."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise

from training_cases import HIDDEN, VOCAB, make_rows, make_target

import mlx_redrafter  # noqa: F401  (loads OpenBLAS before mlx)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
import numpy as np
import pytest
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.system import blas
from mlx_redrafter.target.target import Target
from mlx_redrafter.training import (
    DistillationConfig,
    StreamedBatches,
    TokenRow,
    compute_features,
    distillation_loss,
    draft_vocabulary,
    evaluate,
    make_drafter,
    output_rows,
    train,
    unrolled_logits,
)
from mlx_redrafter.training.evaluation import DecodedFigures
from mlx_redrafter.training.features import CachedBatches, drawn
from mlx_redrafter.training.trainer import Trainer, learning_rate_schedule

TINY = DistillationConfig(unroll=3, steps=6, positions_per_step=16, top_k=8, seed=3)


def digest(module) -> str:
    values = sorted(tree_flatten(module.parameters()))
    return hashlib.sha256(b"".join(np.array(v).tobytes() for _, v in values)).hexdigest()


def counts_of(rows: list[TokenRow]) -> np.ndarray:
    return sum(np.bincount(r.tokens[r.answer], minlength=VOCAB) for r in rows)


@pytest.fixture(scope="module")
def target() -> Target:
    return make_target()


@pytest.fixture(scope="module")
def rows() -> list[TokenRow]:
    return make_rows()


def slow_loss(target, drafter, rows, anchors, config) -> float:
    """The definition, one position at a time, with full distributions."""
    vocabulary = np.array(drafter.target_tokens(mx.arange(drafter.config.head_size)))
    starts = np.cumsum([0] + [len(row.tokens) for row in rows])
    total = weight = 0.0
    for anchor in anchors:
        r = int(np.searchsorted(starts, anchor, side="right")) - 1
        row, p = rows[r], int(anchor - starts[r])
        logits, hidden = target.teach(mx.array(row.tokens)[None])
        state = mx.zeros(HIDDEN)
        for earlier in range(max(0, p + 1 - drafter.config.lookback), p + 1):
            state = drafter.advance(target.embed(mx.array(row.tokens[earlier])), state)
        for k in range(1, config.unroll + 1):
            guessed = p + 1 + k
            if guessed >= len(row.tokens):
                break
            state = drafter.advance(target.embed(mx.array(row.tokens[p + k])), state)
            draft = np.array(drafter.logits(hidden[0, p], state)).astype(np.float64)
            draft = draft - np.log(np.exp(draft).sum())
            if not row.answer[guessed]:
                continue
            teacher = np.array(logits[0, p + k]).astype(np.float64) / config.temperature
            teacher = np.exp(teacher) / np.exp(teacher).sum()
            inside = teacher[vocabulary].sum()
            teacher = teacher[vocabulary] / inside
            soft = inside * (teacher * (np.log(teacher) - draft)).sum()
            known = row.tokens[guessed] in vocabulary
            assert config.hard_weight in (0.0, 1.0)
            hard = -draft[list(vocabulary).index(row.tokens[guessed])] if known else 0.0
            w = config.depth_decay ** (k - 1)
            total += w * (hard if config.hard_weight else soft)
            weight += w
    return total / weight


@pytest.mark.parametrize(
    ("size", "temperature", "hard", "lookback"),
    [(None, 1.0, 0.0, 0), (32, 0.7, 0.0, 0), (32, 1.0, 1.0, 0), (None, 1.0, 0.0, 4)],
)
def test_loss_equals_the_slow_definition(target, rows, size, temperature, hard, lookback):
    config = replace(TINY, top_k=VOCAB, temperature=temperature, hard_weight=hard)
    drafter = make_drafter(
        target, counts_of(rows), exit_dim=HIDDEN, num_draft_layers=1, draft_vocab_size=size,
        lookback=lookback,
    )  # fmt: skip
    features = compute_features(target, drafter, rows, config, dtype=np.float32)
    anchors = features.anchors
    batch = features.batch(anchors, config.unroll, lookback)
    fast = distillation_loss(drafter, batch, target.embed(batch.fed), config).item()
    assert fast == pytest.approx(slow_loss(target, drafter, rows, anchors, config), rel=2e-3)


def test_draft_step_k_is_taught_by_the_logits_at_p_plus_k(target, rows):
    drafter = make_drafter(target)
    features = compute_features(target, drafter, rows, replace(TINY, top_k=VOCAB))
    logits, hidden = target.teach(mx.array(rows[0].tokens)[None])
    p = int(features.anchors[0])
    batch = features.batch(np.array([p]), 3)
    np.testing.assert_allclose(batch.hidden[0], hidden[0, p], atol=2e-3)
    for k in (1, 2, 3):
        assert batch.tokens[0, k - 1].item() == rows[0].tokens[p + k]
        assert batch.labels[0, k - 1].item() == rows[0].tokens[p + 1 + k]
        assert batch.best[0, k - 1].item() == mx.argmax(logits[0, p + k]).item()


def test_windows_end_with_their_row_and_skip_what_is_no_answer(target, rows):
    features = compute_features(target, make_drafter(target), rows, TINY)
    end = len(rows[0].tokens)
    anchors = features.anchors
    assert max(a for a in anchors if a < end) == end - 3
    weights = np.array(features.batch(np.array([end - 3]), 3).weights)
    assert weights.tolist() == [[1, 0, 0]]
    middle = end // 2  # marked as no answer
    assert middle - 2 not in anchors
    assert np.array(features.batch(np.array([middle - 3]), 3).weights)[0, 1] == 0


def test_what_is_looked_back_on_begins_with_the_row(target, rows):
    features = compute_features(target, make_drafter(target), rows, TINY)
    start, other = len(rows[0].tokens), len(rows[0].tokens) + len(rows[1].tokens)
    for p in (start, start + 1, start + 5):  # in the second row
        batch = features.batch(np.array([p]), 3, lookback=4)
        held = features.tokens[max(start, p - 3) : p + 1].tolist()
        assert batch.before[0].tolist() == [-1] * (4 - len(held)) + held
        assert batch.fed[0].tolist()[4:] == features.tokens[p + 1 : p + 4].tolist()
    assert other > start + 8
    assert features.batch(np.array([0]), 3, lookback=2).before.tolist() == [
        [-1, int(features.tokens[0])]
    ]
    assert features.batch(np.array([0]), 3).before.shape == (1, 0)


def test_top_k_with_its_rest_bounds_the_full_divergence_from_below(target, rows):
    drafter = make_drafter(target)
    losses = []
    for top_k in (2, 8, VOCAB):
        config = replace(TINY, top_k=top_k)
        features = compute_features(target, drafter, rows, config)
        batch = features.batch(features.anchors, 3)
        losses.append(distillation_loss(drafter, batch, target.embed(batch.tokens), config).item())
    assert 0 <= losses[0] <= losses[1] <= losses[2]


@pytest.mark.parametrize("hard_weight", [0.0, 0.4])
def test_gradient_equals_finite_differences(target, rows, hard_weight):
    config = replace(TINY, top_k=6, hard_weight=hard_weight)
    drafter = make_drafter(target, exit_dim=HIDDEN, num_draft_layers=1)
    features = compute_features(target, drafter, rows, config)
    batch = features.batch(features.anchors[:20], 3)
    embeddings = target.embed(batch.tokens)

    def loss():
        return distillation_loss(drafter, batch, embeddings, config)

    _, gradients = value_and_grad(drafter, loss)()
    flat = dict(tree_flatten(gradients))
    assert set(flat) == set(dict(tree_flatten(drafter.trainable_parameters())))
    key = mx.random.key(1)
    for name, gradient in flat.items():
        key, used = mx.random.split(key)
        direction = mx.random.normal(gradient.shape, key=used)
        value = dict(tree_flatten(drafter.parameters()))[name]
        sides = []
        for sign in (1, -1):
            drafter.load_weights([(name, value + sign * 1e-2 * direction)], strict=False)
            sides.append(loss().item())
        drafter.load_weights([(name, value)], strict=False)
        expected = (sides[0] - sides[1]) / 2e-2
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=0.05, abs=2e-3)


def test_unrolled_logits_follow_the_recurrence(target):
    drafter = make_drafter(target, num_draft_layers=1, rnn=False)
    tokens = mx.array([[5, 6, 7]])
    hidden = mx.ones((1, HIDDEN))
    out = unrolled_logits(drafter, hidden, target.embed(tokens))
    state = drafter.initial_state(1)
    for k in range(3):
        state = drafter.advance(target.embed(tokens[:, k]), state)
        np.testing.assert_allclose(out[:, k], drafter.logits(hidden, state), atol=1e-5)


def test_draft_vocabulary_takes_special_and_frequent_tokens():
    counts = np.zeros(100, dtype=np.int64)
    counts[10:60] = np.arange(50, 0, -1)
    assert draft_vocabulary(counts, 8, [99, 0]).tolist() == [0, 10, 11, 12, 13, 14, 15, 99]
    assert len(draft_vocabulary(counts, 90)) == 64  # 50 seen, rounded up
    with pytest.raises(RedrafterError, match="special tokens"):
        draft_vocabulary(counts, 1, [1, 2])


def test_columns_are_the_draft_vocabulary(target, rows):
    drafter = make_drafter(target, counts_of(rows), draft_vocab_size=16, special=[1])
    tokens = np.array(drafter.draft_tokens)
    features = compute_features(target, drafter, rows, TINY)
    logits, _ = target.teach(mx.array(rows[0].tokens)[None])
    p = int(features.anchors[0])
    batch = features.batch(np.array([p]), 1)
    scores = np.array(logits[0, p + 1])
    chosen = tokens[np.array(batch.columns)[0, 0]]
    assert chosen.tolist() == tokens[np.argsort(-scores[tokens], kind="stable")][:8].tolist()
    share = np.exp(scores[tokens]).sum() / np.exp(scores).sum()
    assert batch.inside.item() == pytest.approx(share, rel=1e-4)
    best = int(scores.argmax())
    assert batch.best.item() == (list(tokens).index(best) if best in tokens else -1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [None, 8])
def test_head_starts_as_the_targets_output_rows(tied, bits):
    target = make_target(tied=tied, hidden=32)
    module = target.model.model.embed_tokens if tied else target.model.lm_head
    rows = mx.array(module.weight)
    if bits is not None:
        nn.quantize(target.model, group_size=32, bits=bits)
    np.testing.assert_allclose(output_rows(target), rows, atol=0.01 if bits else 0)
    compact = make_drafter(target, np.arange(VOCAB), exit_dim=32, draft_vocab_size=16)
    head = compact.lm_head[-1].weight
    np.testing.assert_allclose(head, rows[compact.draft_tokens], atol=0.01 if bits else 0)


def test_training_fits_and_leaves_the_target_alone(target, rows):
    before = digest(target.model)
    config = replace(
        TINY, steps=300, positions_per_step=48, learning_rate=1e-2, unroll=2, temperature=0.3
    )
    drafter = make_drafter(target, num_draft_layers=1)
    features = compute_features(target, drafter, rows, config)
    start = evaluate(target, drafter, features, unroll=2)
    reports = []
    trained = train(target, drafter, features, config, held_out=features, progress=reports.append)
    end = reports[-1].held_out
    assert trained is drafter
    assert reports[-1].step == 300
    assert reports[-1].loss < 0.3 * reports[0].loss
    assert end.top1[0] > 0.95 > start.top1[0]
    assert end.top5[0] >= end.top1[0]
    assert end.chain > 2.8
    assert digest(target.model) == before


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_bit_identical(target, rows, tmp_path, accumulate):
    config = replace(TINY, accumulate=accumulate)

    def fresh():
        return make_drafter(target, counts_of(rows), draft_vocab_size=32, num_draft_layers=1)

    features = compute_features(target, fresh(), rows, config)
    whole = train(target, fresh(), features, config)

    class Stop(Exception):
        pass

    path, killed = tmp_path / "run.safetensors", tmp_path / "killed.safetensors"

    def stop(report):
        if report.step == 4:
            killed.write_bytes(path.read_bytes())  # what a killed process would leave
            raise Stop

    options = {"checkpoint": path, "save_every": 3, "report_every": 1}
    with pytest.raises(Stop):
        train(target, fresh(), features, config, progress=stop, **options)
    for checkpoint, expected in ((path, [5, 6]), (killed, [4, 5, 6])):
        steps = []
        resumed = train(
            target, fresh(), features, config, resume=True,
            progress=lambda r, steps=steps: steps.append(r.step),
            **(options | {"checkpoint": checkpoint}),
        )  # fmt: skip
        assert steps == expected
        assert digest(resumed) == digest(whole)
    other = replace(config, learning_rate=1.0)
    with pytest.raises(RedrafterError, match=r"made with another learning_rate: use"):
        train(target, fresh(), features, other, resume=True, **options)
    killed.unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_steps_take_all_cores_whatever_was_computed_before(
    target, rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of threads sums in another order, and a run has to be repeatable."""
    cores = [3]
    monkeypatch.setattr(blas, "_threads", lambda: (cores.append, 4))
    drafter = make_drafter(target, counts_of(rows), draft_vocab_size=32, num_draft_layers=1)
    features = compute_features(target, drafter, rows, TINY)
    begin, seen = Trainer.begin_step, []

    def watched(self, batches):
        seen.append(cores[-1])
        return begin(self, batches)

    def measure(_drafter):
        seen.append(cores[-1])
        cores.append(3)  # as decoding leaves them
        return DecodedFigures(1.0, (), 1, 1, 1)

    monkeypatch.setattr(Trainer, "begin_step", watched)
    train(target, drafter, features, TINY, measure=measure, evaluate_every=2)
    assert seen == [4] * (TINY.steps + TINY.steps // 2)


def test_a_broken_loss_ends_the_run_and_keeps_the_last_good_state(target, rows, tmp_path):
    drafter = make_drafter(target)
    features = compute_features(target, drafter, rows, TINY)
    path = tmp_path / "run.safetensors"

    def poison(report):
        if report.step == 2:  # when the batch of step 3 has been made
            features.hidden[:] = np.nan

    options = {"checkpoint": path, "save_every": 1, "report_every": 1, "progress": poison}
    with pytest.raises(RedrafterError, match=r"diverged at step 4.*last good state"):
        train(target, drafter, features, TINY, **options)
    weights = [value for _, value in tree_flatten(drafter.parameters())]
    assert all(mx.isfinite(value).all().item() for value in weights)
    assert mx.load(str(path), return_metadata=True)[1]["step"] == "3"


def test_unreadable_checkpoints_and_foreign_features_are_refused(target, rows, tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"nothing")
    drafter = make_drafter(target)
    features = compute_features(target, drafter, rows, TINY)
    with pytest.raises(RedrafterError, match="not a training checkpoint"):
        train(target, drafter, features, TINY, checkpoint=path, resume=True)
    small = make_drafter(target, counts_of(rows), draft_vocab_size=16)
    with pytest.raises(RedrafterError, match="another draft vocabulary"):
        train(target, small, features, TINY)
    with pytest.raises(RedrafterError, match="steps is 0"):
        DistillationConfig(steps=0)


@pytest.mark.parametrize(
    ("metadata", "shape"),
    [
        ({"settings": "[]"}, None),
        ({"state": '{"evaluated": 0, "wonder": 1}'}, None),
        ({"settings": "[" * 100_000}, None),
        ({"step": "9" * 5000}, None),
        ({}, (3, 5)),
    ],
)
def test_damaged_checkpoints_are_told_in_a_sentence(target, rows, tmp_path, metadata, shape):
    path = tmp_path / "run.safetensors"
    features = compute_features(target, make_drafter(target), rows, TINY)
    train(target, make_drafter(target), features, replace(TINY, steps=1), checkpoint=path)
    arrays, told = mx.load(str(path), return_metadata=True)
    if shape is not None:
        arrays[next(iter(arrays))] = mx.zeros(shape)
    mx.save_safetensors(str(path), arrays, told | metadata)
    with pytest.raises(RedrafterError, match=r"run\.safetensors (is|was)"):
        train(
            target, make_drafter(target), features, replace(TINY, steps=1), checkpoint=path,
            resume=True,
        )  # fmt: skip


def test_the_result_does_not_depend_on_global_random_state(target, rows):
    digests = set()
    for seed in (1, 2):
        mx.random.seed(seed)
        np.random.seed(seed)
        drafter = make_drafter(target, seed=1)
        features = compute_features(target, drafter, rows, TINY)
        digests.add(digest(train(target, drafter, features, replace(TINY, steps=2))))
    assert len(digests) == 1


def test_batches_are_a_pure_function_of_their_number(target, rows):
    features = compute_features(target, make_drafter(target), rows, TINY)
    source = CachedBatches(features, TINY)
    again = CachedBatches(features, TINY)
    for index in (5, 0):
        for one, two in zip(source.batch(index), again.batch(index), strict=True):
            np.testing.assert_array_equal(one, two)
    seen = drawn(7, 0, 14, seed=1)
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))
    np.testing.assert_array_equal(seen[3:12], drawn(7, 3, 9, seed=1))


def test_streamed_batches_equal_cached_ones(target, rows):
    config = replace(TINY, batch_size=2, positions_per_step=64)
    drafter = make_drafter(target, counts_of(rows), draft_vocab_size=32, lookback=2)
    streamed = StreamedBatches(target, drafter, rows, config)
    batch = streamed.batch(1)
    i, j = drawn(len(rows), 2, 2, config.seed)
    features = compute_features(target, drafter, [rows[i], rows[j]], config, dtype=np.float32)
    order = np.random.default_rng((config.seed, 1)).permutation(features.anchors)
    for one, two in zip(batch, features.batch(np.resize(order, 64), 3, 2), strict=True):
        np.testing.assert_array_equal(one, two)
    loss = []
    train(target, drafter, streamed, config, progress=lambda r: loss.append(r.loss))
    assert np.isfinite(loss).all()


def test_the_rate_rises_to_its_peak_and_falls_to_a_hundredth(target, rows):
    config = replace(TINY, steps=40, warmup=0.25, learning_rate=1e-2)
    drafter = make_drafter(target)
    trainer = Trainer(target, drafter, config)
    batches = CachedBatches(compute_features(target, drafter, rows, config), config)
    rates = []
    for index in range(config.steps):
        trainer.update([batches.batch(index)])
        rates.append(trainer.optimizer.learning_rate.item())
    np.testing.assert_allclose(rates[:10], [1e-3 * step for step in range(1, 11)], rtol=1e-3)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 1e-4 < rates[-1] < 1.5e-4
    assert learning_rate_schedule(config)(mx.array(config.steps)).item() == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "shape", [{}, {"shared_rows": True}, {"independent_heads": 3}, {"lookback": 4}]
)
def test_fused_gradients_follow_the_weights(target, rows, shape):
    features = compute_features(target, make_drafter(target, **shape), rows, TINY)
    losses = []
    for fuse in (False, True):
        trainer = Trainer(target, make_drafter(target, **shape), TINY, fuse=fuse)
        batches = CachedBatches(features, TINY, shape.get("lookback", 0))
        losses.append([trainer.update([batches.batch(i)]) for i in range(4)])
    assert losses[0][0] != losses[0][1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
