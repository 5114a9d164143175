"""benchmarks/endtoend.py: what is compared is the same work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "endtoend.py"


@pytest.mark.slow
def test_all_see_the_same_images_and_learn_the_same_tokens():
    small = ["--contenders", "mllama", "--pairs", "5", "--epochs", "2", "--rows", "2"]
    done = subprocess.run([sys.executable, BENCHMARK, *small], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    ours, peer = sorted(lines, key=lambda line: line["contender"] != "mmlm")
    assert [ours[name] for name in ("steps", "images")] == [6, 10]
    assert {name: ours[name] for name in ("steps", "images", "tokens")} == {
        name: peer[name] for name in ("steps", "images", "tokens")
    }
    for found in (ours, peer):
        assert 0 < found["train"][0] < found["whole"][0]
    row = next(line for line in done.stdout.splitlines() if line.startswith("| mmlm "))
    assert "| 1.00 | 1.00 |" in row, "one round has no quartiles"
