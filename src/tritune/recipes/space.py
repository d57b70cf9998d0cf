"""Sweep files: which recipe keys are tried with which values; an unknown, unused or mistyped key is an error.

A file is one sweep, or several under `sweeps:`, each of which inherits the other keys of the file. Whatever would make
a point fail its checks is found here, before anything is trained.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..errors import TrituneError, check_among, shown
from .reader import FOLDER, changed, load_recipe, names_in, parse, text_of, typed
from .recipe import Recipe

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = (None, "median")
OBJECTIVES = ("last", "best")
SWEEP_FILE = "sweep.yaml"

_FOLDER = FOLDER / "spaces"
_LARGEST_GRID = 10_000
_HINT = "see the keys on the sweep page"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low, high: bounds; whole numbers give whole numbers.
        step: distance of neighbours; None for a continuous range, which a grid cannot try.
        log: sample uniformly on a logarithmic scale.
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
        """Every value of a range with a step.

        >>> Range(0.1, 0.4, 0.1).values()
        [0.1, 0.2, 0.3, 0.4]

        Raises:
            ValueError: there is no step.
        """
        if self.step is None:
            raise ValueError("a range without a step is continuous")
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        values = [self.low + index * self.step for index in range(count)]
        return values if self.is_whole else [float(f"{value:.12g}") for value in values]


Options = Range | tuple[Any, ...]


def listed(options: Options) -> Sequence[Any]:
    """The values of one key of a grid, in order."""
    return options.values() if isinstance(options, Range) else options


@dataclass(frozen=True)
class Sweep:
    """Points of a space of recipe keys, each trained once per seed.

    Attributes:
        name: name of the sweep within its file, used for folders and rows of the table.
        recipe: the recipe that every point starts from: a shipped name, or a path.
        set: keys that differ from the recipe at every point.
        space: the values tried for each key: a list, or a `Range`.
        seeds: random seeds; every point is trained once with each.
        sampler: `grid` (every combination), `random`, or `tpe` (Tree-structured Parzen Estimator).
        sampler_seed: random seed of `random` and `tpe`.
        trials: number of points that `random` and `tpe` try.
        objective: the student that is scored, the `last` or the `best` one.
        pruner: null, or `median`: stop a point when its best dev score so far is below the median of earlier points at
            the same step.
        pruner_startup_trials: points that are finished before any is pruned.
        pruner_warmup_steps: steps of a point before it may be pruned.
        keep_students: keep the students on disk, not only their metrics and histories.
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
        check_among(self, "sampler", SAMPLERS)
        check_among(self, "pruner", PRUNERS)
        check_among(self, "objective", OBJECTIVES)
        _check_name(self.name)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise TrituneError(f"seeds must be a list of different numbers; got {shown(list(self.seeds))}")
        if not self.space:
            raise TrituneError("space is missing: list the keys to try, with their values")
        if clash := sorted(self.set.keys() & self.space.keys()):
            raise TrituneError(f"{clash[0]} is both swept and set; remove one of the two")
        if self.sampler == "grid":
            self._check_grid()
        elif self.trials is None or self.trials < 1:
            raise TrituneError(f"trials must be the number of points that {self.sampler} tries")

    @cached_property
    def base(self) -> Recipe:
        """The recipe that every point starts from."""
        return load_recipe(self.recipe)

    def _check_grid(self) -> None:
        for key, options in self.space.items():
            if isinstance(options, Range) and options.step is None:
                raise TrituneError(f"space: {key}: a grid needs a step, or a list of values")
        if self.count() > _LARGEST_GRID:
            raise TrituneError(f"space: a grid of more than {_LARGEST_GRID} points; use sampler random or tpe")

    def count(self) -> int:
        """Number of points that are tried."""
        if self.sampler != "grid" and self.trials is not None:
            return self.trials
        return math.prod(len(listed(options)) for options in self.space.values())

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination of values; the last key varies fastest."""
        combinations = itertools.product(*map(listed, self.space.values()))
        return (dict(zip(self.space, values, strict=True)) for values in combinations)

    def point(self, values: Mapping[str, Any], seed: int) -> Recipe:
        """The recipe of one run, from a value for every key of the space and one of the seeds.

        Raises:
            TrituneError: the values cannot be combined, or one of them has no effect.
        """
        return changed(self.base, {**self.set, **values, "seed": seed}, label(values))

    def corners(self) -> Iterator[dict[str, Any]]:
        """Points that represent all: the whole grid, or every option of a key with the first ones of the others."""
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
    """A point as text, `key=value, …`."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def shipped_spaces() -> list[str]:
    """The names of the shipped sweep files."""
    return names_in(_FOLDER)


def load_sweeps(
    name: str | Path, overrides: Mapping[str, Any] | None = None, trials: int | None = None
) -> tuple[str, list[Sweep]]:
    """Load a shipped sweep file by name, or one's own by its path.

    Args:
        name: a name of `shipped_spaces`, or a path.
        overrides: recipe keys to set at every point, in addition to the file's `set`.
        trials: replaces the file's `trials`.

    Returns:
        The name of the whole file, and its sweeps.

    Raises:
        TrituneError: a key or value is unknown, mistyped or out of range, or the recipe of a point is invalid; the
            message names file, sweep and key.
    """
    where, path = f"space {name}", Path(name)
    values = parse(text_of(str(name), "space", _FOLDER), where)
    values.pop("description", None)
    title = values.get("name", path.stem)
    _check_name(title, f"{where}: ")
    parts = values.pop("sweeps", None)
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
        sweeps.append(_sweep(merged, path.parent, f"{where}, {part}" if len(parts) > 1 else where))
    return title, sweeps


def _check_name(name: Any, where: str = "") -> None:
    if not (isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,60}", name)):
        raise TrituneError(f"{where}name must consist of letters, digits, dots and hyphens; got {shown(name)}")


def sweeps_to_yaml(title: str, sweeps: list[Sweep]) -> str:
    """The sweeps as YAML that `load_sweeps` reads back to equal ones."""
    parts = {}
    for sweep in sweeps:
        values = json.loads(json.dumps(asdict(sweep)))  # tuples become lists
        parts[sweep.name] = {key: values[key] for key in values if key not in {"name", *_unused(sweep)}}
    return yaml.safe_dump({"name": title, "sweeps": parts}, sort_keys=False, allow_unicode=True)


def _sweep(values: dict[str, Any], folder: Path, where: str) -> Sweep:
    spaces = _mapping(values, "space", where)
    rest = {key: value for key, value in values.items() if key not in ("set", "space")}
    given = typed(rest, Sweep, where, _HINT)
    beside = folder / str(given.get("recipe", ""))
    if os.path.isfile(beside):  # found from any working directory
        given["recipe"] = str(beside)
    space = {key: _options(key, options, where) for key, options in spaces.items()}
    fixed = {key: _value(key, value, f"{where}: set") for key, value in values["set"].items()}
    for key in ("seed", "name", "description"):
        if key in space or key in values["set"]:
            raise TrituneError(f"{where}: {key} cannot be {'swept' if key in space else 'set'} (use seeds for seeds)")
    try:
        sweep = Sweep(**given, set=fixed, space=space)
        for key, reason in _unused(sweep).items():
            if given.get(key) is not None:
                raise TrituneError(f"{key} would change nothing: {reason}")
        for seed in sweep.seeds:
            for point in sweep.corners():
                sweep.point(point, seed)
    except TrituneError as error:
        raise TrituneError(f"{where}: {error}") from None
    return sweep


def _unused(sweep: Sweep) -> dict[str, str]:
    """Keys that have no effect, with the reason."""
    unused: dict[str, str] = {}
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
    """The value of a recipe key in its declared type, as YAML and JSON represent it."""
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
