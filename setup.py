"""What pyproject.toml cannot say: the embedded models are installed inside the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
# Directories below models/ that are part of the repository and that chat.py and --model use.
EMBEDDED = ("pocket", "smollm2")


class BuildWithModels(build_py):
    """Copies models/ into the package; an editable installation finds them where they are."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        for name in EMBEDDED:
            source = HERE / "models" / name
            if source.is_dir():
                target = Path(self.build_lib) / "mlx_redrafter" / "models" / name
                shutil.copytree(source, target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithModels})
