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
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import TrituneError, shown
from .recipe import FinetuneRecipe, Recipe

Kind = TypeVar("Kind", FinetuneRecipe, Recipe)
FINETUNE = "finetune"
RECIPE_FILE = "recipe.yaml"
# What of a recipe changes the answers of a model that is trained already.
EVALUATION_KEYS = ("max_length", "padding", "per_device_eval_batch_size")

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
    """A shipped recipe by name, or one's own by the path of its YAML file.

    A file may say `base: NAME` and then holds only what differs from that recipe.

    Args:
        name: a name that `tritune recipes` lists, or a path; None is the defaults of `kind`.
        overrides: `key=value` pairs, the values in YAML; later ones win.
        kind: `Recipe`, or `FinetuneRecipe` for a teacher's.

    Raises:
        TrituneError: an unknown recipe or key, an unused key, a value of a wrong type or out of range; the message
            names file and key.
    """
    values = {} if name is None else typed(_read(str(name), kind), kind, f"recipe {name}")
    overridden = typed(parse_overrides(overrides), kind, "--set")
    recipe = kind(**{**values, **overridden})
    for key, reason in recipe.unused_keys(set(overridden)).items():
        raise TrituneError(f"--set: {key} would change nothing: {reason}")
    # A whole recipe spells out what it does not use; only a value that someone changed was meant to do something.
    changed = {field.name for field in fields(kind) if getattr(recipe, field.name) != field.default}
    for key, reason in recipe.unused_keys(changed - {"num_train_epochs"}).items():
        raise TrituneError(f"recipe {name}: {key} would change nothing: {reason}")
    return recipe


def changed(recipe: Kind, values: Mapping[str, Any], where: str) -> Kind:
    """The recipe with some keys changed.

    Args:
        recipe: to start from.
        values: key to value, as YAML gives them.
        where: what the messages begin with.

    Raises:
        TrituneError: an unknown key, a value of a wrong type or out of range, or one that would change nothing.
    """
    given = typed(values, type(recipe), where)
    try:
        result = replace(recipe, **given)
    except TrituneError as error:
        raise TrituneError(f"{where}: {error}") from None
    for key, reason in result.unused_keys(set(given)).items():
        raise TrituneError(f"{where}: {key} would change nothing: {reason}")
    return result


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` pairs, as a command line gives them, to keys and values; later ones win.

    Raises:
        TrituneError: one is not such a pair, or its value is not YAML.
    """
    return dict(_pair(override) for override in overrides)


def check_evaluation_keys(overrides: Iterable[str]) -> None:
    """Check `key=value` pairs that are meant for a model that is trained already.

    Raises:
        TrituneError: a key is none of `EVALUATION_KEYS`, or a value cannot be its.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key not in EVALUATION_KEYS:
            raise TrituneError(f"--set: {key} would change nothing here; known are {', '.join(EVALUATION_KEYS)}")
    load_recipe(None, tuple(overrides), FinetuneRecipe)


def recipe_beside(model: str | Path) -> Path | None:
    """The recipe that a model in a folder was trained with, if it lies there."""
    path = Path(model) / RECIPE_FILE
    return path if path.is_file() else None


def shipped_recipes() -> dict[str, dict[str, Any]]:
    """Name to the keys in which each shipped recipe differs from its base (`base` among them)."""
    names = sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))
    return {name: parse((_folder() / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}") for name in names}


def to_yaml(recipe: FinetuneRecipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal one."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _folder():
    return resources.files(__package__)


def _read(name: str, kind: type, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a recipe with those of its bases below them."""
    if name in seen:
        raise TrituneError(f"recipe {name}: its base leads back to itself: {' -> '.join((*seen, name))}")
    if name == FINETUNE and kind is not FinetuneRecipe:
        raise TrituneError(f"recipe {name}: how a teacher is made, for `tritune finetune`; see `tritune recipes`")
    values = parse(_text(name), f"recipe {name}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not (isinstance(base, str) and base.isprintable()):
        raise TrituneError(f"recipe {name}: base must be the name or path of one recipe; got {shown(base)}")
    # A base beside the file that names it is found from anywhere.
    beside = Path(name).parent / base
    below = _read(str(beside) if os.path.isfile(beside) else base, kind, (*seen, name))
    return {**below, "name": Path(name).stem, "description": f"{base}, changed", **values}


def _text(name: str) -> str:
    shipped = _folder() / f"{name}.yaml"
    if os.path.isfile(shipped):
        return shipped.read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        close = difflib.get_close_matches(name, shipped_recipes(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = ", ".join(sorted(set(shipped_recipes()) - {FINETUNE}))
        raise TrituneError(
            f"there is no recipe {shown(name)}: {hint}shipped are {known}; or give the path of a .yaml file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise TrituneError(f"recipe {name}: cannot be read ({reason})") from None


def parse(text: str, where: str) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        TrituneError: it is not YAML, not a list of keys, or a key is there twice; the message begins with `where`.
    """
    try:
        root, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except Exception as error:  # of a date, a number or a depth that it cannot hold, PyYAML says so in types of its own
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise TrituneError(f"{where}{line}: not YAML") from None
    if not isinstance(values, dict):
        raise TrituneError(f"{where}: must be a list of `key: value` lines")
    _check_unique_keys(root, where)
    return values


def _check_unique_keys(root: yaml.Node, where: str) -> None:
    """YAML would take the last one of two equal keys without a word."""
    nodes, visited = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in visited or isinstance(node, yaml.ScalarNode):
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        seen = set()
        for key, value in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise TrituneError(f"{where}, line {key.start_mark.line + 1}: {shown(key.value)} is given twice")
            seen.add(str(key.value))
            nodes.append(value)


def _pair(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator:
        raise TrituneError(f"--set takes key=value, got {shown(override)}")
    if not text.strip():
        raise TrituneError(f"--set {shown(override)} has no value; null is written out")
    try:
        return key.strip(), yaml.safe_load(text)
    except Exception:  # as for a file
        raise TrituneError(f"--set {shown(override)}: the value is not a YAML value") from None


def typed(
    values: Mapping[str, Any], kind: type, where: str, hint: str = "`tritune recipes --keys` lists them"
) -> dict[str, Any]:
    """`values` with numbers brought to the types that the dataclass `kind` declares.

    Raises:
        TrituneError: an unknown key (where none is close the message ends with `hint`), or a value of another type.
    """
    known = {field.name for field in fields(kind)}
    types_of = typing.get_type_hints(kind)
    converted = {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1) if isinstance(key, str) else []
            raise TrituneError(f"{where}: unknown key {shown(key)}; {f'did you mean {close[0]}?' if close else hint}")
        converted[key] = _convert(value, types_of[key], f"{where}: {key}")
    return converted


def _convert(value: Any, expected: Any, where: str) -> Any:
    """`value` as the declared type: a whole number may stand for a float, and 2e-5 (a string to YAML) too."""
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
    """Whether a value of a right type can be reckoned with and written out again."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(_is_usable(part) for row in value.items() for part in row)
    numbers = value if isinstance(value, list | tuple) else (value,)
    return all(abs(number) < _LARGEST for number in numbers if isinstance(number, int))
