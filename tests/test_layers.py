"""Who may import whom: each part of the package only those below it, and nothing in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "mlx_redrafter"

# From the bottom up; a part imports those of the lines above its own, and itself.
LAYERS = (
    ("choices", "errors", "tree", "_lazy"),
    ("ranges", "system"),
    ("cache", "gguf", "logits", "noise"),
    ("sampling", "target"),
    ("sampler", "drafting"),
    ("engine",),
    ("planning",),
    ("text",),
    ("conversion", "server", "training"),
    ("benchmark",),
    ("ui",),
    ("plan", "train", "__main__"),
)
MAX_PARTS, MAX_LAYERS = 25, 12


def test_parts_import_only_those_below() -> None:
    level = {part: height for height, parts in enumerate(LAYERS) for part in parts}
    wrong = []
    for importer, imported in sorted(imports()):
        above, below = part_of(importer), part_of(imported)
        # Entry points (`python -m ...`) reach up to the command lines.
        if importer.endswith("__main__") or above in ("", below) or below == "":
            continue
        if level[below] >= level[above]:
            wrong.append(f"{importer} imports {imported}")
    assert wrong == []


def test_no_module_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for importer, imported in imports():
        graph.setdefault(importer, set()).add(imported)
    left = {module: set(needs) for module, needs in graph.items() if module}
    while free := [module for module, needs in left.items() if not needs & left.keys() - {module}]:
        for module in free:
            del left[module]
    assert left == {}


def test_the_table_holds_every_part() -> None:
    found = {part_of(module) for module in modules()} - {""}
    assert found <= {part for parts in LAYERS for part in parts}
    assert len(found) <= MAX_PARTS
    assert len(LAYERS) <= MAX_LAYERS


def modules() -> dict[str, Path]:
    """Dotted names inside the package, "" for the package itself, and their files."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        names = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def part_of(module: str) -> str:
    return module.partition(".")[0]


def imports() -> set[tuple[str, str]]:
    """(importing module, imported module), wherever in its file the import stands."""
    known = modules()
    found = set()
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                names = package.split(".") if package else []
                base = ".".join(names[: len(names) - node.level + 1])
                base = ".".join(part for part in (base, node.module) if part)
                targets = {f"{base}.{name.name}".strip(".") for name in node.names}
                found |= {(module, one if one in known else base) for one in targets}
    return {(importer, imported) for importer, imported in found if importer != imported}
