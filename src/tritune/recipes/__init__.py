"""Recipes: frozen dataclasses filled from YAML. The YAML files beside this one are what ships.

Begin with `recipe.py`, the keys; `reader.py` fills them, `space.py` holds the files of `tritune sweep`.
"""

from .reader import (
    RECIPE_FILE,
    check_evaluation_keys,
    load_recipe,
    parse_overrides,
    recipe_beside,
    shipped_recipes,
    to_yaml,
)
from .recipe import FinetuneRecipe, Kind, Recipe
from .space import SWEEP_FILE, Range, Sweep, label, listed, load_sweeps, shipped_spaces, sweeps_to_yaml

__all__ = [
    "RECIPE_FILE",
    "SWEEP_FILE",
    "FinetuneRecipe",
    "Kind",
    "Range",
    "Recipe",
    "Sweep",
    "check_evaluation_keys",
    "label",
    "listed",
    "load_recipe",
    "load_sweeps",
    "parse_overrides",
    "recipe_beside",
    "shipped_recipes",
    "shipped_spaces",
    "sweeps_to_yaml",
    "to_yaml",
]
