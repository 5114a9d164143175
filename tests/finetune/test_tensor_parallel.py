"""Decoders that processes cannot share, and launchers that do not fit; test_run.py has processes that share one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from quantized import INT8

from finetune.run import build
from finetune.run_config import DataConfig, ModelConfig, RunConfig, check_run
from finetune.tensor_parallel import check_parted


@pytest.mark.parametrize(
    ("size", "fields", "message"),
    [
        (3, {}, "3, and the decoder's num_attention_heads is 4; take a divisor of it"),
        (4, {}, "4, and the decoder's num_key_value_heads is 2; take a divisor of it"),
        (2, {"lora": {"r": 2}}, r"stays as it is then, decoder\.model\.layers\.0\..* leave out model.lora"),
        (2, {"unfreeze": ["decoder.*norm*"]}, "norm.weight and 12 more would learn; leave out"),
    ],
)
def test_what_cannot_be_parted_is_refused(size, fields, message, make_model):
    with pytest.raises(ValueError, match=message):
        check_parted(make_model(**fields), size)


def test_what_can_be_parted_is_not(tiny_model):
    check_parted(tiny_model, 2)


def test_a_quantized_decoder_is_not_parted(parts):
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match="2, and the decoder is quantized; take one of the two"):
        check_parted(build(ModelConfig(**parts, decoder_kwargs=INT8)), 2)


@pytest.mark.slow
def test_a_team_runs_what_all_of_it_could_read():
    here = Path(__file__).parent
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", here / "agreeing.py"]
    done = subprocess.run([sys.executable, *launched], cwd=here.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[[["a"], ["c", "e"]], ["b: gone", "d: gone", "f: damaged"]]] * 2


@pytest.mark.parametrize(
    ("size", "environment", "message"),
    [
        (3, {"WORLD_SIZE": "4"}, "model.tensor_parallel: 3 of 4 processes: launch 3, or a multiple of it"),
        (
            2,
            {"WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true"},
            "2, and FSDP or ZeRO parts what it does: take ddp.yaml",
        ),
        (
            1,
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
            "parallelism_config: leave it out, .* --model.tensor_parallel 2",
        ),
    ],
)
def test_a_launcher_that_does_not_fit_is_refused(size, environment, message, monkeypatch, tmp_path):
    config = RunConfig()
    config.data, config.model.tensor_parallel = [DataConfig("pairs")], size
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        check_run(config, tmp_path / "run", resume=False, overwrite=False)
