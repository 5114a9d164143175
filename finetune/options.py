"""Config fields as command-line options: their docstrings are the help, their defaults are shown."""

import ast
import inspect
import textwrap
from argparse import SUPPRESS, ArgumentParser, Namespace
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from finetune.config import leaves, nested, resolve


def add_fields(parser: ArgumentParser, config: Any, prefix: str = "") -> None:
    """Adds `--name VALUE` for every field of the config, and `--outer.name VALUE` for those of configs in it."""
    group = parser.add_argument_group(prefix.rstrip(".") or "settings")
    said, kinds = docstrings(type(config)), get_type_hints(type(config))
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            add_fields(parser, value, f"{prefix}{entry.name}.")
        else:
            help_ = f"{said.get(entry.name, '')} (default: {value})".replace("%", "%%")
            group.add_argument(
                f"--{prefix}{entry.name}", metavar=metavar(kinds[entry.name]), default=SUPPRESS, help=help_
            )


def resolved(config: Any, args: Namespace) -> Any:
    """The config with what was said on the command line. ValueError for values that do not fit."""
    names = {name for name, _ in leaves(config)}
    return resolve(config, nested({name: value for name, value in vars(args).items() if name in names}))


def metavar(kind: Any) -> str:
    """What a field takes, as help writes it: FLOAT, STR, LIST."""
    kind = next(iter(get_args(kind)), kind) if isinstance(kind, UnionType) else kind
    return str((get_origin(kind) or kind).__name__).upper()


def docstrings(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass, and of those it is made from."""
    return {name: words for base in reversed(kind.__mro__) if is_dataclass(base) for name, words in own(base).items()}


def own(kind: type) -> dict[str, str]:
    """What stands below each field that a dataclass has itself."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    said = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                said[name] = words
    return said
