"""Finding the files of a checkpoint: a directory, one file, or a repository on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..errors import RedrafterError
from ..text.loading import read_json

SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
WEIGHT_SUFFIXES = (SAFETENSORS, *TORCH_SUFFIXES)
# Left beside the weights by trainers; none of them holds parameters.
TRAINER_FILES = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state)")
SMALL_FILES = [
    "*.json",
    "*.py",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.jsonl",
    "*.jinja",
    "README.md",
]


@dataclass(frozen=True)
class Checkpoint:
    """The files of one saved model.

    Attributes:
        name: Hub repository, or the directory's or file's own name without its path.
        directory: Where config.json and the tokenizer lie.
        files: Weight files, either all safetensors or all PyTorch pickles.
        lone_file: Whether the user named a single weight file.
    """

    name: str
    directory: Path
    files: tuple[Path, ...]
    lone_file: bool = False

    @property
    def is_torch(self) -> bool:
        """Whether the weights must be read by PyTorch."""
        return self.files[0].suffix != SAFETENSORS


def find_checkpoint(location: str, what: str, revision: str | None = None) -> Checkpoint:
    """Find the weights that ``location`` names.

    Args:
        location: A directory, one weight file, or a Hub repository ("owner/name").
        what: "The target" or "The drafter", for messages.
        revision: Branch, tag or commit on the Hub.

    Raises:
        RedrafterError: If there is no such place, no weights in it, or a shard is missing.
    """
    path = Path(location).expanduser()
    if path.is_file():
        if path.suffix not in WEIGHT_SUFFIXES:
            raise RedrafterError(
                f"'{path}' is not a weight file: expected one of {', '.join(WEIGHT_SUFFIXES)}."
            )
        return Checkpoint(path.name, path.parent, (path,), lone_file=True)
    if path.is_dir():
        files = weight_files(path, what)
        if not files:
            raise RedrafterError(
                f"{what}'s directory '{path}' holds no weights: expected model.safetensors, "
                "pytorch_model.bin, .pt or .pth, single or sharded with an index."
            )
        return Checkpoint(path.resolve().name, path, files)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", location) or location.startswith("."):
        raise RedrafterError(
            f"{what} '{location}' does not exist: pass a directory, a weight file or a Hub "
            "repository (owner/name)."
        )
    directory = download(location, what, revision)
    return Checkpoint(location, directory, weight_files(directory, what))


def download(repo: str, what: str, revision: str | None) -> Path:
    """Fetch a repository's small files and its weights, safetensors where it has them."""
    small = [*SMALL_FILES, *(f"drafter/{p}" for p in (*SMALL_FILES, "*" + SAFETENSORS))]
    try:
        for patterns in (["*" + SAFETENSORS], ["*" + suffix for suffix in TORCH_SUFFIXES]):
            found = Path(
                snapshot_download(repo, revision=revision, allow_patterns=small + patterns)
            )
            if weight_files(found, what):
                return found
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise RedrafterError(
            f"{what} '{repo}' is neither a local path nor a repository that the Hub gave out "
            f"({reason}): check the name, the connection, or 'hf auth login' if it is gated."
        ) from None
    raise RedrafterError(f"The Hub repository '{repo}' holds no weights that can be read.")


def weight_files(directory: Path, what: str) -> tuple[Path, ...]:
    """Weight files of a directory, safetensors before PyTorch, () where there are none.

    Raises:
        RedrafterError: If an index names a file that is not there.
    """
    for suffixes in ((SAFETENSORS,), TORCH_SUFFIXES):
        indexed = _indexed_files(directory, suffixes, what)
        if indexed:
            return indexed
        loose = sorted(
            path
            for path in directory.iterdir()
            if path.is_file()
            and path.suffix in suffixes
            and not path.name.startswith(".")
            and not TRAINER_FILES.match(path.name)
        )
        if loose:
            return _one_kind(loose)
    return ()


def _indexed_files(directory: Path, suffixes: tuple[str, ...], what: str) -> tuple[Path, ...]:
    for index in sorted(directory.glob("*.index.json")):
        weight_map = read_json(index, "a shard index").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            continue
        names = sorted({str(name) for name in weight_map.values()})
        if Path(names[0]).suffix not in suffixes:
            continue
        missing = [name for name in names if not (directory / name).is_file()]
        if len(missing) == len(names) and suffixes[0] == SAFETENSORS:
            continue  # an index left behind by another format
        if missing:
            raise RedrafterError(
                f"{what}'s {index.name} names '{missing[0]}', which is not in '{directory}' "
                f"({len(missing)} of {len(names)} shards are missing): download it again."
            )
        return tuple(directory / name for name in names)
    return ()


def _one_kind(files: list[Path]) -> tuple[Path, ...]:
    """Of several saved forms of the same model, the one that save_pretrained would name first."""
    for pattern in (r"model\.safetensors", r"pytorch_model\.bin"):
        exact = [path for path in files if re.fullmatch(pattern, path.name)]
        if exact:
            return tuple(exact)
    sharded = [path for path in files if re.search(r"\d{5}-of-\d{5}", path.name)]
    return tuple(sharded or files)
