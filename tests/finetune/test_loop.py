"""The loop: it learns by looking, only the adapter learns, and a run that is stopped ends as one that is not."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune import checkpoint, loop
from finetune.batches import Batches, Mixture
from finetune.checkpoint import checkpoints, learning
from finetune.config import BatchConfig, OptimConfig, TrainConfig
from finetune.encoded import encode
from finetune.folder import METRICS, TROUBLE
from finetune.loop import train
from finetune.optim import adamw
from vision.images import ImageError

STEPS = 11


def stopped(monkeypatch, at, error):
    """Within it the forward of step `at` raises `error`."""
    own, steps = loop.learnt_loss, []

    def learnt_loss(forward, model, batch):
        steps.append(1)
        if len(steps) == at + 1:
            raise error
        return own(forward, model, batch)

    monkeypatch.setattr(loop, "learnt_loss", learnt_loss)


def poisoned(monkeypatch, steps):
    """Features of these steps are not numbers."""
    own, done = loop.learnt_loss, []

    def learnt_loss(forward, model, batch):
        done.append(1)
        if len(done) - 1 in steps:
            batch["media_values"] = tuple(value * torch.nan for value in batch["media_values"])
        return own(forward, model, batch)

    monkeypatch.setattr(loop, "learnt_loss", learnt_loss)


# image last, tokens
KINDS = [(False, "pyramid"), (True, "pyramid"), pytest.param(True, "resampler", marks=pytest.mark.slow)]


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
        parts = [Batches(part, config.batch, 0) for part in (data[:8], data[8:])]
        return model, cache, Mixture(parts, [2, 1])

    return start_


def lines(folder, name=METRICS):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def weights(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.adapter.state_dict().items()}


@pytest.mark.parametrize(("image_last", "tokens"), KINDS)
def test_it_learns_eight_images_by_heart(image_last, tokens, make_model, cache, make_samples, tmp_path):
    """One question, eight answers: only who looks can tell them apart."""
    model = make_model(image_last=image_last, tokens=tokens)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("adapter.")}
    samples = make_samples(8)
    batches = Mixture([Batches(encode(model, cache, samples, "encoding"), BatchConfig(8, 1), 0)], [1])
    rates = OptimConfig(lr=8e-3, gate_lr=2e-2, warmup=3)
    config = TrainConfig(steps=50, log_every=5, save_every=50, calibrate=2, words=10, optim=rates)
    train(model, cache, batches, config, tmp_path)
    written = lines(tmp_path)
    assert written[-1]["loss"] < 0.05 < written[0]["loss"]
    assert all(p.equal(frozen[name]) for name, p in model.named_parameters() if name in frozen)
    said = [model.ask(sample.images[0], sample.question, max_new_tokens=12, do_sample=False) for sample in samples]
    assert said == [sample.answer for sample in samples]


@pytest.mark.parametrize(("image_last", "tokens"), KINDS)
@pytest.mark.parametrize("at", [2, 4, 7, 10])
def test_a_stopped_run_ends_as_one_that_was_not(at, image_last, start, config, tmp_path, monkeypatch):
    """Stopped before the first checkpoint, right after one, between two, in the last step."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    model, *rest = start(image_last)
    train(model, *rest, config, whole)
    wanted = weights(model)

    with monkeypatch.context() as patched:
        stopped(patched, at, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(*start(image_last), config, broken)
    assert bool(checkpoints(broken)) == (at >= config.save_every)
    model, *rest = start(image_last)
    train(model, *rest, config, broken)
    assert weights(model) == wanted

    names = ("step", "loss", "loss_smooth", "gradient", "lr", "gates", "skipped", "broken")
    assert [[line[name] for name in names] for line in lines(broken)] == [
        [line[name] for name in names] for line in lines(whole)
    ]
    assert [line["step"] for line in lines(whole)] == [2, 4, 6, 8, 10, 11]


def test_asked_to_stop_it_saves_what_it_has_and_goes_on_from_there(start, config, tmp_path, monkeypatch):
    """SIGTERM, in the middle of step 6."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    model, *rest = start()
    train(model, *rest, config, whole)
    wanted = weights(model)
    own, before = loop.learnt_loss, signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        steps = []
        patched.setattr(
            loop,
            "learnt_loss",
            lambda *args: steps.append(1) or (len(steps) == 7 and os.kill(os.getpid(), signal.SIGTERM)) or own(*args),
        )
        model, *rest = start()
        assert train(model, *rest, config, broken).step == 7
    assert [checkpoint.step_of(path) for path in checkpoints(broken)] == [7, 4]
    assert signal.getsignal(signal.SIGTERM) == before
    model, *rest = start()
    assert train(model, *rest, config, broken).step == STEPS
    assert weights(model) == wanted


@pytest.mark.parametrize("passes", [2, 3, 4])
def test_passes_take_the_step_of_one(passes, start, config, tmp_path):
    """The same samples, the same loss over all their learnt tokens; a part may be empty."""
    config.calibrate, config.words, config.steps, config.batch.images, config.optim.warmup = 0, 0, 3, 4, 1
    ends = []
    for count in (1, passes):
        folder = tmp_path / str(count)
        folder.mkdir()
        model, cache, mixture = start()
        open_(model)
        config.batch.passes = count
        train(model, cache, mixture, config, folder)
        ends.append((dict(model.adapter.state_dict()), [line["loss"] for line in lines(folder)]))
    (one, losses), (other, its) = ends
    assert its == pytest.approx(losses, rel=1e-5)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-5, msg=name)


def open_(model):
    """Opens the gates, so that all weights have gradients."""
    with torch.no_grad():
        for name, parameter in learning(model):
            if name.endswith("_gate"):
                parameter.fill_(0.5)


def test_a_finished_run_is_finished(start, config, tmp_path, monkeypatch):
    model, *rest = start()
    train(model, *rest, config, tmp_path)
    before = (tmp_path / METRICS).read_bytes()
    again, *rest = start()
    stopped(monkeypatch, 0, AssertionError("no batch is needed"))
    train(again, *rest, config, tmp_path)
    assert weights(again) == weights(model)
    assert (tmp_path / METRICS).read_bytes() == before


def test_half_written_lines_of_metrics_are_dropped(start, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stopped(patched, 7, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(*start(), config, tmp_path)
    with (tmp_path / METRICS).open("a") as metrics:
        metrics.write('{"step": 8, "lo\n{"step": 8, "gates": {"0.ff": 0.1}\n3\n{}\n{"step": 9, "lo')
    train(*start(), config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10, 11]


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(start, config, tmp_path, monkeypatch):
    """And the samples are named."""
    config.save_every = 1
    model, *rest = start()
    poisoned(monkeypatch, {6})
    with pytest.raises(FloatingPointError, match=r"step 7: loss nan, gradient nan, .* in a batch of \d-\d, .*: look"):
        train(model, *rest, config, tmp_path)
    check_clean(model, start, config, tmp_path)
    (told,) = lines(tmp_path, TROUBLE)
    assert told["step"] == 7 and told["skipped"].startswith("loss nan") and len(told["samples"]) == 4


def test_or_the_step_is_skipped(start, config, tmp_path, monkeypatch):
    """As if it had not been, but for the rates and what comes next."""
    config.trouble = "skip"
    model, *rest = start()
    poisoned(monkeypatch, {0, 6, 7})
    assert train(model, *rest, config, tmp_path).skipped == 3
    assert [line["step"] for line in lines(tmp_path, TROUBLE)] == [1, 7, 8]
    assert lines(tmp_path)[-1]["skipped"] == 3
    assert all(tensor.isfinite().all() for tensor in model.adapter.state_dict().values())


def test_a_loss_that_spikes_is_trouble_too(start, config, tmp_path, monkeypatch):
    config.trouble, config.spike = "skip", 3.0
    own, steps = loop.learnt_loss, []

    def learnt_loss(*args):
        steps.append(1)
        loss, learnt = own(*args)
        return loss * (10 if len(steps) == 6 else 1), learnt

    monkeypatch.setattr(loop, "learnt_loss", learnt_loss)
    assert train(*start(), config, tmp_path).skipped == 1
    (told,) = lines(tmp_path, TROUBLE)
    assert told["step"] == 6 and "more than 3.0 times the" in told["skipped"]


def test_so_does_a_gradient(start, config, tmp_path):
    config.save_every, config.words = 1, 0
    model, *rest = start()
    gradients = []

    def spoil(gradient):
        gradients.append(1)
        return gradient * torch.inf if len(gradients) == 7 else gradient

    model.adapter.media.slot.register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"step 7: loss \d+\.\d+, gradient (inf|nan), .* a lower lr"):
        train(model, *rest, config, tmp_path)
    check_clean(model, start, config, tmp_path)


def check_clean(model, start, config, folder):
    """What was learnt up to step 6 is there, in the model and on disk."""
    other, *_ = start()
    assert checkpoint.load(folder, other, adamw(learning(other), config.optim)).step == 6
    for one in (model, other):
        assert all(tensor.isfinite().all() for tensor in one.adapter.state_dict().values())
    assert weights(model) == weights(other)


class Broken(list):
    """Samples of which some cannot be read."""

    def __init__(self, data, which):
        super().__init__(data)
        self.which = which

    def __getitem__(self, number):
        if number in self.which:
            raise ImageError(f"{number}.jpg: truncated")
        return super().__getitem__(number)


def broken(mixture, which):
    """The mixture with some samples of its first data set broken."""
    mixture.sets[0].data = Broken(mixture.sets[0].data, which)
    return mixture


def test_broken_samples_are_left_out_counted_and_named(start, config, tmp_path):
    config.broken = 0.5
    model, cache, mixture = start()
    progress = train(model, cache, broken(mixture, {1, 2, 6}), config, tmp_path)
    told = lines(tmp_path, TROUBLE)
    assert progress.broken == sum(len(line["broken"]) for line in told) == lines(tmp_path)[-1]["broken"] > 3
    assert {name for line in told for name in line["broken"]} == {f"{n}.jpg: truncated" for n in (1, 2, 6)}
    assert progress.seen == 4 * STEPS


def test_where_all_of_a_batch_is_broken_nothing_is_learnt_from_it(start, config, tmp_path):
    config.calibrate = config.words = 0
    model, cache, mixture = start()
    before = weights(model)
    progress = train(model, cache, broken(mixture, set(range(8))), replace(config, steps=1), tmp_path)
    assert progress.broken == 4 and progress.step == 1
    assert weights(model) == before


def test_too_many_broken_samples_end_the_run(start, config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "FEW", 8)
    config.broken = 0.2
    model, cache, mixture = start()
    with pytest.raises(ValueError, match=r"\d+ of \d+ samples are broken, more than broken: 0.2; trouble.jsonl"):
        train(model, cache, broken(mixture, {1, 2, 6}), config, tmp_path)


@pytest.mark.parametrize("more", [{"lora": {"r": 2, "lora_dropout": 0.3}}, {"unfreeze": ["decoder.*norm*"]}], ids=str)
def test_more_than_the_adapter_is_trained_and_goes_on_after_a_stop(
    more, make_model, cache, make_samples, config, tmp_path, monkeypatch
):
    """What dropout draws follows from the seed and the step."""

    def start():
        model = make_model(**more)
        data = encode(model, cache, make_samples(6, 2), "encoding")
        return model, cache, Mixture([Batches(data, config.batch, 0)], [1])

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    model, *rest = start()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    train(model, *rest, config, whole)
    moved = {name for name, tensor in model.named_parameters() if not tensor.equal(before[name])}
    assert moved <= model.trained and any(name.startswith("decoder.") for name in moved)
    with monkeypatch.context() as patched:
        stopped(patched, 7, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(*start(), config, broken)
    again, *rest = start()
    train(again, *rest, config, broken)
    assert all(tensor.equal(model.saved()[name]) for name, tensor in again.saved().items())


def test_eyes_are_not_trained_and_that_is_told(make_model, cache, config, tmp_path):
    with pytest.raises(ValueError, match="would not be trained, since features of images are computed once"):
        train(make_model(unfreeze=["vision.*"]), cache, None, config, tmp_path)


def test_the_model_is_left_as_it_was_found(start, config, tmp_path):
    model, *rest = start()
    attention = model.decoder.config._attn_implementation
    train(model, *rest, config, tmp_path)
    assert model.decoder.config._attn_implementation == attention
    assert not model.training and not model.adapter.training


def test_metrics_say_what_a_person_asks(start, config, tmp_path):
    model, *rest = start()
    train(model, *rest, config, tmp_path)
    for line in lines(tmp_path):
        said = ["step", "loss_smooth", "loss", "gradient", "lr", "gates", "learnt_tokens_per_second", "waiting"]
        assert list(line) == [*said, "memory_gb", "skipped", "broken"]
        assert line["learnt_tokens_per_second"] > 0 and 0 <= line["waiting"] <= 1
        assert line["gates"].keys() == model.adapter.gates().keys()


def test_trackers_get_the_metrics(start, config, tmp_path):
    config.trackers = "tensorboard"
    train(*start(), config, tmp_path)
    found = EventAccumulator(str(tmp_path / "mmlm")).Reload().scalars  # settings have files of their own, below
    assert {"loss", "gates/0.attention", "learnt_tokens_per_second"} <= set(found.Keys())
    assert [(event.step, event.value) for event in found.Items("loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines(tmp_path)
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [("tensorbord", "'tensorbord' is none that Accelerate knows"), ("swanlab", "not installed")],
)
def test_trackers_that_there_are_not_are_told(names, message, start, config, tmp_path):
    config.trackers = f"tensorboard, {names}"
    with pytest.raises(ValueError, match=message):
        train(*start(), config, tmp_path)


def test_activations_computed_again_teach_the_same(start, config, tmp_path):
    ends = []
    for recompute in (False, True):
        folder = tmp_path / str(recompute)
        folder.mkdir()
        model, *rest = start()
        train(model, *rest, replace(config, recompute=recompute), folder)
        assert model.is_gradient_checkpointing == recompute
        ends.append([line["loss"] for line in lines(folder)])
    assert ends[1] == pytest.approx(ends[0], rel=1e-2)


def test_the_best_checkpoint_is_kept(start, config, tmp_path):
    """Scored every three steps and at the end, and saved where it is best."""
    scored = []

    def score(step):
        scored.append(step)
        return {"score": {3: 0.2, 6: 0.5}.get(step, 0.3)}

    model, *rest = start()
    config.keep = 1
    progress = train(model, *rest, config, tmp_path, score=score, score_every=3)
    assert scored == [3, 6, 9, 11]
    assert (progress.best, progress.best_step) == (0.5, 6)
    assert [checkpoint.step_of(path) for path in checkpoints(tmp_path)] == [11, 6]
    assert [line["score"] for line in lines(tmp_path) if "score" in line] == [0.2, 0.5, 0.3, 0.3]
