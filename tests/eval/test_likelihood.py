"""The likelihood of a text: that of an unbatched forward of the whole text, without a cache."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import log_softmax

from eval.likelihood import log_likelihoods, media_shown
from mmlm.data import Sample, Turn
from mmlm.marked import Marked
from mmlm.media import collate
from mmlm.samples import asked, encode_images, media_of
from vision.encoder import prepare
from vision.features import FeatureCache
from vision.images import ImageError

OPTIONS = ("a cat", "two dogs", "", "no, 3 parrots on a wall")


@pytest.fixture(params=[False, True], ids=["image first", "image last"])
def model(request, make_model, open_gates):
    return open_gates(make_model(image_last=request.param), 1.5)


@pytest.fixture
def samples(picture):
    """Every option to one image, to two and to none; and a chat in which two answers are learnt."""
    images = [picture(seed, size) for seed, size in enumerate([(96, 64), (1024, 512), (64, 96)])]
    shown = [(images[0],), (images[1], images[2]), ()]
    options = [Sample.pair(f"{a}", (), "what is it?", option) for a, option in enumerate(OPTIONS)]
    turns = [("user", "<image>\nwhat?"), ("assistant", "a cat"), ("user", "and <image>?"), ("assistant", "none")]
    chat = Sample("chat", (images[0], images[2]), tuple(Turn(role, text, role == "assistant") for role, text in turns))
    return [replace(option, images=mine) for mine in shown for option in options] + [chat]


def texts_of(model, samples):
    return [asked(model, sample, answered=True) for sample in samples]


def plainly(model, text, images):
    """Log-probabilities [T, V] of the token after each, of a text by itself."""
    ready = [prepare(image, model.vision.pyramid, model.vision.detail) for image in images]
    index = torch.tensor([text.index])
    media = collate(ready, [list(range(len(ready)))], index, model.vision.pyramid)
    with torch.no_grad():
        return log_softmax(model(input_ids=torch.tensor([text.ids]), **media).logits[0].double(), -1)


def test_it_is_that_of_a_forward_of_the_text_by_itself(model, samples):
    texts = texts_of(model, samples)
    found = log_likelihoods(model, texts, partial(media_shown, model, [sample.images for sample in samples]))
    for sample, text, its in zip(samples, texts, found, strict=True):
        logs = plainly(model, text, sample.images)
        places = [place for start, stop in text.learnt for place in range(start, stop)]
        each = torch.stack([logs[place - 1, text.ids[place]] for place in places])
        assert its.total == pytest.approx(each.sum().item(), rel=1e-5)
        assert its.tokens == len(places)
        assert its.greedy == all(logs[place - 1].argmax() == text.ids[place] for place in places)
    assert found[-1].tokens == len("a cat") + len("none") + 2, "both answers, and an end after each"


def test_images_in_the_cache_give_the_same(model, samples, tmp_path):
    cache, texts = FeatureCache(model.vision, tmp_path), texts_of(model, samples)
    shown = log_likelihoods(model, texts, partial(media_shown, model, [sample.images for sample in samples]))
    keys = encode_images(cache, samples, "")
    assert log_likelihoods(model, texts, partial(media_of, cache, keys)) == shown


def test_it_looks(model, samples):
    texts = texts_of(model, samples[:4])
    images = samples[0].images, samples[4].images[:1]
    one, other = (log_likelihoods(model, texts, partial(media_shown, model, [row] * 4)) for row in images)
    assert all(its.total != another.total for its, another in zip(one, other, strict=True))


def test_all_that_may_be_said_is_certain(model, picture):
    """The probabilities of all continuations of one token sum to 1."""
    prompt, vocabulary = model.processor.read(model.messages("what?"), 1), model.decoder.config.vocab_size
    ids, index = prompt.ids, [*prompt.index, prompt.index[-1]]
    texts = [Marked([*ids, token], index, ((len(ids), len(ids) + 1),)) for token in range(vocabulary)]
    found = log_likelihoods(model, texts, partial(media_shown, model, [[picture()]] * vocabulary))
    assert math.fsum(math.exp(its.total) for its in found) == pytest.approx(1, abs=1e-5)
    assert [its.greedy for its in found].count(True) == 1


def test_what_is_said_greedily_is_greedy(model, picture):
    image, count = picture(), 5
    batch = model.processor(image, model.messages("what?"))
    prompt = model.processor.read(model.messages("what?"), 1)
    said = model.generate_tokens(batch, max_new_tokens=count, do_sample=False)[0].tolist()
    index, learnt = prompt.index + prompt.index[-1:] * count, ((len(prompt.ids), len(prompt.ids) + count),)
    others = [[*said[:n], (token + 1) % 256, *said[n + 1 :]] for n, token in enumerate(said)]
    texts = [Marked(prompt.ids + tokens, index, learnt) for tokens in [said, *others]]
    found = log_likelihoods(model, texts, partial(media_shown, model, [[image]] * len(texts)))
    assert [its.greedy for its in found] == [True] + [False] * count


def test_an_image_is_encoded_once(model, picture, monkeypatch):
    seen, own = [], model.vision.encode_ready
    monkeypatch.setattr(model.vision, "encode_ready", lambda ready: (seen.extend(ready), own(ready))[1])
    image = picture()
    texts = [model.processor.read(model.messages("what?"), 1, option) for option in OPTIONS]
    found = log_likelihoods(model, texts, partial(media_shown, model, [[image]] * len(OPTIONS)))
    assert len(seen) == 1
    assert found[2] == (0, 0, True), "nothing to say is certain"


def test_nothing_foretells_a_first_token(model):
    with pytest.raises(ValueError, match="text 1 is learnt from its first token on"):
        log_likelihoods(model, [Marked([5, 6], [-1, -1], ((1, 2),)), Marked([5], [-1], ((0, 1),))], lambda index: {})


def test_an_image_that_cannot_be_opened_is_named(model, tmp_path):
    text = model.processor.read(model.messages("what?"), 1, "a cat")
    with pytest.raises(ImageError, match=r"none\.png"):
        log_likelihoods(model, [text], partial(media_shown, model, [[tmp_path / "none.png"]]))
