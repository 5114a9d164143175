"""Assisted decoding: a smaller model with eyes of its own drafts what a larger one says, and sees the same images.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", arXiv:2211.17192. The loop is
transformers' own, and so is an assistant without eyes. Models are MultimodalLMs here, which import this file.
"""

from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

from mmlm.media import KEYS, to_device
from mmlm.messages import Text

MEDIA = "assistant_media"  # the key, among those of a batch, of what the assistant's eyes are to look at


def media_for(model: Any, assistant: Any, images: Any, prompt: Text | list[Text]) -> dict[str, Any]:
    """The images as the assistant's eyes take them, under `MEDIA`; {} if they take them as the model's do."""
    if reads_alike(model, assistant):
        return {}
    words, eyes = copy(model.processor), assistant.processor
    words.pyramid, words.detail = eyes.pyramid, eyes.detail
    batch = words(images, prompt)  # the tokens are ours, and so is what each of them sees
    return {MEDIA: {key: batch[key] for key in KEYS if key in batch}}


def drafting(model: Any, assistant: Any, kwargs: dict[str, Any]) -> AbstractContextManager[None]:
    """A context in which the assistant's decoder sees the images of generate's kwargs, where it takes its place.

    Raises ValueError for an assistant that cannot see them.
    """
    kwargs["assistant_model"] = assistant.decoder
    media = kwargs.pop(MEDIA, None)
    if assistant is model:
        return nullcontext()
    if assistant.decoder is model.decoder:
        raise ValueError("assistant_model= is on the model's own decoder, which would see with both: load it once more")
    if kwargs.get("assistant_tokenizer") is not None:
        raise ValueError("assistant_tokenizer=: an assistant that sees images must have the model's own tokenizer")
    if media is None:
        media = {key: kwargs[key] for key in KEYS if key in kwargs}
        if media and not reads_alike(model, assistant):
            raise ValueError(
                "assistant_model= tiles or pools images otherwise than the model that this batch was made for: call "
                "generate(images, prompt, assistant_model=...), which reads the images for both"
            )
        if "media_values" in media and list(assistant.vision.backbones) != list(model.vision.backbones):
            raise ValueError(
                "media_values are what the model's own eyes saw, and assistant_model= has others: give a batch of "
                "pixel_values"
            )
    return assistant.looking({key: to_device(value, assistant.device) for key, value in media.items()})


def reads_alike(model: Any, other: Any) -> bool:
    """Do both cut images into the same tiles and cells?"""
    return (model.processor.pyramid, model.processor.detail) == (other.processor.pyramid, other.processor.detail)
