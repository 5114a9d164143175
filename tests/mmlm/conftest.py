"""Says, at the end of a run, which families of decoders held what; and writes the table of docs/decoders.md."""

from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest
from families import CANNOT, is_moe, types

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
PASSED, ALONE = "✓", "–"
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
            said = PASSED if report.passed else "✗"
        item.config.stash[RESULTS][family][check] = said


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not results:
        return
    whole = [name for name, said in results.items() if len(said) == len(CHECKS) and "✗" not in said.values()]
    kinds = types()
    for title, moe in (("Mixtures of Experts", True), ("dense decoders", False)):
        names = sorted(name for name in whole if is_moe(kinds[name]) == moe)
        if names:
            terminalreporter.write_line(f"\n{len(names)} families of {title} hold: {', '.join(names)}")
    for name in sorted(results):
        for check, said in results[name].items():
            if said == ALONE:
                terminalreporter.write_line(f"  {name}: {CHECKS[check]} is not so without eyes either")
            elif said != PASSED:
                terminalreporter.write_line(f"  {name}: {CHECKS[check]}: {said}")
    terminalreporter.write_line(f"\n{len(CANNOT)} families cannot be built small, or cannot be given eyes:")
    for name, (_, reason) in sorted(CANNOT.items()):
        terminalreporter.write_line(f"  {name}: {reason}")
    if path := config.getoption("--families"):
        Path(path).write_text(table(results), encoding="utf-8")


def table(results):
    """docs/decoders.md."""
    kinds = types()
    lines = [
        "# Decoders",
        "",
        f"What every causal decoder of transformers {version('transformers')} does with eyes, small and random, on a CPU: made by",
        "`make families`, which runs `tests/mmlm/test_families.py`. ✓ holds; – does not hold of the decoder alone either.",
        "",
    ]
    for title, moe in (("Mixtures of Experts", True), ("Dense", False)):
        lines += [f"## {title}", "", f"| family | {' | '.join(CHECKS.values())} |", "|---" * (len(CHECKS) + 1) + "|"]
        for name in sorted(results):
            if is_moe(kinds[name]) == moe:
                cells = [results[name].get(check, "") for check in CHECKS]
                lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["## Not these", ""]
    lines += [f"* {name}: {reason}" for name, (_, reason) in sorted(CANNOT.items())]
    return "\n".join(lines) + "\n"
