"""Kinds of values that settings take, as annotations say them."""

from types import UnionType
from typing import Any, get_args, get_origin


def fits(value: Any, kind: Any) -> bool:
    """Is the value what a field's type says? A whole number is a float too; a bool is no number."""
    inner = get_args(kind)
    if kind is Any:
        return True
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in inner)
    return isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) <= (kind is bool)
