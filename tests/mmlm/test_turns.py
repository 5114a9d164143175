"""Turns: what of a chat is learnt are its answers, each with the end that the decoder's template puts after it."""

import copy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mmlm.config import AdapterConfig
from mmlm.data.sample import Sample, Turn
from mmlm.processor import Marked, Processor, apart, tokens_of
from mmlm.turns import messages_of, read_turns
from vision.pyramid import Pyramid

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (  # the system's words go into the user's first turn
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "[INST] {{ system + m['content'] if loop.first else m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GLM = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}<|assistant|>\n"  # a turn ends a turn
THINKING = CHATML.replace(  # of earlier turns, thoughts are left out
    "{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}"
)
TWICE = CHATML + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>"),
    *("<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>"),
)
STYLES = {  # template, what ends a turn, does it trim turns
    "ChatML": (CHATML, "<|im_end|>", False),
    "Llama 3": (LLAMA, "<|eot_id|>", True),
    "Mistral": (MISTRAL, "</s>", False),
    "Gemma": (GEMMA, "<end_of_turn>", True),
    "GLM": (GLM, "<|user|>", False),
    "none": (None, "", False),
}


def make(template, eos="</s>"):
    """A processor whose tokens are bytes."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [word for word in SPECIAL if word not in ("<s>", eos)]
    whole = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=eos, additional_special_tokens=special
    )
    whole.chat_template = template
    return Processor(whole, Pyramid())


PROCESSORS = {name: make(template) for name, (template, *_) in STYLES.items()}
ASK, SAY, AGAIN = Turn("user", "what?"), Turn("assistant", "a cat", True), Turn("user", "sure?")


def learnt(processor, marked):
    return [processor.tokenizer.decode(marked.ids[start:stop]) for start, stop in marked.learnt]


words = st.text(st.characters(codec="utf-8", exclude_characters="<>\x00", exclude_categories=("Cs", "Cc")), max_size=12)
spoken = words.filter(str.strip)
answers = st.one_of(spoken, st.just("7"), spoken.map(lambda text: f" {text}\n"))


@st.composite
def chats(draw):
    """Chats that all templates take, of questions and answers by turns; some answers are not learnt."""
    turns = [Turn("system", draw(spoken))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        marks = "<image>" * draw(st.integers(0, 2))
        turns += [
            Turn("user", draw(words) + marks + draw(spoken)),
            Turn("assistant", draw(answers), draw(st.booleans())),
        ]
    turns[-1] = Turn("assistant", turns[-1].text, True)
    after = draw(st.lists(st.just(Turn("user", "thanks")), max_size=1))
    count = sum(turn.text.count("<image>") for turn in turns)
    return Sample("chat", (b"",) * count, (*turns, *after))


@pytest.mark.parametrize("style", STYLES)
@given(chat=chats())
def test_learnt_are_the_answers_and_their_ends(style, chat):
    processor, (_, end, trims) = PROCESSORS[style], STYLES[style]
    if style == "Gemma" and chat.turns[0].role == "system":
        with pytest.raises(ValueError, match=r"sample 'chat': .* refuses the chat \(no system role\)"):
            read_turns(processor, AdapterConfig(), chat, True)
        return
    marked = read_turns(processor, AdapterConfig(), chat, True)
    said = [turn.text for turn in chat.turns if turn.learnt]
    *earlier, last = said
    assert learnt(processor, marked) == [
        *(f"{text.strip() if trims else text}{end}" for text in earlier),
        f"{last}{processor.tokenizer.eos_token}",
    ]
    alone = read_turns(processor, AdapterConfig(), chat)
    assert alone.learnt == () and alone.ids == marked.ids[: len(alone.ids)], "what is asked is what is taught"
    assert alone.index == marked.index[: len(alone.ids)]
    assert max(marked.index) + 1 == len(chat.images)


def chat_of(*turns, images=0):
    return Sample("chat", (b"",) * images, turns)


def test_the_last_answer_of_a_chat_is_learnt_as_a_pair_is():
    """Its prompt is the chat's, with a generation prompt after it."""
    processor = PROCESSORS["ChatML"]
    pair, chat = Sample.pair("chat", (), "what?", "a cat"), chat_of(ASK, SAY, AGAIN, Turn("assistant", "yes"))
    assert read_turns(processor, AdapterConfig(), chat, True) == read_turns(processor, AdapterConfig(), pair, True)


@pytest.mark.parametrize("image_last", [False, True])
def test_images_without_marks_stand_in_the_first_question(image_last):
    config = AdapterConfig(image_last=image_last, system="Be brief.")
    chat = chat_of(ASK, SAY, AGAIN, SAY, images=2)
    shown = [{"type": "image"}] * 2
    asked = {"type": "text", "text": "what?"}
    assert messages_of(config, chat)[:2] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [asked, *shown] if image_last else [*shown, asked]},
    ]
    own = chat_of(Turn("system", "Talk."), ASK, SAY, images=2)
    assert [message["role"] for message in messages_of(config, own)] == ["system", "user"], "its own system turn"


def test_marks_stand_where_they_are():
    chat = chat_of(Turn("user", "a <image>b"), SAY, Turn("user", "<image><image>\nsame?"), SAY, images=3)
    marked = read_turns(PROCESSORS["ChatML"], AdapterConfig(image_last=True), chat, True)
    text = PROCESSORS["ChatML"].tokenizer.decode(marked.ids)
    assert "user\na b<" in text and "user\n\nsame?" in text
    first, others = text.index("a b") + 2, text.index("\nsame?")
    assert marked.index == [-1] * len(text[:first].encode()[: _tokens(text[:first])]) + [0] * (
        _tokens(text[:others]) - _tokens(text[:first])
    ) + [2] * (len(marked.ids) - _tokens(text[:others]))


def _tokens(text):
    return len(PROCESSORS["ChatML"].tokenizer(text)["input_ids"])


def test_what_is_written_in_images_is_not_learnt():
    chat = chat_of(Turn("user", "<image>q"), SAY, Turn("user", "<image>r"), Turn("assistant", "two", True), images=2)
    for processor in PROCESSORS.values():
        marked = read_turns(processor, AdapterConfig(), chat, True, written=("in the first: a cat", "in the second"))
        assert [re.sub("<.*", "", text) for text in learnt(processor, marked)] == ["a cat", "two"]
        assert "in the second" in processor.tokenizer.decode(marked.ids)


@pytest.mark.parametrize(
    ("template", "answer"),
    [(THINKING, "<think>hm</think>a cat"), (TWICE, "a cat"), (CHATML, "a <|mark|> b")],
    ids=["leaves out thoughts", "says it twice", "has a mark"],
)
def test_what_is_said_otherwise_is_refused(template, answer):
    processor = make(template)
    processor.mark = "<|mark|>"
    chat = chat_of(ASK, Turn("assistant", answer, True), AGAIN, SAY)
    with pytest.raises(ValueError, match=r"sample 'chat': (the decoder's chat template changes|<\|mark\|>, which)"):
        read_turns(processor, AdapterConfig(), chat, True)


def test_what_a_template_leaves_as_it_is_is_learnt_all_the_same():
    """Where there is nothing to leave out; and last answers stand as they are."""
    chat = chat_of(ASK, SAY, AGAIN, Turn("assistant", "<think>hm</think>yes", True))
    processor = make(THINKING)
    marked = read_turns(processor, AdapterConfig(), chat, True)
    assert learnt(processor, marked) == ["a cat<|im_end|>", "<think>hm</think>yes</s>"]


def test_a_chat_that_nobody_asks_is_refused():
    with pytest.raises(ValueError, match="sample 'chat': nobody asks before the last answer"):
        read_turns(PROCESSORS["none"], AdapterConfig(), chat_of(Turn("system", "Be brief."), SAY))
    with pytest.raises(ValueError, match="sample 'chat': the question is empty"):
        read_turns(PROCESSORS["none"], AdapterConfig(), chat_of(Turn("user", " "), SAY))


@pytest.mark.parametrize(
    ("turns", "images", "words"),
    [
        ([], 0, "nothing to learn in it"),
        ([ASK], 0, "nothing to learn in it; it needs an assistant's turn"),
        ([Turn("user", "what?", True)], 0, "what the user says is learnt"),
        ([ASK, Turn("assistant", "an <image>", True)], 1, "<image> in what is learnt"),
        ([Turn("user", "<image> what? <image>"), SAY], 1, "2 <image> marks in its turns but 1 image;"),
        ([Turn("user", "<image> what?"), SAY], 0, "1 <image> mark in its turns but 0 images;"),
    ],
)
def test_samples_that_are_none(turns, images, words):
    with pytest.raises(ValueError, match=f"sample 'x': {words}"):
        Sample("x", (b"",) * images, tuple(turns))


def test_a_pair_is_a_question_and_its_answer():
    pair = Sample.pair("x", [b"1"], "what?", "a cat", ["a cat", "cat"], "animal")
    assert pair == Sample("x", (b"1",), (ASK, SAY), ("a cat", "cat"), "animal")
    assert (pair.question, pair.answer) == ("what?", "a cat")
    chat = chat_of(ASK, SAY, AGAIN, Turn("assistant", "yes", True), Turn("user", "thanks"))
    assert (chat.question, chat.answer) == ("what?\na cat\nsure?", "yes")


@given(
    pieces=st.lists(st.tuples(st.text("ab é", min_size=1, max_size=4), st.booleans()), min_size=1, max_size=6),
    trim=st.booleans(),
)
def test_tokens_of_characters(pieces, trim):
    """Spans of characters that are learnt come out as they went in, whatever the tokenizer says of white space."""
    processor = make(None)
    if trim:
        processor.tokenizer = copy.deepcopy(processor.tokenizer)
        processor.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text, spans = "x", []
    for piece, wanted in pieces:
        spans += [(len(text), len(text) + len(piece))] * wanted
        text += piece + "x"
    marked = processor.tokenize(text, learnt=spans)
    assert learnt(processor, marked) == [text[start:stop] for start, stop in spans]


def test_a_token_that_is_learnt_in_part_is_learnt():
    assert tokens_of([(0, 3), (3, 6), (6, 9)], 4, 5) == (1, 2)
    assert tokens_of([(0, 3), (3, 6), (6, 9)], 2, 6) == (0, 2)
    assert tokens_of([(0, 9)], 2, 4) == (0, 1)
    assert tokens_of([(0, 2), (2, 4)], 2, 2) == (1, 1)
    assert apart([(0, 2), (1, 4), (4, 4), (5, 6)]) == ((0, 2), (2, 4), (5, 6))


def test_nothing_is_learnt_of_no_answer():
    marked = Marked([1, 2, 3], [-1, -1, -1])
    assert (marked.answer, marked.prompt) == (0, 3)
    assert (Marked([1, 2, 3], [0, 0, 0], ((1, 2),)).answer, Marked([1, 2, 3], [0, 0, 0], ((1, 2),)).prompt) == (1, 1)
