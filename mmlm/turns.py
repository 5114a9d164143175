"""A sample's turns as the chat that the decoder is shown, and as tokens of which some are learnt."""

from collections.abc import Sequence

from mmlm.config import AdapterConfig
from mmlm.data.sample import Sample, Turn
from mmlm.marked import Marked
from mmlm.messages import Message, begun
from mmlm.names import MARK
from mmlm.processor import Processor


def asking(config: AdapterConfig, question: str, images: int = 1) -> list[Message]:
    """The chat that `ask` sends: system message, images and question as the adapter was trained on them."""
    if not question.strip():
        raise ValueError("the question is empty: say what to do with the image, as in 'Describe the image.'")
    shown: list[Message] = [{"type": "image"}] * images
    words: list[Message] = [{"type": "text", "text": question}]
    content = words + shown if config.image_last else shown + words
    return begun([{"role": "user", "content": content}], config.system)


def messages_of(config: AdapterConfig, sample: Sample) -> list[Message]:
    """A sample's turns before the last that is learnt, one message each; the config's system message if none is theirs.

    ValueError if nobody asks before that, and for a question without words.
    """
    turns = sample.turns[: sample.last]
    if not any(turn.role == "user" for turn in turns):
        raise ValueError("nobody asks before the last answer; it needs a turn of the user's before it")
    first = next(place for place, turn in enumerate(turns) if turn.role == "user")
    said = [
        asking(config, turn.text, len(sample.images))[-1] if place == first and not sample.marks else message_of(turn)
        for place, turn in enumerate(turns)
    ]
    return begun(said, config.system)


def message_of(turn: Turn) -> Message:
    """A turn as a message, an image in the place of each mark."""
    first, *others = turn.text.split(MARK)
    words: list[Message] = [{"type": "text", "text": first}]
    for other in others:
        words += [{"type": "image"}, {"type": "text", "text": other}]
    return {"role": turn.role, "content": words}


def read_turns(
    processor: Processor, config: AdapterConfig, sample: Sample, answered: bool = False, written: Sequence[str] = ()
) -> Marked:
    """A sample as tokens, up to what the last answer follows; `answered`, with that and its end.

    Earlier answers stand in the chat, as what was said, in either case.

    Args:
        written: what is written in the sample's images, from `read_images`.

    ValueError, naming the sample, for one that does not fit the processor: for words that it takes for an image, for a
    chat that the decoder's template refuses, or answers that it changes.
    """
    try:
        if processor.mark != MARK and any(processor.mark in turn.text for turn in sample.turns):
            raise ValueError(f"{processor.mark}, which stands for an image, is in its words; take it out")
        turns, end = sample.turns[: sample.last], processor.tokenizer.eos_token or ""
        messages = messages_of(config, sample)
        before = len(messages) - len(turns)
        shown = sum(turn.text.count(MARK) for turn in turns) if sample.marks else len(sample.images)
        return processor.read(
            messages,
            shown,
            sample.answer + end if answered else "",
            written=written[:shown],
            learnt=[before + place for place, turn in enumerate(turns) if turn.learnt] if answered else (),
        )
    except ValueError as error:
        raise ValueError(f"sample {sample.id!r}: {error}") from error
