"""The recipe: its keys, its YAML, its JSON schema and its messages."""

from segkit.recipe.schema import Recipe as Recipe
