"""Prompts, chats and the images in them, whatever form they came in.

A chat is a list of messages, as chat templates take them: {"role": ..., "content": a string, or a list of parts}. A
part is {"type": "text", "text": ...} or {"type": "image"}, which may have its image in it.
"""

from collections.abc import Sequence
from typing import Any

from vision.images import Source, open_image

Message = dict[str, Any]
Text = str | Sequence[Message]

MESSAGE = "{'role': 'user', 'content': a string, or a list of parts}"


def is_one(text: Any) -> bool:
    """Is it one prompt (a string or a chat), not a list of them?"""
    return isinstance(text, str | dict) or (bool(text) and isinstance(text[0], dict))


def begun(chat: Sequence[Message], system: str | None) -> list[Message]:
    """The chat, after a system message of these words if it has none of its own; None for none."""
    if system is None or (chat and chat[0]["role"] == "system"):
        return list(chat)
    return [{"role": "system", "content": system}, *chat]


def flatten(chat: Any, mark: str) -> list[Message]:
    """Messages whose content is one string each, `mark` for each image. ValueError, naming the part that is none."""
    if not isinstance(chat, list | tuple):
        raise ValueError(f"{shorten(repr(chat))} is no chat: a chat is a list of messages, [{MESSAGE}, ...]")
    return [flat_message(message, mark) for message in chat]


def flat_message(message: Message, mark: str) -> Message:
    """A message whose content is one string."""
    match message:
        case {"role": str(), "content": str()}:
            return dict(message)
        case {"role": str(), "content": list() | tuple() as parts}:
            return {**message, "content": "".join(words(part, mark) for part in parts)}
    raise ValueError(f"{shorten(repr(message))} is no message of a chat: it must be {MESSAGE}")


def words(part: Any, mark: str) -> str:
    """A part of a message as text."""
    match part:
        case {"type": "image"}:
            return mark
        case {"type": "text", "text": str(text)}:
            return text
    raise ValueError(
        f"{shorten(repr(part))} is no part of a chat message: it must be {{'type': 'image'}} or "
        "{'type': 'text', 'text': '...'}"
    )


def pictures(chat: Text) -> list[Source]:
    """The images that a chat's messages have in them, in order; none for a string."""
    found: list[Source] = []
    for message in () if isinstance(chat, str) else chat:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, dict) and part.get("type") == "image":
                named = [part[key] for key in ("image", "path", "url") if part.get(key) is not None]
                found += [open_image(one, urls=True) if "url" in part else one for one in named[:1]]
    return found


def images_of_rows(images: Any, texts: Sequence[Text]) -> list[list[Source]]:
    """Whatever form the images came in, be it in chats -> a list for each row."""
    if images is None:
        return [pictures(text) for text in texts]
    if not isinstance(images, list | tuple):
        images = [images]
    if any(isinstance(entry, list | tuple) for entry in images):
        shown = [list(entry) if isinstance(entry, list | tuple) else [entry] for entry in images]
    else:
        shown = [list(images)] if len(texts) == 1 else [[image] for image in images]
    if len(shown) != len(texts):
        raise ValueError(
            f"{len(shown)} images came with {len(texts)} prompts: give one image, or a list of them, for each"
        )
    return shown


def shorten(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
