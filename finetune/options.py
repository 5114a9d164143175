"""Config fields as command-line options: their docstrings are the help, their defaults are shown."""

import ast
import inspect
import textwrap
from argparse import SUPPRESS, ArgumentParser, Namespace
from dataclasses import fields, is_dataclass
from typing import Any

from finetune.config import leaves, nested, resolve


def add_fields(parser: ArgumentParser, config: Any, prefix: str = "") -> None:
    """Adds `--name VALUE` for every field of the config, and `--outer.name VALUE` for those of configs in it."""
    group = parser.add_argument_group(prefix.rstrip(".") or "settings")
    said = docstrings(type(config))
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            add_fields(parser, value, f"{prefix}{entry.name}.")
        else:
            help_ = f"{said.get(entry.name, '')} (default: {value})".replace("%", "%%")
            group.add_argument(
                f"--{prefix}{entry.name}", metavar=type(value).__name__.upper(), default=SUPPRESS, help=help_
            )


def resolved(config: Any, args: Namespace) -> Any:
    """The config with what was said on the command line. ValueError for values that do not fit."""
    names = {name for name, _ in leaves(config)}
    return resolve(config, nested({name: value for name, value in vars(args).items() if name in names}))


def docstrings(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    said = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                said[name] = words
    return said
