"""docs/finetune.md: each of its commands does what it says, on a small decoder and the drawn pairs."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from quantized import INT8

from finetune.config import resolve
from finetune.run_config import RunConfig
from mmlm import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith(("    mmlm ", "    accelerate "))]
SMALL = ["--steps=4", "--save_every=2", "--calibrate=2", "--words=4", "--batch.images=4", "--cache_gb=1"]


@pytest.fixture
def here(tmp_path, pairs, monkeypatch):
    """A folder like the checkout's, with pairs/ in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").symlink_to(pairs)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.mark.slow
def test_each_command_does_what_it_says(here, parts, capsys):
    small = [*SMALL, *(f"--model.{name}={value}" for name, value in parts.items())]
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        launcher, *words = shlex.split(command)
        words += small if "finetune" in words else ["--decoder", parts["decoder"]] if "check" in words else []
        if launcher == "mmlm":
            assert cli.main(words) == 0, (command, capsys.readouterr().err)
        else:
            done = subprocess.run(
                [sys.executable, "-m", "accelerate.commands.launch", *words[1:]], capture_output=True, text=True
            )
            assert done.returncode == 0, (command, done.stderr)
    assert (here / "runs" / "mine" / "model.safetensors").exists() and (here / "pruned").is_dir()


def test_the_settings_on_the_page_are_settings():
    block = PAGE.partition("scored while it trains:\n")[2].partition("\nThe run's folder")[0]
    config = resolve(RunConfig(), yaml.safe_load(block))
    assert [one.weight for one in config.data] == [3, 1] and config.held_out[0].path == "val.jsonl"
    block = PAGE.partition("is loaded on it again.\n")[2].partition("\n## ")[0]
    assert resolve(RunConfig(), yaml.safe_load(block)).model.decoder_kwargs == INT8


@pytest.mark.slow
def test_the_benchmark_of_a_step_tells_its_time_and_its_share_of_a_product():
    small = ["--contenders", "plain", "recompute", "--rows", "2", "--tokens", "16", "--rounds", "2", "--peak", "1"]
    benchmark = [sys.executable, ROOT / "benchmarks" / "training.py", *small]
    done = subprocess.run(benchmark, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, recompute = map(json.loads, done.stdout.splitlines()[1:])
    assert plain["gflops"] == recompute["gflops"] > 2 * 2 * 16 * 0.05, "two passes over 50M parameters, at the least"
    for found in (plain, recompute):
        rate = found["gflops"] / 1e3 / found["seconds"][0]
        assert found["mfu_of_product"] == pytest.approx(rate / found["product_tflops"], rel=0.05, abs=1e-3)
        assert found["mfu"] == pytest.approx(rate, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp2", "zero1"])
def test_the_shipped_launcher_settings_are_accelerates(name):
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))
    kinds = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero1": "DEEPSPEED"}
    assert config.distributed_type == kinds[name]
    assert f"configs/accelerate/{name}.yaml" in PAGE or f"`{name}.yaml`" in PAGE
