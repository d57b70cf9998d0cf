"""`tritune recipes`: the shipped recipes."""

from dataclasses import asdict, fields
from typing import Annotated

import typer

from . import options


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe in full, as YAML.", metavar="[NAME]")] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key that `--set` accepts.")] = False,
    json: options.Json = False,
) -> None:
    """List the shipped recipes and how each differs from its base.

    Example: `tritune recipes ti-g > mine.yaml`, edit it, then `tritune train … --recipe mine.yaml`
    """
    from ..recipes import FinetuneRecipe, Recipe, load_recipe, shipped_recipes, to_yaml
    from .show import show_keys, show_recipes, show_result

    if name is not None:
        recipe = load_recipe(name, kind=FinetuneRecipe if name == "finetune" else Recipe)
        show_result(asdict(recipe), lambda _: print(to_yaml(recipe), end=""), as_json=json)
    elif keys:
        show_result({field.name: field.default for field in fields(Recipe)}, show_keys, as_json=json)
    else:
        show_result(shipped_recipes(), show_recipes, as_json=json)
