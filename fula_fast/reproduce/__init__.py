"""Every experiment of both papers, by name: `fula-fast reproduce list`.

An experiment is a recipe (`experiments/NAME.toml`) over the donors and data of `catalog.toml`. Its
sweeps are ordinary specs; a few have a driver (`drivers/`) that makes rows of its own. What the
papers say is tested by functions of the rows (`claims`), and set beside our numbers in the report.
"""

from .recipe import SCALES, load_recipe, recipe_names
from .resolution import resolve

__all__ = ["SCALES", "load_recipe", "recipe_names", "resolve"]
