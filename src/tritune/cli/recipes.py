"""`tritune recipes`: what ships."""

from typing import Annotated

import typer

from . import options


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one whole, as YAML.", metavar="[NAME]")] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key that `--set` takes.")] = False,
    json: options.Json = False,
) -> None:
    """List the recipes that ship and in what each differs from its base.

    Example: `tritune recipes ti-g > mine.yaml`, edit it, then `tritune train … --recipe mine.yaml`
    """
    from ..recipes import FinetuneRecipe, Recipe, load_recipe, shipped_recipes
    from .show import show_keys, show_recipe, show_recipes

    if name is not None:
        kind = FinetuneRecipe if name == "finetune" else Recipe
        show_recipe(load_recipe(name, kind=kind), as_json=json)
    elif keys:
        show_keys(Recipe, as_json=json)
    else:
        show_recipes(shipped_recipes(), as_json=json)
