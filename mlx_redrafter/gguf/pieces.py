"""SentencePiece's BPE, of which GGUF stores pieces and scores, as the tokenizers library's."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from .file import GGUFModel
from .vocabulary import BYTE, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

LONGEST_PIECE = 1 << 12  # characters; merges of longer ones are not looked for


def sentencepiece(model: GGUFModel, vocabulary: Vocabulary) -> Tokenizer:
    """A tokenizer that merges as SentencePiece does, without the special tokens.

    Raises:
        RedrafterError: If there is no score for each piece.
    """
    scores = model.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise model.refusal("tokenizer.ggml.scores", scores, "a list as long as the tokens")
    unknown = vocabulary.special.get("unk")
    if unknown is None and UNKNOWN in vocabulary.types:
        unknown = vocabulary.types.index(UNKNOWN)
    merges, whole = merges_by_score(vocabulary, scores)
    bpe = models.BPE(
        {token: i for i, token in enumerate(vocabulary.tokens)},
        merges,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=BYTE in vocabulary.types,
    )
    tokenizer = Tokenizer(bpe)
    whole += [t for t, k in zip(vocabulary.tokens, vocabulary.types, strict=True)
              if k == USER_DEFINED and t]  # fmt: skip
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    spaces = normalizers.Replace(" ", SPACE)
    if model.flag("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([*_space_before(whole), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(steps)
    # They are matched as SentencePiece sees text: with its sign for spaces, after the first one.
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=True) for piece in whole])
    return tokenizer


def _space_before(whole: Iterable[str]) -> list[normalizers.Normalizer]:
    """Put the sign for a space before texts, but not before pieces that are matched whole.

    The library normalises the pieces themselves as it does texts.
    """
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(SPACE)]
    if pieces := "|".join(re.escape(piece) for piece in whole):
        steps.append(normalizers.Replace(Regex(rf"\A{SPACE}(?=(?:{pieces})\z)"), ""))
    return steps


def merges_by_score(
    vocabulary: Vocabulary, scores: list[float]
) -> tuple[list[tuple[str, str]], list[str]]:
    """The merges of SentencePiece's BPE, and the pieces that have to be matched whole instead.

    SentencePiece merges the two neighbours whose union has the highest score, the leftmost first.
    So every way to split a piece in two is a merge, ranked by the whole's score. What it may merge
    are any letters; the library's merges only letters that are pieces, so those of others, as of
    "\\n\\n" where "\\n" is a byte, are matched whole, if nothing is merged before them.
    """
    ids = {
        token: i
        for i, token in enumerate(vocabulary.tokens)
        if vocabulary.types[i] in (NORMAL, USER_DEFINED, UNUSED)
    }
    merged = {piece for piece in ids if len(piece) == 1}
    formed: set[str] = set()  # by SentencePiece
    found: list[tuple[float, int, int, int, tuple[str, str]]] = []
    first: dict[tuple[str, float], int] = {}
    for piece in sorted(ids, key=len):
        i = ids[piece]
        if vocabulary.types[i] != NORMAL or not 1 < len(piece) <= LONGEST_PIECE:
            continue
        # Of equal runs of a letter the leftmost grows first, as if longer ones went before.
        group = first.setdefault((piece[0], scores[i]), i) if _is_run(piece) else i
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in merged and right in merged:
                found.append((-scores[i], group, -len(piece), -cut, (left, right)))
                merged.add(piece)
            if all(len(part) == 1 or part in formed for part in (left, right)):
                formed.add(piece)
    found.sort()
    best = max((scores[ids[piece]] for piece in formed), default=0.0)
    whole = [piece for piece in formed - merged if scores[ids[piece]] == best]
    return [pair for *_, pair in found], sorted(whole, key=ids.__getitem__)


def _is_run(piece: str) -> bool:
    """Whether it is one letter again and again."""
    return piece == piece[0] * len(piece)
