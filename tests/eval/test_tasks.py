"""How samples are asked, and what their answers are scored against."""

import pytest

from eval.tasks import TASKS, blind, by_image
from mmlm.data import Sample, Turn


def caption(id, image, text, references=()):
    return Sample.pair(id, (image,), "Describe the image.", text, references)


def test_captions_of_an_image_become_its_references():
    """Once, also where each row has all of them, as COCO's; one that two people wrote counts twice."""
    rows = [caption("1", "a.png", "a cat"), caption("2", "b.png", "a dog"), caption("3", "a.png", "one cat")]
    assert [(its.id, its.references) for its in by_image(rows)] == [("1", ("a cat", "one cat")), ("2", ("a dog",))]
    every = ("a cat", "a cat", "one cat")
    assert by_image([caption(str(n), "a.png", text, every) for n, text in enumerate(every)])[0].references == every


def test_captions_without_an_image_have_nothing_in_common():
    rows = [Sample.pair(id, (), "Describe.", f"a {id}", ()) for id in ("cat", "dog")]
    assert [(its.id, its.references) for its in by_image(rows)] == [("cat", ("a cat",)), ("dog", ("a dog",))]


def test_a_caption_is_asked_for_by_the_prompt_alone():
    chat = (Turn("user", "<image>\nWell?"), Turn("assistant", "a cat", True))
    asked = TASKS["caption"].asked(Sample("1", ("a.png",), chat), "What {is} it?")
    assert (asked.question, asked.answer, asked.images) == ("What {is} it?", "a cat", ("a.png",))


def test_the_prompt_stands_around_the_last_question():
    turns = Turn("user", "<image> {x}?"), Turn("assistant", "red", True), Turn("user", "and this?")
    sample = Sample("1", ("a.png",), (*turns, Turn("assistant", "blue", True)))
    asked = TASKS["vqa"].asked(sample, "Q: {question} Say.")
    assert asked.question == "<image> {x}?\nred\nQ: and this? Say."
    assert TASKS["vqa"].asked(sample, "{question}") == sample
    assert blind(asked).question == "{x}?\nred\nQ: and this? Say." and blind(asked).images == ()


@pytest.mark.parametrize(("task", "prompt"), [("vqa", "what?"), ("vqa", ""), ("caption", " ")])
def test_a_prompt_asks_something(task, prompt):
    with pytest.raises(ValueError, match="prompt: "):
        TASKS[task].check_prompt(prompt)
