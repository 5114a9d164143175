"""Denoised captions: blanks and pieces are the caption, pieces alone are learnt, and a step decides what is drawn."""

import re
from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.batches import Batches, Mixture
from finetune.below import Below
from finetune.collate import batch_of
from finetune.config import BatchConfig
from finetune.denoise import BLANKS, FEWEST, Denoiser, begun, blanked, blanks
from finetune.encoded import IGNORED, Encoded, encode
from finetune.fetch import Fetched
from finetune.loss import learnt_loss
from finetune.run_config import DenoiseConfig
from mmlm import zoo
from mmlm.data.sample import Turn
from mmlm.decoder import load_tokenizer
from mmlm.marked import Marked
from mmlm.names import CAPTION_PROMPT, DECODER
from mmlm.samples import Sample

CAPTION = "A small cat, asleep, and two birds that look at it from the roof of a red house in the rain."

ids = st.lists(st.integers(0, 9), min_size=1, max_size=6)
captions = st.lists(st.integers(10, 99), min_size=FEWEST, max_size=80)
kinds = st.tuples(st.floats(0, 1), st.floats(1, 100)) | st.sampled_from(list(BLANKS.values()))
seeds = st.integers(0, 2**32)


@st.composite
def texts(draw):
    """A prompt whose last tokens see an image, a caption, and its end; and where the caption stops."""
    before, seeing, caption, end = draw(ids), draw(ids), draw(captions), draw(ids | st.just([]))
    whole, start = before + seeing + caption + end, len(before) + len(seeing)
    index = [-1] * len(before) + [1] * (len(whole) - len(before))
    return Marked(whole, index, ((start, len(whole)),)), start + len(caption)


def negative(text):
    """The tokens of a mark, which no caption has."""
    return [-1, -2 - int(re.fullmatch(r"[ \n]\[(\d+)\]", text)[1])]


@given(texts(), kinds, seeds)
def test_blanks_and_pieces_are_the_caption_and_pieces_are_learnt(given_, kind, seed):
    text, stop = given_
    start, count = text.prompt, stop - text.prompt
    spans = blanks(count, *kind, Random(seed))
    made = blanked(text, stop, spans, negative)
    first = made.ids.index(-3, made.ids.index(-3) + 1) - 1  # of the second mark of the first piece
    filled, shown = [], made.ids[start:first]
    pieces = [made.ids[one:other] for one, other in made.learnt]
    pieces[-1] = pieces[-1][: len(pieces[-1]) - (len(text.ids) - stop)]
    for place, token in enumerate(shown):
        filled += pieces[-token - 3] if token < -1 else [token] * (token != -1)
        assert token != -1 or shown[place + 1] < -1
    assert made.ids[:start] == text.ids[:start] and filled == text.ids[start:stop]
    assert made.taught == [token for piece in pieces for token in piece] + text.ids[stop:]
    assert [token for token in made.ids[first:] if token >= 0] == made.taught
    assert all(pieces) and 0 < sum(map(len, pieces)) < count, "something is blanked, something is not"
    assert len(pieces) == len(shown) - sum(token >= -1 for token in shown)
    assert made.index == text.index[:start] + [1] * (len(made.ids) - start)


@given(texts(), seeds)
def test_a_beginning_is_given_and_the_rest_is_learnt(given_, seed):
    text, stop = given_
    given_ = Random(seed).randrange(1, stop - text.prompt)
    made = begun(text, given_)
    assert (made.ids, made.index) == (text.ids, text.index)
    assert made.taught == text.ids[text.prompt + given_ :] and made.prompt == text.prompt + given_


@given(st.integers(2, 100), kinds, seeds)
def test_blanks_are_apart_and_in_order(count, kind, seed):
    spans = blanks(count, *kind, Random(seed))
    edges = [edge for span in spans for edge in span]
    assert spans and edges == sorted(set(edges)) and edges[0] >= 0 and edges[-1] <= count


@pytest.mark.parametrize("kind", BLANKS)
def test_in_the_mean_blanks_are_as_many_and_as_long_as_said(kind):
    rate, mean = BLANKS[kind]
    drawn, counts = Random(kind), [40 + number % 60 for number in range(4000)]
    found = [blanks(count, rate, mean, drawn) for count in counts]
    lost = sum(stop - start for spans in found for start, stop in spans)
    assert lost / sum(counts) == pytest.approx(rate, rel=0.02)
    assert lost / sum(map(len, found)) == pytest.approx(mean, rel=0.2), "but for those that are cut"
    for place in (lambda count: 0, lambda count: count // 2, lambda count: count - 1):
        at = sum(any(a <= place(n) < b for a, b in spans) for n, spans in zip(counts, found, strict=True))
        assert at / len(found) == pytest.approx(rate, rel=0.2), "wherever it is"


@pytest.fixture(scope="module", params=["small", pytest.param("default", marks=pytest.mark.slow)])
def speech(request, tokenizer):
    """A byte is a token; or the default decoder's tokenizer."""
    return tokenizer if request.param == "small" else load_tokenizer(zoo.located(DECODER))


def entry_of(tokenizer, caption=CAPTION, question=CAPTION_PROMPT):
    """A caption as it is learnt."""
    before = tokenizer(f"{tokenizer.eos_token}{question}\n", add_special_tokens=False)["input_ids"]
    after = tokenizer(caption + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    text = Marked(before + after, [-1, *[0] * (len(before + after) - 1)], ((len(before), len(before + after)),))
    return Encoded("a", question, caption, ("key",), text)


def denoiser(tokenizer, share=1.0, r=1.0, x=1.0, s=1.0, seed=0, longest=2048):
    return Denoiser(tokenizer, CAPTION_PROMPT, DenoiseConfig(share, r, x, s), seed, longest)


@pytest.mark.parametrize("kind", "rx")
def test_blanks_are_plain_text(speech, kind):
    """No special token, none that is unknown; the text reads as numbered blanks and what is in them."""
    only, entry = denoiser(speech, **{"r": 0, "x": 0, "s": 0} | {kind: 1}), entry_of(speech)
    for step in range(50):
        made = only(entry, step, (0, 0)).text
        said, end = speech.decode(made.ids[entry.text.prompt : -1]), made.ids[-1]
        assert end == made.taught[-1] == speech.eos_token_id
        assert not set(made.ids[entry.text.prompt : -1]) & {*speech.all_special_ids, speech.unk_token_id}
        shown, *pieces = re.split(r"\n\[\d+\]", said)
        assert re.findall(r"\n\[(\d+)\]", said) == [str(number + 1) for number in range(len(pieces))]
        for number, piece in enumerate(pieces, 1):
            assert shown.count(f" [{number}]") == 1
            shown = shown.replace(f" [{number}]", piece)
        assert shown == CAPTION
        assert speech.decode(made.taught[:-1]) == "".join(pieces)


def test_what_is_drawn_follows_from_seed_step_and_name(speech):
    entry = entry_of(speech)
    wanted = [denoiser(speech)(entry, step, (0, 7)).text for step in range(20)]
    again = denoiser(speech)
    assert [again(entry, step, (0, 7)).text for step in reversed(range(20))] == wanted[::-1]
    assert len({(*text.ids, *text.learnt) for text in wanted}) > 15, "steps differ"
    for other, name in ((denoiser(speech, seed=1), (0, 7)), (again, (0, 8)), (again, (1, 7))):
        assert [other(entry, step, name).text for step in range(20)] != wanted


def test_each_comes_as_often_as_was_asked_for(tokenizer):
    entry = entry_of(tokenizer)
    mixed, kinds_, steps = denoiser(tokenizer, 0.6, r=2, x=3, s=1), Counter(), 3000

    def kind(text):
        if text.ids == entry.text.ids:
            return "plain" if text == entry.text else "s"
        return "r" if text.answer < 0.3 * entry.text.answer else "x"

    for step in range(steps):
        kinds_[kind(mixed(entry, step, (0, 0)).text)] += 1
    for name, share in {"plain": 0.4, "r": 0.2, "x": 0.3, "s": 0.1}.items():
        assert kinds_[name] / steps == pytest.approx(share, abs=0.03), name


@pytest.mark.parametrize("question", [CAPTION_PROMPT, f"<image>\n{CAPTION_PROMPT} "])
def test_captions_alone_are_denoised_and_none_if_not_asked_for(question, tokenizer):
    entry, every = entry_of(tokenizer, question=question), denoiser(tokenizer)
    other, short = entry_of(tokenizer, question="What is it?"), entry_of(tokenizer, "ab", question)
    for step in range(30):
        assert every(entry, step, (0, 0)).text != entry.text
        assert denoiser(tokenizer, 0.0)(entry, step, (0, 0)) is entry
        assert every(other, step, (0, 0)) is other and every(short, step, (0, 0)) is short


def test_none_grows_longer_than_may_be(tokenizer):
    entry = entry_of(tokenizer)
    longest = len(entry.text.ids) + 34
    made = [denoiser(tokenizer, longest=longest, s=0)(entry, step, (0, 0)) for step in range(100)]
    assert max(len(one.text.ids) for one in made) <= longest
    assert 10 < sum(one is entry for one in made) < 90, "some would have"


@pytest.mark.parametrize("image_last", [False, True])
def test_a_batch_is_of_the_same_loss_however_it_is_computed(image_last, make_model, open_gates, cache, picture):
    """And the prompt is kept for all: a denoised text does not come again."""
    model = open_gates(make_model(image_last=image_last))
    samples = [Sample.pair(f"{n}", (picture(n),) * (n > 0), CAPTION_PROMPT, f"{n} {CAPTION}") for n in range(6)]
    many, below = denoiser(model.processor.tokenizer), Below(model)
    chosen = [many(entry, n, (0, n)) for n, entry in enumerate(encode(model, cache, samples, ""))]
    assert {len(entry.text.learnt) > 1 for entry in chosen} == {True, False} and all(entry.given for entry in chosen)
    losses = []
    for kept in (None, below):
        batch = batch_of(model, cache, chosen, kept)
        assert [labels[labels != IGNORED].tolist() for labels in batch["labels"]] == [one.learnt for one in chosen]
        with torch.no_grad():
            losses.append(learnt_loss(model, model, batch)[0].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert below.usable and len(below.prefixes.kept) <= 4, "of prompts with an image and without, and their beginnings"


@pytest.mark.parametrize("world", [1, 2, 8])
def test_however_many_processes_a_step_has_the_same(world, tiny_model, cache, picture):
    """Asked for in any order; the media learn words from captions as they are, and chats stay what they are."""
    chat = (Turn("user", "what?"), Turn("assistant", "a cat", True), Turn("user", CAPTION_PROMPT))
    samples = [Sample.pair(f"{n}", (picture(n),), CAPTION_PROMPT, f"{n} {CAPTION}") for n in range(8)]
    samples.append(Sample("chat", (picture(9),), (*chat, Turn("assistant", CAPTION, True))))
    data = encode(tiny_model, cache, samples, "")
    batches = Batches(data, BatchConfig(9, 1), 0)
    mixture = Mixture([batches], [1], denoiser(tiny_model.processor.tokenizer))
    found = {}
    for rank in range(world):
        with Fetched(mixture, 8 // world, rank, world, 3) as fetched:
            for step in (2, 0, 1):
                for part in fetched.take(step):
                    found |= {(step, entry.id): entry.text for entry in part}
    plain = {entry.id: entry.text for entry in data}
    wanted = {(step, data[n].id): mixture.read((0, n), step).text for step in range(3) for n in range(9)}
    assert found == wanted
    assert all((text == plain[id]) == (id == "chat") for (_, id), text in found.items())
    assert [mixture.read((0, n)).text for n in range(9)] == list(plain.values())
