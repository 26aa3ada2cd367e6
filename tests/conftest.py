"""Runs before any test module: OpenBLAS has to be loaded before mlx is."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_redrafter  # noqa: F401
from mlx_redrafter.planning import cost_store as stored_costs


@pytest.fixture(scope="session", autouse=True)
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is measured of tiny models stays out of the user's cache directory."""
    directory = tmp_path_factory.mktemp("costs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_costs, "cache_directory", lambda: directory)
        yield directory


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--write-pages`` writes the pages of docs/ that are made from code, instead of comparing."""
    parser.addoption("--write-pages", action="store_true", help="write the pages made from code")


def pytest_configure() -> None:
    """A shell's background job ignores interrupts, and would hand that on to what tests run."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one name would be run once where several processes share them."""
    names = Counter(item.nodeid for item in items)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise pytest.UsageError(f"tests that share a name: {', '.join(twice)}")
