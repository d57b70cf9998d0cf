"""Recipes: frozen dataclasses filled from YAML. The YAML files beside this one are what ships."""

from .reader import RECIPE_FILE, load_recipe, recipe_beside, shipped_recipes, to_yaml
from .recipe import OPTIMIZERS, FinetuneRecipe, Recipe

__all__ = [
    "OPTIMIZERS",
    "RECIPE_FILE",
    "FinetuneRecipe",
    "Recipe",
    "load_recipe",
    "recipe_beside",
    "shipped_recipes",
    "to_yaml",
]
