"""The run over a data set: every sample its own answer, in order, whatever the batching; shuffled, another's image."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import run
from eval.run import in_three_ways, predict, shuffle
from mmlm.prefix import Prefixes
from mmlm.samples import Sample, encode_images
from vision.features import FeatureCache


@pytest.fixture
def model(make_model, open_gates):
    return open_gates(make_model(), 1.5)


@pytest.fixture
def cache(model, tmp_path):
    return FeatureCache(model.vision, tmp_path)


@pytest.fixture
def samples(picture):
    """Images and questions of all lengths, in no order; every second image is asked about twice."""
    sizes = [(96, 64), (1024, 512), (64, 96), (600, 600), (300, 200)]
    images = [picture(seed, size) for seed, size in enumerate(sizes)]
    return [
        Sample.pair(f"{i}-{q}", (image,), "what " + "ever " * ((3 * i + q) % 4) + "is it?", "x")
        for i, image in enumerate(images)
        for q in range(1 + i % 2)
    ]


def one_by_one(model, samples):
    return [model.ask(sample.images[0], sample.question, max_new_tokens=6, do_sample=False) for sample in samples]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_answers_are_in_the_samples_order_whatever_the_batching(batch, model, cache, samples, monkeypatch):
    monkeypatch.setattr(run, "BATCH", batch)
    wanted = one_by_one(model, samples)
    assert len(set(wanted)) > 4, "a model that looks says something else to each"
    assert predict(model, cache, samples, max_new_tokens=6) == wanted
    assert predict(model, cache, samples[::-1], max_new_tokens=6) == wanted[::-1]


def test_a_model_that_looks_says_something_else_to_shuffled_images(model, cache, samples):
    true = predict(model, cache, samples, max_new_tokens=6)
    shuffled = predict(model, cache, samples, shuffled=True, max_new_tokens=6)
    assert sum(one != other for one, other in zip(true, shuffled, strict=True)) > len(samples) / 2
    assert shuffled == predict(model, cache, samples, shuffled=True, max_new_tokens=6)


def test_what_is_written_in_images_is_shuffled_with_them(model, cache, samples):
    """Else a decoder that reads would score with the images of others."""
    model.processor.ocr = lambda picture: [(str(picture.getpixel((0, 0))), (0, 0, *picture.size))]
    keys = encode_images(cache, samples, "")
    images = {shown: sample.images for shown, sample in zip(keys, samples, strict=True)}
    others = [replace(sample, images=images[shown]) for sample, shown in zip(samples, shuffle(keys), strict=True)]
    said = in_three_ways(model, cache, samples, keys, max_new_tokens=6)
    assert said["true"] == one_by_one(model, samples) and said["shuffled"] == one_by_one(model, others)
    assert predict(model, cache, samples, shuffled=True, max_new_tokens=6) == said["shuffled"]
    unseen = [model.generate(None, model.messages(one.question, 0), max_new_tokens=6) for one in samples]
    assert said["blind"] == unseen, "nor is it told what is written there"


def test_no_way_of_asking_opens_an_image_again(model, cache, samples, monkeypatch):
    keys = encode_images(cache, samples, "")
    wanted = [predict(model, cache, samples, shuffled=shuffled, max_new_tokens=6) for shuffled in (False, True)]
    monkeypatch.setattr(cache, "add", None)
    said = in_three_ways(model, cache, samples, keys, max_new_tokens=6)
    assert [said["true"], said["shuffled"]] == wanted


def test_what_is_asked_alike_is_asked_once(model, cache, samples, monkeypatch):
    asked = []
    answer = run.answer
    monkeypatch.setattr(run, "answer", lambda *args: asked.append(len(args[2])) or answer(*args))
    twice = predict(model, cache, samples * 2, max_new_tokens=6)
    assert sum(asked) == len(samples) and twice == predict(model, cache, samples, max_new_tokens=6) * 2


def test_a_blind_model_says_the_same(make_model, cache, samples):
    model = make_model()
    assert predict(model, cache, samples, max_new_tokens=6) == predict(
        model, cache, samples, shuffled=True, max_new_tokens=6
    )


def test_answers_are_as_long_as_allowed(model, cache, samples):
    tokens = model.processor.tokenizer
    said = predict(model, cache, samples, max_new_tokens=3)
    assert all(len(tokens(answer)["input_ids"]) <= 3 * 3 for answer in said)


def test_no_samples_no_answers(model, cache):
    assert predict(model, cache, []) == []


def test_samples_of_several_images_and_of_none(model, cache, picture):
    images = [picture(seed) for seed in range(3)]
    samples = [
        Sample.pair("two", (images[0], images[1]), "which?", "x"),
        Sample.pair("none", (), "what?", "x"),
        Sample.pair("one", (images[2],), "this?", "x"),
    ]
    said = predict(model, cache, samples, max_new_tokens=6)
    assert said[2] == model.ask(images[2], "this?", max_new_tokens=6, do_sample=False)
    assert said[0] == model.generate(images[:2], model.messages("which?", 2), max_new_tokens=6, do_sample=False)
    assert said[1] == model.generate(None, model.messages("what?", 0), max_new_tokens=6, do_sample=False)


@pytest.mark.parametrize("image_last", [False, True])
def test_answers_are_those_without_prefixes(image_last, make_model, open_gates, cache, samples, picture):
    """Of all lengths, with an image, two and none; what is blind is computed once for the true and the shuffled."""
    model = open_gates(make_model(image_last=image_last), 1.5)
    samples += [
        Sample.pair("two", (picture(7), picture(8)), "which?", "x"),
        Sample.pair("none", (), "what is it?", "x"),
    ]
    without, prefixes = Prefixes(model.decoder), Prefixes(model.decoder)
    without.usable = False
    lengths = []
    hook = model.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for shuffled in (False, True):
        wanted = predict(model, cache, samples, prefixes=without, shuffled=shuffled, max_new_tokens=6)
        whole, kept = lengths[0], len(prefixes.kept)
        lengths.clear()
        assert predict(model, cache, samples, prefixes=prefixes, shuffled=shuffled, max_new_tokens=6) == wanted
        assert lengths[0] < whole
        lengths.clear()
    hook.remove()
    assert not without.kept and len(prefixes.kept) == kept > 0


image = st.integers(0, 9).map(str)
keys = st.lists(st.lists(image, max_size=3).map(tuple), min_size=1, max_size=40)


@given(keys=keys, seed=st.integers(0, 9))
def test_shuffled_no_image_keeps_its_place(keys, seed):
    shuffled = shuffle(keys, seed)
    assert sorted(set(shuffled)) == sorted(set(keys)), "the same images"
    assert list(map(len, shuffled)) == list(map(len, keys)), "as many as the prompt has marks"
    assert shuffled == shuffle(keys, seed)
    of = dict(zip(keys, shuffled, strict=True))
    assert [of[images] for images in keys] == shuffled, "samples of one image get one other image"
    for images, others in of.items():
        assert images != others or [len(one) for one in of].count(len(images)) == 1


def test_a_sample_without_images_is_asked_without_when_others_are_shuffled(model, cache, samples):
    samples = [Sample.pair("none", (), "what is it?", "x"), *samples]
    said = in_three_ways(model, cache, samples, encode_images(cache, samples, ""), max_new_tokens=6)
    assert said["true"][0] == said["shuffled"][0] == said["blind"][0] and said["true"] != said["shuffled"]
