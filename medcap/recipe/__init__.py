"""A recipe: one YAML file that defines how one published model is made.

Command-line options have the names of the keys and override the file. The training keys are those of
`transformers.Seq2SeqTrainingArguments`; `medcap train --help` lists the others.
"""

from medcap.recipe.arguments import (
    RANGES,
    REPLACED,
    CaptionTrainingArguments,
    DataArguments,
    GenerationArguments,
    LoraArguments,
    ModelArguments,
    Recipe,
    RecipeError,
    check_ranges,
)
from medcap.recipe.help import recipe_help
from medcap.recipe.reader import REQUIRED, read_recipe, read_yaml

__all__ = [
    "RANGES",
    "REPLACED",
    "REQUIRED",
    "CaptionTrainingArguments",
    "DataArguments",
    "GenerationArguments",
    "LoraArguments",
    "ModelArguments",
    "Recipe",
    "RecipeError",
    "check_ranges",
    "read_recipe",
    "read_yaml",
    "recipe_help",
]
