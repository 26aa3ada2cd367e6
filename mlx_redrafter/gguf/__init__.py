"""GGUF files as mlx-lm models.

Reading, tensor names and dequantising are the ``gguf`` package's; what this one adds is the mapping
to mlx-lm's models: configuration, order of rows, block types that mlx has too, tokenizers.
"""

from .directory import Progress, Written, write_model
from .file import GGUFModel, read_gguf
from .store import converted, gguf_files, only_file

__all__ = [
    "GGUFModel",
    "Progress",
    "Written",
    "converted",
    "gguf_files",
    "only_file",
    "read_gguf",
    "write_model",
]
