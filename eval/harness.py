"""What evaluation harnesses ask a model for, in batches: chats to be continued, and continuations to be weighed.

Nothing here needs a harness; `eval.lmms` is what lmms-eval calls.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from eval.likelihood import Likelihood, log_likelihoods, media_shown
from mmlm.config import AdapterConfig
from mmlm.data import Turn
from mmlm.messages import Message, Text, begun, shorten
from mmlm.model import MultimodalLM
from mmlm.names import MARK
from mmlm.turns import asking, message_of
from vision.images import Source, open_image

Chat = tuple[list[Message], list[Source]]
"""Messages as chat templates take them, and the images in them."""

Asked = TypeVar("Asked")
Said = TypeVar("Said")

NEW_TOKENS = 1024  # of an answer, unless the task says: it is one that reasons
NAMES = {"max_gen_toks": "max_new_tokens"}  # what other harnesses call settings of generate


def chat_of(config: AdapterConfig, messages: Sequence[Mapping[str, Any]]) -> Chat:
    """The chat of a task, parts of which are {"type": "text", "text": ...} or {"type": "image", "url": an image}.

    It begins with the adapter's system message if it has none of its own. Images stand where the task has put them: by
    parts between texts, or by marks in a text. Images before all text have only been put down somewhere: they stand
    where the adapter was trained to find them.

    ValueError for video, audio, and marks that do not match the images.
    """
    chat: list[Message] = []
    images: list[Source] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        shown = [image_of(part) for part in parts if part["type"] != "text"]
        chat.append({"role": message["role"], "content": placed(config, message["role"], parts, len(shown))})
        images += shown
    return begun(chat, config.system), images


def image_of(part: Mapping[str, Any]) -> Source:
    """The image of a part that is no text."""
    if part["type"] != "image":
        raise ValueError(
            f"{part['type']} in a chat ({shorten(repr(part))}): the model sees images; leave this task out"
        )
    source: Source = part["url"]
    return open_image(source, urls=True) if isinstance(source, str) and "://" in source else source


def placed(config: AdapterConfig, role: str, parts: Sequence[Mapping[str, Any]], images: int) -> list[Message]:
    """The content of a message, its images where they are to stand."""
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    if MARK in text:
        if (marks := text.count(MARK)) != images:
            raise ValueError(
                f"a {role}'s message has {marks} {MARK} in its text but {images} images: {shorten(text)!r}"
            )
        content: list[Message] = message_of(Turn(role, text))["content"]
        return content
    first = next((place for place, part in enumerate(parts) if part["type"] == "text"), 0)
    if role == "user" and images and first == images and text.strip():
        content = asking(config, text, images)[-1]["content"]
        return content
    return [{"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": "image"} for part in parts]


def in_batches(
    requests: Sequence[Asked],
    group: Callable[[Asked], Hashable],
    order: Callable[[Asked], Any],
    size: int,
    ask: Callable[[list[Asked]], Sequence[Said]],
) -> list[Said]:
    """What is said to each request, in their order, asked together with others of its group, `size` at the most.

    Args:
        order: by which those of a group are asked: like with like, as a batch goes on until its longest row ends.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(group(request), []).append(place)
    said: dict[int, Said] = {}
    for places in groups.values():
        places.sort(key=lambda place: order(requests[place]))
        for start in range(0, len(places), size):
            rows = places[start : start + size]
            said |= zip(rows, ask([requests[row] for row in rows]), strict=True)
    return [said[place] for place in range(len(requests))]


def continued(model: MultimodalLM, chats: Sequence[Chat], kwargs: Mapping[str, Any]) -> list[str]:
    """What the model says to chats that are asked together; kwargs as tasks have them, see `settings`."""
    told, until = settings(kwargs)
    prompts: list[Text] = [messages for messages, _ in chats]
    batch = model.read([images for _, images in chats], prompts, {})
    tokenizer = model.processor.tokenizer
    if until:
        told["stopping_criteria"] = StoppingCriteriaList([Until(tokenizer, until, batch["input_ids"].shape[1])])
    tokens = model.generate_tokens(batch, **told)
    return [cut(text, until).strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def weighed(model: MultimodalLM, chats: Sequence[Chat], continuations: Sequence[str]) -> list[Likelihood]:
    """How likely the model holds each continuation as the answer in its chat, all in one forward.

    White space before it, by which tasks set it off from a plain text, is left out: an answer begins its turn.
    """
    processor, rows = model.processor, [images for _, images in chats]
    distinct = {id(image): image for row in rows for image in row}
    written = {key: processor.describe(image) for key, image in distinct.items()}
    texts = [
        processor.read(messages, len(row), continuation.lstrip(), written=[written[id(image)] for image in row])
        for (messages, row), continuation in zip(chats, continuations, strict=True)
    ]
    return log_likelihoods(model, texts, partial(media_shown, model, rows))


def settings(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A task's generation settings as transformers' generate takes them, and the strings that end an answer.

    It is greedy unless told to sample; a temperature alone, of more than 0, tells that. Settings of other models, which
    transformers does not know, are left out.
    """
    given = {NAMES.get(name, name): value for name, value in kwargs.items() if value is not None}
    until = given.pop("until", [])
    temperature = given.get("temperature")
    sampled = given.get("do_sample", bool(temperature)) and temperature != 0
    known = vars(GenerationConfig())
    told = {name: value for name, value in given.items() if name in known and name != "do_sample"}
    if not sampled:
        told = {name: value for name, value in told.items() if name not in ("temperature", "top_p", "top_k")}
    told = {"max_new_tokens": NEW_TOKENS, "do_sample": bool(sampled)} | told
    return told, [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of some strings."""
    return text[: min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))]


class Until(StoppingCriteria):
    """Ends a row once one of some strings is in what was said; transformers' own looks into the prompt, too.

    Args:
        prompt: tokens of the prompt, padding among them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, until: Sequence[str], prompt: int) -> None:
        self.tokenizer, self.until, self.prompt = tokenizer, until, prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :], skip_special_tokens=True)
        ended = [any(stop in text for stop in self.until) for text in texts]
        return torch.tensor(ended, device=input_ids.device)
