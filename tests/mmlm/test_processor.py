"""<image> marks a place and leaves no other trace; every token knows the latest image before it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import ByT5Tokenizer

from mmlm.processor import Processor
from vision.images import ImageError
from vision.pyramid import Pyramid

MARK = "<image>"
words = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return Processor(tokenizer, Pyramid())


@given(pieces=st.lists(words, min_size=1, max_size=5).filter(lambda pieces: "".join(pieces).strip()))
def test_marks_never_become_tokens(pieces, processor, tokenizer):
    marked = processor.tokenize(MARK.join(pieces))
    assert marked.ids == tokenizer("".join(pieces))["input_ids"]
    assert len(marked.index) == len(marked.ids)


@given(pieces=st.lists(words, min_size=1, max_size=5).filter(lambda pieces: "".join(pieces).strip()))
def test_every_token_sees_the_latest_mark_before_its_end(pieces, processor, tokenizer):
    """The tokenizer's tokens are bytes, so that the marks before each can be counted without offsets."""
    index = processor.tokenize(MARK.join(pieces)).index
    expected = [i - 1 for i, piece in enumerate(pieces) for _ in piece.encode()]
    last = len("".join(pieces)[-1].encode())
    expected[-last:] = [len(pieces) - 2] * last  # what foretells the answer sees every image
    assert index == expected


@given(
    pieces=st.lists(st.text(" \nab", max_size=4), min_size=1, max_size=4).filter(lambda pieces: "".join(pieces).strip())
)
def test_trimmed_offsets_hide_no_image(pieces, tokenizer):
    """Llama 3's tokenizer gives a token of spaces alone an empty place in the text."""
    trimming = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    )
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    index = Processor(trimming, Pyramid()).tokenize(MARK.join(pieces)).index
    assert index == sorted(index)
    assert index[-1] == len(pieces) - 2


def test_tokens_without_text_see_what_the_one_before_them_sees(tokenizer):
    ending = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    )
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 258), ("<|end|>", 256)]
    )
    assert Processor(ending, Pyramid()).tokenize("a<image>bc").index == [-1, -1, 0, 0, 0]


def test_the_vocabulary_stays_as_it_was(tiny_model, tokenizer, picture):
    before = tokenizer.get_vocab()
    tiny_model.generate(picture(), "What <image> is it?", max_new_tokens=2)
    assert tokenizer.get_vocab() == before
    assert tiny_model.decoder.get_input_embeddings().num_embeddings == len(before)


def test_the_mark_can_be_another(tokenizer):
    marked = Processor(tokenizer, Pyramid(), mark="[IMG]").tokenize("<image>[IMG]a")
    assert marked.ids == tokenizer("<image>a")["input_ids"]
    assert marked.index == [-1] * 7 + [0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_on_the_side_asked_for(side, processor, tokenizer):
    batch = processor(None, ["abc", "defgh"], padding_side=side)
    pad = tokenizer.pad_token_id
    short = tokenizer("abc")["input_ids"]
    assert batch["input_ids"][0].tolist() == ([pad, pad, *short] if side == "left" else [*short, pad, pad])
    assert batch["attention_mask"][0].tolist() == ([0, 0, 1, 1, 1] if side == "left" else [1, 1, 1, 0, 0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_sees_nothing(side, processor, picture):
    batch = processor([picture(1), picture(2)], ["What?", "And a longer one?"], padding_side=side)
    assert (batch["media_index"][batch["attention_mask"] == 0] == -1).all()
    assert (batch["media_index"][batch["attention_mask"] == 1] == 0).all()


def test_text_alone_has_no_media(processor):
    assert set(processor(None, ["a", "b"])) == {"input_ids", "attention_mask"}
    assert set(processor([[], []], ["a", "b"])) == {"input_ids", "attention_mask"}


def test_unmarked_prompts_see_their_images_from_the_first_token(processor, picture):
    assert processor([picture(1), picture(2)], "What?")["media_index"].tolist() == [[1] * 5]


def test_forms_of_images_mean_the_same(processor, picture, tmp_path):
    image = picture(1)
    image.save(tmp_path / "a.png")
    forms = [image, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), np.asarray(image)]
    batches = [processor(form, "What?") for form in forms] + [processor([form], ["What?"]) for form in forms]
    for batch in batches:
        assert torch.equal(batch["pixel_values"], batches[0]["pixel_values"])


def test_images_belong_to_rows(processor, picture):
    one, two = picture(1), picture(2)
    for images, texts, owners in [
        ([one, two], ["a", "b"], [[0], [0]]),
        ([one, two], "a<image>b<image>c", [[0, 1]]),
        ([[one, two], one], ["<image>a<image>b", "c"], [[0, 1], [0, -1]]),
        ([[], [two]], ["a", "b"], [[-1], [0]]),
        ((one, two), ["a", "b"], [[0], [0]]),
    ]:
        batch = processor(images, texts)
        assert [row.unique(sorted=True).tolist() for row in batch["media_owner"]] == [sorted(row) for row in owners]


def test_low_detail_is_85_embeddings_and_a_tile_170_more(tokenizer, picture):
    for detail, count in (("low", 85), ("high", 255), ("auto", 85)):
        batch = Processor(tokenizer, Pyramid(), detail)(picture(1, (512, 512)), "What?")
        assert batch["media_gather"].shape == (1, count)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": " ok?"}],
    },
]


def test_chats_go_through_the_decoders_template(processor, tokenizer, picture):
    batch = processor(picture(1), CHAT)
    plain = "<|start|>system\nBe brief.<|end|>\n<|start|>user\nLook:  ok?<|end|>\n<|start|>assistant\n"
    assert tokenizer.decode(batch["input_ids"][0]) == plain
    before = len(tokenizer("<|start|>system\nBe brief.<|end|>\n<|start|>user\nLook: ")["input_ids"])
    assert (batch["media_index"][0] < 0).sum() == before
    assert processor.apply_chat_template(CHAT).endswith(" ok?<|end|>\n")


def test_chats_and_strings_may_be_mixed(processor, picture):
    assert processor([picture(1), picture(2)], [CHAT, "What?"])["input_ids"].shape[0] == 2


def test_without_a_template_a_chat_is_its_lines(tokenizer):
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    assert (
        Processor(bare, Pyramid()).apply_chat_template(CHAT, add_generation_prompt=True)
        == "Be brief.\nLook: <image> ok?\n"
    )
    assert Processor(bare, Pyramid()).apply_chat_template(CHAT) == "Be brief.\nLook: <image> ok?"


@pytest.fixture
def beginning(tokenizer):
    """A tokenizer that begins a text with <|start|>, as Llama's does with <s>."""
    other = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<|start|>",
    )
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 258)]
    )
    return other


@pytest.mark.parametrize(
    ("template", "starts"),
    [("{{ bos_token }}{{ messages[0]['content'] }}", 1), ("{{ messages[0]['content'] }}", 0), (None, 1)],
    ids=["a template that begins the text", "one that does not", "none"],
)
def test_a_text_is_begun_once(template, starts, beginning):
    """A chat template says itself whether the text is begun; elsewhere the tokenizer begins it."""
    beginning.chat_template = template
    processor = Processor(beginning, Pyramid())
    marked = processor.read([{"role": "user", "content": "why?"}], 0)
    assert marked.ids.count(258) == starts
    assert processor.read("why?", 0).ids.count(258) == 1


def test_an_answer_is_read_with_its_prompt(processor, tokenizer):
    asked = processor.read(CHAT, 1)
    both = processor.read(CHAT, 1, "yes")
    assert both.ids == [*asked.ids, *tokenizer("yes")["input_ids"]]
    assert both.index == [*asked.index, 0, 0, 0]


def test_the_messages_are_left_as_they_were(processor, picture):
    kept = [dict(message) for message in CHAT]
    processor(picture(1), CHAT)
    assert kept == CHAT


# -- what users get wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text", "words"),
    [
        (0, "a <image> b", "1 <image> mark but 0 images"),
        (1, "a <image> b <image>", "2 <image> marks but 1 image came"),
        (3, "a <image>", "1 <image> mark but 3 images"),
        (0, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}], "1 <image> mark but 0"),
    ],
)
def test_marks_and_images_must_match(count, text, words, processor, picture):
    with pytest.raises(ValueError, match=words):
        processor([[picture(i) for i in range(count)]], [text])


@pytest.mark.parametrize("text", ["", "  \n ", "<image>", " <image>\n", ["a", ""]])
def test_empty_prompts_are_refused(text, processor, picture):
    images = [picture(1)] if isinstance(text, str) and MARK in text else None
    with pytest.raises(ValueError, match="the prompt is empty: say"):
        processor(images, text)


@pytest.mark.parametrize("text", [None, []])
def test_no_prompt_is_refused(text, processor):
    with pytest.raises(ValueError, match="no prompt: give text="):
        processor(None, text)


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ({"role": "user", "content": "a"}, "is no chat: a chat is a list"),
        ([{"role": "user"}], r"\{'role': 'user'\} is no message"),
        ([{"content": "a"}], r"\{'content': 'a'\} is no message"),
        ([{"role": "user", "content": None}], "'content': None} is no message"),
        ([{"role": "user", "content": {"type": "image"}}], "is no message"),
        ([{"role": "user", "content": "a"}, "b"], "'b' is no message"),
        ([{"role": "user", "content": ["a"]}], "'a' is no part"),
        ([{"role": "user", "content": [{"type": "video"}]}], r"\{'type': 'video'\} is no part"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"\{'type': 'text'\} is no part"),
        ([{"role": "user", "content": [{"type": "text", "text": 7}]}], "'text': 7} is no part"),
    ],
    ids=str,
)
def test_what_is_no_chat_is_refused_by_its_part(chat, words, processor):
    with pytest.raises(ValueError, match=words):
        processor(None, chat)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system!') }}", "{{ messages[7]['content'] }}", "{% if %}"]
)
def test_a_chat_that_the_template_refuses_is_refused(template, tokenizer):
    strict = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    strict.chat_template = template
    with pytest.raises(ValueError, match="the decoder's chat template refuses the chat"):
        Processor(strict, Pyramid())(None, CHAT[:1])


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(ValueError, match="ByT5Tokenizer does not say where in the text its tokens are"):
        Processor(ByT5Tokenizer(), Pyramid())


def test_images_and_prompts_must_match(processor, picture):
    with pytest.raises(ValueError, match="1 images came with 2 prompts"):
        processor(picture(1), ["a", "b"])
    with pytest.raises(ValueError, match="3 images came with 2 prompts"):
        processor([[picture(1)], [], []], ["a", "b"])


@pytest.mark.parametrize("content", [None, b"", b"not an image", b"\x89PNG\r\n\x1a\n cut"], ids=str)
def test_bad_images_are_named(content, processor, picture, tmp_path):
    path = tmp_path / "dog.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"dog\.png"):
        processor([picture(1), path], ["a", "b"])


@pytest.mark.parametrize("prompt", ["q<image>", "ab<image>", "<image>q<image>", "<image>q", "a<image>b"])
def test_a_prompt_sees_the_same_with_its_answer_and_without(prompt, processor):
    """A mark at the very end too: the token before it foretells the answer."""
    images = prompt.count(MARK)
    alone, answered = processor.read(prompt, images), processor.read(prompt, images, "yes")
    assert answered.ids[: len(alone.ids)] == alone.ids and answered.index[: len(alone.ids)] == alone.index
    assert answered.answer == 3 and alone.answer == 0
