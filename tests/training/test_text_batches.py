"""Training heads that remember the text: batches of whole texts, the loss, a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from slow_memory import SlowMemoryHead
from training_cases import VOCAB, make_rows, make_target

from mlx_redrafter.drafting.memory_drafter import MemoryDrafter
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.target.target import Target
from mlx_redrafter.training import DistillationConfig, TokenRow, distillation_loss, evaluate, train
from mlx_redrafter.training.initial_drafter import MemoryShape, make_memory_drafter
from mlx_redrafter.training.teacher import padded_length
from mlx_redrafter.training.text_batches import TextBatches
from mlx_redrafter.training.text_loss import TextBatch, text_logits
from mlx_redrafter.training.trainer import Trainer

SHAPE = MemoryShape(state_size=24, mlp_size=12, exit_dim=12, heads=2, head_dim=8, window=64)
UNROLL = 3


def head_of(target: Target, size: int | None = 24) -> MemoryDrafter:
    counts = np.arange(VOCAB)
    return make_memory_drafter(target, counts, shape=SHAPE, draft_vocab_size=size, special=[0])


def config_of(**changes: object) -> DistillationConfig:
    return DistillationConfig(
        **{"unroll": UNROLL, "positions_per_step": 64, "top_k": 48, "steps": 4, **changes}
    )


def randomised(drafter: MemoryDrafter) -> MemoryDrafter:
    for layer in (drafter.recall, drafter.down):  # which begin as nothing
        layer.weight = mx.random.normal(layer.weight.shape, key=mx.random.key(3)) * 0.3
    return drafter


def test_anchors_are_all_positions_of_texts() -> None:
    target = make_target()
    drafter = randomised(head_of(target))
    source = TextBatches(target, drafter, make_rows(5), config_of(temperature=2.0))
    tokens_of = np.array(drafter.draft_tokens)
    seen = 0
    for group in source.groups:
        rows, batch = source.rows[group], source.of(group)
        shape = (*batch.tokens.shape, UNROLL)
        # Row i of step k belongs to anchor i of the texts laid end to end; the last k have none.
        made = np.zeros((shape[0] * shape[1], UNROLL, drafter.config.head_size))
        for k, logits in enumerate(text_logits(drafter, batch, target.embed(batch.fed)), 1):
            made[: len(logits), k - 1] = np.array(logits)
        weights = np.array(batch.weights).reshape(shape)
        best, probs = np.array(batch.best), np.array(batch.probs)
        table = np.array(target.embed(mx.arange(VOCAB)))
        for line, row in enumerate(rows):
            n = len(row.tokens)
            logits, hidden = (
                np.array(x[0])
                for x in target.teach(
                    mx.array(row.tokens)[None], layers=drafter.config.target_layers
                )
            )
            slow = SlowMemoryHead(drafter, hidden.reshape(n, 3, -1), table[row.tokens])
            for p in range(shape[1]):
                for k in range(1, UNROLL + 1):
                    at = p + 1 + k
                    counts = at < n and row.answer[at] and row.answer[p + 2]
                    assert weights[line, p, k - 1] == counts
                    if not counts:
                        continue
                    seen += 1
                    teacher = logits[at - 1]
                    top = np.flatnonzero(tokens_of == teacher.argmax())
                    assert best[line, at - 1] == (top[0] if len(top) else -1)
                    wanted = np.exp(teacher / 2) / np.exp(teacher / 2).sum()
                    np.testing.assert_allclose(probs[line, at - 1], wanted[tokens_of], atol=1e-5)
                fed = [int(t) for t in row.tokens[p + 1 : p + 1 + UNROLL]]
                if weights[line, p].all():
                    found = made.reshape(*shape, -1)[line, p]
                    for depth, expected in enumerate(slow.draft(p, fed, table)):
                        np.testing.assert_allclose(found[depth], expected, atol=2e-3)
    assert seen > 100


@pytest.mark.parametrize("hard_weight", [0.0, 0.3, 1.0])
def test_the_loss_and_its_gradient_are_those_of_plain_sums(hard_weight: float) -> None:
    target = make_target()
    drafter = randomised(head_of(target))
    config = config_of(
        temperature=2.0, hard_weight=hard_weight, depth_decay=0.7, positions_per_step=1
    )
    source = TextBatches(target, drafter, make_rows(3), config)
    batch = source.of(source.groups[-1])
    embeddings = target.embed(batch.fed)
    labels = source.rows[-1].tokens

    def plain(drafter: MemoryDrafter) -> mx.array:
        total, count = mx.array(0.0), 0.0
        tokens_of = [int(t) for t in drafter.draft_tokens]
        logits, _ = target.teach(batch.tokens)
        chances = mx.softmax(logits / 2, axis=-1)[0]
        made = text_logits(drafter, batch, embeddings)
        for p in range(batch.tokens.shape[1]):
            for k in range(1, UNROLL + 1):
                if not float(batch.weights[p, k - 1]):
                    continue
                wanted = (1 - hard_weight) * chances[p + k][mx.array(tokens_of)]
                if int(labels[p + k + 1]) in tokens_of:
                    own = mx.arange(len(tokens_of)) == tokens_of.index(int(labels[p + k + 1]))
                    wanted = wanted + hard_weight * own
                logs = made[k - 1][p] - mx.logsumexp(made[k - 1][p])
                known = mx.where(wanted > 0, wanted * mx.log(mx.maximum(wanted, 1e-30)), 0)
                mass = wanted.sum()
                least = known.sum() - mass * mx.log(mx.maximum(mass, 1e-30))
                total = total + 0.7 ** (k - 1) * (least - (wanted * logs).sum())
                count += 0.7 ** (k - 1)
        return total / count

    wanted, slope = nn.value_and_grad(drafter, plain)(drafter)
    found, made = nn.value_and_grad(
        drafter, lambda d: distillation_loss(d, batch, embeddings, config)
    )(drafter)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    for (name, one), (_, other) in zip(tree_flatten(made), tree_flatten(slope), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4, err_msg=name)


def test_a_batch_is_the_same_on_every_call_and_within_its_budget() -> None:
    target = make_target()
    source = TextBatches(target, head_of(target), make_rows(9), config_of())
    assert len(source.groups) > 1
    assert sum(len(source.rows[group]) for group in source.groups) == 9
    for index in (0, 3, 11):
        one, other = source.batch(index), source.batch(index)
        assert all(mx.array_equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(RedrafterError, match="no answers"):
        TextBatches(
            target, head_of(target), [TokenRow(np.arange(5), np.zeros(5, bool))], config_of()
        )


def test_what_is_kept_teaches_the_same() -> None:
    target = make_target()
    drafter = head_of(target)
    rows, config = make_rows(7), config_of(temperature=2.0)
    streamed, kept = (TextBatches(target, drafter, rows, config, keep=k) for k in (False, True))
    for index in (0, 1, 0):
        for name, one, other in zip(
            TextBatch._fields, streamed.batch(index), kept.batch(index), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("passes", [1, 3])
def test_nothing_holds_the_logits_of_a_step_that_is_done(keep: bool, passes: int) -> None:
    """The loss does not ask for all of a batch; what it leaves would be computed from them."""
    target = make_target()
    drafter = head_of(target)
    config = config_of(accumulate=passes)
    source = TextBatches(target, drafter, make_rows(9), config, keep=keep)
    trainer = Trainer(target, drafter, config)
    batches = [source.batch(index) for index in range(passes)]
    trainer.update(batches)
    held = [batch.best for batch in batches] if passes > 1 else []
    graph = io.StringIO()
    mx.export_to_dot(graph, *held, *(seen.best for seen in source._kept.values()))
    assert "ArgReduce" not in graph.getvalue()


def test_a_target_that_scales_its_logits_is_run_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target()
    plain = target.teach

    def scaled(*arguments: Any, **more: Any) -> tuple[mx.array, mx.array]:
        logits, hidden = plain(*arguments, **more)
        return logits / 3, hidden

    monkeypatch.setattr(target, "teach", scaled)
    drafter = head_of(target)
    rows, config = make_rows(7), config_of()
    streamed, kept = (TextBatches(target, drafter, rows, config, keep=k) for k in (False, True))
    for index in (0, 1, 0):
        assert mx.array_equal(streamed.batch(index).probs, kept.batch(index).probs)


def test_groups_have_few_shapes_and_fit_their_budget() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 900, 3000)
    rows = [TokenRow(np.zeros(n, np.int32), np.ones(n, bool)) for n in lengths]
    target = make_target()
    source = TextBatches(target, head_of(target), rows, config_of(positions_per_step=8192))
    shapes = set()
    for group in source.groups:
        some = source.rows[group]
        width = padded_length(len(some[-1].tokens))
        assert len(some) * width <= 8192
        assert width < 1.13 * len(some[-1].tokens) + 16
        shapes.add((len(some), width))
    assert sum(len(source.rows[group]) for group in source.groups) == len(rows)
    assert len(shapes) < 40


def test_training_fits_the_target() -> None:
    target = make_target()
    rows = make_rows(12)
    drafter = head_of(target, None)
    config = config_of(steps=60, learning_rate=3e-3, positions_per_step=256)
    source = TextBatches(target, drafter, rows, config)
    held = TextBatches(target, drafter, make_rows(4, seed=1), config)
    before = evaluate(target, drafter, held)
    train(target, drafter, source, config, report_every=1000, evaluate_every=1000)
    after = evaluate(target, drafter, held)
    assert before.positions == after.positions > 20
    assert after.top5[0] > before.top5[0]
    batch = source.batch(0)
    loss = distillation_loss(drafter, batch, target.embed(batch.fed), config)
    fresh = head_of(target, None)
    assert float(loss) < 0.7 * float(
        distillation_loss(fresh, batch, target.embed(batch.fed), config)
    )


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    target = make_target()
    rows, config = make_rows(8), config_of(steps=6)

    def run(path: Path, stop: int | None = None) -> MemoryDrafter:
        drafter = head_of(target)

        def after(step: int, _: int) -> None:
            if step == stop:
                raise KeyboardInterrupt

        source = TextBatches(target, drafter, rows, config)
        train(target, drafter, source, config, checkpoint=path, resume=True, after_step=after)
        return drafter

    whole = run(tmp_path / "a.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.safetensors", stop=3)
    resumed = run(tmp_path / "b.safetensors")
    pairs = zip(tree_flatten(whole.parameters()), tree_flatten(resumed.parameters()), strict=True)
    assert all(mx.array_equal(one, other) for (_, one), (_, other) in pairs)


def test_default_shapes_follow_the_target() -> None:
    entries = MemoryShape().entries(4096, 36)
    assert entries["target_layers"] == (2, 17)
    assert (entries["state_size"], entries["mlp_size"], entries["exit_dim"]) == (1024, 512, 336)
    small = MemoryShape().entries(576, 2)
    assert small["target_layers"] == (0, 1)
    assert (small["state_size"], small["exit_dim"]) == (576, 192)


def test_output_rows_begin_as_the_targets_in_few_directions() -> None:
    target = make_target()
    drafter = head_of(target, None)
    rows = np.array(target.output_head.rows)
    found = np.array(drafter.lm_head[0].weight)
    # The twelve widest of sixteen directions keep most of what tells rows apart.
    wanted, made = rows @ rows.T, found @ found.T
    assert np.corrcoef(wanted.ravel(), made.ravel())[0, 1] > 0.9
