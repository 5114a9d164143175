"""Images and text into the batch that the model takes.

`<image>` marks where an image stands. It is removed before tokenization and never becomes a token: what stays is, for
every text token, which image is the latest one before it. What an OCR engine reads in an image stands as text after its
mark. R rows, T text tokens.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from mmlm import store, zoo
from mmlm.config import AdapterConfig
from mmlm.decoder import load_tokenizer
from mmlm.marked import Marked, apart, lines_of_its_own, tokens_of
from mmlm.media import KEYS, collate
from mmlm.messages import Message, Text, begun, flatten, images_of_rows, is_one, pictures, shorten
from mmlm.names import CONFIG, MARK
from vision.encoder import prepare
from vision.images import Source
from vision.ocr import Engine, Reader, describe
from vision.pyramid import Pyramid

STAND_IN = "9f2c61d07be34a58"  # what no text has in it


class Processor(ProcessorMixin):
    """Images and prompts -> the batch that `MultimodalLM.forward` takes.

    Args:
        tokenizer: the decoder's own; nothing is added to it.
        pyramid, detail: those of the vision encoder.
        mark: what stands for an image in a prompt.
        ocr: what reads the text in images: "rapidocr", a callable as `vision.ocr.Engine` says, or "" for none.
        ocr_tokens: most tokens of the text of one image.
        system: what a chat begins with that has no system message of its own; None for nothing.

    Raises ValueError for a tokenizer that does not say where in the text its tokens are, and for an `ocr` that there is
    not; ImportError for one whose packages are missing.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pyramid: Pyramid | None = None,
        detail: str = "high",
        mark: str = MARK,
        ocr: str | Engine = "",
        ocr_tokens: int = 256,
        system: str | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} does not say where in the text its tokens are: give a fast tokenizer, "
                "one of the library tokenizers, or a decoder that has one"
            )
        self.pyramid, self.detail, self.mark = pyramid or Pyramid(), detail, mark
        self.ocr, self.ocr_tokens, self.system = ocr, ocr_tokens, system

    @property
    def ocr(self) -> str | Engine:
        """What reads the text in images; may be set at any time."""
        return self.reader.engine if self.reader else ""

    @ocr.setter
    def ocr(self, engine: str | Engine) -> None:
        self.reader = Reader(engine) if engine else None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str | os.PathLike[str], ocr: str | Engine | None = None, **kwargs: Any
    ) -> "Processor":
        """The processor of a saved adapter (folder or hub id), with the tokenizer of the decoder that it names.

        Where `save_pretrained` put a tokenizer into the folder, it is that one. kwargs are for the hub: revision, ...;
        `ocr` is another one than the saved.
        """
        config = AdapterConfig.load(store.find(name, CONFIG, **store.hub_kwargs(kwargs)))
        if Path(name, "tokenizer_config.json").is_file():
            tokenizer = load_tokenizer(name)
        elif config.decoder:
            tokenizer = load_tokenizer(zoo.located(config.decoder), config.revision)
        else:
            raise ValueError(f"{name}: made on a built decoder; make Processor(tokenizer) with that one's tokenizer")
        ocr = config.ocr if ocr is None else ocr
        return cls(tokenizer, config.pyramid, config.detail, config.mark, ocr, config.ocr_tokens, config.system)

    def __call__(
        self,
        images: Any = None,
        text: Text | Sequence[Text] | None = None,
        padding_side: str = "left",
        *,
        add_special_tokens: bool | None = None,
        return_tensors: Any = "pt",
        padding: Any = True,
        truncation: Any = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> BatchFeature:
        """One prompt or a list of them, with the images of each.

        Args:
            images: one image, a list of images (one row: its images; several rows: one for each row), or a list of
                lists; None for text alone, and for chats whose messages have the images. An image is a path, bytes, a
                PIL image or an array.
            text: a prompt with an `<image>` for each image, a chat (a list of messages), or a list of either. Prompts
                without any mark see their images from their first token on.
            padding_side: "left" to generate, "right" to train.
            add_special_tokens: those that the tokenizer puts around a text; by default to strings, not to chats, whose
                template has put them there.
            return_tensors, padding: as transformers' callers say them: "pt", and True. Rows are padded to the longest.
            truncation, max_length: nothing is cut off: with `truncation=True` a longer text is refused.
            pad_to_multiple_of: pad further, to a multiple of so many tokens.

        Raises ValueError if marks and images do not match in number, or a prompt is empty; ImageError for bad images.
        """
        texts: list[Any] = [text] if is_one(text) else list(text or [])
        if not texts:
            raise ValueError("no prompt: give text= a string, a chat, or a list of them")
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors={return_tensors!r}: takes 'pt'; media are tensors of torch")
        if padding not in (True, "longest") and not (padding is False and len(texts) == 1):
            raise ValueError(f"padding={padding!r}: rows are padded to the longest, True; see pad_to_multiple_of")
        shown = images_of_rows(images, texts)
        distinct = {id(image): image for mine in shown for image in mine}
        written = {key: self.describe(image) for key, image in distinct.items()}
        rows = [
            self.read(one, len(mine), special=add_special_tokens, written=[written[id(image)] for image in mine])
            for one, mine in zip(texts, shown, strict=True)
        ]
        longest = max(len(row.ids) for row in rows)
        if truncation and max_length and longest > max_length:
            raise ValueError(
                f"max_length={max_length}: a text has {longest} tokens, and cutting it might cut off what is to be "
                "learnt; raise it, set it to None, or leave that text out"
            )
        ready = [prepare(image, self.pyramid, self.detail) for image in distinct.values()]
        places = {key: number for number, key in enumerate(distinct)}
        numbers = [[places[id(image)] for image in mine] for mine in shown]
        ids, mask, index = self.pad(rows, padding_side, pad_to_multiple_of or 1)
        return BatchFeature({"input_ids": ids, "attention_mask": mask} | collate(ready, numbers, index, self.pyramid))

    def apply_chat_template(  # type: ignore[override]  # one template is enough: the decoder's
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: Any = "pt",
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """One chat or a list of them as transformers' processors take it -> texts with marks, or the batch of them.

        Args:
            conversation: messages; an image is a part {"type": "image", "image": ...}, or "path", or "url".
            chat_template: another one than the decoder's.
            tokenize, return_dict: both: what calling the processor gives; tokenize alone: its input_ids.
            processor_kwargs: for that call: padding_side, ...
            kwargs: for the template: tools, ...
        """
        one = is_one(conversation)
        chats: list[Any] = [conversation] if one else list(conversation)
        how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        texts = [self.render(chat, chat_template, **how, **kwargs) for chat in chats]
        if not tokenize:
            return texts[0] if one else texts
        told = {"add_special_tokens": False, "return_tensors": return_tensors} | (processor_kwargs or {})
        batch = self([pictures(chat) for chat in chats], texts, **told)
        return batch if return_dict else batch["input_ids"]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Ids [R, T] -> texts."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *KEYS]

    def to_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes beside the tokenizer's own files; grids are the adapter's config's to say."""
        return {"processor_class": type(self).__name__, "detail": self.detail, "mark": self.mark}

    @property
    def special(self) -> list[str]:
        """Words that the tokenizer takes for special tokens."""
        return [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]

    def describe(self, image: Source, folder: str | os.PathLike[str] | None = None) -> str:
        """What is written in an image, as the decoder is told it; "" without `ocr`, or where nothing is written.

        Words that the tokenizer takes for special tokens are spaced out: an image does not end a turn, nor begin one.

        Args:
            folder: where what was read is kept on disk.
        """
        if self.reader is None:
            return ""

        def plain(text: str) -> str:
            for token in self.special:
                text = text.replace(token, " ".join(token))
            return text

        lines = [replace(line, text=plain(line.text)) for line in self.reader(image, folder)]
        return describe(lines, self.ocr_tokens, lambda text: len(self.tokenizer.encode(text, add_special_tokens=False)))

    def read(
        self,
        text: Text,
        images: int,
        answer: str = "",
        special: bool | None = None,
        written: Sequence[str] = (),
        learnt: Sequence[int] = (),
    ) -> Marked:
        """One prompt, how many images it has, and its answer if that is known -> its tokens and what each sees.

        Args:
            special: as in `tokenize`; by default for what did not go through a chat template.
            written: what `describe` gives for each image, put after its mark; () for none.
            learnt: places of messages in the chat that are learnt as the answer is, each with the end after it.

        ValueError if marks and images do not match, for a mark in what is learnt, and as `find` does.
        """
        # what a chat template makes has its special tokens already
        ready = not isinstance(text, str) and self.tokenizer.chat_template is not None
        whole = text if isinstance(text, str) else self.render(text, add_generation_prompt=True)
        spans = self.find(text, learnt, whole) if learnt and not isinstance(text, str) else []
        marks = whole.count(self.mark)
        if not marks and images:
            shift = len(self.mark) * images
            whole, marks = self.mark * images + whole, images
            spans = [(start + shift, stop + shift) for start, stop in spans]
        if marks != images:
            raise ValueError(
                f"the prompt has {marks} {self.mark} mark{'s' * (marks != 1)} but {images} "
                f"image{'s' * (images != 1)} came with it: give one image for each mark ({shorten(whole)!r})"
            )
        if self.mark in answer:
            raise ValueError(f"the answer has {self.mark} in its words, where no image is: {shorten(answer)!r}")
        special = not ready if special is None else special
        return self.tokenize(whole, answer, special, written, spans)

    def tokenize(
        self,
        prompt: str,
        answer: str = "",
        special: bool = True,
        written: Sequence[str] = (),
        learnt: Sequence[tuple[int, int]] = (),
    ) -> Marked:
        """A prompt with marks, its answer -> their tokens, and for each the number of marks before its end, less one.

        Args:
            special: add the special tokens that the tokenizer puts around a text, as the one that begins it.
            written: as in `read`.
            learnt: (start, stop) of the prompt's characters that are learnt, in order and without a mark.

        A token is learnt if any of its characters is.
        """
        pieces = prompt.split(self.mark)
        if not "".join(pieces).strip():
            raise ValueError("the prompt is empty: say what to do with the image, as in 'Describe the image.'")
        place, starts = 0, []  # of each piece, in the prompt
        for piece in pieces:
            starts.append(place)
            place += len(piece) + len(self.mark)
        put = [0] * len(pieces)  # characters before each piece
        for number, text in enumerate(written, 1):  # marks have been found: one that is written is none
            text = lines_of_its_own(text, "".join(pieces[:number]))
            pieces[number], put[number] = text + pieces[number], len(text)
        asked = "".join(pieces)
        ends: list[int] = []
        for piece in pieces[:-1]:
            ends.append(len(piece) + (ends[-1] if ends else 0))
        coded = self.tokenizer(asked + answer, add_special_tokens=special, return_offsets_mapping=True)
        stops = [stop for _, stop in coded["offset_mapping"]]
        before = next((place for place, stop in enumerate(stops) if stop > len(asked)), len(stops))
        spans = []
        for start, stop in learnt:
            which = bisect_right(starts, start) - 1  # the piece that it is in
            shift = (ends[which - 1] if which else 0) + put[which] - starts[which]
            spans.append(tokens_of(coded["offset_mapping"][:before], start + shift, stop + shift))
        # a mark at the very end counts as before the prompt's last token: it is the one that foretells what follows
        ends = [min(end, max(stops[:before], default=1) - 1) for end in ends]
        # the largest so far: tokens without text of their own (an end-of-text) see what the one before them sees
        index = list(accumulate((sum(end < stop for end in ends) - 1 for stop in stops), max))
        return Marked(list(coded["input_ids"]), index, apart([*spans, (before, len(stops))]))

    def find(self, messages: Sequence[Message], learnt: Sequence[int], whole: str) -> list[tuple[int, int]]:
        """Where in the rendered chat, its generation prompt after it, the words of some messages stand: (start, stop).

        A special token that follows them, be it after white space, is their end, and among them. They are found by
        rendering the chat with other words in their places. Where the template trims them, what it leaves is found.

        ValueError for messages that the template changes in other ways, or has not, or has twice.
        """
        flat = flatten(messages, self.mark)
        for place in learnt:
            if self.mark in (said := flat[place]["content"]):
                raise ValueError(f"{self.mark} is in what is learnt, and a model says no images: {shorten(said)!r}")
        names = {place: f"stand{place}in{STAND_IN}" for place in learnt}
        other = [message | {"content": names.get(place, message["content"])} for place, message in enumerate(flat)]
        parts = re.split("|".join(names.values()), self.render(other, add_generation_prompt=True))
        for trimmed in (str, str.strip, str.lstrip, str.rstrip) if len(parts) == len(names) + 1 else ():
            words = [trimmed(flat[place]["content"]) for place in names]
            if "".join(chain(*zip(parts, [*words, ""], strict=True))) == whole:
                break
        else:
            said = [shorten(flat[place]["content"]) for place in names]
            raise ValueError(
                f"the decoder's chat template changes what is said, and what of it is learnt cannot be known ({said}): "
                "teach these turns as samples of their own, each the last of its chat, or give the tokenizer another "
                "chat_template"
            )
        end = re.compile(rf"\s*(?:{'|'.join(map(re.escape, sorted(self.special, key=len, reverse=True)))})")
        spans, place = [], 0
        for part, text in zip(parts, words, strict=False):
            start = place + len(part)
            place = start + len(text)
            after = end.match(whole, place) if self.special else None
            spans.append((start, after.end() if after else place))
        return spans

    def render(
        self,
        messages: Sequence[Message],
        template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """Chat messages through the decoder's own template, with a mark for each part `{"type": "image"}`.

        A chat without a system message gets the adapter's, `system`, with which it was trained. Content is a string or
        a list of parts. Without a chat template the contents stand in lines of their own, and what is generated in the
        next. `read` is what gives their tokens.

        Raises ValueError for what is no chat, naming the part that is none, and for a chat that the template refuses.
        """
        flat = begun(flatten(messages, self.mark), self.system)
        if self.tokenizer.chat_template is None and template is None:
            return "\n".join(message["content"] for message in flat) + "\n" * add_generation_prompt
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    flat,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    **kwargs,
                )
            )
        except TemplateError as error:
            raise ValueError(
                f"the decoder's chat template refuses the chat ({error}): {shorten(repr(flat))}"
            ) from error

    def pad(self, rows: Sequence[Marked], side: str, multiple: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of tokens -> ids, attention mask and media index, each int64 [R, T]; T is a multiple of `multiple`."""
        longest = -(-max(len(row.ids) for row in rows) // multiple) * multiple
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
