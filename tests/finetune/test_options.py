"""Config fields on the command line: their docstrings are the help, and only what is said is changed."""

from argparse import ArgumentParser
from dataclasses import dataclass, field

import pytest

from finetune.config import QuickstartConfig, leaves
from finetune.options import add_fields, docstrings, resolved


@dataclass
class Paint:
    """Of a wall."""

    coats: int = 2
    """How many, at 100% cover."""
    colour: str = "white"
    """Of the paint."""


@dataclass
class House:
    """To be painted."""

    rooms: int = 4
    """With walls."""
    undocumented: float = 0.5
    paint: Paint = field(default_factory=Paint)
    """What is a config itself has its own fields' words."""


@pytest.fixture
def parser():
    parser = ArgumentParser(prog="paint")
    parser.add_argument("--folder", default="here")
    add_fields(parser, House())
    return parser


def test_help_has_every_docstring_and_default(parser):
    text = " ".join(parser.format_help().split())
    assert "--rooms INT With walls. (default: 4)" in text
    assert "--paint.coats INT How many, at 100% cover. (default: 2)" in text
    assert "--paint.colour STR Of the paint. (default: white)" in text
    assert "--undocumented FLOAT (default: 0.5)" in text
    assert "paint: --paint.coats" in text


def test_docstrings_are_those_below_the_fields():
    assert docstrings(Paint) == {"coats": "How many, at 100% cover.", "colour": "Of the paint."}
    assert set(docstrings(House)) == {"rooms", "paint"}


def test_only_what_is_said_is_changed(parser):
    assert resolved(House(), parser.parse_args([])) == House()
    args = parser.parse_args(["--paint.colour", "blue", "--folder=there", "--rooms=3", "--rooms=7"])
    assert resolved(House(), args) == House(rooms=7, paint=Paint(colour="blue"))


def test_values_of_the_wrong_type_are_refused(parser):
    with pytest.raises(ValueError, match=r"'paint\.coats' takes int, not 'many'"):
        resolved(House(), parser.parse_args(["--paint.coats=many"]))


def test_leaves_are_the_fields_that_hold_values():
    assert leaves(House()) == [("rooms", 4), ("undocumented", 0.5), ("paint.coats", 2), ("paint.colour", "white")]


def test_every_setting_of_the_quickstart_is_an_option():
    parser = ArgumentParser(prog="quickstart")
    add_fields(parser, QuickstartConfig())
    text = " ".join(parser.format_help().split())
    for name, default in leaves(QuickstartConfig()):
        assert f"--{name} {type(default).__name__.upper()} " in text
