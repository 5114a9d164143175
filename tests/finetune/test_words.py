"""Words before the first step: votes find what an answer says, and the last block says what the votes found."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from finetune.batches import Mixture
from finetune.calibrate import calibrate
from finetune.config import BatchConfig
from finetune.encoded import IGNORED, encode
from finetune.words import Words, learn_words, speak, votes_of


@pytest.fixture(params=["pyramid", "resampler"])
def tokens(request):
    return request.param


@pytest.fixture
def batches(tiny_model, cache, encoded, collated):
    return collated(tiny_model, cache, encoded(8, 2), BatchConfig(8, 2))


def ready(model, batches):
    """The model calibrated, and how far its last block reaches."""
    return calibrate(model, [batches[number] for number in range(3)])


def test_what_is_shown_is_the_batch_without_its_questions(batches):
    shown, whole = batches.shown(0), batches[0]
    for name in ("media_places", "media_gather", "media_owner"):
        assert shown[name].equal(whole[name])
    for ours, theirs in zip(shown["labels"], whole["labels"], strict=True):
        assert ours[ours != IGNORED].equal(theirs[theirs != IGNORED])


def test_a_mixture_counts_the_words_of_its_data_sets(batches, tiny_model, cache, encoded, collated):
    other = collated(tiny_model, cache, encoded(4), BatchConfig(2, 1))
    mixture = Mixture([batches.batches, other.batches], [0.5, 0.5])
    assert mixture.words() == batches.words + other.words
    assert Mixture([batches.batches, other.batches], [1, 0]).words() == batches.words


def test_words_are_counted_where_they_are_learnt(batches, tiny_model):
    learnt = [entry.text.ids[-entry.text.answer :] for entry in batches.batches.data]
    assert batches.words.total() == sum(map(len, learnt))
    assert batches.words[tiny_model.processor.tokenizer.eos_token_id] == len(learnt), "each ends once"


@pytest.mark.parametrize("seed", range(3))
def test_votes_are_summed_over_what_a_row_sees(tiny_model, batches, seed):
    """Row by row, embedding by embedding; padding, here of rows with fewer, has no vote."""
    batch = batches.shown(seed)
    random = torch.Generator().manual_seed(seed)
    batch["media_owner"] = batch["media_owner"].where(
        torch.rand(batch["media_owner"].shape, generator=random) < 0.6, -1
    )
    head = nn.Linear(tiny_model.config.media_dim, 7)
    with torch.no_grad():
        got = votes_of(tiny_model, head, batch)
        votes = head(tiny_model.adapter.media(batch["media_values"], batch))
    for row, (gather, owner) in enumerate(zip(batch["media_gather"], batch["media_owner"], strict=True)):
        torch.testing.assert_close(got[row], votes[gather[owner >= 0]].exp().sum(0).log())


def test_words_are_learnt_from_what_is_seen(tiny_model, batches):
    """After a while an image calls for its own answers' words more than others do."""
    ready(tiny_model, batches)
    frozen = copy.deepcopy(tiny_model.decoder.state_dict())
    ids = sorted(batches.words)
    words = learn_words(tiny_model, ids, (batches.shown(step) for step in range(100)), 100)
    assert words.ids.tolist() == ids and words.votes.shape == (len(ids), tiny_model.config.media_dim)
    head = nn.Linear(tiny_model.config.media_dim, len(ids), bias=False)
    head.weight = nn.Parameter(words.votes)
    batch = batches.shown(0)
    with torch.no_grad():
        votes = votes_of(tiny_model, head, batch)
    votes -= votes.mean(0)
    own = torch.zeros_like(votes, dtype=torch.bool)
    for row, labels in enumerate(batch["labels"]):
        own[row, [ids.index(word) for word in labels[labels != IGNORED].tolist()]] = True
    assert votes[own].mean() > votes[~own].mean() + 0.3
    assert all(tensor.equal(frozen[name]) for name, tensor in tiny_model.decoder.state_dict().items())
    assert all(p.grad is None for p in tiny_model.parameters())


def test_features_that_are_no_numbers_are_an_error(tiny_model, batches):
    batch = batches.shown(0)
    batch["media_values"] = tuple(value * torch.inf for value in batch["media_values"])
    with pytest.raises(FloatingPointError, match="batch 0 of the words: loss nan"):
        learn_words(tiny_model, sorted(batches.words), [batch], 1)


def test_words_that_are_not_among_them_teach_nothing(tiny_model, batches):
    """A batch of rare words alone: no loss, and nothing that is no number."""
    batch = batches.shown(0)
    rare = [word for word in range(40) if word not in batches.words]
    words = learn_words(tiny_model, rare, [batch], 1)
    assert words.votes.isfinite().all()
    assert all(p.isfinite().all() for p in tiny_model.adapter.parameters())


def test_the_last_block_says_what_the_votes_found(make_model, tokens, batches):
    """As a linear map: what it adds for an embedding lifts the output embedding's logits by the votes."""
    model = make_model(
        media_dim=16, tokens=tokens
    )  # of 16 directions, which its key heads, 2 of width 16, have room for
    reach = ready(model, batches)
    ids = list(range(40, 60))
    words = Words(torch.tensor(ids), torch.randn(20, 16, generator=torch.Generator().manual_seed(1)))
    speak(model, words, reach)
    block = model.adapter.blocks[-1]
    media = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        v = block.v(media).unflatten(-1, (block.K, 1, block.d)).expand(-1, -1, 2, -1).flatten(1)  # seen by every head
        push = torch.tanh(block.attention_gate) * block.scale * block.o(v)
        logits = (push * reach) @ model.decoder.get_output_embeddings().weight[ids].float().T
        votes = media @ words.votes.T
    both = torch.stack([(x - x.mean(1, keepdim=True)).flatten() for x in (logits, votes)])
    assert torch.corrcoef(both)[0, 1] > 0.95
    assert 0.8 < (both[0] @ both[1] / both[1].square().sum()) < 1.1


def test_every_key_head_speaks(make_model, tokens, batches):
    """With fewer directions than there is room for, too."""
    model = make_model(media_dim=16, tokens=tokens)
    words = Words(torch.arange(40, 60), torch.randn(20, 16, generator=torch.Generator().manual_seed(1)))
    speak(model, words, ready(model, batches))
    block = model.adapter.blocks[-1]
    assert (block.o.weight.detach().unflatten(1, (block.K, -1)).square().sum((0, 2)) > 0).all()


def test_rows_without_an_image_teach_no_words(tiny_model, cache, make_samples, collated):
    samples = make_samples(4)
    samples = [replace(sample, images=()) if place % 2 else sample for place, sample in enumerate(samples)]
    mixed = collated(tiny_model, cache, encode(tiny_model, cache, samples, "encoding"), BatchConfig(4, 2))
    assert len(mixed.shown(0)["labels"]) == 2
    words = learn_words(tiny_model, sorted(mixed.words), [mixed.shown(0)], 1)
    assert words.votes.isfinite().all()
    blind = collated(tiny_model, cache, encode(tiny_model, cache, samples[1::2], "encoding"), BatchConfig(4, 2))
    assert not learn_words(tiny_model, [40], [blind.shown(0)], 1).votes.any()


@pytest.mark.parametrize("wide", [8, 200])
def test_it_speaks_with_any_width_of_embeddings(make_model, tokens, batches, wide):
    """More directions than there is room for, or fewer."""
    model = make_model(media_dim=wide, tokens=tokens)
    reach = ready(model, batches)
    speak(model, learn_words(model, sorted(batches.words), (batches.shown(n) for n in range(2)), 2), reach)
    batch = {name: value for name, value in batches[0].items() if name not in ("labels", "below")}
    blind = {name: value for name, value in copy.deepcopy(batch).items() if not name.startswith("media")}
    logits = model(**copy.deepcopy(batch)).logits
    assert logits.isfinite().all()
    assert not logits.equal(model(**blind).logits), "it speaks"


def test_votes_for_nothing_say_nothing(tiny_model, batches):
    reach = ready(tiny_model, batches)
    before = copy.deepcopy(tiny_model.adapter.state_dict())
    speak(tiny_model, Words(torch.tensor([40, 41]), torch.zeros(2, tiny_model.config.media_dim)), reach)
    assert all(tensor.equal(before[name]) for name, tensor in tiny_model.adapter.state_dict().items())


def test_the_same_batches_teach_the_same_words(make_model, tokens, batches):
    states = []
    for _ in range(2):
        model = make_model(tokens=tokens)
        reach = ready(model, batches)
        speak(model, learn_words(model, sorted(batches.words), (batches.shown(n) for n in range(4)), 4), reach)
        states.append(model.adapter.state_dict())
    assert all(tensor.equal(states[1][name]) for name, tensor in states[0].items())
