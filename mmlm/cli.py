"""The command `mmlm`. It finds its verbs through the entry-point group `mmlm.commands`, as git finds its own.

A verb is a function `verb(parser)` that adds its arguments to an `argparse.ArgumentParser` and names what they start
by `parser.set_defaults(run=...)`: a function of the parsed arguments that returns an exit status or None. The first
line of its docstring is its line in `mmlm --help`. Its module imports nothing heavy (torch, transformers) until it
runs, because `mmlm --help` loads them all. Any installed package may add verbs:

    [project.entry-points."mmlm.commands"]
    wobble = "wobbly.commands:wobble"
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from shutil import which
from typing import NoReturn

DISTRIBUTION = "mmlm-adapter"
GROUP = "mmlm.commands"

ENVIRONMENT = {  # of libraries under torch and transformers, which read it at first use; what is set already stands
    # By OpenMP's default waiting threads spin, which makes torch 5 to 15 times slower as soon as another process wants
    # their core. If they sleep at once, at 0, waking them takes longer than many a product: fine-tuning took 1.4 times
    # as long as with these 5 us, which cost 1.05 (fp32) to 1.4 (bf16) beside another process (docs/performance.md).
    "GOMP_SPINCOUNT": "2000",
    # oneDNN's compiled kernels are kept for their shapes, of which training meets new ones at every step: most of the
    # thousand that are kept by default are never used again, and cost a gigabyte or two. With 64 a step takes 1.25
    # times as long.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "LRU_CACHE_CAPACITY": "256",  # the same, of what torch keeps of them; at 0 it crashes
    # tokenizers warns at length when a process that has tokenized forks data workers, unless this is decided.
    "TOKENIZERS_PARALLELISM": "false",
}

OVERVIEW = """\
usage: mmlm VERB ... [--debug]

Gives a frozen Mixture-of-Experts text decoder eyes.

verbs:
{verbs}

options:
  -h, --help  this list; after a verb, that verb's own
  --version   the version
  --debug     anywhere on the line: show the traceback of an error
"""


def command() -> str:
    """What to type for `mmlm`: its path, where an environment has it that is not on the PATH."""
    here = Path(sys.executable).with_name("mmlm")
    return "mmlm" if which("mmlm") or not here.exists() else os.path.relpath(here)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (`sys.argv` if None) and returns its exit status.

    0: done; 1: refused or failed, with one line `mmlm: ...` on stderr; 2: misused; 130: interrupted; 141: the reader of
    the output went away. argparse leaves by SystemExit instead: 0 after a verb's help, 2 after a misused verb. Whatever
    is neither a user's error nor the machine's is a bug, and is raised.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = take_flag(words, "--debug")
    return guarded(lambda: dispatch(words), debug)


def guarded(run: Callable[[], int], debug: bool = False) -> int:
    """Runs a command and returns its exit status; what `plain` explains becomes one line on stderr."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        status = run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # What is still buffered has nowhere to go either, and Python would complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Exception, KeyboardInterrupt) as error:
        message = plain(error)
        if message is None:
            raise
        if debug:
            from traceback import print_exc

            print_exc()
        else:
            print(f"mmlm: {message}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1


def take_flag(words: list[str], flag: str) -> bool:
    """Removes every `flag` before a `--` from words in place; True if there was one."""
    end = words.index("--") if "--" in words else len(words)
    options = [word for word in words[:end] if word != flag]
    words[:end] = options
    return len(options) < end


def dispatch(words: list[str]) -> int:
    """Does what the words say and returns the exit status."""
    first, *rest = words or [""]
    if first == "--version":
        print(f"mmlm {version(DISTRIBUTION)}")
        return 0
    verbs = find_verbs()
    if first in ("-h", "--help"):
        print(overview(verbs), end="")
        return 0
    if not first:
        print(overview(verbs), end="", file=sys.stderr)
        return 2
    if first not in verbs:
        kind = "option" if first.startswith("-") else "verb"
        print(f"mmlm: no {kind} {first!r}{nearest(first, verbs)}; mmlm --help lists what there is", file=sys.stderr)
        return 2
    parser = verb_parser(verbs[first])
    args, unknown = parser.parse_known_args(rest)
    if unknown:
        option = unknown[0].partition("=")[0]
        parser.error(f"unknown argument {option!r}{nearest(option, parser._option_string_actions)}")
    return args.run(args) or 0


def find_verbs() -> dict[str, EntryPoint]:
    """Name -> entry point of every verb of every installed package, in order of name; of two with one name, ours."""
    verbs: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in verbs or (entry.dist and entry.dist.name == DISTRIBUTION):
            verbs[entry.name] = entry
    if not verbs:
        raise ImportError("no verbs, because the package is not installed: pip install -e . in its folder")
    return dict(sorted(verbs.items()))


def load_verb(entry: EntryPoint) -> Callable[[argparse.ArgumentParser], None]:
    """The verb's function. ImportError, naming verb, place and reason, whatever another package's code raises."""
    try:
        verb = entry.load()
        if not callable(verb):
            raise TypeError("not a function")
        return verb
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ImportError(f"broken ({entry.value}): {reason}") from error


class Parser(argparse.ArgumentParser):
    """Complains in one line: the usage of a verb with many options is a screenful."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mmlm: {message}; {self.prog} --help lists what there is\n")


def verb_parser(entry: EntryPoint) -> argparse.ArgumentParser:
    """The verb's parser, its arguments added; its docstring heads its help. ImportError as for `load_verb`."""
    try:
        verb = load_verb(entry)
    except ImportError as error:
        raise ImportError(f"the verb {entry.name!r} is {error}") from error
    from inspect import cleandoc

    parser = Parser(
        prog=f"mmlm {entry.name}",
        description=cleandoc(verb.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb(parser)
    return parser


def overview(verbs: dict[str, EntryPoint]) -> str:
    """The text of `mmlm --help`: a line for each verb, broken ones included."""
    width = max(map(len, verbs)) + 2
    return OVERVIEW.format(verbs="\n".join(f"  {name:{width}}{help_line(entry)}" for name, entry in verbs.items()))


def help_line(entry: EntryPoint) -> str:
    """The first line of the verb's docstring, or why there is none."""
    try:
        return (load_verb(entry).__doc__ or "").strip().partition("\n")[0]
    except ImportError as error:
        return str(error)


def nearest(word: str, names: Iterable[str]) -> str:
    """What to add to the complaint about an unknown word: the nearest known one, if one is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(names), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def plain(error: BaseException) -> str | None:
    """One line that tells a user what went wrong and where; None for a bug, which needs its traceback."""
    # A full disk reaches us as safetensors' own error too, told from others by its words alone.
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
        name = getattr(error, "filename", None) or one_line(str(error))
        return f"no space left on the disk for {name}: make some, then run this again"
    match error:
        case KeyboardInterrupt():
            return "; ".join(["interrupted: what was finished is kept", *map(str, error.args)])
        case MemoryError():
            return one_line(f"out of memory {error}")
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for it
            return one_line(str(error))
        case ModuleNotFoundError():
            return f'{error}; pip install -e ".[quickstart]" brings all that mmlm uses'
        case OSError(filename=str(name), strerror=str(reason)):
            return f"{name}: {reason}"
        case ValueError() | OSError() | ImportError() | FloatingPointError():
            return one_line(str(error)) or type(error).__name__
    return None


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())
