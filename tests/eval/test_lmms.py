"""lmms-eval runs the model by its own command line: what is said is what the model says, and so are the scores."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.harness import chat_of, weighed
from mmlm.model import MultimodalLM

pytest.importorskip(
    "lmms_eval", reason="lmms-eval is not installed here: `make lmms-eval` runs this where it is, in .venv-lmms"
)
pytestmark = pytest.mark.slow

TASKS = Path(__file__).parent / "lmms_tasks"
CHOICES = ["a cat", "two dogs and a bird", "no"]


@pytest.fixture(scope="module")
def model(home, adapter):
    return MultimodalLM.from_pretrained(adapter)


@pytest.fixture(scope="module")
def questions(model, shapes):
    """One and two images and none, with questions of several lengths; of every other the answer is what is said."""
    paths = [str(path) for path, _, _ in shapes]
    asked = [(paths[n : n + 1], f"what is{' ever' * (n % 3)} shown?") for n in range(6)]
    asked += [(paths[6:8], "which one?"), ([], "who?")]
    rows = []
    for number, (images, question) in enumerate(asked):
        said = model.generate(images, model.messages(question, len(images)), max_new_tokens=8, do_sample=False)
        chat = chat_of(model.config, [{"role": "user", "content": parts(images, question)}])
        found = weighed(model, [chat] * len(CHOICES), CHOICES)
        best = max(range(len(CHOICES)), key=lambda place: found[place].total)
        rows.append(
            {
                "images": images,
                "question": question,
                "answer": said if number % 2 else "something else",
                "choices": CHOICES,
                "label": best if number % 4 else (best + 1) % len(CHOICES),
                "said": said,
                "totals": [its.total for its in found],
                "greedy": [its.greedy for its in found],
            }
        )
    assert len({row["said"] for row in rows}) > 5, "it looks"
    return rows


def parts(images, question):
    return [{"type": "image", "url": image} for image in images] + [{"type": "text", "text": question}]


@pytest.fixture(scope="module")
def run(home, adapter, questions, tmp_path_factory):
    """Runs lmms-eval: run(task, words, launcher) -> its scores, and what it logged of each question."""

    def run_(task, *words, launcher=()):
        folder = tmp_path_factory.mktemp("lmms")
        lines = (
            {name: row[name] for name in ("images", "question", "answer", "choices", "label")} for row in questions
        )
        (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "runs").mkdir()
        (folder / "runs" / "mine").symlink_to(adapter)
        told = ["--model", "mmlm", "--model_args", "pretrained=runs/mine", "--tasks", task, "--include_path", TASKS]
        told += ["--log_samples", "--output_path", "out", *words]
        command = [sys.executable, "-m", *launcher, *(["-m"] if launcher else []), "lmms_eval", *map(str, told)]
        offline = {"HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=folder, env=os.environ | offline, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        (scores,) = (folder / "out").rglob("*_results.json")
        (samples,) = (folder / "out").rglob("*_samples_*.jsonl")
        logged = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
        return json.loads(scores.read_text())["results"][task], logged

    return run_


def test_what_is_said_is_what_the_model_says(run, questions):
    scores, logged = run("mmlm_shapes", "--batch_size", "3", "--device", "cpu")
    assert [line["filtered_resps"] for line in logged] == [row["said"] for row in questions]
    assert scores["exact_match,none"] == 0.5


def test_the_likeliest_choice_is_taken(run, questions):
    scores, logged = run("mmlm_shapes_choice", "--batch_size", "4", "--device", "cpu", "--force_simple")
    for line, row in zip(logged, questions, strict=True):
        losses, greedy = zip(*line["filtered_resps"], strict=True)  # which it logs as strings
        assert [float(loss) for loss in losses] == pytest.approx([-total for total in row["totals"]], rel=1e-5)
        assert list(greedy) == [str(its) for its in row["greedy"]]
    assert scores["acc,none"] == 0.75
    lengths = [len(choice) for choice in CHOICES]
    normed = [max(range(3), key=lambda n, row=row: row["totals"][n] / lengths[n]) for row in questions]
    assert math.isclose(
        scores["acc_norm,none"], sum(n == row["label"] for n, row in zip(normed, questions, strict=True)) / 8
    )


def test_the_simple_interface_says_the_same(run, questions):
    _, logged = run("mmlm_shapes", "--force_simple", "--device", "cpu", "--gen_kwargs", "max_new_tokens=8")
    assert [line["filtered_resps"] for line in logged] == [row["said"] for row in questions]


@pytest.mark.parametrize("words", [(), ("--force_simple",)], ids=["chat", "simple"])
def test_a_task_of_several_rounds_is_told_what_was_said(run, model, questions, words):
    _, logged = run("mmlm_shapes_rounds", "--device", "cpu", *words)
    for line, row in zip(logged, questions, strict=True):
        asked = model.messages(f"you said {len(row['said'])} characters, sure?", len(row["images"]))
        again = model.generate(row["images"], asked, max_new_tokens=8, do_sample=False)
        assert line["filtered_resps"] == [row["said"], again]


def test_two_processes_say_the_same(run, questions):
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    scores, logged = run("mmlm_shapes", "--batch_size", "2", launcher=launcher)
    assert [line["filtered_resps"] for line in logged] == [row["said"] for row in questions]
    assert scores["exact_match,none"] == 0.5
