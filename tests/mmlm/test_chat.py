"""A conversation says what the same messages say at once, and computes nothing twice."""

import copy

import pytest
from families import small
from transformers import GenerationConfig

from vision.images import ImageError

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module", params=[{}, {"image_last": True, "tokens": "resampler"}], ids=str)
def model(request, make_model, open_gates):
    return open_gates(make_model(attend="all", **request.param))


@pytest.fixture
def turns(picture):
    return [("What is it?", [picture(1)]), ("And how many?", []), ("And these?", [picture(2), picture(3)]), ("So?", [])]


def parts(messages):
    """Images stand in messages as their parts do."""
    return sum(part == {"type": "image"} for m in messages if isinstance(m["content"], list) for part in m["content"])


def test_a_conversation_says_what_its_messages_say(model, turns):
    chat, shown = model.chat(), []
    for question, images in turns:
        answer = chat.ask(question, images, **GREEDY)
        shown += images
        *before, last = chat.messages
        assert last == {"role": "assistant", "content": answer}
        assert parts(before) == len(shown)
        assert model.generate(shown, before, **GREEDY) == answer
    assert len(chat.messages) == 2 * len(turns)


def test_text_and_media_are_computed_once(model, turns):
    lengths, keys, pixels = [], [], []
    handles = [
        model.decoder.model.embed_tokens.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1])),
        model.adapter.blocks[0].k.register_forward_hook(lambda _, args, out: keys.append(len(args[0]))),
        model.vision.backbones[0].register_forward_pre_hook(lambda _, args: pixels.append(len(args[0]))),
    ]
    chat = model.chat()
    for question, images in turns:
        chat.ask(question, images, **GREEDY)
    for handle in handles:
        handle.remove()
    whole = len(model.processor.read(chat.messages[:-1], 3).ids)
    prefilled = [length for length in lengths if length > 1]
    assert len(prefilled) == len(turns) and sum(prefilled) <= whole + 4 * len(turns)
    assert len(keys) == 2  # turns with images
    assert sum(pixels) == 3


def test_images_may_be_given_at_the_start(model, picture):
    one, other = model.chat(picture(1)), model.chat()
    assert one.ask("What is it?", **GREEDY) == other.ask("What is it?", picture(1), **GREEDY)
    assert one.ask("Sure?", **GREEDY) == other.ask("Sure?", **GREEDY)


def test_a_copy_goes_on_by_itself(model, picture):
    chat, shown = model.chat(picture(1)), [picture(1)]
    chat.ask("What is it?", **GREEDY)
    other = copy.copy(chat)
    said = other.ask("And this one?", picture(2), **GREEDY)
    assert said == model.generate([*shown, picture(2)], other.messages[:-1], **GREEDY)
    answer = chat.ask("Sure about that?", picture(3), **GREEDY)
    assert answer == model.generate([*shown, picture(3)], chat.messages[:-1], **GREEDY)


WAYS = [
    {"num_beams": 2},
    {"do_sample": True, "top_k": 1},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"prefill_chunk_size": 4},
    {"prompt_lookup_num_tokens": 3},
    {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=6, do_sample=False)},
]


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_turns_may_be_generated_in_any_way(how, model, picture):
    """Each after a turn of another way, and before one."""
    chat = model.chat(picture(1))
    for question, way in (("What is it?", {}), ("Sure?", how), ("Really?", how), ("So?", {})):
        way = way if "generation_config" in way else GREEDY | way
        answer = chat.ask(question, **way)
        assert model.generate([picture(1)], chat.messages[:-1], **way) == answer


def test_after_a_turn_of_another_way_the_text_before_it_is_still_known(model, picture):
    chat, lengths = model.chat(picture(1)), []
    chat.ask("What is in this picture, and what is not?", **GREEDY)
    known = len(chat.seen)
    chat.ask("Sure?", **GREEDY, num_beams=2)
    assert len(chat.seen) == chat.cache.get_seq_length() == known
    handle = model.decoder.model.embed_tokens.register_forward_pre_hook(lambda _, a: lengths.append(a[0].shape[1]))
    chat.ask("So?", **GREEDY)
    handle.remove()
    said = GREEDY["max_new_tokens"]  # read again, an answer may be other tokens
    assert lengths[0] <= len(model.processor.read(chat.messages[:-1], 1).ids) - known + said


@pytest.mark.parametrize("eyes", [{"attend": "all"}, {"detail": "low"}], ids=str)
def test_an_assistant_sees_the_conversations_images(eyes, model, make_model, open_gates, picture):
    """Also those that were shown before it came."""
    helper = open_gates(make_model(**eyes), 0.9)
    chat, pixels = model.chat(picture(1, (700, 600))), []
    handle = helper.vision.register_forward_pre_hook(lambda _, args: pixels.append(len(args[0])))
    chat.ask("What is it?", **GREEDY)
    chat.ask("And this?", picture(2), **GREEDY, assistant_model=helper)
    answer = chat.ask("So?", **GREEDY, assistant_model=helper)
    handle.remove()
    assert model.generate([picture(1, (700, 600)), picture(2)], chat.messages[:-1], **GREEDY) == answer
    assert sum(pixels) == len(helper.processor([picture(1, (700, 600)), picture(2)], "What?")["pixel_values"])
    assert helper.splice.view is None


def test_an_answer_that_names_the_mark_shows_no_image(model, picture, monkeypatch):
    chat = model.chat(picture(1))
    monkeypatch.setattr(chat, "reply", lambda *_: model.processor.tokenizer("An <image> it is")["input_ids"])
    assert chat.ask("What is it?", **GREEDY) == "An  it is"
    monkeypatch.undo()
    assert chat.ask("Sure?", **GREEDY) == model.generate([picture(1)], chat.messages[:-1], **GREEDY)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "jamba"])
def test_recurrent_decoders_hold_a_conversation(kind, make_model, open_gates, turns):
    model = open_gates(make_model(small(kind), layers=[1, 3]), 0.9)
    chat, shown = model.chat(), []
    for question, images in turns:
        answer = chat.ask(question, images, **GREEDY)
        shown += images
        assert model.generate(shown, chat.messages[:-1], **GREEDY) == answer


def test_what_is_refused_leaves_the_conversation_as_it_was(model, picture, tmp_path):
    chat = model.chat(picture(1))
    with pytest.raises(ValueError, match="the question is empty"):
        chat.ask(" ")
    with pytest.raises(ImageError, match="nowhere"):
        chat.ask("What?", tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="num_return_sequences"):
        chat.ask("What?", num_return_sequences=2)
    with pytest.raises(ValueError, match="num_return_sequences"):
        chat.ask("What?", generation_config=GenerationConfig(num_return_sequences=2, do_sample=True))
    with pytest.raises(ValueError, match="no_such"):
        chat.ask("What?", no_such=1)
    assert chat.messages == [] and len(chat.waiting) == 1
    assert chat.ask("What?", **GREEDY) == model.chat(picture(1)).ask("What?", **GREEDY)


def test_without_an_image_it_is_the_base_decoders(model):
    chat = model.chat()
    answer = chat.ask("Hello?", **GREEDY)
    assert answer == model.generate(None, chat.messages[:-1], **GREEDY)
    assert chat.sights[model] == (0, None)
