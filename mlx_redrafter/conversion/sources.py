"""Finding the files of a checkpoint: a directory, one file, or a repository on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import RedrafterError
from ..gguf import gguf_files, only_file
from ..gguf.file import require_regular
from ..system.files import is_there, local_path
from ..system.visible import whole_characters
from ..text.places import (
    GGUF,
    HUB_ERRORS,
    KNOWN,
    fetch_file,
    known_file,
    may_be_repo,
    repo_gguf_files,
    snapshot,
)
from .configs import read_config

SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
TORCH_PATTERNS = ["*" + suffix for suffix in TORCH_SUFFIXES]
WEIGHT_SUFFIXES = (SAFETENSORS, *TORCH_SUFFIXES, GGUF)
# Left beside the weights by trainers; none of them holds parameters.
TRAINER_FILES = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state)")
# What transformers and mlx-lm read. Beside it may lie the maker's own form of the same weights,
# with other names of tensors ("consolidated" of Mistral's).
ORDINARY = ("model", "pytorch_model")
AGAIN = "download it again, or remove it where the weights are a single file"
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
        files: Weight files, either all safetensors, all PyTorch pickles, or one GGUF file.
        lone_file: Whether the user named a single weight file.
        root: The directory that its files may not lead out of.
    """

    name: str
    directory: Path
    files: tuple[Path, ...]
    lone_file: bool = False
    root: Path = Path()

    @property
    def is_torch(self) -> bool:
        """Whether the weights must be read by PyTorch."""
        return self.files[0].suffix in TORCH_SUFFIXES

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.files[0].suffix == GGUF


def find_checkpoint(
    location: str, what: str, revision: str | None = None, gguf_file: str | None = None
) -> Checkpoint:
    """Find the weights that ``location`` names.

    Args:
        location: A directory, one weight file, or a Hub repository ("owner/name"), which may end
            in "@" and a revision.
        what: "The target" or "The drafter", for messages.
        revision: Branch, tag or commit on the Hub.
        gguf_file: Which GGUF file of the directory or repository is meant.

    Raises:
        RedrafterError: If there is no such place, no weights in it, or a shard is missing.
    """
    path = local_path(location)
    if path.is_dir():
        return _in_directory(path, what, gguf_file)
    if is_there(path):
        if path.suffix not in WEIGHT_SUFFIXES:
            raise RedrafterError(
                f"'{path}' is not a weight file: expected one of {', '.join(WEIGHT_SUFFIXES)}."
            )
        require_regular(path)
        _require_named(path, location, gguf_file)
        return _lone_file(path)
    if location in KNOWN:
        _require_named(Path(KNOWN[location].file), location, gguf_file)
        return _lone_file(known_file(location))
    repo, _, after = location.partition("@")
    if "/" not in repo or not may_be_repo(repo):
        raise RedrafterError(
            f"{what} '{location}' does not exist: pass a directory, a weight file or a Hub "
            "repository (owner/name)."
        )
    return _on_hub(repo, what, after or revision, gguf_file)


def _require_named(file: Path, location: str, gguf_file: str | None) -> None:
    """Refuse another file's name beside a location that stands for one file."""
    if gguf_file is not None and gguf_file not in (file.name, file.stem, str(file)):
        raise RedrafterError(
            f"'{location}' is the file {file.name}, not {gguf_file}: leave --gguf-file out."
        )


def _in_directory(path: Path, what: str, gguf_file: str | None) -> Checkpoint:
    files = () if gguf_file is not None else weight_files(path, what, path)
    if not files and (found := gguf_files(path)):
        return _lone_file(only_file(found, str(path), gguf_file))
    if not files and gguf_file is not None:
        raise RedrafterError(
            f"{what}'s directory '{path}' holds no GGUF file: leave --gguf-file out."
        )
    if not files:
        raise RedrafterError(
            f"{what}'s directory '{path}' holds no weights: expected model.safetensors, "
            "pytorch_model.bin, .pt, .pth or .gguf, single or sharded with an index."
        )
    return Checkpoint(whole_characters(path.resolve().name), path, files, root=path)


def _on_hub(repo: str, what: str, revision: str | None, gguf_file: str | None) -> Checkpoint:
    if gguf_file is None:
        directory = download(repo, what, revision)
        files = weight_files(directory, what, directory)
        if files:
            return Checkpoint(repo, directory, files, root=directory)
    candidates = [Path(name) for name in repo_gguf_files(repo, revision)]
    if not candidates:
        raise RedrafterError(f"The Hub repository '{repo}' holds no weights that can be read.")
    chosen = only_file(candidates, repo, gguf_file)
    return _lone_file(fetch_file(repo, chosen.as_posix(), revision))


def _lone_file(file: Path) -> Checkpoint:
    name = whole_characters(file.stem if file.suffix == GGUF else file.name)
    return Checkpoint(name, file.parent, (file,), lone_file=True, root=file.parent)


def inside(path: Path, root: Path) -> None:
    """Refuse a file that lies, or leads by a link, outside a checkpoint.

    The files of a Hub snapshot are links to the cache's own store, which belongs to it.

    Raises:
        RedrafterError: Naming the file.
    """
    home = root.resolve()
    allowed = [home]
    for folder in (root.absolute(), home):
        for parent in (folder, *folder.parents):
            if parent.parent.name == "snapshots":
                allowed.append(parent.parent.parent / "blobs")
    real = path.resolve()
    if not any(real.is_relative_to(place.resolve()) for place in allowed):
        raise RedrafterError(
            f"'{path}' leads out of the checkpoint, to '{real}', so it was not read: put the file "
            "itself there."
        )


def download(repo: str, what: str, revision: str | None) -> Path:
    """Fetch a repository's small files and its weights, safetensors where it has them."""
    small = [*SMALL_FILES, *(f"drafter/{p}" for p in (*SMALL_FILES, "*" + SAFETENSORS))]
    found = Path()
    try:
        for weights in (["model*" + SAFETENSORS], ["*" + SAFETENSORS], TORCH_PATTERNS):
            found = snapshot(repo, revision, [*small, *weights])
            if weight_files(found, what, found):
                return found
    except HUB_ERRORS as error:
        reason = str(error).strip().split("\n")[0]
        raise RedrafterError(
            f"{what} '{repo}' is neither a local path nor a repository that the Hub gave out "
            f"({reason}): check the name, the connection, or 'hf auth login' if it is gated."
        ) from None
    return found


def weight_files(directory: Path, what: str, root: Path) -> tuple[Path, ...]:
    """Weight files of a directory, safetensors before PyTorch, () where there are none.

    Args:
        directory: Where they lie.
        what: "The target" or "The drafter", for messages.
        root: The checkpoint's directory, which no file may lead out of.

    Raises:
        RedrafterError: If an index names a file that is not there or outside, or a file is none.
    """
    files = _weight_files(directory, what)
    for path in files:
        inside(path, root)
        require_regular(path)
    return files


def _weight_files(directory: Path, what: str) -> tuple[Path, ...]:
    for suffixes in ((SAFETENSORS,), TORCH_SUFFIXES):
        indexed = _indexed_files(directory, suffixes, what)
        if indexed:
            return indexed
        loose = sorted(
            path
            for path in directory.iterdir()
            if not path.is_dir()
            and path.suffix in suffixes
            and not path.name.startswith(".")
            and not TRAINER_FILES.match(path.name)
        )
        if loose:
            return _one_kind(loose)
    return ()


def _indexed_files(directory: Path, suffixes: tuple[str, ...], what: str) -> tuple[Path, ...]:
    for index in sorted(directory.glob("*.index.json"), key=_ordinary_first):
        weight_map = read_config(index, "a sharded checkpoint", AGAIN).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            continue
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            _require_name(name, index)
            inside(directory / name, directory)
        if Path(names[0]).suffix not in suffixes:
            continue
        missing = [name for name in names if not is_there(directory / name)]
        if len(missing) == len(names) and suffixes[0] == SAFETENSORS:
            continue  # an index left behind by another format
        if missing:
            raise RedrafterError(
                f"{what}'s {index.name} names '{missing[0]}', which is not in '{directory}' "
                f"({len(missing)} of {len(names)} shards are missing): download it again."
            )
        return tuple(directory / name for name in names)
    return ()


def _require_name(name: str, index: Path) -> None:
    """Refuse what no file could be called: half a character, or a zero byte."""
    if "\0" in name or whole_characters(name) != name:
        raise RedrafterError(
            f"{index} names a file {name[:40]!r}, which no file can be called: {AGAIN}."
        )


def _ordinary_first(path: Path) -> tuple[bool, str]:
    """Sorts by name, but what transformers and mlx-lm read before any other form."""
    return not path.name.startswith(ORDINARY), path.name


def _one_kind(files: list[Path]) -> tuple[Path, ...]:
    """Of several saved forms of the same model, the one that save_pretrained would name first."""
    for pattern in (r"model\.safetensors", r"pytorch_model\.bin"):
        exact = [path for path in files if re.fullmatch(pattern, path.name)]
        if exact:
            return tuple(exact)
    sharded = [path for path in files if re.search(r"\d{5}-of-\d{5}", path.name)]
    found = sharded or files
    ordinary = [path for path in found if path.name.startswith(ORDINARY)]
    return tuple(ordinary or found)
