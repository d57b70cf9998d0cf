"""Sweep files: which keys of a recipe are tried with which values; an unknown, unused or mistyped key is an error.

A file is one sweep, or several under `sweeps:`, each of which takes over what the file says above them. Everything that
a point would be refused for is found here, before anything is trained.
"""

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..errors import TrituneError, shown
from .reader import changed, load_recipe, parse, typed
from .recipe import Recipe

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = (None, "median")
OBJECTIVES = ("last", "best")
SWEEP_FILE = "sweep.yaml"

_LARGEST_GRID = 10_000
_HINT = "see the keys on the sweep page"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them.

    Attributes:
        low, high: whole numbers give whole numbers.
        step: between neighbours; None for everything in between, which a grid cannot try.
        log: whether equal factors, rather than equal differences, are equally likely.
    """

    low: float | int
    high: float | int
    step: float | int | None = None
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def values(self) -> list[float | int]:
        """Every value, with a step.

        >>> Range(0.1, 0.4, 0.1).values()
        [0.1, 0.2, 0.3, 0.4]
        """
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        values = [self.low + index * self.step for index in range(count)]
        return values if self.is_whole else [float(f"{value:.12g}") for value in values]


Options = Range | tuple[Any, ...]


@dataclass(frozen=True)
class Sweep:
    """One sweep: points of a space of recipe keys, each trained once per seed.

    Attributes:
        name: of the sweep within its file; folders and rows of the table carry it.
        recipe: that every point starts from: a shipped name, or a path.
        set: keys that differ from the recipe at every point.
        space: key to the values that are tried: a list, or a `Range`.
        seeds: every point is trained once with each.
        sampler: `grid` (every combination), `random`, or `tpe` (where earlier points were good).
        sampler_seed: of the last two.
        trials: how many points those two try.
        objective: which student counts, the `last` or the `best` one.
        pruner: null, or `median`: a point is given up when its best dev score so far is below the median of what
            earlier points had at the same step.
        pruner_startup_trials: points that are finished before any is given up.
        pruner_warmup_steps: steps of a point before it may be given up.
        keep_students: whether the students stay on disk; without it only their metrics and histories do.
    """

    name: str = "sweep"
    recipe: str = "ternarybert"
    set: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Options] = field(default_factory=dict)
    seeds: tuple[int, ...] = (42,)
    sampler: str = "grid"
    sampler_seed: int = 0
    trials: int | None = None
    objective: str = "last"
    pruner: str | None = None
    pruner_startup_trials: int = 5
    pruner_warmup_steps: int = 0
    keep_students: bool = False

    def __post_init__(self):
        for key, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("objective", OBJECTIVES)):
            if getattr(self, key) not in allowed:
                raise TrituneError(
                    f"{key} must be one of {', '.join(map(str, allowed))}; got {shown(getattr(self, key))}"
                )
        if not re.fullmatch(r"\w[\w.-]{0,60}", self.name):
            raise TrituneError(f"name must be of letters, digits, dots and hyphens; got {shown(self.name)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise TrituneError(f"seeds must be a list of different numbers; got {shown(list(self.seeds))}")
        if not self.space:
            raise TrituneError("space is missing: say which keys are tried with which values")
        if clash := sorted(self.set.keys() & self.space.keys()):
            raise TrituneError(f"{clash[0]} is swept and set; take it out of one of the two")
        if self.sampler == "grid":
            self._check_grid()
        elif self.trials is None or self.trials < 1:
            raise TrituneError(f"trials must say how many points {self.sampler} tries")

    @cached_property
    def base(self) -> Recipe:
        """The recipe that every point starts from."""
        return load_recipe(self.recipe)

    def _check_grid(self) -> None:
        for key, options in self.space.items():
            if isinstance(options, Range) and options.step is None:
                raise TrituneError(f"space: {key}: a grid needs a step, or a list of values")
        if self.grid_size() > _LARGEST_GRID:
            raise TrituneError(f"space: a grid of more than {_LARGEST_GRID} points; take sampler random or tpe")

    def grid_size(self) -> int:
        """How many points the grid has."""
        sizes = (len(options.values() if isinstance(options, Range) else options) for options in self.space.values())
        return math.prod(sizes)

    def count(self) -> int:
        """How many points are tried."""
        return self.grid_size() if self.sampler == "grid" else self.trials

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination, the last key running fastest."""
        lists = (options.values() if isinstance(options, Range) else options for options in self.space.values())
        return (dict(zip(self.space, values, strict=True)) for values in itertools.product(*lists))

    def point(self, values: Mapping[str, Any], seed: int) -> Recipe:
        """The recipe of one run.

        Args:
            values: one for every key of the space.
            seed: one of `seeds`.

        Raises:
            TrituneError: the values do not go together, or one of them would change nothing.
        """
        return changed(self.base, {**self.set, **values, "seed": seed}, label(values))

    def corners(self) -> Iterator[dict[str, Any]]:
        """Points that stand for all: the whole grid, or every option of every key beside the others' first ones."""
        if self.sampler == "grid":
            yield from self.grid()
            return
        ends = {
            key: (options.low, options.high) if isinstance(options, Range) else options
            for key, options in self.space.items()
        }
        first = {key: values[0] for key, values in ends.items()}
        for key, values in ends.items():
            yield from ({**first, key: value} for value in values)


def label(values: Mapping[str, Any]) -> str:
    """A point as text: `key=value, …`."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def shipped_spaces() -> list[str]:
    """The names of the sweep files that ship."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def load_sweeps(
    name: str | Path, overrides: Mapping[str, Any] | None = None, trials: int | None = None
) -> tuple[str, list[Sweep]]:
    """The sweeps of a shipped file by name, or of one's own by its path.

    Args:
        name: a name of `shipped_spaces`, or a path.
        overrides: recipe keys set at every point, beside those of the file's `set`.
        trials: takes the place of the file's `trials`.

    Returns:
        The name of the file's sweeps together, and the sweeps.

    Raises:
        TrituneError: a key or value that is unknown, mistyped or out of range, or a point whose recipe would be
            refused; the message names file, sweep and key.
    """
    where, folder, text = _source(str(name))
    values = parse(text, where)
    values.pop("description", None)
    parts = values.pop("sweeps", None)
    title = values.get("name", Path(str(name)).stem)
    if parts is None:
        parts = {title: {}}
    if not (isinstance(parts, dict) and parts and all(isinstance(part, dict) for part in parts.values())):
        raise TrituneError(f"{where}: sweeps must be a list of `name:` with keys under each")
    if trials is not None:
        values["trials"] = trials
    sweeps = []
    for part, own in parts.items():
        fixed = {**_mapping(values, "set", where), **_mapping(own, "set", where), **(overrides or {})}
        merged = {**values, **own, "name": str(part), "set": fixed}
        sweeps.append(_sweep(merged, folder, f"{where}, {part}" if len(parts) > 1 else where))
    if not (isinstance(title, str) and re.fullmatch(r"\w[\w.-]{0,60}", title)):
        raise TrituneError(f"{where}: name must be of letters, digits, dots and hyphens; got {shown(title)}")
    return title, sweeps


def sweeps_to_yaml(title: str, sweeps: list[Sweep]) -> str:
    """The sweeps as YAML that `load_sweeps` reads back to equal ones."""
    parts = {}
    for sweep in sweeps:
        values = {**asdict(sweep), "seeds": list(sweep.seeds), "set": dict(sweep.set)}
        values["space"] = {key: _plain(options) for key, options in sweep.space.items()}
        parts[sweep.name] = {key: values[key] for key in values if key not in {"name", *_unused(sweep)}}
    return yaml.safe_dump({"name": title, "sweeps": parts}, sort_keys=False, allow_unicode=True)


def _plain(options: Options) -> Any:
    if isinstance(options, Range):
        return {key: value for key, value in asdict(options).items() if value is not None and value is not False}
    return list(options)


def _folder():
    return resources.files(__package__) / "spaces"


def _source(name: str) -> tuple[str, Path, str]:
    """What messages call the file, the folder that recipes are looked for in, and its text."""
    shipped = _folder() / f"{name}.yaml"
    if name in shipped_spaces():
        return f"space {name}", Path(), shipped.read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = ", ".join(shipped_spaces())
        raise TrituneError(f"there is no space {shown(name)}: shipped are {known}; or give the path of a .yaml file")
    try:
        return f"space {name}", path.parent, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrituneError(
            f"space {name}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})"
        ) from None


def _sweep(values: dict[str, Any], folder: Path, where: str) -> Sweep:
    spaces = _mapping(values, "space", where)
    rest = {key: value for key, value in values.items() if key not in ("set", "space")}
    given = typed(rest, Sweep, where, _HINT)
    beside = folder / str(given.get("recipe", ""))
    if os.path.isfile(beside):  # found from anywhere
        given["recipe"] = str(beside)
    space = {key: _options(key, options, where) for key, options in spaces.items()}
    fixed = {key: _value(key, value, f"{where}: set") for key, value in values["set"].items()}
    for key in ("seed", "name", "description"):
        if key in space or key in values["set"]:
            raise TrituneError(f"{where}: {key} cannot be {'swept' if key in space else 'set'} (seeds has the seeds)")
    try:
        sweep = Sweep(**given, set=fixed, space=space)
    except TrituneError as error:
        raise TrituneError(f"{where}: {error}") from None
    for key, reason in _unused(sweep).items():
        if given.get(key) is not None:
            raise TrituneError(f"{where}: {key} would change nothing: {reason}")
    try:
        for seed in sweep.seeds:
            for point in sweep.corners():
                sweep.point(point, seed)
    except TrituneError as error:
        raise TrituneError(f"{where}: {error}") from None
    return sweep


def _unused(sweep: Sweep) -> dict[str, str]:
    """Keys that change nothing, with the reason."""
    unused = {}
    if sweep.sampler == "grid":
        unused |= {"trials": "a grid tries all its points", "sampler_seed": "a grid draws nothing"}
    if sweep.pruner is None:
        unused |= dict.fromkeys(("pruner_startup_trials", "pruner_warmup_steps"), "there is no pruner")
    return unused


def _mapping(values: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = values.get(key) or {}
    if not (isinstance(found, dict) and all(isinstance(name, str) for name in found)):
        raise TrituneError(f"{where}: {key} must be a list of `key: value` lines")
    return found


def _value(key: str, value: Any, where: str) -> Any:
    """A value of a recipe's key in the type that the recipe declares, as YAML and JSON hold it."""
    (found,) = typed({key: value}, Recipe, where).values()
    return list(found) if isinstance(found, tuple) else found


def _options(key: str, options: Any, where: str) -> Options:
    """The values of one key of a space."""
    where, within = f"{where}: space: {key}", f"{where}: space"
    if isinstance(options, dict):
        _value(key, options.get("low"), within)
        return _range(options, where)
    if not isinstance(options, list) or not options:
        raise TrituneError(f"{where} must be a list of values, or low, high and step; got {shown(options)}")
    options = [_value(key, value, within) for value in options]
    if any(value in options[:index] for index, value in enumerate(options)):
        raise TrituneError(f"{where} has a value twice: {shown(options)}")
    return tuple(options)


def _range(options: dict[str, Any], where: str) -> Range:
    given = typed(options, Range, where, f"a range has {', '.join(item.name for item in fields(Range))}")
    if missing := [key for key in ("low", "high") if key not in given]:
        raise TrituneError(f"{where}: {missing[0]} is missing")
    # `typed` makes floats of what may be either; whole numbers are asked for by writing them.
    given |= {key: value for key, value in options.items() if type(value) is int}
    found = Range(**given)
    if not found.low < found.high:
        raise TrituneError(f"{where}: low must be below high")
    if found.step is not None and (found.step <= 0 or found.log):
        raise TrituneError(f"{where}: step must be positive, and excludes log")
    if found.log and found.low <= 0:
        raise TrituneError(f"{where}: low must be positive with log")
    if found.step is not None and (found.high - found.low) / found.step > _LARGEST_GRID:
        raise TrituneError(f"{where}: more than {_LARGEST_GRID} values")
    if not found.is_whole:
        found = replace(found, low=float(found.low), high=float(found.high), step=found.step and float(found.step))
    return found
