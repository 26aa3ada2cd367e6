"""Training a drafter from its frozen target (ReDrafter, arXiv 2403.09919, sections 3.1 and 3.3).

rows = tokenize(read_jsonl(path), tokenizer)
drafter = make_drafter(target, token_counts(rows, target.vocab_size), ...)
features = compute_features(target, drafter, rows, config)
drafter = train(target, drafter, features, config)
"""

from .checkpoint import load_checkpoint, save_checkpoint
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
from .evaluation import Agreement, evaluate
from .features import Batch, BatchSource, Features
from .loss import distillation_loss, unrolled_logits
from .regeneration import regenerate
from .shapes import draft_vocabulary, make_drafter, output_rows
from .teacher import StreamedBatches, Teacher, compute_features
from .trainer import Progress, train

__all__ = [
    "Agreement",
    "Batch",
    "BatchSource",
    "DistillationConfig",
    "Features",
    "Progress",
    "StreamedBatches",
    "Teacher",
    "TokenRow",
    "compute_features",
    "distillation_loss",
    "draft_vocabulary",
    "evaluate",
    "load_checkpoint",
    "make_drafter",
    "output_rows",
    "read_jsonl",
    "regenerate",
    "save_checkpoint",
    "special_tokens",
    "split_rows",
    "token_counts",
    "tokenize",
    "train",
    "unrolled_logits",
    "write_jsonl",
]
