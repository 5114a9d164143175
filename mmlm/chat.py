"""A conversation about images. What was computed for its earlier turns is kept: pixels, media keys and values, text.

chat = model.chat("cat.jpg")
chat.ask("What colour is it?")
chat.ask("And this one?", images="dog.jpg")
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from mmlm.media import View, collate
from mmlm.processor import Message
from mmlm.splice import tokens_seen
from vision.encoder import Features
from vision.images import Source

if TYPE_CHECKING:
    from mmlm.model import MultimodalLM


class Chat:
    """Turns of a conversation, in `messages` as chat templates take them.

    Args:
        model: who answers.
        images: what the first question is about: one image, or a list.
    """

    def __init__(self, model: "MultimodalLM", images: Source | list[Source] | None = None) -> None:
        self.model = model
        self.messages: list[Message] = []
        self.waiting = as_list(images)
        self.features: list[Features] = []
        self.view: View | None = None
        self.cache: Any = None
        self.seen: list[tuple[int, int]] = []  # what the cache remembers: (token, the image it saw last)

    @torch.no_grad()
    def ask(self, question: str, images: Source | list[Source] | None = None, **kwargs: Any) -> str:
        """The answer to the next question, about all that was said and shown.

        Args:
            images: shown with this question.
            kwargs: of transformers' `generate`, for one answer: no num_return_sequences.

        Raises ValueError for an empty question, ImageError for a bad image; the conversation is then what it was.
        """
        if kwargs.get("num_return_sequences", 1) != 1:
            raise ValueError("num_return_sequences: a conversation goes on with one answer; ask generate for several")
        new = self.waiting + as_list(images)
        said = self.model.messages(question, len(new))
        messages = self.messages + (said[-1:] if self.messages else said)
        shown = [self.model.vision.encode(image) for image in new]
        marked = self.model.processor.read(messages, len(self.features) + len(shown))
        view = self.look(shown, torch.tensor([marked.index]))
        tokens = self.reply(list(zip(marked.ids, marked.index, strict=True)), view, kwargs)
        answer = str(self.model.processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        self.features += shown
        self.waiting, self.view = [], view
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def look(self, shown: list[Features], index: Tensor) -> View | None:
        """All images of the conversation; keys and values of those seen before are not computed again."""
        index = index.to(self.model.device)
        view = self.view
        if shown:
            media = collate(shown, [list(range(len(shown)))], index)
            media = {key: move(value, self.model.device) for key, value in media.items()}
            new = self.model.view(media)
            view = new if view is None else view.joined(new, len(self.features))
        return None if view is None else view.at(index)

    def reply(self, prompt: list[tuple[int, int]], view: View | None, kwargs: dict[str, Any]) -> list[int]:
        """The ids of an answer to a prompt of (token, image it saw last)."""
        same = next(
            (i for i, pair in enumerate(self.seen) if i == len(prompt) - 1 or pair != prompt[i]), len(self.seen)
        )
        if same < len(self.seen) and self.cache is not None:
            if all(type(layer) is DynamicLayer for layer in self.cache.layers):
                self.cache.crop(same - len(self.seen))
            else:
                self.cache = None  # recurrent states and sliding windows do not go back
        ids = torch.tensor([[token for token, _ in prompt]], device=self.model.device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        past = {} if self.cache is None else {"past_key_values": self.cache}
        self.cache, self.seen = None, []  # whatever goes wrong now, the cache is not to be trusted
        with self.model.splice.looking(view):
            out = self.model.continued({**batch, **past, **kwargs, "return_dict_in_generate": True})
        tokens: list[int] = out.sequences[0].tolist()
        count = tokens_seen(out.past_key_values)
        if kwargs.get("num_beams", 1) == 1 and count:  # else the next answer starts anew, and all the same is right
            last = prompt[-1][1]
            whole = prompt + [(token, last) for token in tokens[len(prompt) :]]
            self.cache, self.seen = out.past_key_values, whole[:count]
        return tokens[len(prompt) :]


def as_list(images: Source | list[Source] | None) -> list[Source]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def move(value: Any, device: torch.device) -> Any:
    return tuple(one.to(device) for one in value) if isinstance(value, tuple) else value.to(device)
