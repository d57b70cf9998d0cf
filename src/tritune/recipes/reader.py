"""Recipes from YAML, with overrides from the command line; an unknown, unused or mistyped key is an error."""

import contextlib
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from ..errors import TrituneError, shown
from .recipe import FinetuneRecipe, Kind, Recipe

FOLDER = resources.files(__package__)
FINETUNE = "finetune"
RECIPE_FILE = "recipe.yaml"
# The keys that still matter once a model is trained.
EVALUATION_KEYS = ("max_length", "long_texts", "padding", "per_device_eval_batch_size")

# No number in use is larger.
_LARGEST = 2**63

_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list of whole numbers",
    dict: "a mapping",
    type(None): "null",
}


def load_recipe(name: str | Path | None, overrides: Sequence[str] = (), kind: type[Kind] = Recipe) -> Kind:
    """Load a shipped recipe by name, or a YAML file by its path.

    A file with `base: NAME` holds only what differs from that recipe. What an override makes useless (the clip of
    activations that are now float) has its default in the result.

    Args:
        name: a name listed by `tritune recipes`, or a path; None gives the defaults of `kind`.
        overrides: `key=value` pairs, the values in YAML; later ones win.
        kind: `Recipe`, or `FinetuneRecipe` for fine-tuning a teacher.

    Raises:
        TrituneError: an unknown recipe or key, an unused key, a value of a wrong type or out of range; the message
            names file and key.
    """
    values = {} if name is None else typed(_read(str(name), kind), kind, f"recipe {name}")
    overridden = typed(parse_overrides(overrides), kind, "--set")
    recipe = kind(**{**values, **overridden})
    _check_used(recipe, set(overridden), "--set")
    if overridden:
        with contextlib.suppress(TrituneError):  # a file that is a recipe only with the overrides
            recipe = _without_useless(recipe, kind(**values))
    _check_used(recipe, _own_keys(recipe), f"recipe {name}")
    return recipe


def changed(recipe: Kind, values: Mapping[str, Any], where: str) -> Kind:
    """A copy of `recipe` with the keys of `values`, as parsed from YAML; messages begin with `where`.

    Raises:
        TrituneError: an unknown key, a value of a wrong type or out of range, or one that has no effect.
    """
    given = typed(values, type(recipe), where)
    try:
        result = replace(recipe, **given)
    except TrituneError as error:
        raise TrituneError(f"{where}: {error}") from None
    _check_used(result, set(given), where)
    return _without_useless(result, recipe)


def _own_keys(recipe: FinetuneRecipe) -> set[str]:
    """A whole recipe spells out what it does not use; only a value that someone changed was meant to do something."""
    own = {field.name for field in fields(recipe) if getattr(recipe, field.name) != field.default}
    return own - {"num_train_epochs"}


def _without_useless(recipe: Kind, before: Kind) -> Kind:
    """A recipe with the default of what was of use `before` and is no longer: in its own file it would be an error."""
    own, defaults = _own_keys(recipe), type(recipe)()
    useless = recipe.unused_keys(own).keys() - before.unused_keys(own).keys()
    return replace(recipe, **{key: getattr(defaults, key) for key in useless})


def _check_used(recipe: FinetuneRecipe, given: set[str], where: str) -> None:
    for key, reason in recipe.unused_keys(given).items():
        raise TrituneError(f"{where}: {key} would change nothing: {reason}")


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` pairs from a command line; later ones win.

    Raises:
        TrituneError: one is not such a pair, or its value is not YAML.
    """
    values = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise TrituneError(f"--set takes key=value, got {shown(override)}")
        if not text.strip():
            raise TrituneError(f"--set {shown(override)} has no value; write null for an empty one")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except Exception:  # as in `parse`
            raise TrituneError(f"--set {shown(override)}: the value is not a YAML value") from None
    return values


def check_evaluation_keys(overrides: Iterable[str]) -> None:
    """Check `key=value` pairs given for a model that is already trained.

    Raises:
        TrituneError: a key is not one of `EVALUATION_KEYS`, or its value cannot be used.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key not in EVALUATION_KEYS:
            raise TrituneError(f"--set: {key} would change nothing here; known are {', '.join(EVALUATION_KEYS)}")
    load_recipe(None, tuple(overrides), FinetuneRecipe)


def recipe_beside(model: str | Path) -> Path | None:
    """The recipe file in a model's folder, or None."""
    path = Path(model) / RECIPE_FILE
    return path if path.is_file() else None


def shipped_recipes() -> dict[str, dict[str, Any]]:
    """The keys in which each shipped recipe differs from its base, by name (`base` among them)."""
    return {name: parse(text_of(name, "recipe", FOLDER), f"recipe {name}") for name in names_in(FOLDER)}


def to_yaml(recipe: FinetuneRecipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal one."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def names_in(folder: Traversable) -> list[str]:
    """The names of the YAML files in a folder of this package."""
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def text_of(name: str, noun: str, folder: Traversable) -> str:
    """The text of a YAML file that ships in `folder`, by its name, or of any other by its path.

    Raises:
        TrituneError: there is no such file, or it cannot be read; the message calls it a `noun`.
    """
    shipped = names_in(folder)
    if name in shipped:
        return (folder / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        close = difflib.get_close_matches(name, shipped, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = ", ".join(other for other in shipped if other != FINETUNE)
        raise TrituneError(
            f"there is no {noun} {shown(name)}: {hint}shipped are {known}; or give the path of a .yaml file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise TrituneError(f"{noun} {name}: cannot be read ({reason})") from None


def _read(name: str, kind: type, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a recipe, completed by those of its bases."""
    if name in seen:
        raise TrituneError(f"recipe {name}: its base leads back to itself: {' -> '.join((*seen, name))}")
    if name == FINETUNE and kind is not FinetuneRecipe:
        raise TrituneError(f"recipe {name}: trains a teacher, with `tritune finetune`; see `tritune recipes`")
    values = parse(text_of(name, "recipe", FOLDER), f"recipe {name}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not (isinstance(base, str) and base.isprintable()):
        raise TrituneError(f"recipe {name}: base must be the name or path of one recipe; got {shown(base)}")
    # A base next to the file that names it is found from any working directory.
    beside = Path(name).parent / base
    below = _read(str(beside) if os.path.isfile(beside) else base, kind, (*seen, name))
    return {**below, "name": Path(name).stem, "description": f"{base}, changed", **values}


class _GivenTwice(yaml.YAMLError):
    """A mapping has two equal keys, of which YAML would silently take the last one."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, if all of its keys are different."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise _GivenTwice(f"line {key.start_mark.line + 1}: {shown(key.value)} is given twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML file of keys.

    Raises:
        TrituneError: it is not YAML or not a mapping, or a key occurs twice; the message begins with `where`.
    """
    try:
        values = yaml.load(text, _Loader)
    except _GivenTwice as error:
        raise TrituneError(f"{where}, {error}") from None
    except Exception as error:  # PyYAML raises errors of many types for dates, numbers and depths that it cannot hold
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise TrituneError(f"{where}{line}: not YAML") from None
    if not isinstance(values, dict):
        raise TrituneError(f"{where}: must be a list of `key: value` lines")
    return values


def typed(
    values: Mapping[str, Any], kind: type, where: str, hint: str = "`tritune recipes --keys` lists them"
) -> dict[str, Any]:
    """`values` with numbers converted to the types that the dataclass `kind` declares.

    Raises:
        TrituneError: an unknown key (the message ends with `hint` if no key is similar), or a value of another type.
    """
    types_of = typing.get_type_hints(kind)
    converted = {}
    for key, value in values.items():
        if key not in types_of:
            close = difflib.get_close_matches(key, types_of, n=1) if isinstance(key, str) else []
            raise TrituneError(f"{where}: unknown key {shown(key)}; {f'did you mean {close[0]}?' if close else hint}")
        converted[key] = _convert(value, types_of[key], f"{where}: {key}")
    return converted


def _convert(value: Any, expected: Any, where: str) -> Any:
    """`value` as the declared type; a whole number is accepted for a float, and so is 2e-5, a string to YAML."""
    union = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    options = [typing.get_origin(option) or option for option in union]
    if float in options and type(value) in (int, str):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if tuple in options and isinstance(value, list) and all(type(item) is int for item in value):
        value = tuple(value)
    if type(value) not in options or not _is_usable(value):
        wanted = " or ".join(_TYPE_NAMES[option] for option in options)
        raise TrituneError(f"{where} must be {wanted}; got {shown(value)}")
    return value


def _is_usable(value: Any) -> bool:
    """Whether a value of the right type can be computed with and written out again."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(_is_usable(part) for row in value.items() for part in row)
    numbers = value if isinstance(value, list | tuple) else (value,)
    return all(abs(number) < _LARGEST for number in numbers if isinstance(number, int))
