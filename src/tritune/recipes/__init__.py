"""Recipes: frozen dataclasses filled from YAML. The YAML files beside this one are what ships.

Begin with `recipe.py`, the keys; `reader.py` fills them, `space.py` holds the files of `tritune sweep`.
"""

from .reader import (
    EVALUATION_KEYS,
    RECIPE_FILE,
    check_evaluation_keys,
    load_recipe,
    parse_overrides,
    recipe_beside,
    shipped_recipes,
    to_yaml,
)
from .recipe import AUTO, OPTIMIZERS, FinetuneRecipe, Recipe
from .space import SWEEP_FILE, Range, Sweep, label, load_sweeps, shipped_spaces, sweeps_to_yaml

__all__ = [
    "AUTO",
    "EVALUATION_KEYS",
    "OPTIMIZERS",
    "RECIPE_FILE",
    "SWEEP_FILE",
    "FinetuneRecipe",
    "Range",
    "Recipe",
    "Sweep",
    "check_evaluation_keys",
    "label",
    "load_recipe",
    "load_sweeps",
    "parse_overrides",
    "recipe_beside",
    "shipped_recipes",
    "shipped_spaces",
    "sweeps_to_yaml",
    "to_yaml",
]
