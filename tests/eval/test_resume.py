"""A run that is killed, or parted among processes, ends with the bytes of one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval import parts
from eval.parts import Part

ROOT = Path(__file__).parents[2]
FILES = ("predictions.jsonl", "scores.json", "report.html")
FEW = ["--max-new-tokens", "5", "--batch", "4"]


def contents(folder):
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, which may be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_half_a_line_is_passed_over(tmp_path):
    part = Part(tmp_path, 0)
    part.add(("true", (3, 1)), [{"said": "a"}, {"said": "b\n"}])
    part.add(("blind", (2,)), [{"said": "ü"}])
    part.close()
    path = tmp_path / "parts" / "0.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    assert parts.read(tmp_path) == {("true", (3, 1)): [{"said": "a"}, {"said": "b\n"}]}
    part = Part(tmp_path, 0)
    part.add(("blind", (2,)), [{"said": "ü"}])
    part.close()
    assert parts.read(tmp_path)["blind", (2,)] == [{"said": "ü"}] and len(parts.read(tmp_path)) == 2


def test_what_was_said_is_not_asked_again(evaluate, copy, finished, adapter, questions, monkeypatch):
    for name in FILES:
        (copy / name).unlink()
    monkeypatch.setattr("eval.answering.answer", None)
    evaluate("vqa", adapter, questions, copy, "--resume")
    assert contents(copy) == contents(finished)


@pytest.mark.parametrize("processes", [1, 3])
def test_what_is_left_is_asked_by_other_processes_than_began(evaluate, processes, copy, finished, adapter, questions):
    lines = (copy / "parts" / "0.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "parts" / "0.jsonl").unlink()
    for process in range(processes):
        (copy / "parts" / f"{7 * process}.jsonl").write_bytes(b"".join(lines[process : len(lines) // 2 : processes]))
    for name in FILES:
        (copy / name).unlink()
    evaluate("vqa", adapter, questions, copy, "--resume")
    assert contents(copy) == contents(finished)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--prompt", "{question} Say."], "prompt was '{question}' when its run began, and is '{question} Say.' now"),
        (["--limit", "9"], "limit was 0"),
        (["--batch", "5"], "batch was 4"),
        (["--max-new-tokens", "6"], "max_new_tokens was 5"),
    ],
)
def test_a_run_goes_on_as_it_began(evaluate, words, field, copy, finished, adapter, questions, capsys):
    evaluate("vqa", adapter, questions, copy, "--resume", *words, status=1)
    assert field in capsys.readouterr().err and contents(copy) == contents(finished)


def test_other_weights_and_other_data_are_told(evaluate, copy, adapter, questions, capsys, tmp_path):
    from mmlm.model import MultimodalLM

    before = questions.read_text()
    try:
        questions.write_text(before.replace("what color", "which color"))
        evaluate("vqa", adapter, questions, copy, "--resume", status=1)
    finally:
        questions.write_text(before)
    assert ": samples was '" in capsys.readouterr().err
    model = MultimodalLM.from_pretrained(adapter)
    model.adapter.blocks[0].attention_gate.data.fill_(0.3)
    model.save_pretrained(tmp_path / "other")
    evaluate("vqa", tmp_path / "other", questions, copy, "--resume", status=1)
    assert ": weights was '" in capsys.readouterr().err


def test_a_run_is_left_alone_unless_it_is_to_be_started_over(
    evaluate, copy, finished, adapter, questions, tmp_path, capsys
):
    evaluate("vqa", adapter, questions, copy, status=1)
    assert "a run is there already; --resume goes on with it" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    evaluate("vqa", adapter, questions, tmp_path / "mine", "--overwrite", status=1)
    assert "something else is there" in capsys.readouterr().err
    evaluate("vqa", adapter, questions, copy, "--overwrite", "--limit", "3")
    assert len((copy / "predictions.jsonl").read_bytes().splitlines()) == 3
    assert len(list((copy / "parts").iterdir())) == 1


@pytest.mark.slow
def test_killed_is_not_killed(evaluate, finished, adapter, questions, tmp_path):
    """By SIGKILL, after some batches."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "eval", "vqa", str(adapter), str(questions), "--out", str(out), *FEW]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    said = out / "parts" / "0.jsonl"
    while not (said.exists() and said.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = said.read_bytes()
    assert not (out / "scores.json").exists() and 3 <= before.count(b"\n") < 13
    evaluate("vqa", adapter, questions, out, "--resume")
    assert contents(out) == contents(finished)
    assert said.read_bytes().startswith(before), "what was said is kept"


@pytest.mark.slow
def test_two_processes_say_the_same_as_one(finished, adapter, questions, tmp_path):
    out = tmp_path / "two"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "eval"]
    command = [sys.executable, "-m", *launch, "vqa", str(adapter), str(questions), "--out", str(out), *FEW]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(finished)
    batches = [json.loads(line) for path in (out / "parts").iterdir() for line in path.read_text().splitlines()]
    assert len(list((out / "parts").iterdir())) == 2 and len(batches) == 13
    for way in ("true", "shuffled"):
        assert sorted(row for one in batches if one["way"] == way for row in one["rows"]) == list(range(24))
