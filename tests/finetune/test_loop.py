"""The loop: it learns by looking, only the adapter learns, and a run that is stopped ends as one that is not."""

import json

import pytest
import torch

from finetune import checkpoint
from finetune.batches import Batches, Mixture, encode
from finetune.config import BatchConfig, OptimConfig, TrainConfig
from finetune.folder import CHECKPOINT, METRICS
from finetune.loop import adamw, schedule, train

STEPS = 11


class Stopping:
    """Batches that raise `error` in place of number `at`."""

    def __init__(self, batches, at, error):
        self.batches, self.at, self.error = batches, at, error

    def __getattr__(self, name):
        return getattr(self.batches, name)

    def __getitem__(self, number):
        if number == self.at:
            raise self.error
        return self.batches[number]


class Poisoned(Stopping):
    """Batches whose features are not numbers from number `at` on."""

    def __getitem__(self, number):
        batch = self.batches[number]
        if number >= self.at:
            batch["media_values"] = tuple(value * torch.nan for value in batch["media_values"])
        return batch


KINDS = [(False, "pyramid"), (True, "pyramid"), (True, "resampler")]  # image last, tokens


@pytest.fixture
def config():
    return TrainConfig(
        steps=STEPS,
        log_every=2,
        save_every=4,
        calibrate=2,
        words=3,
        optim=OptimConfig(lr=3e-3, warmup=3),
        batch=BatchConfig(2, 2),
    )


@pytest.fixture
def start(make_model, tokens, cache, make_samples, config):
    """A fresh model and its batches, the same every time."""

    def start_(image_last=False):
        model = make_model(image_last=image_last, tokens=tokens)
        data = encode(model, cache, make_samples(6, 2), "encoding")
        parts = [Batches(model, cache, part, config.batch, 0) for part in (data[:8], data[8:])]
        return model, Mixture(parts, [2, 1])

    return start_


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def weights(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.adapter.state_dict().items()}


@pytest.mark.parametrize(("image_last", "tokens"), [*KINDS[:2], pytest.param(*KINDS[2], marks=pytest.mark.slow)])
def test_it_learns_eight_images_by_heart(image_last, tokens, make_model, cache, make_samples, tmp_path):
    """One question, eight answers: only who looks can tell them apart."""
    model = make_model(image_last=image_last, tokens=tokens)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("adapter.")}
    samples = make_samples(8)
    batches = Batches(model, cache, encode(model, cache, samples, "encoding"), BatchConfig(8, 1), 0)
    rates = OptimConfig(lr=8e-3, gate_lr=2e-2, warmup=3)
    config = TrainConfig(steps=50, log_every=5, save_every=50, calibrate=2, words=10, optim=rates)
    train(model, batches, config, tmp_path)
    written = lines(tmp_path)
    assert written[-1]["loss"] < 0.05 < written[0]["loss"]
    assert all(p.equal(frozen[name]) for name, p in model.named_parameters() if name in frozen)
    said = [model.ask(sample.images[0], sample.question, max_new_tokens=12, do_sample=False) for sample in samples]
    assert said == [sample.answer for sample in samples]


@pytest.mark.parametrize(("image_last", "tokens"), KINDS)
@pytest.mark.parametrize("at", [2, 4, 7, 10])
def test_a_stopped_run_ends_as_one_that_was_not(at, image_last, start, config, tmp_path):
    """Stopped before the first checkpoint, right after one, between two, in the last step."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    model, batches = start(image_last)
    train(model, batches, config, whole)
    wanted = weights(model)

    model, batches = start(image_last)
    with pytest.raises(KeyboardInterrupt):
        train(model, Stopping(batches, at, KeyboardInterrupt()), config, broken)
    assert (broken / CHECKPOINT).exists() == (at >= config.save_every)
    model, batches = start(image_last)
    train(model, batches, config, broken)
    assert weights(model) == wanted

    names = ("step", "loss", "loss_smooth", "lr", "gates")
    assert [[line[name] for name in names] for line in lines(broken)] == [
        [line[name] for name in names] for line in lines(whole)
    ]
    assert [line["step"] for line in lines(whole)] == [2, 4, 6, 8, 10, 11]


def test_a_finished_run_is_finished(start, config, tmp_path):
    model, batches = start()
    train(model, batches, config, tmp_path)
    before = (tmp_path / METRICS).read_bytes()
    again, _ = start()
    train(again, Stopping(None, 0, AssertionError("no batch is needed")), config, tmp_path)
    assert weights(again) == weights(model)
    assert (tmp_path / METRICS).read_bytes() == before


def test_half_written_lines_of_metrics_are_dropped(start, config, tmp_path):
    model, batches = start()
    with pytest.raises(KeyboardInterrupt):
        train(model, Stopping(batches, 7, KeyboardInterrupt()), config, tmp_path)
    with (tmp_path / METRICS).open("a") as metrics:
        metrics.write('{"step": 8, "lo\n{"step": 8, "gates": {"0.ff": 0.1}\n3\n{}\n{"step": 9, "lo')
    model, batches = start()
    train(model, batches, config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10, 11]


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(start, config, tmp_path):
    config.save_every = 1
    model, batches = start()
    with pytest.raises(FloatingPointError, match=r"step 6: loss nan, gradient nan, .*; lower --train\.optim\.lr"):
        train(model, Poisoned(batches, 6, None), config, tmp_path)
    check_clean(model, start, config, tmp_path)


def test_so_does_a_gradient(start, config, tmp_path):
    config.save_every, config.words = 1, 0
    model, batches = start()
    gradients = []

    def spoil(gradient):
        gradients.append(1)
        return gradient * torch.inf if len(gradients) == 7 else gradient

    model.adapter.media.slot.register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"step 6: loss \d+\.\d+, gradient (inf|nan), .*; lower"):
        train(model, batches, config, tmp_path)
    check_clean(model, start, config, tmp_path)


def check_clean(model, start, config, folder):
    """What was learnt up to step 6 is there, in the model and on disk."""
    other, _ = start()
    assert checkpoint.load(folder, other.adapter, adamw(other.adapter, config.optim))[0] == 6
    for one in (model, other):
        assert all(tensor.isfinite().all() for tensor in one.adapter.state_dict().values())
    assert weights(model) == weights(other)


def test_several_processes_are_refused(start, config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched, but training runs in one for now; launch one"):
        train(*start(), config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [{"lora": {"r": 2}}, {"unfreeze": ["decoder.*norm*"]}], ids=str)
def test_what_it_does_not_train_it_refuses(more, make_model, config, tmp_path):
    with pytest.raises(ValueError, match="trains the adapter alone"):
        train(make_model(**more), [], config, tmp_path)


def test_the_model_is_left_as_it_was_found(start, config, tmp_path):
    model, batches = start()
    attention = model.decoder.config._attn_implementation
    train(model, batches, config, tmp_path)
    assert model.decoder.config._attn_implementation == attention
    assert not model.training and not model.adapter.training


def test_metrics_say_what_a_person_asks(start, config, tmp_path):
    model, batches = start()
    train(model, batches, config, tmp_path)
    for line in lines(tmp_path):
        assert line.keys() == {"step", "loss", "loss_smooth", "learnt_tokens_per_second", "lr", "gates"}
        assert line["learnt_tokens_per_second"] > 0
        assert line["gates"].keys() == model.adapter.gates().keys()


def test_every_parameter_is_in_one_group(tiny_model):
    optimizer = adamw(tiny_model.adapter, OptimConfig(weight_decay=0.5))
    matrices, vectors, gates = (group["params"] for group in optimizer.param_groups)
    assert sum(map(len, (matrices, vectors, gates))) == len(list(tiny_model.adapter.parameters()))
    assert {id(p) for p in gates} == {
        id(gate) for block in tiny_model.adapter.blocks for gate in (block.attention_gate, block.ff_gate)
    }
    assert all(p.dim() >= 2 for p in matrices) and all(p.dim() < 2 for p in vectors)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0, 0]


def test_rates_rise_and_fall():
    config = TrainConfig(steps=100, optim=OptimConfig(warmup=10, final=0.1))
    rates = [schedule(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == rates[10] == 1
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.12
