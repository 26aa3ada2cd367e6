"""A byte-level BPE tokenizer with a chat template, saved as a Hugging Face fast tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .files import write_json, write_text

END, USER, ASSISTANT, SYSTEM = "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL = (END, USER, ASSISTANT, SYSTEM)
MAX_LENGTH = 2048  # tokens

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Written by hand, so that older and newer releases of transformers all read it.
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": END,
    "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
    "model_max_length": MAX_LENGTH,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}


def train_tokenizer(texts: Iterable[str], vocabulary: int, path: Path) -> None:
    """Train on ``texts`` and save tokenizer.json and tokenizer_config.json under ``path``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(path / "tokenizer_config.json", CONFIG)


def load_tokenizer(path: Path) -> Tokenizer:
    """The bare tokenizer, for training loops."""
    return Tokenizer.from_file(str(path / "tokenizer.json"))


def chat_text(messages: list[dict[str, str]]) -> str:
    """What the chat template makes of finished messages."""
    return "".join(f"<|{m['role']}|>{m['content'].strip()}{END}" for m in messages)


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Put the tokenizer's files beside a checkpoint."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        write_text(directory / name, (source / name).read_text("utf-8"))
