"""docs/eval.md: each of its commands does what it says, on a small decoder and drawn shapes."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import LAYOUTS

from mmlm import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith(("    mmlm ", "    accelerate "))]


@pytest.mark.slow
def test_each_command_does_what_it_says(tmp_path, adapter, shapes, answered, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(adapter)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("questions.jsonl", "train.jsonl"):
        (tmp_path / name).write_text(answered.read_text())
    (tmp_path / "pairs").mkdir()
    for path, color, shape in shapes:
        (tmp_path / "pairs" / path.name).symlink_to(path)
        (tmp_path / "pairs" / f"{path.stem}.txt").write_text(f"a {color} {shape}")
    LAYOUTS["vqav2"].write(tmp_path / "data" / "vqa")
    assert len(COMMANDS) == 10
    for command in COMMANDS:
        launcher, *words = shlex.split(command)
        words += [] if "compare" in words else ["--max-new-tokens", "5"]
        if launcher == "mmlm":
            assert cli.main(words) == 0, (command, capsys.readouterr().err)
        else:
            launch = [sys.executable, "-m", "accelerate.commands.launch", *words[1:]]
            done = subprocess.run(launch, capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stderr)
    runs = tmp_path / "runs" / "eval"
    assert sorted(path.name for path in runs.iterdir()) == [
        *("brief", "caption-mine-pairs", "caption-mine-pairs-2-shots-similar", "vqa-mine-questions"),
        *("vqa-mine-questions-4-shots", "vqa-mine-questions-best-of-8", "vqa-mine-questions-rank-mean"),
        "vqa-mine-vqav2-val",
    ]
    assert (runs / "vqa-mine-questions-best-of-8" / "best-of.png").exists()
    assert '"options": {"red": [' in (runs / "vqa-mine-questions-rank-mean" / "predictions.jsonl").read_text()
    assert {path.name for path in (runs / "brief").iterdir()} >= {
        *("predictions.jsonl", "scores.json", "report.html", "settings.json", "parts", "compare.html")
    }
