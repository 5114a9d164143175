"""Checkpoints: whole or not there, passed over where they are damaged, and refused where they do not fit."""

import os

import pytest
import torch

from finetune import checkpoint
from finetune.checkpoint import Progress, checkpoints, learning
from finetune.config import OptimConfig
from finetune.folder import CHECKPOINTS
from finetune.optim import adamw


@pytest.fixture
def start(make_model):
    """A model, and its optimizer a step into training."""

    def start_(seed=0, **settings):
        model = make_model(**settings)
        optimizer = adamw(learning(model), OptimConfig(lr=0.01))
        torch.manual_seed(seed)
        for _, parameter in learning(model):
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        return model, optimizer

    return start_


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def names(folder):
    return sorted(path.name.split(".")[0] for path in (folder / CHECKPOINTS).iterdir())


def test_what_is_loaded_is_what_was_saved(start, tmp_path):
    model, optimizer = start()
    progress = Progress(7, 0.5, 1, 30, 2, {"score": 3.0}, {"score": 3.5}, best_step=4)
    checkpoint.save(tmp_path, progress, model, optimizer, 2)
    other, its = start(seed=1)
    frozen = {name: p.clone() for name, p in other.named_parameters() if name not in other.trained}
    assert not same(model.saved(), other.saved())
    assert checkpoint.load(tmp_path, other, its) == progress
    assert same(model.saved(), other.saved())
    assert same(optimizer.state_dict(), its.state_dict())
    assert all(p.equal(frozen[name]) for name, p in other.named_parameters() if name in frozen)
    assert len(list(tmp_path.rglob("*"))) == 2, "the folder and the file"


def test_what_is_frozen_is_not_in_it(start, tmp_path):
    model, optimizer = start()
    checkpoint.save(tmp_path, Progress(7), model, optimizer, 2)
    trained = sum(parameter.nbytes for _, parameter in learning(model))
    buffers = sum(t.nbytes for t in model.saved().values()) - trained
    assert checkpoints(tmp_path)[0].stat().st_size < 3 * trained + buffers + 200_000, "itself and Adam's two moments"


def test_without_a_checkpoint_nothing_is_done(start, tmp_path):
    model, optimizer = start()
    before = {name: tensor.clone() for name, tensor in model.saved().items()}
    assert checkpoint.load(tmp_path, model, optimizer) == Progress()
    assert same(before, model.saved())


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, 0, ["step-00000050"]),
        (2, 0, ["step-00000040", "step-00000050"]),
        (2, 20, ["step-00000020", "step-00000040", "step-00000050"]),
        (2, 40, ["step-00000040", "step-00000050"]),
        (9, 0, [f"step-000000{step}" for step in (10, 20, 30, 40, 50)]),
    ],
)
def test_the_last_ones_are_kept_and_the_best(keep, best, left, start, tmp_path):
    model, optimizer = start()
    for step in range(10, 60, 10):
        checkpoint.save(tmp_path, Progress(step, best_step=min(best, step)), model, optimizer, keep)
    assert names(tmp_path) == left


def test_steps_of_any_size_are_in_order(start, tmp_path):
    model, optimizer = start()
    for step in (99_999_999, 100_000_000, 5):
        checkpoint.save(tmp_path, Progress(step), model, optimizer, 9)
    assert [checkpoint.step_of(path) for path in checkpoints(tmp_path)] == [100_000_000, 99_999_999, 5]


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "one byte less": lambda data: data[:-1],
    "empty": lambda data: b"",
    "other": lambda data: b"PK not at all",
    "zeros": lambda data: b"\x00" * len(data),
    **{f"a bit at {part}": lambda data, part=part: flipped(data, part) for part in (0.0, 0.2, 0.5, 0.8, 0.999)},
}


def flipped(data, part):
    place = int(part * len(data))
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_told(damage, start, tmp_path, caplog):
    model, optimizer = start()
    checkpoint.save(tmp_path, Progress(7, 0.5), model, optimizer, 2)
    before = {name: tensor.clone() for name, tensor in model.saved().items()}
    with torch.no_grad():
        model.adapter.media.slot.add_(1)
    checkpoint.save(tmp_path, Progress(8, 0.4), model, optimizer, 2)
    path = checkpoints(tmp_path)[0]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    other, its = start(seed=1)
    assert checkpoint.load(tmp_path, other, its) == Progress(7, 0.5)
    assert same(before, other.saved())
    assert f"{path}: damaged" in caplog.text and "the one before" in caplog.text


def test_where_all_are_damaged_none_is_taken(start, tmp_path):
    model, optimizer = start()
    for step in (7, 8):
        checkpoint.save(tmp_path, Progress(step), model, optimizer, 2)
    for path in checkpoints(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"checkpoints: every checkpoint is damaged; .*--overwrite") as caught:
        checkpoint.load(tmp_path, model, optimizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [[1, 2], {"step": 3}, {"progress": {"step": 3}, "trained": {}, "optimizer": {}}], ids=str
)
def test_another_file_of_torch_is_told(content, start, tmp_path):
    checkpoint.write(tmp_path / CHECKPOINTS, 3, content)
    with pytest.raises(ValueError, match="not a checkpoint of this run's settings"):
        checkpoint.load(tmp_path, *start())


@pytest.mark.parametrize("settings", [{"media_dim": 24}, {"layers": [1]}, {"lora": {"r": 2}}], ids=str)
def test_a_checkpoint_of_other_settings_is_told(settings, start, tmp_path):
    checkpoint.save(tmp_path, Progress(7), *start(), 2)
    with pytest.raises(ValueError, match=r"tensors differ, such as .* resume with the settings it was made with"):
        checkpoint.load(tmp_path, *start(**settings))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_keeps_the_ones_before(error, start, tmp_path, monkeypatch):
    model, optimizer = start()
    checkpoint.save(tmp_path, Progress(7), model, optimizer, 1)
    (path,) = checkpoints(tmp_path)
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        checkpoint.save(tmp_path, Progress(8), model, optimizer, 1)
    assert list((tmp_path / CHECKPOINTS).iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_told(start, tmp_path):
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / ".step-00000008.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"the checkpoint of step 8 could not be written .* those before it are kept"):
        checkpoint.save(tmp_path, Progress(8), *start(), 2)
    assert not list((tmp_path / CHECKPOINTS).iterdir())


def test_what_a_kill_left_is_cleared_away(start, tmp_path):
    model, optimizer = start()
    checkpoint.save(tmp_path, Progress(7), model, optimizer, 2)
    (tmp_path / CHECKPOINTS / ".step-00000008.part").write_bytes(b"half")
    assert checkpoint.load(tmp_path, model, optimizer) == Progress(7)
    checkpoint.save(tmp_path, Progress(9), model, optimizer, 2)
    assert names(tmp_path) == ["step-00000007", "step-00000009"]
