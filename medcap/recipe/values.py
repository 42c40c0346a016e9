"""Conversion of YAML values and command-line text to the types of a recipe's keys."""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from enum import Enum
from functools import cache
from typing import Any, Literal

from medcap.recipe.arguments import GROUPS, RecipeError

_BOOLS = {
    **dict.fromkeys(("true", "yes", "on", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "off", "f", "n", "0"), False),
}
_TYPE_PHRASES = {
    bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list", dict: "a mapping",
}  # fmt: skip
CONFIG_FILES = ("accelerator_config", "fsdp_config", "deepspeed")


@cache
def key_types() -> dict[str, tuple[Any, ...]]:
    """Return the types allowed for each key, None excluded, in the order in which a conversion is tried."""
    allowed = {}
    for arguments in GROUPS.values():
        hints = typing.get_type_hints(arguments)
        allowed.update({field.name: _alternatives(hints[field.name]) for field in dataclasses.fields(arguments)})
    return allowed


def convert(key: str, value: Any) -> Any:
    """Convert `value`, from YAML or text of the command line, to the type of `key`.

    Raises:
        RecipeError: in one line the key, its value and what is expected.
    """
    allowed = _kinds(key, value)
    if option := next((item for item in value if str(item).startswith("-")), "") if isinstance(value, list) else "":
        raise RecipeError(f"{key} lists {option!r}; a value of a list must not begin with - as an option does")
    for kind in allowed:
        try:
            return _convert_to(kind, value)
        except (TypeError, ValueError, LookupError, OverflowError, RecursionError):
            continue
    if isinstance(value, bool):  # the key takes text
        bare, quoted = ("yes or on", "yes") if value else ("no or off", "no")
        raise RecipeError(f'{key}: YAML reads a bare {bare} as {str(value).lower()}; quote it: {key}: "{quoted}"')
    if key in CONFIG_FILES:
        allowed = (*allowed, "the path of a file")
    text = repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:100]}..."
    raise RecipeError(f"{key} is {text}; expected {' or '.join(map(describe_type, allowed))}")


def _kinds(key: str, value: Any) -> tuple[Any, ...]:
    """Return the types allowed for a key: text for a mapping is JSON, or in CONFIG_FILES the path of a file."""
    kinds = key_types()[key]
    if dict not in {typing.get_origin(kind) or kind for kind in kinds}:
        return kinds
    is_path = key in CONFIG_FILES and os.path.isfile(str(value))  # Path.is_file raises an error for a long name
    return tuple(kind for kind in kinds if kind is not str or is_path)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union: text after the types it could be converted to, a list last."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = [kind for kind in (typing.get_args(hint) if is_union else (hint,)) if kind is not type(None)]
    if any(_is_enum(kind) for kind in members):  # `SchedulerType | str`: text must name a member
        members = [kind for kind in members if kind is not str]
    return tuple(sorted(members, key=lambda kind: (typing.get_origin(kind) is list, kind is str)))


def _convert_to(kind: Any, value: Any) -> Any:
    """Convert to one type; raises an error of several types for a value that does not fit."""
    origin = typing.get_origin(kind) or kind
    if origin is Literal:
        return {str(choice): choice for choice in typing.get_args(kind)}[str(value)]
    if origin is bool:
        return _BOOLS[str(value).lower()]
    if origin is list:
        (member,) = typing.get_args(kind)
        return [_convert_to(member, item) for item in (value if isinstance(value, list) else [value])]
    if origin is dict:
        content = json.loads(value) if isinstance(value, str) and value.startswith("{") else value
        return {**content}  # TypeError if it is not a mapping
    is_scalar = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if not is_scalar or (origin is int and isinstance(value, float)):
        raise TypeError
    if origin in (int, float, str) or _is_enum(kind):
        return kind(value)
    raise TypeError


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def describe_type(kind: Any) -> str:
    """Return a phrase for the values of a type: its choices, or for example "an integer"; a phrase as it is."""
    if _is_enum(kind):
        return ", ".join(str(member.value) for member in kind)
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    return _TYPE_PHRASES.get(typing.get_origin(kind) or kind, str(kind))
