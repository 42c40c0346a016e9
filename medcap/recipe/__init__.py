"""A recipe: one YAML file that defines how one published model is made.

Command-line options have the names of the keys and override the file. The training keys are those of
`transformers.Seq2SeqTrainingArguments`; `medcap train --help` lists the others.
"""

from medcap.recipe.arguments import (
    GROUPS,
    CaptionTrainingArguments,
    DataArguments,
    GenerationArguments,
    Recipe,
    RecipeError,
    check_values,
)
from medcap.recipe.generation_rules import generation_fault
from medcap.recipe.reader import REQUIRED, check_saved, read_recipe, read_yaml

__all__ = [
    "GROUPS",
    "REQUIRED",
    "CaptionTrainingArguments",
    "DataArguments",
    "GenerationArguments",
    "Recipe",
    "RecipeError",
    "check_saved",
    "check_values",
    "generation_fault",
    "read_recipe",
    "read_yaml",
]
