"""DeepSpeed's ZeRO, as Accelerate launches it, in two processes: the steps, checkpoints and bytes of a plain run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.checkpoint import checkpoints, read, step_of
from finetune.folder import METRICS
from finetune.zero import part
from mmlm import cli

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "configs/accelerate/zero1.yaml"]
STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}


@pytest.fixture
def zero():
    """Runs `mmlm finetune` in two processes: zero(stage, words of the command)."""
    pytest.importorskip("deepspeed")

    def run(stage, words):
        options = ["--zero_stage", str(stage), "--num_processes", "2", "--main_process_port", "0"]
        done = subprocess.run(
            [*LAUNCH, *options, "-m", "finetune", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    return run


def kept(folder, step):
    """What the checkpoint of a step holds."""
    (path,) = (path for path in checkpoints(folder) if step_of(path) == step)
    return read(path)


def metrics(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


@pytest.mark.slow
@STAGES
def test_a_step_is_that_of_one_process(stage, zero, write, tmp_path):
    """With passes and clipping; gradients within 1e-6. What comes of it is good for the other, too."""
    assert cli.main(["finetune", *write("begun", optim={"lr": 0.01})]) == 0
    settings = {"steps": 2, "save_every": 1, "keep": 9, "log_every": 1, "batch": {"images": 8, "passes": 2}}
    settings |= {"model": {"adapter": str(tmp_path / "begun")}, "optim": {"clip": 0.05}}
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(["finetune", *write("one", **settings)]) == 0
    zero(stage, write("two", **settings))
    for plain, parted in zip(metrics(one), metrics(two), strict=True):
        assert plain["gradient"] > 1, "it is clipped"
        assert parted["gradient"] == pytest.approx(plain["gradient"], rel=1e-5)
        assert parted["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    for step in (1, 2):
        plain, parted = kept(one, step), kept(two, step)
        assert parted["optimizer"].keys() == plain["optimizer"].keys()
        for name, state in plain["optimizer"].items():
            assert parted["optimizer"][name]["step"] == state["step"] == step
            gradient, other = (its["exp_avg"] / 0.1 for its in (state, parted["optimizer"][name]))
            torch.testing.assert_close(other, gradient, rtol=0, atol=1e-6, msg=name)
        for name, weight in plain["trained"].items():
            torch.testing.assert_close(parted["trained"][name], weight, rtol=0, atol=1e-4, msg=name)
    for folder in (one, two):  # each goes on with what the other began
        next(path for path in checkpoints(folder) if step_of(path) == 2).unlink()
        (folder / "model.safetensors").unlink()
    assert cli.main(["finetune", *write("two", **settings), "--resume"]) == 0
    zero(stage, [*write("one", **settings), "--resume"])
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_stopped_run_that_goes_on_ends_with_the_bytes_of_an_unbroken_one(stage, zero, write, parts, pairs, tmp_path):
    """With a frozen decoder in 16 bits, activations that are computed again, and scores on the way."""
    settings = {"steps": 4, "save_every": 2, "keep": 9, "recompute": True, "held_out": str(pairs)}
    settings |= {"score": {"every": 2, "samples": 5, "cards": 0}}
    settings |= {"model": {**parts, "decoder_kwargs": {"dtype": "bfloat16"}}}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    zero(stage, write("whole", **settings))
    shutil.copytree(whole, stopped)
    (stopped / "model.safetensors").unlink()
    next(path for path in checkpoints(stopped) if step_of(path) == 4).unlink()
    zero(stage, [*write("stopped", **settings), "--resume"])
    assert [path.name for path in checkpoints(stopped)] == [path.name for path in checkpoints(whole)], "hashes in them"
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
@STAGES
def test_a_step_that_is_left_out_changes_nothing(stage, zero, write, tmp_path):
    settings = {"steps": 4, "save_every": 1, "keep": 9, "log_every": 1, "trouble": "skip", "spike": 0.5}
    zero(stage, write("run", **settings))
    first, last = kept(tmp_path / "run", 1), kept(tmp_path / "run", 4)
    assert (first["progress"]["skipped"], last["progress"]["skipped"]) == (0, 3)
    assert all(weight.equal(last["trained"][name]) for name, weight in first["trained"].items())
    for name, state in first["optimizer"].items():
        assert all(value.equal(last["optimizer"][name][key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("launched", "message"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage: 0: takes 1 or 2 or 3, as"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "mine.json"}, "deepspeed_config_file: mine.json: takes none, as"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "offload_param_device: cpu: takes none, as"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision: bf16: takes no, as"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "a sharded model says nothing while it is trained"),
    ],
)
def test_what_deepspeed_cannot_be_told_is_refused_at_once(
    launched, message, write, pairs, monkeypatch, tmp_path, capsys
):
    for name, value in (DEEPSPEED | launched).items():
        monkeypatch.setenv(name, value)
    assert cli.main(["finetune", *write(held_out=str(pairs))]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_in_16_bits_are_not_trained():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))])
    with pytest.raises(
        ValueError, match=r"unfreeze: torch.bfloat16, and with DeepSpeed torch.float32 alone is trained"
    ):
        part(None, None, optimizer, 1.0)
