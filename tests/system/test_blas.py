from __future__ import annotations

import ast
import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import models
from mlx_redrafter.system import blas, machine
from mlx_redrafter.target.target import Target

LINUX = sys.platform.startswith("linux")
EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def openblas() -> str | None:
    """The name under which the system's OpenBLAS can be loaded, if it has one."""
    if not LINUX:
        return None
    for name in blas.OPENBLAS_NAMES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """On a Linux where mlx was not imported and every library exists: what gets loaded."""
    calls: list[tuple[str, int]] = []

    def record(name: str, mode: int = 0) -> None:
        calls.append((name, mode))

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", record)
    return calls


def test_openblas_is_loaded_for_all_later_libraries(opened: list[tuple[str, int]]) -> None:
    assert blas.preload_openblas() is True
    assert opened[-1] == ("libopenblas.so.0", ctypes.RTLD_GLOBAL)
    assert {name for name, _ in opened} == {"libopenblas.so.0"}


@pytest.mark.parametrize(("users", "read"), [(None, blas.SPIN_CYCLES_LOG2), ("12", "12")])
def test_threads_spin_for_a_short_while_unless_the_user_says_how_long(
    users: str | None, read: str, opened: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenBLAS reads the variable as it is loaded; no other program is to inherit it."""
    if users is None:
        monkeypatch.delenv(blas.SPIN_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(blas.SPIN_VARIABLE, users)
    seen: list[str | None] = []
    monkeypatch.setattr(
        ctypes, "CDLL", lambda *_a, **_k: seen.append(os.environ.get(blas.SPIN_VARIABLE))
    )
    assert blas.preload_openblas() is True
    assert set(seen) == {read}
    assert os.environ.get(blas.SPIN_VARIABLE) == users


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_nothing_happens_on_other_systems(
    platform: str, opened: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert blas.preload_openblas() is False
    assert opened == []


def test_nothing_happens_after_mlx(
    opened: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", sys)
    assert blas.preload_openblas() is False
    assert opened == []


def test_absent(opened: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(name: str, mode: int = 0) -> Any:
        tried.append(name)
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert blas.preload_openblas() is False
    assert tried == list(blas.OPENBLAS_NAMES)


def test_the_second_name_will_do(
    opened: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_first(name: str, mode: int = 0) -> None:
        if name == blas.OPENBLAS_NAMES[0]:
            raise OSError
        opened.append((name, mode))

    monkeypatch.setattr(ctypes, "CDLL", refuse_first)
    assert blas.preload_openblas() is True
    assert opened[-1] == (blas.OPENBLAS_NAMES[1], ctypes.RTLD_GLOBAL)


@pytest.mark.parametrize(
    ("cores", "users", "threads"),
    [
        (1, {}, "1"),
        (99, {}, None),
        (1, {"OPENBLAS_NUM_THREADS": "3"}, "3"),
        (1, {"OMP_NUM_THREADS": "3"}, None),
        (1, {"GOTO_NUM_THREADS": "3"}, None),
    ],
)
def test_a_container_s_share_of_the_cores_has_no_more_threads(
    cores: int,
    users: dict[str, str],
    threads: str | None,
    opened: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenBLAS counts all cores of the machine."""
    for name in blas.THREADS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    seen: list[str | None] = []
    monkeypatch.setattr(
        ctypes, "CDLL", lambda *_a, **_k: seen.append(os.environ.get("OPENBLAS_NUM_THREADS"))
    )
    monkeypatch.setattr(blas, "usable_cores", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(8))
    assert blas.preload_openblas() is True
    assert set(seen) == {threads}
    assert os.environ.get("OPENBLAS_NUM_THREADS") == users.get("OPENBLAS_NUM_THREADS")


AVX2 = frozenset({"sse2", "avx", "avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512cd", "avx512dq", "avx512bw", "avx512vl"}


@pytest.mark.parametrize(
    ("chosen", "flags", "better"),
    [
        ("Prescott", AVX512, "SkylakeX"),
        ("Prescott", AVX512 - {"avx512vl"}, "Haswell"),
        ("Nehalem", AVX2, "Haswell"),
        ("Prescott", frozenset({"sse2", "avx"}), None),
        ("Prescott", AVX2 - {"fma"}, None),
        ("Haswell", AVX512, None),
        ("Zen", AVX2, None),
        ("armv8", frozenset(), None),
        ("Name of years to come", AVX512, None),
        (None, AVX512, None),
    ],
)
def test_old_kernels_are_replaced_by_those_that_the_processor_can_run(
    chosen: str | None, flags: frozenset[str], better: str | None
) -> None:
    assert blas.better_kernels(chosen, flags) == better


class FakeLibrary:
    """An OpenBLAS that takes the processor for an old one, unless it is told otherwise."""

    def __init__(self, events: list[str], name: str | None, mode: int):
        self._events, self._handle = events, 7
        told = os.environ.get(blas.KERNELS_VARIABLE, "Prescott")
        if name is not None:
            events.append(f"{told}{' for all' if mode == ctypes.RTLD_GLOBAL else ''}")
        self.openblas_get_corename = lambda: told.encode()

    def dlclose(self, handle: ctypes.c_void_p) -> int:
        self._events.append(f"closed {handle.value}")
        return 0


@pytest.mark.parametrize(
    ("users", "flags", "events"),
    [
        (None, AVX512, ["Prescott", "closed 7", "SkylakeX for all"]),
        (None, frozenset({"sse2"}), ["Prescott", "Prescott for all"]),
        ("Nehalem", AVX512, ["Nehalem", "Nehalem for all"]),
        ("Zen", AVX512, ["Zen", "Zen for all"]),
    ],
)
def test_a_processor_taken_for_an_old_one_gets_its_kernels_at_once(
    users: str | None,
    flags: frozenset[str],
    events: list[str],
    opened: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the user says stands; no other program inherits what OpenBLAS is told."""
    if users is None:
        monkeypatch.delenv(blas.KERNELS_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(blas.KERNELS_VARIABLE, users)
    seen: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name, mode=0: FakeLibrary(seen, name, mode))
    monkeypatch.setattr(blas, "processor_flags", lambda: flags)
    assert blas.preload_openblas() is True
    assert seen == events
    assert os.environ.get(blas.KERNELS_VARIABLE) == users


KERNELS = """
import mlx_redrafter
from mlx_redrafter.system.blas import kernels
import mlx.core as mx
mx.eval(mx.ones((8, 64)) @ mx.ones((64, 8)))
print(kernels())
"""


@pytest.mark.skipif(openblas() is None, reason="needs a system OpenBLAS on Linux")
@pytest.mark.parametrize("users", [None, "Prescott"])
def test_openblas_uses_what_this_processor_can_do(users: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != blas.KERNELS_VARIABLE}
    environment |= {blas.KERNELS_VARIABLE: users} if users else {}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], env=environment, check=True, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    chosen = done.stdout.strip()
    if users is None:
        assert blas.better_kernels(chosen, machine.processor_flags()) is None
    elif "avx2" in machine.processor_flags():  # a build of several kernels takes the user's
        assert chosen in (users, blas.kernels())


MULTIPLY = """
import mlx.core as mx
mx.set_default_device(mx.cpu)
a = mx.ones((64, 64))
mx.eval(a @ a)
"""


def bindings(tmp_path: Path, program: str) -> set[str]:
    """The libraries that mlx's matrix products are bound to when a program runs."""
    environment = {
        **os.environ,
        "LD_DEBUG": "bindings",
        "LD_DEBUG_OUTPUT": str(tmp_path / "bindings"),
        "LD_BIND_NOW": "",
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
    bound = re.compile(r"binding file \S*libmlx\S* \[\d+\] to (\S+) \[\d+\]: .*`cblas_sgemm'")
    return {
        Path(match.group(1)).name
        for path in tmp_path.glob("bindings.*")
        for match in bound.finditer(path.read_text("utf-8", "replace"))
    }


@pytest.mark.skipif(openblas() is None, reason="needs a system OpenBLAS on Linux")
def test_mlx_multiplies_with_openblas(tmp_path: Path) -> None:
    """Asked of the dynamic linker: which library defines the product that mlx calls."""
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    without = bindings(tmp_path / "without", MULTIPLY)
    if not without:
        pytest.skip("this linker does not tell its bindings, or mlx calls no BLAS")
    assert not any("openblas" in name for name in without)
    program = f"import mlx_redrafter\nassert mlx_redrafter.blas_loaded\n{MULTIPLY}"
    loaded = bindings(tmp_path / "with", program)
    assert len(loaded) == 1
    assert "openblas" in loaded.pop()


@pytest.mark.skipif(openblas() is None, reason="needs a system OpenBLAS on Linux")
def test_importing_the_package_after_mlx_loads_nothing() -> None:
    program = "import mlx.core, mlx_redrafter\nassert mlx_redrafter.blas_loaded is False\n"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where OpenBLAS began with four threads: the numbers that it is told."""
    told: list[int] = []
    monkeypatch.setattr(blas, "_threads", lambda: (told.append, 4))
    return told


def test_a_core_is_left_to_the_host_where_it_works_at_the_same_time(threads: list[int]) -> None:
    blas.share_cores(leave_one=True)
    blas.share_cores(leave_one=False)
    assert threads == [3, 4]
    assert blas.busy_cores() == 4


def test_a_target_that_was_opened_has_all_cores(threads: list[int]) -> None:
    """Training begins from there, and takes no plain steps that would give it one back."""
    Target(models.shared("llama"))
    assert threads[-1] == 4


def test_one_core_is_always_used(threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_threads", lambda: (threads.append, 1))
    blas.share_cores(leave_one=True)
    assert threads == [1]


def test_steps_of_one_row_leave_a_core_in_small_models_only(threads: list[int]) -> None:
    target = models.shared("llama")
    small, large = Target(target), Target(target)
    large._is_small = False
    threads.clear()
    for rows in (1, 5):
        small.take_cores(rows)
        large.take_cores(rows)
    assert threads == [3, 4, 4, 4]


def test_without_openblas_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "is_loaded", lambda: False)
    assert blas._threads.__wrapped__() is None
    blas._threads.cache_clear()
    try:
        blas.share_cores(leave_one=True)
    finally:
        monkeypatch.undo()
        blas._threads.cache_clear()


SHARING = """
import ast
import ctypes
import mlx_redrafter
from mlx_redrafter.system import blas, machine
count = ctypes.CDLL({name!r}).openblas_get_num_threads
began = count()
told = []
for leave_one in (True, False):
    blas.share_cores(leave_one=leave_one)
    told.append(count())
assert told == [max(1, began - 1), began], (began, told)
print(began)
"""


@pytest.mark.skipif(openblas() is None, reason="needs a system OpenBLAS on Linux")
@pytest.mark.parametrize("asked", ["1", "2", None])
def test_openblas_keeps_to_the_threads_it_began_with(asked: str | None) -> None:
    """The user's number, or the cores that the process may use."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    if asked is not None:
        environment["OPENBLAS_NUM_THREADS"] = asked
    done = subprocess.run(
        [sys.executable, "-c", SHARING.format(name=openblas())],
        env=environment,
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    cores = len(os.sched_getaffinity(0))
    assert 1 <= int(done.stdout) <= min(int(asked or cores), cores)


@pytest.mark.parametrize("script", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_load_the_blas_before_mlx(script: Path) -> None:
    """Else they would measure the one in mlx's wheel without saying so."""
    names = [
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.parse(script.read_text("utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    roots = [(name or "").split(".")[0] for name in names]
    local = {path.stem for path in EXPERIMENTS.glob("*.py")}  # which are held to the same
    known = [root for root in roots if root in {"mlx", "mlx_lm", "mlx_redrafter"} | local]
    assert not known or known[0] not in {"mlx", "mlx_lm"}
