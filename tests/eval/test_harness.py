"""What harnesses ask for: each its own answer and likelihood, in order; images where they belong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import StoppingCriteriaList

from eval.harness import Until, chat_of, continued, cut, in_batches, settings, weighed
from eval.likelihood import log_likelihoods
from mmlm.data import Sample
from mmlm.samples import encode_images, media_of
from vision.features import FeatureCache

SIX = {"max_new_tokens": 6}


@pytest.fixture(params=[False, True], ids=["image first", "image last"])
def model(request, make_model, open_gates):
    return open_gates(make_model(image_last=request.param, system="You see."), 1.5)


def part(what):
    return {"type": "text", "text": what} if isinstance(what, str) else {"type": "image", "url": what}


def user(*content):
    return [{"role": "user", "content": [part(what) for what in content]}]


@pytest.fixture
def images(picture):
    return [picture(seed, size) for seed, size in enumerate([(96, 64), (600, 300), (64, 96)])]


def test_images_that_only_came_first_stand_where_the_adapter_was_trained_to_find_them(model, images):
    for shown in (images[:1], images):
        messages, found = chat_of(model.config, user(*shown, "what?"))
        assert messages == model.messages("what?", len(shown)) and found == shown


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (["a", 0, "b", 1, "c"], "a<image>b<image>c"),
        (["what?", 0], "what?<image>"),
        ([0, "a", 1, "b"], "<image>a<image>b"),
        ([0, 1, "a <image> and <image>"], "a <image> and <image>"),
        (["a <image>", 0], "a <image>"),
        (["a", "b"], "ab"),
        ([0], "<image>"),
    ],
)
def test_images_that_a_task_has_placed_stay_there(model, images, content, wanted):
    messages = user(*(images[what] if isinstance(what, int) else what for what in content))
    (system, said), found = chat_of(model.config, messages)
    assert system == {"role": "system", "content": "You see."}
    assert "".join(piece.get("text", "<image>") for piece in said["content"]) == wanted
    assert found == images[: wanted.count("<image>")]


def test_a_chat_keeps_its_own_system_message_and_all_turns(model, images):
    turns = [
        {"role": "system", "content": "Be brief."},
        *user(images[0], "what?"),
        {"role": "assistant", "content": [part("a cat")]},
        *user(images[1], "and this?"),
    ]
    messages, found = chat_of(model.config, turns)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == [part("Be brief.")] and found == images[:2]
    assert messages[3] == model.messages("and this?")[-1]


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_what_is_no_image_is_refused(model, kind):
    with pytest.raises(ValueError, match=f"^{kind} in a chat .*clip.mp4.*: the model sees images; leave this task out"):
        chat_of(model.config, [{"role": "user", "content": [{"type": kind, "url": "clip.mp4"}, part("what?")]}])


def test_marks_that_do_not_match_are_refused(model, images):
    with pytest.raises(ValueError, match="2 <image> in its text but 1 images"):
        chat_of(model.config, user(images[0], "<image> or <image>?"))


@given(requests=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=20), size=st.integers(1, 7))
def test_each_request_gets_its_own_answer(requests, size):
    """In the requests' order; of one group and in order are those asked together."""
    batches = []

    def ask(some):
        batches.append(some)
        return [f"{letter}{number}" for letter, number in some]

    said = in_batches(requests, lambda request: request[0], lambda request: -request[1], size, ask)
    assert said == [f"{letter}{number}" for letter, number in requests]
    assert all(0 < len(some) <= size and len({letter for letter, _ in some}) == 1 for some in batches)
    for letter in "ab":
        numbers = [number for some in batches for its, number in some if its == letter]
        assert numbers == sorted(numbers, reverse=True)
        assert sum(some[0][0] == letter for some in batches) == -(-len(numbers) // size)


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_what_is_said_is_what_the_model_says_to_each_alone(model, images, kwargs):
    questions = ["what?", "what is shown here?", "which one?"]
    chats = [chat_of(model.config, user(image, words)) for image, words in zip(images, questions, strict=True)]
    chats += [chat_of(model.config, user("who?")), chat_of(model.config, user(*images[:2], "which?"))]
    wanted = [model.ask(image, words, **SIX, **kwargs) for image, words in zip(images, questions, strict=True)]
    wanted += [
        model.generate(shown, model.messages(words, len(shown)), **SIX, **kwargs)
        for shown, words in (([], "who?"), (images[:2], "which?"))
    ]
    assert continued(model, chats, SIX | kwargs) == wanted
    assert len(set(wanted)) > 3, "it looks"


def test_an_answer_ends_before_what_ends_it(model, images):
    chats = [chat_of(model.config, user(image, "what?")) for image in images]
    whole = continued(model, chats, {"max_new_tokens": 12})
    until = [text[3:5] for text in whole]
    wanted = [cut(text, until).strip() for text in whole]
    assert continued(model, chats, {"max_new_tokens": 12, "until": until}) == wanted != whole


def test_an_answer_that_has_ended_is_not_continued(model, images):
    """What the prompt has of it does not count."""
    tokenizer = model.processor.tokenizer
    batch = model.processor(images[0], model.messages("what?"))
    width = batch["input_ids"].shape[1]
    plain = model.generate_tokens(batch, max_new_tokens=12, do_sample=False)
    stop = tokenizer.decode(plain[0, 4:6])
    for until, length in ((["what?"], 12), ([stop], 6)):
        ends = StoppingCriteriaList([Until(tokenizer, until, width)])
        tokens = model.generate_tokens(batch, max_new_tokens=12, do_sample=False, stopping_criteria=ends)
        assert tokens.tolist() == plain[:, :length].tolist()


@pytest.mark.parametrize(
    ("given", "told", "until"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}, []),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
            {"max_new_tokens": 16, "num_beams": 1, "do_sample": False},
            [],
        ),
        ({"temperature": 0.7, "top_p": None}, {"max_new_tokens": 1024, "temperature": 0.7, "do_sample": True}, []),
        ({"temperature": 0, "do_sample": True}, {"max_new_tokens": 1024, "do_sample": False}, []),
        ({"do_sample": True, "top_k": 5}, {"max_new_tokens": 1024, "do_sample": True, "top_k": 5}, []),
        ({"max_gen_toks": 5, "until": "\n\n"}, {"max_new_tokens": 5, "do_sample": False}, ["\n\n"]),
        (
            {"until": ["A", "", "B"], "image_aspect_ratio": "pad"},
            {"max_new_tokens": 1024, "do_sample": False},
            ["A", "B"],
        ),
    ],
)
def test_settings_of_tasks_are_those_of_generate(given, told, until):
    assert settings(given) == (told, until)


@given(st.text("ab.", max_size=12), st.lists(st.text("ab.", min_size=1, max_size=2), max_size=3))
def test_a_cut_text_has_no_stop_in_it(text, until):
    left = cut(text, until)
    assert text.startswith(left) and not any(stop in left for stop in until)
    assert left == text or any(text.startswith(stop, len(left)) for stop in until)


def test_likelihoods_are_those_of_answers_in_their_chats(model, images, tmp_path):
    """As the model would be taught them, but for the end after an answer."""
    options = ["a cat", "two dogs", "none"]
    chats = [chat_of(model.config, user(image, "what?")) for image in images for _ in options]
    found = weighed(model, chats, [f" {option}" for _ in images for option in options])
    samples = [Sample.pair("", (image,), "what?", option) for image in images for option in options]
    cache = FeatureCache(model.vision, tmp_path)
    keys = encode_images(cache, samples, "")
    texts = [model.processor.read(model.messages("what?"), 1, sample.answer) for sample in samples]
    assert found == log_likelihoods(model, texts, lambda index: media_of(cache, keys, index))
    assert [its.tokens for its in found] == [len(option) for _ in images for option in options]
    assert len({its.total for its in found}) == len(found)


def test_what_is_written_in_images_is_read_to_the_model(model, images):
    chat = chat_of(model.config, user(images[0], "what?"))
    silent = weighed(model, [chat], ["a cat"])
    model.processor.ocr = lambda picture: [("A CAT", (0, 0, *picture.size))]
    wanted = model.ask(images[0], "what?", **SIX)
    assert weighed(model, [chat], ["a cat"]) != silent
    assert continued(model, [chat], SIX) == [wanted]
