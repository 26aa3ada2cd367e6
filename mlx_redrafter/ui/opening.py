"""Bringing a model here before it is loaded: conversions of GGUF files, under a bar."""

from __future__ import annotations

from ..system.files import is_file, local_path
from .output import complain

CONFIG_FILE = "config.json"


def prepare(model: str, revision: str | None = None) -> None:
    """Convert what a model's name stands for, where it is a GGUF file that was not yet.

    The bar goes to the error stream. Loading the same name afterwards finds the conversion. Of
    several processes each brings it to its own machine, and all fail where one does.

    Args:
        model: What ``--model`` was given.
        revision: What ``--revision`` was given.

    Raises:
        RedrafterError: If there is no such model, or it cannot be converted.
    """
    from ..system.rank_watch import current_ranks
    from ..text.sharding import fail_together

    ranks = current_ranks()
    with fail_together(ranks):
        _bring(model, revision, quiet=ranks is not None and not ranks.leads)


def _bring(model: str, revision: str | None, *, quiet: bool) -> None:
    if revision is not None and not quiet:
        from ..text.places import has_one_revision

        if has_one_revision(model):
            complain(f"{model} has no other revisions, so --revision is not used.")
    if is_file(local_path(model) / CONFIG_FILE):
        return  # most are, and nothing slow is imported for them
    from ..text.places import locate
    from .bars import StageBars
    from .output import make_console

    console = make_console(errors=True, quiet=quiet)
    with StageBars(console) as bars:
        locate(model, revision=revision, progress=bars.move)
