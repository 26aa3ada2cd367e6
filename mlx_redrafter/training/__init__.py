"""Training a drafter from its frozen target (ReDrafter, arXiv 2403.09919, sections 3.1 and 3.3).

``train_drafter`` does all of it. In parts:

rows = tokenize(read_jsonl(path), tokenizer)
drafter = make_drafter(target, token_counts(rows, target.vocab_size), ...)
features = compute_features(target, drafter, rows, config)
drafter = train(target, drafter, features, config)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import names_on_demand

if TYPE_CHECKING:
    from ..drafting.shared_head import output_rows
    from .config import DistillationConfig
    from .data import (
        TokenRow,
        read_jsonl,
        special_tokens,
        split_rows,
        token_counts,
        tokenize,
        write_jsonl,
    )
    from .evaluation import (
        Agreement,
        DecodedFigures,
        DraftSizes,
        draft_sizes,
        evaluate,
        measure_decoding,
        prompts_of,
    )
    from .feature_shards import stored_features
    from .features import Batch, BatchSource, Features
    from .initial_drafter import make_drafter
    from .loop import Progress, train
    from .loss import distillation_loss, unrolled_logits
    from .options import TrainingOptions
    from .record import TrainingCallback, TrainingReport
    from .regeneration import regenerate
    from .run import train_drafter
    from .sources import read_data
    from .target_texts import answer_file
    from .teacher import StreamedBatches, Teacher, compute_features
    from .trainer import load_checkpoint, save_checkpoint
    from .vocabulary import draft_vocabulary

__all__ = [
    "Agreement",
    "Batch",
    "BatchSource",
    "DecodedFigures",
    "DistillationConfig",
    "DraftSizes",
    "Features",
    "Progress",
    "StreamedBatches",
    "Teacher",
    "TokenRow",
    "TrainingCallback",
    "TrainingOptions",
    "TrainingReport",
    "answer_file",
    "compute_features",
    "distillation_loss",
    "draft_sizes",
    "draft_vocabulary",
    "evaluate",
    "load_checkpoint",
    "make_drafter",
    "measure_decoding",
    "output_rows",
    "prompts_of",
    "read_data",
    "read_jsonl",
    "regenerate",
    "save_checkpoint",
    "special_tokens",
    "split_rows",
    "stored_features",
    "token_counts",
    "tokenize",
    "train",
    "train_drafter",
    "unrolled_logits",
    "write_jsonl",
]

# The names come when they are first used, so that a command line's --help waits for none of them.
_HOMES = {
    ".trainer": ("load_checkpoint", "save_checkpoint"),
    ".config": ("DistillationConfig",),
    ".data": (
        "TokenRow",
        "read_jsonl",
        "special_tokens",
        "split_rows",
        "token_counts",
        "tokenize",
        "write_jsonl",
    ),
    ".evaluation": (
        "Agreement",
        "DecodedFigures",
        "DraftSizes",
        "draft_sizes",
        "evaluate",
        "measure_decoding",
        "prompts_of",
    ),
    ".features": ("Batch", "BatchSource", "Features"),
    ".vocabulary": ("draft_vocabulary",),
    ".initial_drafter": ("make_drafter",),
    ".loop": ("Progress", "train"),
    ".loss": ("distillation_loss", "unrolled_logits"),
    ".options": ("TrainingOptions",),
    ".regeneration": ("regenerate",),
    ".record": ("TrainingCallback", "TrainingReport"),
    ".run": ("train_drafter",),
    "..drafting.shared_head": ("output_rows",),
    ".sources": ("read_data",),
    ".feature_shards": ("stored_features",),
    ".target_texts": ("answer_file",),
    ".teacher": ("StreamedBatches", "Teacher", "compute_features"),
}
__getattr__, __dir__ = names_on_demand(__name__, _HOMES)
