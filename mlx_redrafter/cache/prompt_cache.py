"""What a conversation leaves in a model: the caches of all layers and the tokens they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import mlx.core as mx

from ..errors import RedrafterError
from ..ranges import whole_length
from .cache_file import write_cache
from .layer_cache import LayerCache
from .model_identity import ModelWeights, References, same
from .text_memory import MemoryOwner, TextMemory


@dataclass(frozen=True)
class Quantization:
    """From when on, and how, layers are quantised.

    Attributes:
        convert: (layer, bits, group size) -> the quantised layer, or None for one that stays.
        bits: Bits of a number.
        group_size: Numbers that share a scale.
        start: The first forward from this position finds a quantised cache.
    """

    convert: Callable[[LayerCache, int, int], LayerCache | None]
    bits: int
    group_size: int
    start: int


class PromptCache:
    """The caches of all layers and the tokens they hold.

    Attributes:
        layers: One a layer; what the model is given is their ``mlx_cache``.
        tokens: The committed tokens; every layer holds exactly these.
        quantization: What is done to the layers as the text grows; None for nothing.
        memory: What a draft head keeps of the tokens, or of the first of them where it did not see
            the others; None where no head keeps anything.
        user: Whose steps change it at present; None between texts, and once it was set back.
        text_index: What drafts from the text have kept of it for the next turn; None if nothing.
        weights: What the rows were computed with; None where nobody noted it.

    Args:
        layers: One a layer.
        draft_limit: From this length on tokens have to be verified one by one; None for no limit.
        owner: What the model that it is for is known by.
        model: That model's weights; None: they are not known, and the cache cannot be saved.
    """

    def __init__(
        self,
        layers: Sequence[LayerCache],
        draft_limit: int | None = None,
        owner: object | None = None,
        model: ModelWeights | None = None,
    ):
        self.owner = owner
        self._model = model
        self.layers = list(layers)
        self._draft_limit = draft_limit
        self.quantization: Quantization | None = None
        self.tokens: list[int] = []
        self.memory: TextMemory | None = None
        self.user: object | None = None
        self.text_index: Any = None
        self.weights: References | None = None
        self._under_way = False  # a forward that nothing is committed of
        # Held over a step, a piece of a prompt, and whatever is done with the cache between two.
        self.lock = RLock()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def seams(self) -> list[Any]:
        """The cache list as mlx-lm's models take it."""
        return [layer.mlx_cache for layer in self.layers]

    @property
    def can_discard(self) -> bool:
        """Whether a step may be started that might never be committed."""
        return all(layer.can_discard for layer in self.layers)

    def begin(self, rows: int) -> dict[int, Any]:
        """Announce a forward over ``rows`` rows; returns the caches to be watched in it."""
        watched: dict[int, Any] = {}
        self._under_way = True
        plan = self.quantization
        if plan is not None and len(self) >= plan.start:
            converted = (plan.convert(layer, plan.bits, plan.group_size) for layer in self.layers)
            pairs = zip(self.layers, converted, strict=True)
            self.layers = [new if new is not None else layer for layer, new in pairs]
        for layer in self.layers:
            layer.begin(rows)
            layer.watch(watched)
        return watched

    def changes_within(self, depth: int) -> bool:
        """Whether the next ``depth`` tokens have to be verified one by one.

        So it is where they would find different kinds of cache, and beyond a limit of the model's.
        """
        if self._draft_limit is not None and len(self) + depth >= self._draft_limit:
            return True
        plan = self.quantization
        return plan is not None and len(self) < plan.start <= len(self) + depth

    def reuse(self, prompt: Sequence[int], *, remembered: bool = False) -> int:
        """Rewind to the longest prefix shared with ``prompt`` that can be gone on from.

        Attention layers continue from anywhere, a window from wherever it still has its rows,
        recurrent state from where it stands and from the ends of the last prompts.

        Args:
            prompt: Token ids.
            remembered: Whether ``memory`` has to hold all that is kept.

        Returns:
            The number of tokens held; at least the prompt's last token is left over, for the first
            step.
        """
        with self.lock:
            shared = 0
            for held, wanted in zip(self.tokens, prompt[:-1], strict=False):
                if held != wanted:
                    break
                shared += 1
            if remembered:
                shared = min(shared, 0 if self.memory is None else self.memory.offset)
            self.user = None
            self.rewind(shared)
            return len(self)

    def copy(self) -> PromptCache:
        """The committed tokens in caches of their own; buffers are shared until one is written."""
        with self.lock:
            layers = [layer.copy() for layer in self.layers]
            made = PromptCache(layers, self._draft_limit, self.owner, self._model)
            made.quantization = self.quantization
            made.tokens = list(self.tokens)
            made.weights = self.weights
            made.memory = None if self.memory is None else self.memory.copy()
            return made

    def save(self, path: str | Path) -> None:
        """Write the committed tokens and what they left to a file; ``model.load_cache`` reads it.

        Args:
            path: Its name; missing directories are made, and a file that is there is replaced.

        Raises:
            RedrafterError: If the model's weights are no longer those that the cache is of, a layer
                cannot be kept, or the file cannot be written.
        """
        model, now = self._model, self._model_weights()
        if model is None or now is None:
            raise RedrafterError(
                "The model of this cache is not there any more, so the file could not say whose it "
                "is: save a cache as long as its model is loaded."
            )
        if len(self) and self.weights and not same(self.weights, now):
            raise RedrafterError(
                "The model has other weights than those that this cache was computed with: let it "
                "read the text again, and save it then."
            )
        with self.lock:
            write_cache(path, model.identity(), self._content())

    def _model_weights(self) -> References | None:
        return None if self._model is None else self._model.references()

    def _content(self) -> dict[str, Any]:
        """What :meth:`copy` keeps, as plain data; see :class:`LayerCache`."""
        return {
            "tokens": list(self.tokens),
            "layers": [layer.content() for layer in self.layers],
            "memory": None if self.memory is None else self.memory.content(),
        }

    def take_over(self, content: dict[str, Any], head: MemoryOwner | None) -> None:
        """Go on from what was saved; from an empty cache with layers of the same kinds.

        Args:
            content: As it was saved.
            head: The model's draft head, if it keeps anything; what another one kept is left out.

        Raises:
            KeyError, TypeError or ValueError: If it is no such content.
        """
        for layer, saved in zip(self.layers, content["layers"], strict=True):
            layer.take_over(saved)
        self.tokens, self.weights = content["tokens"], self._model_weights()
        memory = content["memory"]
        if head is not None and memory is not None and memory["head"] == head.fingerprint():
            self.memory = TextMemory(head)
            self.memory.take_over(memory)

    def __copy__(self) -> PromptCache:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptCache:
        # As callers of mlx-lm keep what a prompt has left, to go on from it several times.
        return self.copy()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise RedrafterError(
            "A cache belongs to a model object of this process and cannot be pickled: save(path) "
            "it, which the same model's load_cache(path) reads in any process, or copy() it."
        )

    def __iter__(self) -> Iterator[Any]:
        """Refuse mlx-lm's functions for caches, which go through lists of layers.

        Raises:
            RedrafterError: Naming what takes their place.
        """
        raise RedrafterError(
            "mlx-lm's functions do not take this package's caches: rewind(length) trims one, "
            "copy() copies it, save(path) saves it, and model.load_cache(path) loads it."
        )

    def extend(self, tokens: Sequence[int]) -> None:
        """Note that the layers' latest rows are those of ``tokens``."""
        for layer in self.layers:
            layer.commit_all(len(tokens))
        self._under_way = False
        self.tokens.extend(tokens)

    def commit(self, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Keep the rows of an accepted path and note its tokens, one a row."""
        for layer in self.layers:
            layer.commit(path)
        self._under_way = False
        self.tokens.extend(tokens)

    def reachable(self, length: int) -> int:
        """The longest text, of at most ``length`` tokens, that :meth:`rewind` can go back to."""
        length = min(length, len(self))
        points = [point for layer in self.layers for point in layer.rewind_points()]
        for point in sorted({length, *(p for p in points if p < length)}, reverse=True):
            if point > 0 and all(layer.can_rewind(point) for layer in self.layers):
                return point
        return 0

    def rewind(self, length: int) -> None:
        """Forget every token at and after position ``length``, in every layer.

        Where a layer no longer knows how it stood then, more is forgotten: back to a point that
        all layers know, at worst everything. A text that is under way goes on if nothing is.

        Raises:
            RedrafterError: If ``length`` is no whole number; nothing is forgotten then.
        """
        with self.lock:
            point = self.reachable(whole_length(length))
            stays = point == len(self)
            if stays and self.user is not None:
                return  # the next step of the text that is under way may have begun
            if not point:
                self.reset()
                return
            self.user = None
            for layer in self.layers:
                layer.rewind(point)
            if self.memory is not None:
                self.memory.rewind(point)
            del self.tokens[point:]
            if self._under_way or not stays:
                # What a step leaves that was given up, or running tokens again, can be computed in
                # this thread alone; another one may go on.
                mx.async_eval(self.state)

    def reset(self) -> None:
        """Forget everything and free the buffers."""
        with self.lock:
            self.user = None
            for layer in self.layers:
                layer.reset()
            self.layers = [layer.unquantized() for layer in self.layers]
            if self.memory is not None:
                self.memory.reset()
            self.tokens.clear()

    @property
    def state(self) -> list[Any]:
        """All layers' arrays, to evaluate, and a draft head's."""
        state = [layer.state for layer in self.layers]
        return state if self.memory is None else [*state, self.memory.state]

    @property
    def nbytes(self) -> int:
        """Size of all buffers in bytes."""
        memory = 0 if self.memory is None else self.memory.nbytes
        return memory + sum(layer.nbytes for layer in self.layers)
