"""The floors of the house: each package imports only those below it, and no two modules import each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("vision", "mmlm", "eval", "finetune")  # bottom to top
SHADOWS = {"datasets", "evaluate"}  # well-known libraries, which a module of that name would hide from its neighbours


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))}


def imported_names(module: str) -> set[str]:
    """Dotted names of all that the module imports, at its top or later; `from a.b import c` counts as a.b.c."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def imported_modules(module: str) -> set[str]:
    """Our modules among them: a.b.c is the module a.b.c or, if there is none, what the module a.b calls c."""
    return {name if name in MODULES else name.rpartition(".")[0] for name in imported_names(module)} & MODULES.keys()


def test_the_four_floors_are_there():
    assert {name.partition(".")[0] for name in MODULES} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    floor = FLOORS.index(module.partition(".")[0])
    above = set(FLOORS[floor + 1 :])
    upward = {name for name in imported_names(module) if name.partition(".")[0] in above}
    assert not upward, f"{module} imports upward: {sorted(upward)}"


def test_no_modules_import_each_other():
    """Not even inside functions: what needs that is one module, or three."""
    order = TopologicalSorter({module: imported_modules(module) - {module} for module in MODULES})
    order.prepare()  # raises CycleError, which names the cycle


def test_no_module_shadows_a_library():
    assert not {name for name in MODULES if name.rpartition(".")[2] in SHADOWS}


def test_only_its_own_module_needs_lmms_eval():
    """Which is no dependency."""
    assert [name for name in MODULES if any(its.startswith("lmms_eval") for its in imported_names(name))] == [
        "eval.lmms"
    ]
    assert not [name for name in MODULES if "eval.lmms" in imported_modules(name)]
