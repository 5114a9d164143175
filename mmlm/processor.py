"""Images and text into the batch that the model takes.

`<image>` marks where an image stands. It is removed before tokenization and never becomes a token: what stays is, for
every text token, which image is the latest one before it. R rows, T text tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase

from mmlm.media import collate
from vision.encoder import Prepared, prepare
from vision.images import Source
from vision.pyramid import Pyramid

Message = dict[str, Any]
Text = str | Sequence[Message]

MESSAGE = "{'role': 'user', 'content': a string, or a list of parts}"


@dataclass(frozen=True)
class Marked:
    """One prompt without its marks: token ids, and for each of them the image seen last (-1: none yet)."""

    ids: list[int]
    index: list[int]
    answer: int = 0
    """How many of the last tokens are of the answer."""


class Processor:
    """Images and prompts -> the batch that `MultimodalLM.forward` takes.

    Args:
        tokenizer: the decoder's own; nothing is added to it.
        pyramid, detail: those of the vision encoder.
        mark: what stands for an image in a prompt.

    Raises ValueError for a tokenizer that does not say where in the text its tokens are.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, pyramid: Pyramid, detail: str = "high", mark: str = "<image>"
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} does not say where in the text its tokens are: give a fast tokenizer, "
                "one of the library tokenizers, or a decoder that has one"
            )
        self.tokenizer, self.pyramid, self.detail, self.mark = tokenizer, pyramid, detail, mark

    def __call__(
        self, images: Any = None, text: Text | Sequence[Text] | None = None, padding_side: str = "left"
    ) -> BatchFeature:
        """One prompt or a list of them, with the images of each.

        Args:
            images: one image, a list of images (one row: its images; several rows: one for each row), or a list of
                lists; None for text alone. An image is a path, bytes, a PIL image or an array.
            text: a prompt with an `<image>` for each image, a chat (a list of messages), or a list of either. Prompts
                without any mark see their images from their first token on.
            padding_side: "left" to generate, "right" to train.

        Raises ValueError if marks and images do not match in number, or a prompt is empty; ImageError for bad images.
        """
        texts: list[Any] = [text] if is_one(text) else list(text or [])
        if not texts:
            raise ValueError("no prompt: give text= a string, a chat, or a list of them")
        shown = images_of_rows(images, len(texts))
        rows = [self.read(one, len(mine)) for one, mine in zip(texts, shown, strict=True)]
        distinct: dict[int, int] = {}
        ready: list[Prepared] = []
        numbers: list[list[int]] = []
        for mine in shown:
            for image in mine:
                if id(image) not in distinct:
                    distinct[id(image)] = len(ready)
                    ready.append(prepare(image, self.pyramid, self.detail))
            numbers.append([distinct[id(image)] for image in mine])
        ids, mask, index = self.pad(rows, padding_side)
        return BatchFeature({"input_ids": ids, "attention_mask": mask} | collate(ready, numbers, index))

    def read(self, text: Text, images: int, answer: str = "") -> Marked:
        """One prompt, how many images it has, and its answer if that is known -> its tokens and what each sees.

        ValueError if marks and images do not match, and for a mark in the answer.
        """
        # what a chat template makes has its special tokens already
        ready = not isinstance(text, str) and self.tokenizer.chat_template is not None
        whole = text if isinstance(text, str) else self.chat(text)
        marks = whole.count(self.mark)
        if not marks and images:
            whole, marks = self.mark * images + whole, images
        if marks != images:
            raise ValueError(
                f"the prompt has {marks} {self.mark} mark{'s' * (marks != 1)} but {images} "
                f"image{'s' * (images != 1)} came with it: give one image for each mark ({shorten(whole)!r})"
            )
        if self.mark in answer:
            raise ValueError(f"the answer has {self.mark} in its words, where no image is: {shorten(answer)!r}")
        return self.tokenize(whole, answer, special=not ready)

    def tokenize(self, prompt: str, answer: str = "", special: bool = True) -> Marked:
        """A prompt with marks, its answer -> their tokens, and for each the number of marks before its end, less one.

        Args:
            special: add the special tokens that the tokenizer puts around a text, as the one that begins it.
        """
        pieces = prompt.split(self.mark)
        asked = "".join(pieces)
        if not asked.strip():
            raise ValueError("the prompt is empty: say what to do with the image, as in 'Describe the image.'")
        ends: list[int] = []
        for piece in pieces[:-1]:
            ends.append(len(piece) + (ends[-1] if ends else 0))
        coded = self.tokenizer(asked + answer, add_special_tokens=special, return_offsets_mapping=True)
        stops = [stop for _, stop in coded["offset_mapping"]]
        before = next((place for place, stop in enumerate(stops) if stop > len(asked)), len(stops))
        # a mark at the very end counts as before the prompt's last token: it is the one that foretells what follows
        ends = [min(end, max(stops[:before], default=1) - 1) for end in ends]
        # the largest so far: tokens without text of their own (an end-of-text) see what the one before them sees
        index = list(accumulate((sum(end < stop for end in ends) - 1 for stop in stops), max))
        return Marked(list(coded["input_ids"]), index, len(stops) - before)

    def chat(self, messages: Sequence[Message], generate: bool = True) -> str:
        """Chat messages through the decoder's own template, with a mark for each part `{"type": "image"}`.

        Content is a string or a list of parts. Without a chat template the contents stand in lines of their own, and
        what is generated in the next. `read` is what gives their tokens.

        Raises ValueError for what is no chat, naming the part that is none, and for a chat that the template refuses.
        """
        if not isinstance(messages, list | tuple):
            raise ValueError(f"{shorten(repr(messages))} is no chat: a chat is a list of messages, [{MESSAGE}, ...]")
        flat = [self.flatten(message) for message in messages]
        if self.tokenizer.chat_template is None:
            return "\n".join(message["content"] for message in flat) + "\n" * generate
        try:
            return str(self.tokenizer.apply_chat_template(flat, tokenize=False, add_generation_prompt=generate))
        except TemplateError as error:
            raise ValueError(
                f"the decoder's chat template refuses the chat ({error}): {shorten(repr(flat))}"
            ) from error

    def flatten(self, message: Message) -> Message:
        """A message whose content is one string, images as marks."""
        match message:
            case {"role": str(), "content": str()}:
                return dict(message)
            case {"role": str(), "content": list() | tuple() as parts}:
                return {**message, "content": "".join(map(self.words, parts))}
        raise ValueError(f"{shorten(repr(message))} is no message of a chat: it must be {MESSAGE}")

    def words(self, part: Any) -> str:
        """A part of a message as text, an image as its mark."""
        match part:
            case {"type": "image"}:
                return self.mark
            case {"type": "text", "text": str(text)}:
                return text
        raise ValueError(
            f"{shorten(repr(part))} is no part of a chat message: it must be {{'type': 'image'}} or "
            "{'type': 'text', 'text': '...'}"
        )

    def pad(self, rows: Sequence[Marked], side: str) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of tokens -> ids, attention mask and media index, each int64 [R, T]."""
        longest = max(len(row.ids) for row in rows)
        fill = self.tokenizer.pad_token_id
        fill = self.tokenizer.eos_token_id if fill is None else fill
        ids = torch.full((len(rows), longest), fill or 0)
        mask = torch.zeros(len(rows), longest, dtype=torch.int64)
        index = torch.full((len(rows), longest), -1)
        for number, row in enumerate(rows):
            count = len(row.ids)
            where = slice(longest - count, None) if side == "left" else slice(0, count)
            ids[number, where] = torch.tensor(row.ids)
            index[number, where] = torch.tensor(row.index)
            mask[number, where] = 1
        return ids, mask, index


def is_one(text: Any) -> bool:
    """Is it one prompt (a string or a chat), not a list of them?"""
    return isinstance(text, str | dict) or (bool(text) and isinstance(text[0], dict))


def images_of_rows(images: Any, rows: int) -> list[list[Source]]:
    """Whatever form the images came in -> a list for each row."""
    if images is None:
        return [[] for _ in range(rows)]
    if not isinstance(images, list | tuple):
        images = [images]
    if any(isinstance(entry, list | tuple) for entry in images):
        shown = [list(entry) if isinstance(entry, list | tuple) else [entry] for entry in images]
    else:
        shown = [list(images)] if rows == 1 else [[image] for image in images]
    if len(shown) != rows:
        raise ValueError(f"{len(shown)} images came with {rows} prompts: give one image, or a list of them, for each")
    return shown


def shorten(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
