"""The house rules: imports only ever point down, nothing grows too long, and what is public says what it does."""

import ast
from pathlib import Path

import pytest

import tritune

ROOT = Path(tritune.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(ROOT.rglob("*.py"))}

FLOORS = [
    ("errors", "progress", "quant"),
    ("compute", "engine"),
    ("modeling",),
    ("checkpoints",),
    ("distil", "tasks"),
    ("recipes",),
    ("inference",),
    ("analysis", "deploy", "training"),
    ("report",),
    ("compression",),
    ("cli",),
    ("__main__", "tritune"),  # the package itself, which hands out names of every floor
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_of(path: str) -> str:
    """
    >>> module_of("__init__.py"), module_of("quant/__init__.py"), module_of("quant/ste.py")
    ('tritune', 'tritune.quant', 'tritune.quant.ste')
    """
    parts = path.removesuffix(".py").split("/")
    return ".".join(["tritune", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imported(node: ast.AST, package: list[str]) -> list[str]:
    """The dotted names that an import statement may mean, seen from a module of `package`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def arrows_of(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module to the modules of the package that it imports, anywhere in its code."""
    modules = {module_of(path) for path in sources}
    arrows = {}
    for path, source in sources.items():
        module = module_of(path)
        package = module.split(".") if path.endswith("__init__.py") else module.split(".")[:-1]
        targets = set()
        for name in (name for node in ast.walk(ast.parse(source)) for name in imported(node, package)):
            while name not in modules and "." in name:  # a function or class: what counts is the module around it
                name = name.rpartition(".")[0]
            targets |= {name} & modules
        arrows[module] = targets - {module}
    return arrows


def upward(arrows: dict[str, set[str]]) -> list[str]:
    found = [f"{module} has no floor" for module in arrows if room_of(module) not in FLOOR_OF]
    for module, targets in arrows.items():
        for target in sorted(targets):
            if FLOOR_OF.get(room_of(target), 99) > FLOOR_OF.get(room_of(module), -1):
                found.append(f"{module} imports {target} from above")
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a ring, or none."""
    rest = dict(arrows)
    while leaves := [module for module, targets in rest.items() if not targets & rest.keys()]:
        for module in leaves:
            del rest[module]
    return sorted(rest)


def test_imports_only_point_down():
    assert "tritune" in arrows_of(SOURCES)
    assert upward(arrows_of(SOURCES)) == []


def test_no_imports_in_circles():
    assert circle(arrows_of(SOURCES)) == []


def test_the_arrows_of_the_house_are_seen():
    arrows = arrows_of(SOURCES)
    modeling, checkpoints = "tritune.modeling", "tritune.checkpoints"
    assert {f"{modeling}.anatomy", f"{modeling}.attention", f"{modeling}.trace"} <= arrows[f"{modeling}.instrument"]
    assert "tritune.quant.ste" in arrows["tritune.quant.quantizer"]
    assert {f"{checkpoints}.prepare", f"{checkpoints}.plugin"} <= arrows["tritune"]


@pytest.mark.parametrize(
    "statement",
    [
        "from ..training.trainer import DistillationTrainer",
        "from ..training import trainer",
        "from .. import training",
        "import tritune.training.trainer",
        "from tritune.training import trainer as t",
        "from tritune import prepare",
        "def f():\n    if True:\n        from ..training import trainer",
        "from . import *\nfrom ..training import *",
    ],
)
def test_an_upward_import_is_caught(statement):
    house = {
        "__init__.py": "def prepare(): ...",
        "quant/__init__.py": "",
        "quant/ternary.py": statement,
        "training/__init__.py": "",
        "training/trainer.py": "from ..quant import ternary\nimport torch",
    }
    (line,) = upward(arrows_of(house))
    assert line.startswith("tritune.quant.ternary imports tritune")
    assert upward(arrows_of(house | {"quant/ternary.py": "import training\nfrom . import ste"})) == []


def test_a_circle_is_caught():
    house = {
        "__init__.py": "from .swap import a",
        "swap.py": "from . import prepare",
        "prepare.py": "def f():\n    from .convert import b",
        "convert.py": "import tritune.swap",
        "errors.py": "",
    }
    assert circle(arrows_of(house)) == ["tritune", "tritune.convert", "tritune.prepare", "tritune.swap"]
    assert circle(arrows_of(house | {"convert.py": "from . import errors"})) == []


def test_a_module_without_a_floor_is_caught():
    assert upward(arrows_of({"attic.py": ""})) == ["tritune.attic has no floor"]


def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (f"{path}:{node.lineno} {node.name}", node)
        for path, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_function_body_is_longer_than_60_lines():
    assert [name for name, node in functions() if node.end_lineno - node.body[0].lineno + 1 > 60] == []


def test_no_file_is_longer_than_450_lines():
    assert [path for path, source in SOURCES.items() if len(source.splitlines()) > 450] == []


def test_public_functions_say_what_they_do():
    public = [(name, node) for name, node in functions() if not node.name.startswith("_")]
    silent = [name for name, node in public if ast.get_docstring(node) is None]
    assert len(silent) <= 0.05 * len(public), silent


def test_every_file_says_what_it_is_for():
    assert [path for path, source in SOURCES.items() if ast.get_docstring(ast.parse(source)) is None] == []
