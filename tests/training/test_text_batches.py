"""Training heads that remember the text: batches of whole texts, the loss, a run."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
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
from mlx_redrafter.training.loss import batch_logits
from mlx_redrafter.training.text_batches import TextBatches

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
        anchors = batch.tokens.shape[1] - UNROLL - 1
        made = np.array(batch_logits(drafter, batch, target.embed(batch.fed)))
        shape = (len(rows), anchors, UNROLL)
        weights = np.array(batch.weights).reshape(shape)
        labels, best = (np.array(x).reshape(shape) for x in (batch.labels, batch.best))
        columns = np.array(batch.columns).reshape(*shape, -1)
        probs = np.exp(np.array(batch.log_probs)).reshape(*shape, -1)
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
            for p in range(anchors):
                for k in range(1, UNROLL + 1):
                    at = p + 1 + k
                    counts = at < n and row.answer[at] and row.answer[p + 2]
                    assert weights[line, p, k - 1] == counts
                    if not counts:
                        continue
                    seen += 1
                    token = row.tokens[at]
                    column = np.flatnonzero(tokens_of == token)
                    assert labels[line, p, k - 1] == (column[0] if len(column) else -1)
                    teacher = logits[at - 1]
                    top = np.flatnonzero(tokens_of == teacher.argmax())
                    assert best[line, p, k - 1] == (top[0] if len(top) else -1)
                    wanted = np.exp(teacher[tokens_of] / 2)
                    given = np.zeros(len(tokens_of))
                    given[columns[line, p, k - 1]] = probs[line, p, k - 1]
                    np.testing.assert_allclose(given, wanted / wanted.sum(), atol=1e-3)
                fed = [int(t) for t in row.tokens[p + 1 : p + 1 + UNROLL]]
                if weights[line, p].all():
                    found = made.reshape(*shape, -1)[line, p]
                    for depth, expected in enumerate(slow.draft(p, fed, table)):
                        np.testing.assert_allclose(found[depth], expected, atol=2e-3)
    assert seen > 100


def test_a_batch_is_the_same_on_every_call_and_within_its_budget() -> None:
    target = make_target()
    source = TextBatches(target, head_of(target), make_rows(9), config_of())
    assert source.per_epoch == len(source.groups) > 1
    assert sum(len(source.rows[group]) for group in source.groups) == 9
    for index in (0, 3, 11):
        one, other = source.batch(index), source.batch(index)
        assert all(mx.array_equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(RedrafterError, match="no answers"):
        TextBatches(
            target, head_of(target), [TokenRow(np.arange(5), np.zeros(5, bool))], config_of()
        )


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
