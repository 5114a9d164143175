"""lmms-eval, by the commands of docs/eval.md: it logs what the model says, and scores that."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eval.harness import chat_of, weighed
from mmlm.model import MultimodalLM

pytest.importorskip(
    "lmms_eval", reason="lmms-eval is not installed here: `make harnesses` runs this where it is, in .venv-harnesses"
)
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8").splitlines()
CHAT, CHOICE, TWO = (line.strip() for line in LINES if line.startswith("    python -m ") and "lmms_eval" in line)
CHOICES = ["a cat", "two dogs and a bird", "no"]


@pytest.fixture(scope="module")
def model(home, adapter):
    return MultimodalLM.from_pretrained(adapter)


@pytest.fixture(scope="module")
def questions(model, shapes):
    """One image, two and none, with questions of several lengths; of every other the answer is what is said."""
    paths = [str(path) for path, _, _ in shapes]
    asked = [(paths[n : n + 1], f"what is{' ever' * (n % 3)} shown?") for n in range(6)]
    asked += [(paths[6:8], "which one?"), ([], "who?")]
    rows = []
    for number, (images, question) in enumerate(asked):
        said = model.generate(images, model.messages(question, len(images)), max_new_tokens=8, do_sample=False)
        parts = [{"type": "image", "url": image} for image in images] + [{"type": "text", "text": question}]
        chat = chat_of(model.config, [{"role": "user", "content": parts}])
        found = weighed(model, [chat] * len(CHOICES), CHOICES)
        best = likeliest([its.total for its in found])
        rows.append(
            {
                "images": images,
                "question": question,
                "answer": said if number % 2 else "something else",
                "choices": CHOICES,
                "label": best if number % 4 else (best + 1) % len(CHOICES),
                "said": said,
                "found": found,
            }
        )
    assert len({row["said"] for row in rows}) > 5, "it looks"
    return rows


def likeliest(logs):
    return max(range(len(logs)), key=lambda place: logs[place])


@pytest.fixture(scope="module")
def run(home, adapter, questions, tmp_path_factory):
    """Runs a command of lmms-eval: run(command, words of more) -> its scores, and what it logged of each question."""

    def run_(command, *words):
        folder = tmp_path_factory.mktemp("lmms")
        names = ("images", "question", "answer", "choices", "label")
        lines = ({name: row[name] for name in names} for row in questions)
        (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "runs").mkdir()
        (folder / "runs" / "mine").symlink_to(adapter)
        (folder / "tests").symlink_to(ROOT / "tests")
        python, *told = shlex.split(command)
        assert python == "python"
        alone = {"HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(
            [sys.executable, *told, *words], cwd=folder, env=os.environ | alone, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        (scores,) = (folder / "runs" / "lmms").rglob("*_results.json")
        (samples,) = (folder / "runs" / "lmms").rglob("*_samples_*.jsonl")
        logged = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
        (found,) = json.loads(scores.read_text())["results"].values()
        return found, [line["filtered_resps"] for line in logged]

    return run_


@pytest.mark.parametrize(
    ("command", "words"),
    [(CHAT, ()), (TWO, ()), (CHAT, ("--force_simple", "--batch_size", "3"))],
    ids=["chats", "two processes", "images and text"],
)
def test_what_is_said_is_what_the_model_says(run, questions, command, words):
    scores, said = run(command, *words)
    assert said == [row["said"] for row in questions]
    assert scores["exact_match,none"] == 0.5


def test_the_likeliest_choice_is_taken(run, questions):
    scores, found = run(CHOICE, "--batch_size", "4")
    for pairs, row in zip(found, questions, strict=True):
        losses, greedy = zip(*pairs, strict=True)  # which it logs as strings
        assert [float(loss) for loss in losses] == pytest.approx([-its.total for its in row["found"]], rel=1e-5)
        assert list(greedy) == [str(its.greedy) for its in row["found"]]
    assert scores["acc,none"] == 0.75
    each = [[its.total / len(choice) for its, choice in zip(row["found"], CHOICES, strict=True)] for row in questions]
    right = [likeliest(normed) == row["label"] for normed, row in zip(each, questions, strict=True)]
    assert scores["acc_norm,none"] == sum(right) / len(right)


@pytest.mark.parametrize("words", [(), ("--force_simple",)], ids=["chats", "images and text"])
def test_a_task_of_several_rounds_is_told_what_was_said(run, model, questions, words):
    _, said = run(CHAT, "--tasks", "mmlm_shapes_rounds", *words)
    for both, row in zip(said, questions, strict=True):
        asked = model.messages(f"you said {len(row['said'])} characters, sure?", len(row["images"]))
        again = model.generate(row["images"], asked, max_new_tokens=8, do_sample=False)
        assert both == [row["said"], again]
