"""Checkpoints: whole or not there, and refused where they do not fit."""

import os

import pytest
import torch
from torch import nn

from finetune import checkpoint
from finetune.folder import CHECKPOINT


def parts(width=3, seed=0):
    """A little module and its optimizer, a step into training."""
    torch.manual_seed(seed)
    module = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.randn(5, width)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return module, optimizer


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_what_is_loaded_is_what_was_saved(tmp_path):
    module, optimizer = parts()
    checkpoint.save(tmp_path, 7, 0.5, module, optimizer)
    other, its = parts(seed=1)
    assert not same(module.state_dict(), other.state_dict())
    assert checkpoint.load(tmp_path, other, its) == (7, 0.5)
    assert same(module.state_dict(), other.state_dict())
    assert same(optimizer.state_dict(), its.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_without_a_checkpoint_nothing_is_done(tmp_path):
    module, optimizer = parts()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert checkpoint.load(tmp_path, module, optimizer) == (0, 0.0)
    assert same(before, module.state_dict())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"PK not at all",
        lambda data: b"\x00" * len(data),
    ],
    ids=["cut", "empty", "other", "zeros"],
)
def test_a_damaged_checkpoint_is_told(damage, tmp_path):
    module, optimizer = parts()
    checkpoint.save(tmp_path, 7, 0.5, module, optimizer)
    path = tmp_path / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path}: damaged; .*--overwrite") as caught:
        checkpoint.load(tmp_path, module, optimizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, {"step": 3, "adapter": {}, "optimizer": {}}])
def test_another_file_of_torch_is_told(content, tmp_path):
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="not a checkpoint of this run's settings"):
        checkpoint.load(tmp_path, *parts())


def test_a_checkpoint_of_other_settings_is_told(tmp_path):
    checkpoint.save(tmp_path, 7, 0.5, *parts(width=3))
    with pytest.raises(ValueError, match="resume with the settings it was made with"):
        checkpoint.load(tmp_path, *parts(width=4))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_keeps_the_one_before(error, tmp_path, monkeypatch):
    module, optimizer = parts()
    checkpoint.save(tmp_path, 7, 0.5, module, optimizer)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        checkpoint.save(tmp_path, 8, 0.5, module, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert (tmp_path / CHECKPOINT).read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_told(tmp_path):
    """A draft that cannot grow: torch's own word for it is a RuntimeError."""
    module, optimizer = parts()
    (tmp_path / f".{CHECKPOINT}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"checkpoint\.pt: could not be written .*the one before it is kept"):
        checkpoint.save(tmp_path, 8, 0.5, module, optimizer)
    assert not list(tmp_path.iterdir())
