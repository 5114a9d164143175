"""The page that benchmarks write: each its own sections, and nothing else of it."""

import re

import pytest
from page import PAGE, table, write

SECTIONS = ["peers", "finetune", "floors", "growth", "gpu peers", "gpu"]


@pytest.fixture
def page(tmp_path):
    copy = tmp_path / "performance.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    return copy


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_replaced_and_says_on_what_it_was_measured(section, page):
    before = page.read_text(encoding="utf-8")
    for text in ("one", table([["", "a"], ["b", "1"]])):
        write(section, text, page)
    start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    now = page.read_text(encoding="utf-8")
    inside = re.search(f"{start}\n(.*?)\n{end}", now, re.DOTALL)[1]
    assert inside.startswith("|  | a |\n|---|---|\n| b | 1 |\n\nOn: ")
    assert re.search(r"torch \d.*, transformers \d.*, Python \d", inside)
    assert re.sub(f"{start}.*?{end}", "", now, flags=re.DOTALL) == re.sub(
        f"{start}.*?{end}", "", before, flags=re.DOTALL
    )
    assert list(page.parent.iterdir()) == [page], "no drafts"


def test_a_section_that_the_page_lacks_is_refused(page):
    before = page.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="mark it with the lines <!-- speed --> and <!-- /speed -->"):
        write("speed", "fast", page)
    assert page.read_text(encoding="utf-8") == before
