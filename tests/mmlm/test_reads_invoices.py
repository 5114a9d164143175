"""The claim of the OCR prepass: with it, `mmlm ask` reads the total of an invoice; without it, it cannot."""

import re
from functools import cache

import pytest
from documents import invoice

from mmlm import cli
from mmlm.model import MultimodalLM

COUNT = 12
AMOUNT = re.compile(r"\d[\d,]*\.\d\d")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The embedded default decoder with eyes that were never trained."""
    folder = tmp_path_factory.mktemp("run")
    MultimodalLM.from_parts().save_pretrained(folder)
    return str(folder)


def right(run, folder, capsys, *options):
    """How many totals the command line's answer names, as the first amount in it; and all (total, answer)."""
    said = []
    for seed in range(COUNT):
        image, total = invoice(seed)
        image.save(folder / "invoice.png")
        words = [
            "ask",
            str(folder / "invoice.png"),
            "What is the total?",
            "--model",
            run,
            "--max-new-tokens",
            "24",
            *options,
        ]
        assert cli.main(words) == 0
        said.append((total, capsys.readouterr().out.strip()))
    return sum(AMOUNT.findall(answer)[:1] == [total] for total, answer in said), said


@pytest.mark.slow
def test_with_the_prepass_totals_are_read_and_without_they_are_not(run, tmp_path, capsys, monkeypatch):
    opened = cache(MultimodalLM.from_pretrained)
    monkeypatch.setattr(MultimodalLM, "from_pretrained", opened)  # once for each, not for each invoice
    for name in cli.ENVIRONMENT:
        monkeypatch.setenv(name, cli.ENVIRONMENT[name])
    for options, least, most in ((["--ocr", "rapidocr"], 0.75 * COUNT, COUNT), ([], 0, 0.05 * COUNT)):
        count, said = right(run, tmp_path, capsys, *options)
        assert least <= count <= most, said
