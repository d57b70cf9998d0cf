"""The house rule that no state outlives a call: eight threads get what one gets, see `test_threads.py`."""

import ast

import pytest

from test_floors import SOURCES

# What belongs to the whole process, or is remembered by it, and why that does no harm.
ALLOWED = {
    "modeling/forward_pass.py: _running is a ContextVar": "set for a model's call; every thread has its own",
    "compute/held.py: _room is a ContextVar": "set for a model's call; every thread has its own",
    "compute/held.py: _held_weights is a ContextVar": "set for a block; every thread has its own",
    "compute/kernels.py: _in_use is a ContextVar": "set for a block; every thread has its own",
    "progress.py: _listener is a ContextVar": "set for a block; every thread has its own",
    "progress.py: _is_within is a ContextVar": "set for a block; every thread has its own",
    "modeling/attention.py: _observer is a ContextVar": "set for a block; every thread has its own",
    "modeling/instrument.py: _ATTACHING is a Lock": "two threads that instrument one teacher do so once",
    "checkpoints/gpu_linear.py: _product_on remembers": "whether a library works on a device does not change",
    "checkpoints/load.py: _LOADING is a RLock": "two threads load one after the other; transformers needs that",
    "modeling/instrument.py: _with_trace remembers": "a class made of a class; made twice it would be the same",
    "compute/kernels.py: kernels_available remembers": "a warning that is given once",
    "compute/kernels.py: _team remembers": "which OpenMP torch has brought into the process does not change",
    "training/precision.py: _warn_of_bf16 remembers": "a warning that is given once",
    "quant/registry.py: QUANTIZERS is written to": "by register_quantizer alone, when a user's module is imported",
    "distil/schedule.py: SCHEDULES is written to": "by register_schedule alone, when a user's module is imported",
    "distil/choices.py: REGISTERED_LOSSES is written to": "by register_loss alone, when a user's module is imported",
    "engine/binding.py: _found remembers": "whether the process could load a library does not change",
}

_CONTAINERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
_MAKES_CONTAINER = {"list", "dict", "set", "defaultdict", "deque", "Counter", "OrderedDict", "bytearray"}
_MAKES_CONTAINER |= {"WeakKeyDictionary", "WeakValueDictionary", "WeakSet", "count", "iter", "cycle"}
_STATEFUL = {"ContextVar", "Lock", "RLock", "local", "Condition", "Event", "Semaphore"}
_CHANGES = {"append", "add", "update", "setdefault", "pop", "popitem", "clear", "extend", "insert", "remove"}
_CHANGES |= {"discard", "appendleft", "sort", "reverse", "__setitem__", "subtract"}
_CACHES = {"cache", "lru_cache"}


def called(node: ast.AST) -> str:
    """The last name of what a call calls, or of the name itself; empty for anything else."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def assignments(body: list[ast.stmt]) -> list[tuple[str, ast.expr]]:
    """Names that a module or class body gives a value to."""
    found = []
    for node in body:
        if isinstance(node, ast.Assign):
            found += [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            found.append((node.target.id, node.value))
    return found


def written(tree: ast.Module, names: set[str]) -> set[str]:
    """Those of `names` whose content some function changes: an item set or deleted, a method that changes it called."""
    found = set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)):
        for node in ast.walk(function):
            changes = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)
            changes |= isinstance(node, ast.Attribute) and (isinstance(node.ctx, ast.Store) or node.attr in _CHANGES)
            if changes or isinstance(node, ast.AugAssign):
                owner = node.value if changes else node.target
                found.add(owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", ""))
    return found & names


def states(path: str, source: str) -> list[str]:
    """Everything in a file that could outlive a call."""
    tree = ast.parse(source)
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    found = [f"{path}: global {', '.join(n.names)}" for n in ast.walk(tree) if isinstance(n, ast.Global)]
    containers = set()
    for name, value in (pair for body in bodies for pair in assignments(body)):
        if isinstance(value, _CONTAINERS) or called(value) in _MAKES_CONTAINER:
            containers.add(name)
        elif isinstance(value, ast.Call) and called(value) in _STATEFUL:
            found.append(f"{path}: {name} is a {called(value)}")
    found += [f"{path}: {name} is written to" for name in sorted(written(tree, containers))]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(called(one) in _CACHES for one in node.decorator_list):
            found.append(f"{path}: {node.name} remembers")
    return found


def test_no_state_outlives_a_call():
    found = [state for path, source in SOURCES.items() for state in states(path, source)]
    assert set(found) - ALLOWED.keys() == set()
    assert ALLOWED.keys() - set(found) == set(), "allowed, and no longer there"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("_newest = None\ndef f(x):\n    global _newest\n    _newest = x", "global _newest"),
        ("_held = {}\ndef f(x):\n    _held[x] = 1", "_held is written to"),
        ("_held: dict = dict()\ndef f(x):\n    _held.setdefault(x, 1)", "_held is written to"),
        ("_rows = []\nclass A:\n    def f(self, x):\n        _rows.append(x)", "_rows is written to"),
        ("_rows = [1]\ndef f():\n    del _rows[0]", "_rows is written to"),
        ("class A:\n    rows = set()\n    def f(self, x):\n        self.rows.add(x)", "rows is written to"),
        ("from collections import Counter\ncalls = Counter()\ndef f(x):\n    calls[x] += 1", "calls is written to"),
        ("import threading\n_own = threading.local()", "_own is a local"),
        ("from contextvars import ContextVar\n_now: ContextVar[int] = ContextVar('now')", "_now is a ContextVar"),
        ("import functools\n@functools.lru_cache(maxsize=None)\ndef f(x):\n    return [x]", "f remembers"),
    ],
)
def test_a_state_is_caught(source, what):
    assert f"a.py: {what}" in states("a.py", source)


def test_tables_and_locals_are_no_state():
    source = "TABLE = {'a': 1}\nNAMES = [*TABLE]\ndef f(x):\n    rows = []\n    rows.append(TABLE[x])\n    return rows"
    assert states("a.py", source) == []
