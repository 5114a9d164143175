"""Says, at the end of a run, which families of decoders held what; and writes the table of docs/decoders.md."""

from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest
from families import CANNOT, is_moe, types
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as MAPPING

from mmlm import cli

CHECKS = {
    "blind_is_exact": "blind",
    "blind_rows_are_exact": "mixed batch",
    "text_before_an_image_is_exact": "before an image",
    "born_is_exact": "born",
    "frozen_is_frozen": "frozen",
    "cached_is_uncached": "cache",
    "padded_is_alone": "padding",
    "saved_is_loaded": "save, load",
    "checkpointing_gives_the_same_gradients": "checkpointing",
}
MEANINGS = {
    "blind_is_exact": "without an image the logits are the bare decoder's",
    "blind_rows_are_exact": "so are those of a row without an image in a batch that has some",
    "text_before_an_image_is_exact": "and of the tokens before the first image of a row",
    "born_is_exact": "with gates shut, as they are before training, all logits are the bare decoder's",
    "frozen_is_frozen": "training leaves the decoder's bytes as they were, and moves the adapter",
    "cached_is_uncached": "generating with the cache says what the whole text, without a cache, foretells",
    "padded_is_alone": "prompts of two lengths in a batch say what each says alone",
    "saved_is_loaded": "an adapter that is saved and loaded gives the same logits",
    "checkpointing_gives_the_same_gradients": "activations that are computed again give the same gradients",
}
TITLES = {"Mixtures of Experts": True, "dense decoders": False}
PASSED, FAILED, ALONE = "✓", "✗", "not so without eyes either"
RESULTS = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--families", metavar="FILE", help="write the table of decoder families into this file")


def pytest_configure(config):
    config.stash[RESULTS] = defaultdict(dict)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    family = dict(item.user_properties).get("family")
    if family and (report.when == "call" or report.outcome != "passed"):
        check = item.function.__name__.removeprefix("test_")
        if hasattr(report, "wasxfail"):
            said = report.wasxfail.removeprefix("reason: ")
        elif report.skipped:
            said = ALONE
        else:
            said = PASSED if report.passed else FAILED
        item.config.stash[RESULTS][family][check] = said


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not results:
        return
    say, kinds = terminalreporter.write_line, types()
    for title, moe in TITLES.items():
        names = [name for name in sorted(results) if is_moe(kinds[name]) == moe and holds(results[name])]
        if names:
            say(f"\n{len(names)} families of {title} hold: {', '.join(names)}")
    for name in sorted(results):
        for check, said in results[name].items():
            if said != PASSED:
                say(f"  {name}: {CHECKS[check]}: {said}")
    say(f"\n{len(CANNOT)} families cannot be built small, or cannot be given eyes:")
    for name, (_, reason) in sorted(CANNOT.items()):
        say(f"  {name}: {reason}")
    if path := config.getoption("--families", None):
        if all(len(results[name]) == len(CHECKS) for name in kinds if name not in CANNOT):
            Path(path).write_text(table(results), encoding="utf-8")
        else:
            say(f"\n{path} is not written: not every check of every family was run")


def holds(said):
    """Were all checks made, and did the family hold what it holds without eyes?"""
    return len(said) == len(CHECKS) and set(said.values()) <= {PASSED, ALONE}


def table(results):
    """docs/decoders.md."""
    kinds, notes = types(), {}
    served = {name: ", ".join(f"`{kind}`" for kind, its in MAPPING.items() if its == name) for name in kinds}
    lines = [
        "# Decoders",
        "",
        f"Every causal decoder of transformers {version('transformers')}, small and random, given eyes and checked:",
        "`make families` does it again, and writes this file.",
        "",
    ]
    sections = []
    for title, moe in TITLES.items():
        names = [name for name in sorted(results) if is_moe(kinds[name]) == moe]
        whole = [name for name in names if holds(results[name])]
        clean = [name for name in whole if set(results[name].values()) == {PASSED}]
        lines.append(
            f"* {len(names)} families of {title}: {len(clean)} pass every check, {len(whole) - len(clean)} all that "
            f"their decoder passes without eyes, {len(names) - len(whole)} not all."
        )
        sections += ["", f"## {title[0].upper()}{title[1:]}", ""]
        sections += [f"| family | model types | {' | '.join(CHECKS.values())} |", "|---" * (len(CHECKS) + 2) + "|"]
        for name in names:
            cells = [mark(results[name][check], notes) for check in CHECKS]
            sections.append(f"| `{name}` | {served[name]} | {' | '.join(cells)} |")
    lines.append(
        f"* {len(CANNOT)} families cannot be built small, or cannot be given eyes, for the reasons at the end."
    )
    lines += ["", "| check | what holds, bit for bit or token for token |", "|---|---|"]
    lines += [f"| {CHECKS[check]} | {what} |" for check, what in MEANINGS.items()]
    lines += [*sections, ""]
    lines += [f"<sup>{number}</sup> {reason}  " for reason, number in notes.items()]
    lines += ["", "## Not these", "", "| family | model types | why |", "|---|---|---|"]
    lines += [f"| `{name}` | {served[name]} | {reason} |" for name, (_, reason) in sorted(CANNOT.items())]
    return "\n".join(lines) + "\n"


def mark(said, notes):
    """The cell of a check; what is no plain ✓ or ✗ gets a note."""
    if said in (PASSED, FAILED):
        return said
    return f"–<sup>{notes.setdefault(said, len(notes) + 1)}</sup>"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The test starts in this folder, which is empty, with cache folders and an environment of its own."""
    monkeypatch.setenv("MMLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name, value in cli.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
