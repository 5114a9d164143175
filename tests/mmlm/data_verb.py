"""`mmlm data` as its tests call it."""

import json
from importlib.metadata import EntryPoint

from mmlm import cli

VERB = EntryPoint("data", "mmlm.data.commands:data", cli.GROUP)


def run(*words):
    """The exit status of `mmlm data ...`, however the package is installed."""
    return cli.guarded(lambda: (args := cli.verb_parser(VERB).parse_args(list(words))).run(args) or 0)


def write_lines(path, *rows):
    """A JSONL file of the rows; texts are lines as they are."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path
