"""Writing a GGUF model as an mlx-lm model directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..errors import RedrafterError
from ..system.files import write_json
from .families import configuration, family_of
from .file import GGUFModel
from .tokenizer import write_tokenizer
from .vocabulary import read_vocabulary, special_ids
from .weights import Placed, parameters, place, quantisation, working_type

SHARD_BYTES = 1 << 30
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Written:
    """What became of a file's tensors.

    Attributes:
        kept: Block types kept bit for bit ("Q4_1"), sorted.
        unpacked: Block types that were dequantised, sorted.
        dtype: Of everything that is not packed ("float16").
        bytes: Written for weights.
    """

    kept: tuple[str, ...]
    unpacked: tuple[str, ...]
    dtype: str
    bytes: int


def write_model(
    model: GGUFModel,
    directory: Path,
    progress: Progress,
    dequantised: bool = False,
    dtype: mx.Dtype | None = None,
) -> Written:
    """Write weights, config.json and tokenizer into an empty directory.

    Args:
        model: The file.
        directory: Existing directory.
        progress: Told the stage, the stored bytes done and those in all.
        dequantised: Whether block types that mlx has are unpacked too.
        dtype: Of what is not packed; by default what the file's own types suggest.

    Raises:
        RedrafterError: If the file is of an unknown family, incomplete or damaged.
    """
    family, config = family_of(model), configuration(model)
    vocabulary = read_vocabulary(model)
    if len(vocabulary.tokens) > config["vocab_size"]:
        raise RedrafterError(
            f"'{model.path}' cannot be converted: it has {len(vocabulary.tokens)} tokens, but "
            f"embeddings for {config['vocab_size']} only; download it again."
        )
    placed = place(model, family, config)
    dtype = dtype or working_type(placed, family)
    arrays = parameters(model, family, config, placed, dtype, dequantised)
    kept: dict[str, int] = {}
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    files = _Shards(directory)
    for item, values, bits in _counted(arrays, placed, progress):
        files.add(values)
        if bits:
            kept[item.module] = bits
        kinds[bits > 0].add(item.tensor.type)
    written = files.finish()
    if (entry := quantisation(kept)) is not None:
        config |= {"quantization": entry, "quantization_config": entry}
    config |= {"torch_dtype": str(dtype)[9:], **special_ids(vocabulary)}
    write_tokenizer(model, vocabulary, directory, config["max_position_embeddings"])
    write_json(directory / "config.json", config)
    unpacked = kinds[False] - {"F32", "F16", "BF16", "F64"}
    return Written(tuple(sorted(kinds[True])), tuple(sorted(unpacked)), str(dtype)[9:], written)


def _counted(
    arrays: Iterator[tuple[Placed, dict[str, mx.array], int]],
    placed: list[Placed],
    progress: Progress,
) -> Iterator[tuple[Placed, dict[str, mx.array], int]]:
    done, total = 0, sum(p.tensor.nbytes for p in placed)
    for item, values, bits in arrays:
        yield item, values, bits
        done += item.tensor.nbytes
        progress("Converting the GGUF file", done, total)


class _Shards:
    """Safetensors files of about SHARD_BYTES in mlx-lm's layout."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._arrays: dict[str, mx.array] = {}
        self._size = self._total = self._count = 0

    def add(self, arrays: dict[str, mx.array]) -> None:
        size = sum(array.nbytes for array in arrays.values())
        if self._arrays and self._size + size > SHARD_BYTES:
            self._flush()
        self._arrays |= arrays
        self._size += size

    def finish(self) -> int:
        """Write the rest; the bytes of all files' arrays."""
        self._flush()
        return self._total

    def _flush(self) -> None:
        self._count += 1
        path = self._directory / f"model-{self._count:05d}.safetensors"
        mx.save_safetensors(str(path), self._arrays, metadata={"format": "mlx"})
        self._total += self._size
        self._arrays, self._size = {}, 0
        mx.clear_cache()
