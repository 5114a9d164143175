"""A conversation about images. What was computed for its earlier turns is kept: media keys and values, text.

chat = model.chat("cat.jpg")
chat.ask("What colour is it?")
chat.ask("And this one?", images="dog.jpg")
"""

from contextlib import ExitStack
from copy import copy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from mmlm.cache import RoomyLayer
from mmlm.media import View, collate, to_device
from mmlm.messages import Message
from mmlm.splice import tokens_seen
from vision.images import Source


class Chat:
    """Turns of a conversation, in `messages` as chat templates take them.

    Args:
        model: the MultimodalLM that answers.
        images: what the first question is about: one image, or a list.
    """

    def __init__(self, model: Any, images: Source | list[Source] | None = None) -> None:
        self.model = model
        self.messages: list[Message] = []
        self.waiting = as_list(images)
        self.shown: list[Source] = []
        self.written: list[str] = []  # in the images shown
        self.sights: dict[Any, tuple[int, View | None]] = {}  # how many images each model saw, and how
        self.cache: Any = None
        self.seen: list[tuple[int, int]] = []  # what the cache remembers: (token, the image it saw last)

    def __copy__(self) -> "Chat":
        """A conversation that goes on from here by itself; the cache, which each turn writes into, is not shared."""
        other = Chat(self.model, self.waiting)
        other.messages, other.sights = list(self.messages), dict(self.sights)
        other.shown, other.written = list(self.shown), list(self.written)
        return other

    @torch.no_grad()
    def ask(self, question: str, images: Source | list[Source] | None = None, **kwargs: Any) -> str:
        """The answer to the next question, about all that was said and shown.

        Args:
            images: shown with this question.
            kwargs: of transformers' `generate`, for one answer: no num_return_sequences.

        Raises ValueError for an empty question, ImageError for a bad image; the conversation is then what it was.
        """
        if self.model.setting(kwargs, "num_return_sequences") not in (None, 1):
            raise ValueError("num_return_sequences: a conversation goes on with one answer; ask generate for several")
        new = self.waiting + as_list(images)
        shown = self.shown + new
        said = self.model.messages(question, len(new))
        messages = self.messages + (said[-1:] if self.messages else said)
        written = self.written + [self.model.processor.describe(image) for image in new]
        marked = self.model.processor.read(messages, len(shown), written=written)
        index = torch.tensor([marked.index])
        who = [self.model]
        if isinstance(assistant := kwargs.get("assistant_model"), type(self.model)) and assistant is not self.model:
            who.append(assistant)
        sights = {one: self.look(one, shown, index) for one in who}
        with ExitStack() as looking:
            for one, (_, view) in sights.items():
                looking.enter_context(one.splice.looking(view))
            tokens = self.reply(list(zip(marked.ids, marked.index, strict=True)), kwargs)
        answer = cast(str, self.model.processor.tokenizer.decode(tokens, skip_special_tokens=True))
        answer = answer.replace(self.model.processor.mark, "").strip()  # said again, it would stand for an image
        self.shown, self.written, self.waiting = shown, written, []
        self.sights |= sights
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def look(self, model: Any, shown: list[Source], index: Tensor) -> tuple[int, View | None]:
        """The images of the conversation, as a model sees them; of those it saw before nothing is computed again."""
        count, view = self.sights.get(model, (0, None))
        if new := [model.vision.encode(image) for image in shown[count:]]:
            media = collate(new, [list(range(len(new)))], index, model.vision.pyramid)
            seen = model.view({key: to_device(value, model.device) for key, value in media.items()}, before=count)
            view = seen if view is None else view.joined(seen)
        return len(shown), None if view is None else view.at(index.to(model.device))

    def reply(self, prompt: list[tuple[int, int]], kwargs: dict[str, Any]) -> list[int]:
        """The ids of an answer to a prompt of (token, image it saw last)."""
        ids = torch.tensor([[token for token, _ in prompt]], device=self.model.device)
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        told: dict[str, Any] = {"return_dict_in_generate": True}
        if (config := copy(kwargs.get("generation_config"))) is not None:
            config.return_dict_in_generate = True  # transformers wants all in one place
            told = {"generation_config": config}
        if not self.goes_on(kwargs):
            return self.model.continued({**batch, **kwargs, **told}).sequences[0, len(prompt) :].tolist()
        cache, self.cache = self.past(prompt), None  # whatever goes wrong now, it is not to be trusted
        batch |= {} if cache is None else {"past_key_values": cache}
        out = self.model.continued({**batch, **kwargs, **told})
        tokens: list[int] = out.sequences[0, len(prompt) :].tolist()
        if count := tokens_seen(out.past_key_values):  # else the next answer starts anew, and all the same is right
            self.cache = out.past_key_values
            self.seen = [*prompt, *((token, prompt[-1][1]) for token in tokens)][: int(count)]
        return tokens

    def past(self, prompt: list[tuple[int, int]]) -> Any:
        """The cache, of what it remembers only that with which the prompt begins; None if it cannot go back or on.

        Recurrent states do neither: several tokens at once start them anew.
        """
        if self.cache is None:
            return None
        kinds = {type(layer) for layer in self.cache.layers}
        pairs = zip(self.seen, prompt[:-1], strict=False)
        same = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self.seen), len(prompt) - 1))
        if not kinds <= ({RoomyLayer, DynamicSlidingWindowLayer} if same == len(self.seen) else {RoomyLayer}):
            return None
        if same < len(self.seen):
            self.cache.crop(same - len(self.seen))
        return self.cache

    def goes_on(self, kwargs: dict[str, Any]) -> bool:
        """May generate be given the cache of the turn before? Beams, assisted decoding and other caches start anew."""
        setting = partial(self.model.setting, kwargs)
        alone = setting("num_beams") in (None, 1) and setting("use_cache") is not False
        other = setting("prompt_lookup_num_tokens") or setting("cache_implementation")
        return alone and not other and not {"assistant_model", "past_key_values"} & set(kwargs)


def as_list(images: Source | list[Source] | None) -> list[Source]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]
