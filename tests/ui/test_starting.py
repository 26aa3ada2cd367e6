"""Ctrl-C while a program still imports what it is made of: code 130, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "chat": ["-m", "mlx_redrafter", "chat"],
    "server": ["-m", "mlx_redrafter.server"],
    "train": ["-m", "mlx_redrafter.train"],
    "plan": ["-m", "mlx_redrafter.plan"],
    "benchmark": ["-m", "mlx_redrafter.benchmark"],
    "convert": ["-m", "mlx_redrafter", "convert"],
    "chat.py": [str(ROOT / "chat.py")],
    "convert.py": [str(ROOT / "convert.py")],
}
# While the command line is imported, and what it needs.
PLACES = ["mlx_redrafter.ui.entry", "argparse"]
PRESSED = """
import sys

class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == {place!r}:
            exec("raise KeyboardInterrupt")  # as where a dataclass is being made

sys.meta_path.insert(0, Pressed())
"""


def start(tmp_path: Path, place: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which Ctrl-C is pressed at the import of ``place``."""
    (tmp_path / "sitecustomize.py").write_text(PRESSED.format(place=place), "utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", MODULES)
def test_ctrl_c_while_a_program_starts(name: str, place: str, tmp_path: Path) -> None:
    done = start(tmp_path, place, *MODULES[name])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_while_a_console_script_starts(place: str, tmp_path: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    for name, entry in scripts.items():
        module, function = entry.split(":")
        script = tmp_path / name
        # As pip writes it.
        script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        done = start(tmp_path, place, str(script))
        assert (done.returncode, done.stdout, done.stderr) == (130, "", ""), name
