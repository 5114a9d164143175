"""Batches: what is drawn depends on the seed and the number alone, and what is learnt is the answer alone."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from finetune.batches import Mixture, facts_of, rarity
from finetune.below import Below
from finetune.collate import batch_of
from finetune.config import BatchConfig
from finetune.encoded import IGNORED, Encoded, encode
from finetune.loss import learnt_loss
from mmlm.data.sample import Turn
from mmlm.marked import Marked
from mmlm.samples import Sample, asked, media_of
from vision.images import ImageError
from vision.ocr import ENGINES


@pytest.fixture
def make(tiny_model, cache, encoded, collated):
    """Makes batches: make(images, questions of each, images of a batch, samples of each image, seed)."""

    def make_(images=7, each=3, size=2, per_image=2, seed=0):
        return collated(tiny_model, cache, encoded(images, each), BatchConfig(size, per_image), seed)

    return make_


def drawn(batches, numbers):
    return [[(entry.images, tuple(entry.text.ids)) for entry in batches.chosen(n)] for n in numbers]


def test_a_batch_depends_on_its_number_alone(make):
    numbers = list(range(12))
    wanted = drawn(make(), numbers)
    assert drawn(make(), numbers[::-1]) == wanted[::-1]
    assert drawn(make(), [7]) == [wanted[7]]
    late = make()
    for got in (late[9], make()[9]):
        assert got["input_ids"].equal(make()[9]["input_ids"])


def test_a_batch_depends_on_no_order_of_the_data(tiny_model, cache, encoded, collated):
    data, config = encoded(7, 3), BatchConfig(2, 1)
    one, other = (collated(tiny_model, cache, mine, config) for mine in (data, data[::-1]))
    assert drawn(one, range(8)) == drawn(other, range(8))


def test_seeds_and_epochs_differ(make):
    assert drawn(make(seed=0), range(4)) != drawn(make(seed=1), range(4))
    batches = make()
    assert drawn(batches, range(4)) != drawn(batches, range(4, 8))


@settings(max_examples=20)
@given(images=st.integers(1, 9), size=st.integers(1, 10), epoch=st.integers(0, 5))
def test_every_image_once_an_epoch(make, images, size, epoch):
    batches = make(images, 1, size, 1)
    count = len(batches.batches)
    assert count == -(-images // size)
    seen = Counter(entry.images for n in range(epoch * count, (epoch + 1) * count) for entry in batches.chosen(n))
    assert len(seen) == images and set(seen.values()) == {1}


@pytest.mark.parametrize(("each", "per_image", "rows"), [(3, 2, 4), (3, 9, 6), (1, 4, 2)])
def test_an_image_brings_some_of_its_samples_each_once(make, each, per_image, rows):
    batches = make(4, each, 2, per_image)
    for number in range(4):
        chosen = batches.chosen(number)
        assert len(chosen) == rows == len({(entry.images, tuple(entry.text.ids)) for entry in chosen})
        assert set(Counter(entry.images for entry in chosen).values()) == {min(each, per_image)}


def test_images_of_like_length_come_together(tiny_model, cache, make_samples, picture, collated):
    samples = [
        replace(sample, images=(picture(i, (96, 96) if i % 2 else (1024, 512)),))
        for i, sample in enumerate(make_samples(8))
    ]
    batches = collated(tiny_model, cache, encode(tiny_model, cache, samples, ""), BatchConfig(2, 1))
    for number in range(8):
        one, other = (entry.size for entry in batches.chosen(number))
        assert one == other


def test_an_images_features_are_in_a_batch_once(make):
    batch = make(4, 3, 2, 3)[0]
    rows, length = batch["media_owner"].shape
    assert rows == 6
    assert len(batch["media_places"]) <= 2 * length
    assert sum(map(len, batch["media_values"])) == len(batch["media_places"])


def test_learnt_is_the_answer_and_its_end(tiny_model, cache, make_samples):
    tokenizer = tiny_model.processor.tokenizer
    samples = make_samples(5, 2)
    for sample, entry in zip(samples, encode(tiny_model, cache, samples, ""), strict=True):
        assert tokenizer.decode(entry.text.ids[-entry.text.answer :]) == sample.answer + tokenizer.eos_token
        asked = tiny_model.processor.apply_chat_template(
            tiny_model.messages(sample.question), add_generation_prompt=True
        )
        prompt = tokenizer.decode(entry.text.ids[: -entry.text.answer])
        assert prompt == asked.replace(tiny_model.processor.mark, "")


def test_what_is_written_in_an_image_is_learnt_from_and_kept(tiny_model, cache, make_samples, monkeypatch):
    """Beside the features: a second run reads nothing again."""
    count = []

    def engine(picture):
        count.append(picture.size)
        return [(f"sheet {picture.getpixel((0, 0))}", (0, 0, *picture.size))]

    monkeypatch.setitem(ENGINES, "rapidocr", engine)
    samples = make_samples(5, 2)
    for _ in range(2):
        tiny_model.processor.ocr = "rapidocr"
        for sample, entry in zip(samples, encode(tiny_model, cache, samples, ""), strict=True):
            batch = tiny_model.processor(list(sample.images), tiny_model.messages(sample.question))
            assert entry.text.ids[: -entry.text.answer] == batch["input_ids"][0].tolist()
            assert entry.text.index[: -entry.text.answer] == batch["media_index"][0].tolist()
            assert "sheet (" in tiny_model.processor.tokenizer.decode(entry.text.ids)
    assert len(count) == len({entry.images for entry in encode(tiny_model, cache, samples, "")})
    assert len(list((cache.folder.parent / "ocr").rglob("*.json"))) == len(count)


def test_a_broken_image_is_told_before_any_is_read(tiny_model, cache, make_samples, monkeypatch):
    """Which takes longest."""
    read = []
    monkeypatch.setitem(ENGINES, "rapidocr", lambda picture: read.append(picture) or [])
    tiny_model.processor.ocr = "rapidocr"
    first, second = make_samples(2)
    with pytest.raises(ImageError, match="1 of 2 images cannot be opened"):
        encode(tiny_model, cache, [first, replace(second, images=(b"broken",))], "")
    assert not read


def test_learnt_is_counted_where_it_stands(tiny_model, make_samples):
    """Some tokenizers put a space before a text that stands alone."""
    (sample,) = make_samples(1)
    wanted = asked(tiny_model, sample, answered=True).answer
    spaced = copy.deepcopy(tiny_model.processor.tokenizer)
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert len(spaced(sample.answer)["input_ids"]) == len(sample.answer) + 1
    tiny_model.processor.tokenizer = spaced
    assert asked(tiny_model, sample, answered=True).answer == wanted == len(sample.answer) + 1, "and its end"


def test_an_answer_without_a_token_is_refused(tiny_model, cache, make_samples):
    """One where the tokenizer has no end to learn either: its loss would be no number."""
    first, second = make_samples(2)
    silent = Sample.pair(second.id, second.images, second.question, "")
    assert encode(tiny_model, cache, [silent], "")[0].text.answer == 1, "the end is learnt"
    tiny_model.processor.tokenizer = copy.deepcopy(tiny_model.processor.tokenizer)
    tiny_model.processor.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="sample '1-0': nothing to learn, its answer has no token; give it one"):
        encode(tiny_model, cache, [first, silent], "")


def test_texts_are_computed_for_some_batches_at_once(make, monkeypatch):
    """And a batch is what it is, whichever was asked for first."""
    batches, other = make(12, 2, 2, 2), make(12, 2, 2, 2)
    late = other[5]
    computed = []
    below = batches.collate.below
    compute = below.compute
    monkeypatch.setattr(below, "compute", lambda texts, widths: computed.append(1) or compute(texts, widths))
    first = [batches[number] for number in range(6)]
    once = len(computed)
    assert below.usable and 0 < once < 6
    assert all(batches[number]["below"].equal(batch["below"]) for number, batch in enumerate(first))
    assert len(computed) == once
    assert first[5]["below"].equal(late["below"]) and first[5]["labels"].equal(late["labels"])


def test_labels_are_the_learnt_tokens_where_they_are_foretold(make, tiny_model, cache):
    batches = make(4, 3, 3, 3)
    for number in range(4):
        chosen = batches.chosen(number)
        batch = batch_of(tiny_model, cache, chosen)
        assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
        for entry, ids, labels, mask in zip(
            chosen, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        ):
            length = len(entry.text.ids) - 1  # the last foretells nothing
            assert ids[:length].tolist() == entry.text.ids[:-1]
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            learnt = torch.nonzero(labels != IGNORED).flatten()
            assert learnt.tolist() == list(range(length - entry.text.answer, length))
            assert labels[learnt].tolist() == entry.learnt == entry.text.ids[-entry.text.answer :]


def test_several_answers_are_labels_where_they_stand(tiny_model, open_gates, cache, picture, make_samples):
    """What stands between them is not learnt, and the loss is that of the whole text, computed plainly."""
    open_gates(tiny_model)
    turns = [Turn("user", "what?"), Turn("assistant", "a cat", True), Turn("user", "and <image> here? or <image>?")]
    turns += [Turn("assistant", "one", False), Turn("user", "then?"), Turn("assistant", "two dogs", True)]
    chat = Sample("chat", (picture(1), picture(2)), (*turns, Turn("user", "thanks")))
    chosen = encode(tiny_model, cache, [chat, *make_samples(1)], "")
    tokenizer = tiny_model.processor.tokenizer
    assert tokenizer.decode(chosen[0].learnt) == "a cat<|end|>two dogs<|end|>" and len(chosen[0].text.learnt) == 2
    assert not tokenizer.decode(chosen[0].text.ids).endswith("thanks"), "nothing learnt comes after it"
    for below in (None, Below(tiny_model)):
        batch = batch_of(tiny_model, cache, chosen, below)
        for labels, entry in zip(batch["labels"], chosen, strict=True):
            assert labels[labels != IGNORED].tolist() == entry.learnt
        with torch.no_grad():
            loss, count = learnt_loss(tiny_model, tiny_model, batch)
        assert count == sum(len(entry.learnt) for entry in chosen)
        wanted = 0.0
        for entry in chosen:
            ids, index = torch.tensor([entry.text.ids]), torch.tensor([entry.text.index])
            with torch.no_grad():
                logits = tiny_model(input_ids=ids, **media_of(cache, [entry.images], index)).logits[0].log_softmax(-1)
            places = [place for start, stop in entry.text.learnt for place in range(start, stop)]
            wanted -= sum(logits[place - 1, entry.text.ids[place]].item() for place in places)
        assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_what_is_taught_is_what_ask_asks(tiny_model, make_samples):
    """The prompt of training is the prompt of `ask`, token for token."""
    (sample,) = make_samples(1)
    marked = asked(tiny_model, sample, answered=True)
    learnt = marked.answer
    batch = tiny_model.processor(sample.images[0], tiny_model.messages(sample.question))
    assert marked.ids[:-learnt] == batch["input_ids"][0].tolist()
    assert marked.index[:-learnt] == batch["media_index"][0].tolist()
    assert marked.index[-1] == 0


pairs = st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("abc")), min_size=1, max_size=30)


@given(pairs=pairs, power=st.floats(0, 1))
def test_rare_answers_weigh_more_and_no_question_does(pairs, power):
    data = [Encoded(str(n), *pair, (), Marked([], [])) for n, pair in enumerate(pairs)]
    weights = dict(zip(pairs, rarity(facts_of(data), power), strict=True))
    for question in {question for question, _ in pairs}:
        mine = Counter(answer for asked, answer in pairs if asked == question)
        total = {answer: count * weights[question, answer] for answer, count in mine.items()}
        assert sum(total.values()) == pytest.approx(mine.total())
        if power == 0:
            assert all(weights[question, answer] == pytest.approx(1) for answer in mine)
        if power == 1:
            assert len({round(share, 9) for share in total.values()}) == 1, "each answer is as common as the others"


@pytest.mark.parametrize(("balance", "low", "high"), [(0.0, 0.05, 0.15), (1.0, 0.35, 0.65)])
def test_balance_evens_out_the_answers(balance, low, high, tiny_model, cache, make_samples, collated):
    """One question, answered "no" to nine in ten."""
    (sample,) = make_samples(1)
    samples = [Sample.pair(str(n), sample.images, sample.question, "no" if n % 10 else "yes") for n in range(50)]
    batches = collated(tiny_model, cache, encode(tiny_model, cache, samples, ""), BatchConfig(1, 1, balance))
    drawn = [batches.chosen(number)[0].answer for number in range(300)]
    assert low < drawn.count("yes") / 300 < high


@settings(max_examples=30)
@given(images=st.integers(1, 9), size=st.integers(1, 10), of=st.integers(1, 12), number=st.integers(0, 20))
def test_the_parts_of_a_batch_are_the_batch(make, images, size, of, number):
    """However many processes and passes there are, each sample is in one part, beside those of its image."""
    batches = make(images, 2, size, 2).batches
    parts = [batches.part(number, place, of) for place in range(of)]
    assert sorted(sample for part in parts for sample in part) == sorted(batches.part(number))
    shown = [{batches.data[sample].images for sample in part} for part in parts]
    assert sum(map(len, shown)) == len(set().union(*shown))
    assert max(map(len, shown)) - min(map(len, shown)) <= 1


class Numbers:
    """Stands where batches do: batch number n has the sample n."""

    def part(self, number, place, of):
        return [number]


@given(shares=st.lists(st.floats(0.05, 10), min_size=1, max_size=4), count=st.integers(1, 200))
def test_a_mixture_keeps_its_shares_at_every_step(shares, count):
    mixture = Mixture([Numbers()] * len(shares), shares)
    counts = Counter(mixture.locate(number)[0] for number in range(count))
    for part, share in enumerate(shares):
        assert abs(counts[part] - count * share / sum(shares)) < len(shares)


@given(number=st.integers(0, 100), share=st.floats(0.05, 0.95))
def test_a_mixture_uses_up_each_part_in_order(number, share):
    mixture = Mixture([Numbers(), Numbers()], [share, 1 - share])
    places = [mixture.locate(n) for n in range(number + 1)]
    for part in (0, 1):
        mine = [place for which, place in places if which == part]
        assert mine == list(range(len(mine)))
    assert mixture.part(number) == [places[-1]]
    assert Mixture([Numbers(), Numbers()], [share, 1 - share]).locate(number) == places[-1], "asked for out of order"
