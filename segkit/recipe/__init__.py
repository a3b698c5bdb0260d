"""The recipe of an experiment, read strictly.

`schema` holds the keys with their types, defaults and descriptions; a new key goes there. `yaml` reads files and
overrides, `messages` makes errors readable, `renamed` accepts old keys.
"""

from segkit.recipe.schema import Recipe as Recipe
