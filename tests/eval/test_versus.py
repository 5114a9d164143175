"""`mmlm eval compare A B`: what one run gains over another of the same samples."""

import json
import shutil

import pytest

from eval.versus import compare, read_run
from mmlm import cli


@pytest.fixture
def pair(finished, tmp_path):
    """Two runs of one data set: B is right about two more than A, and wrong about one that A has right."""
    folders = tmp_path / "A", tmp_path / "B"
    for folder, rights in zip(folders, ((0, 1), (1, 2, 3)), strict=True):
        shutil.copytree(finished, folder)
        lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_bytes().splitlines()]
        for row, line in enumerate(lines):
            line["scores"] = {"accuracy": float(row in rights), "exact": 0.5}
            line["said"] = line["references"][0] if row in rights else "<b>wrong\u2028</b>"
        (folder / "predictions.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8"
        )
    return folders


def test_what_flipped_is_counted_and_shown(pair, capsys):
    assert cli.main(["eval", "compare", *map(str, pair)]) == 0
    said, page = capsys.readouterr().out, (pair[1] / "compare.html").read_text()
    assert (
        "accuracy: 2 better in B, 1 worse, 21 alike" in said and "  worse: 0-color: 'what color is it?' A 'red'" in said
    )
    assert page.count("<figure>") == page.count("<img ") == 3
    assert "&lt;b&gt;wrong" in page and "<b>wrong" not in page
    assert "Better in B: 2" in page and "Worse in B: 1" in page


def test_differences_are_paired(pair):
    found = {row[0]: row[-1] for row in compare(*map(read_run, pair)).rows}
    assert found["accuracy"].startswith("+0.042 (-") and found["exact"] == "+0.000 (+0.000 to +0.000)"


def test_a_run_gains_nothing_over_itself(finished):
    found = compare(read_run(finished), read_run(finished))
    assert found.better == found.worse == [] and found.count.endswith("24 alike")


def test_what_only_one_has_and_what_was_asked_otherwise_is_told(pair, capsys):
    lines = [json.loads(line) for line in (pair[0] / "predictions.jsonl").read_bytes().splitlines()]
    for line in lines:
        line["scores"]["clip_score"] = 0.5
    (pair[0] / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = json.loads((pair[0] / "scores.json").read_text())
    report["scores"] |= {"clip_score": report["scores"]["exact"]}
    report["settings"] |= {"prompt": "{question} Briefly."}
    (pair[0] / "scores.json").write_text(json.dumps(report))
    assert cli.main(["eval", "compare", *map(str, pair)]) == 0
    said, page = capsys.readouterr().out, (pair[1] / "compare.html").read_text()
    assert "not compared: clip_score" in said and "clip_score" in page
    assert "prompt   {question} Briefly.  {question}" in said and "{question} Briefly." in page


def test_runs_of_other_samples_are_refused(evaluate, finished, adapter, questions, captions, tmp_path, capsys):
    evaluate("vqa", adapter, questions, tmp_path / "few", "--limit", "5")
    evaluate("caption", adapter, captions, tmp_path / "captions")
    for other, message in (("few", "of sample 1 is"), ("captions", "is of vqa"), ("absent", "no finished run")):
        assert cli.main(["eval", "compare", str(finished), str(tmp_path / other)]) == 1
        assert message in capsys.readouterr().err
