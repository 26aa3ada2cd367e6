"""Where a conversion goes, and whether it may."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import RedrafterError
from ..system.files import is_there, local_path, require_utf8
from ..system.real_directory import check_replaceable, real_directory
from ..system.workspace import clear_stale, telling
from ..text.places import DRAFTER_DIRECTORY
from .opening import REMEDY
from .options import MODES, Options

MODELS = Path("models")


@dataclass(frozen=True)
class Destination:
    """Where a conversion goes; no path is a link.

    Attributes:
        bundle: The bundle.
        place: The directory that is replaced: the bundle, or the drafter of an existing one.
    """

    bundle: Path
    place: Path

    @property
    def neighbour(self) -> Path:
        """The directory beside which work is done, on the disk of what is replaced."""
        inside = self.place.parent == self.bundle
        return self.bundle if inside and not self.bundle.is_mount() else self.place


def find_destination(options: Options) -> Destination:
    """Find where the bundle goes, and refuse before any work what could not be published.

    Raises:
        RedrafterError: Saying why it cannot be written there.
    """
    asked = output_path(options)
    require_utf8(asked)
    with telling(asked, REMEDY):
        bundle = _settled(asked)
        if options.hf_path is not None:
            check_replaceable(bundle)
        _check(options, bundle)
        if options.hf_path is not None:
            return Destination(bundle, bundle)
        place = _settled(bundle / DRAFTER_DIRECTORY)
        check_replaceable(place)
        if place.exists() and not options.overwrite:
            raise RedrafterError(
                f"'{bundle}' has a drafter already: pass --overwrite to replace it."
            )
        return Destination(bundle, place)


def output_path(options: Options) -> Path:
    """Where the bundle goes: as asked, or ``models/`` and the target's name."""
    if options.mlx_path is not None:
        return local_path(options.mlx_path).absolute()
    assert options.hf_path is not None
    named = options.gguf_file or options.hf_path
    path = local_path(named)
    if not is_there(path):
        path = local_path(named.partition("@")[0])  # what follows is a revision on the Hub
    path = Path(os.path.normpath(path.absolute()))  # "..", too, has a name
    name = path.stem if path.suffix == ".gguf" else path.name
    if options.quantize:
        bits = options.q_bits or MODES[options.q_mode][1][0]
        affine = options.quant_predicate or f"{bits}bit"
        name += f"-{affine}" if options.q_mode == "affine" else f"-{options.q_mode}"
    return (MODELS / name).absolute()


def _settled(directory: Path) -> Path:
    """The real directory, after what killed conversions left of it has been put right."""
    clear_stale(directory, REMEDY)  # also an earlier version's renamed link
    real = real_directory(directory, REMEDY)
    if real != directory:
        clear_stale(real, REMEDY)
    return real


def _check(options: Options, out: Path) -> None:
    if options.hf_path is None:
        if not (out / "config.json").is_file():
            raise RedrafterError(
                f"There is no bundle at '{out}' to put the drafter into: convert its target "
                "first, or pass --hf-path as well."
            )
        return
    if not out.exists():
        return
    # What --overwrite would not do either comes first, so that nobody is told to pass it.
    if not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file()):
        raise RedrafterError(
            f"'{out}' is not a model directory, so it is not overwritten: choose another "
            "--mlx-path."
        )
    source = local_path(options.hf_path)
    if source.exists() and source.resolve().is_relative_to(out.resolve()):
        raise RedrafterError(
            "The target cannot be overwritten by its own conversion: choose another --mlx-path."
        )
    if not options.overwrite:
        raise RedrafterError(
            f"'{out}' exists already: pass --overwrite to replace it, or another --mlx-path."
        )
