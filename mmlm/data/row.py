"""One row of JSON, or of a table, as a sample; and a sample as such a row.

    {"image": "cat.jpg", "text": "A cat."}                              a caption ("caption" says the same)
    {"image": "cat.jpg", "question": "Which animal?", "answer": "cat"}  or "answers", of which the commonest is learnt
    {"images": ["a.jpg", "b.jpg"], "messages": [{"role": "user", "content": "<image> or <image>?"},
                                                {"role": "assistant", "content": "The first."}]}
    {"image": "cat.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhich animal?"},
                                           {"from": "gpt", "value": "A cat."}]}

A message's content is a string, with `<image>` where an image stands, or a list of parts, of which an image may have
its "image", "path" or "url" in it. Every assistant's message is learnt, unless it has "learnt": false or "weight": 0.
"id", "references", "kind" and "choices" are those of the sample; all else is left aside.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmlm.data.fetch import Remote, is_url
from mmlm.data.sample import Sample, Turn
from mmlm.names import CAPTION_PROMPT, MARK
from vision.images import Lazy

IMAGES = ("images", "image", "file_name")
TEXTS = ("messages", "conversations", "question", "text", "caption")  # what is said: one of them
SPEAKERS = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}  # as others call them


@dataclass(frozen=True)
class RowReader:
    """Reads rows into samples."""

    folder: str
    """That relative paths of images are relative to."""
    prompt: str = CAPTION_PROMPT
    """What asks for a caption."""
    urls: bool = False
    """May images be fetched?"""

    def __call__(self, row: Any, id: str, images: Sequence[Lazy] | None = None) -> Sample:
        """The sample of a row.

        Args:
            id: of a row that has none.
            images: its images, where they are not named in it.

        ValueError, naming field, value and mend, for a row that is none.
        """
        if not isinstance(row, dict):
            raise ValueError(f"{brief(row)} is no object; a row is {{...}} with an image and its text")
        row = {name: value for name, value in row.items() if value is not None}
        said = [name for name in TEXTS if name in row]
        if len(said) != 1:
            what = f"has {' and '.join(said)}, and it is unclear which is meant" if said else "nothing is said in it"
            raise ValueError(f"{what}; it takes one of {', '.join(TEXTS)}, and its fields are {brief(list(row))}")
        id, kind = str(row.get("id", id)), string(row.get("kind", ""), "kind")
        references, choices = (
            tuple(string(one, name) for one in listed(row.get(name, []), name)) for name in ("references", "choices")
        )
        if images is None:
            names = [name for name in IMAGES if name in row]
            if len(names) > 1:
                raise ValueError(f"has {' and '.join(names)}, and it is unclear which is meant; leave one out")
            images = [self.image(one, names[0]) for one in as_list(row[names[0]])] if names else []
        match said[0]:
            case "question":
                answer, others = answers_of(row)
                asks = string(row["question"], "question")
                return Sample.pair(id, images, asks, answer, references or others, kind, choices)
            case "text" | "caption":
                answer = learnt(row[said[0]], said[0])
                its = references or (answer,)
                return Sample.pair(id, images, self.prompt, answer, its, kind or "caption", choices)
        turns, shown = self.chat(listed(row[said[0]], said[0]), said[0])
        if shown and images:
            raise ValueError(f"images are in its {said[0]} and beside them; leave them out of one")
        return Sample(id, tuple(shown or images), tuple(turns), references, kind, choices)

    def image(self, value: Any, field: str) -> Lazy:
        """An image that is named in a row."""
        if not isinstance(value, str) or not value:
            raise ValueError(f"{field}: {brief(value)} names no image; it takes a path, or a list of paths")
        if is_url(value):
            if not self.urls:
                raise ValueError(
                    f"{field}: {brief(value)} is a URL, which is fetched only if asked for: open it with urls=True "
                    "(--urls), or download it first"
                )
            return Remote(value)
        return str(Path(self.folder, value))

    def chat(self, messages: list[Any], field: str) -> tuple[list[Turn], list[Lazy]]:
        """Messages -> turns, and the images that are in them."""
        turns, shown = [], list[Lazy]()
        for number, message in enumerate(messages):
            where = f"{field}[{number}]"
            if not isinstance(message, dict):
                raise ValueError(f"{where}: {brief(message)} is no message; it takes an object with role and content")
            names = ("from", "value") if field == "conversations" and "from" in message else ("role", "content")
            role = string(message.get(names[0]), f"{where}.{names[0]}")
            role = SPEAKERS.get(role, role)
            text = self.content(message.get(names[1]), f"{where}.{names[1]}", shown)
            wanted = message.get("learnt")
            wanted = message.get("weight") if wanted is None else wanted
            wanted = role == "assistant" if wanted is None else wanted
            if wanted not in (0, 1):
                raise ValueError(
                    f"{where}: {brief(wanted)} says not whether it is learnt: true or false, weight 1 or 0"
                )
            turns.append(Turn(role, learnt(text, f"{where}.{names[1]}") if wanted else text, bool(wanted)))
        return turns, shown

    def content(self, value: Any, field: str, shown: list[Lazy]) -> str:
        """A message's content as one text; images that are in it are added to `shown`."""
        if not isinstance(value, list):
            return string(value, field)
        said = ""
        for number, part in enumerate(value):
            match part:
                case {"type": "text", "text": text}:
                    said += string(text, f"{field}[{number}].text")
                case {"type": "image"}:
                    said += MARK
                    own = [name for name in ("image", "path", "url") if part.get(name) is not None]
                    shown += [self.image(part[name], f"{field}[{number}].{name}") for name in own[:1]]
                case _:
                    raise ValueError(
                        f"{field}[{number}]: {brief(part)} is no part of a message; it takes "
                        "{'type': 'text', 'text': ...} or {'type': 'image'}"
                    )
        return said


def row_of(sample: Sample, images: Sequence[str]) -> dict[str, Any]:
    """The row that `RowReader` reads as the sample; `images` name its images."""
    row: dict[str, Any] = {"id": sample.id}
    if images:
        row["images"] = list(images)
    match sample.turns:
        case (Turn("user", question, False), Turn("assistant", answer, True)):
            row |= {"question": question, "answer": answer}
        case _:
            row["messages"] = [
                {"role": turn.role, "content": turn.text}
                | ({"learnt": False} if turn.role == "assistant" and not turn.learnt else {})
                for turn in sample.turns
            ]
    if sample.references:
        row["references"] = list(sample.references)
    if sample.choices:
        row["choices"] = list(sample.choices)
    return row | ({"kind": sample.kind} if sample.kind else {})


def parsed(text: bytes) -> Any:
    """A row's JSON. ValueError, with the mend, if it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1}); mend it, or take it out") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except RecursionError as error:
        raise ValueError("not JSON of a row, but nested without end; take it out") from error


def answers_of(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The answer that is learnt, and all that are right, of a row with "answer", "answers" or both.

    VQAv2 calls the first "multiple_choice_answer".
    """
    others = [
        string(one.get("answer") if isinstance(one, dict) else one, "answers")
        for one in listed(row.get("answers", []), "answers")
    ]
    field = "multiple_choice_answer" if "answer" not in row and "multiple_choice_answer" in row else "answer"
    given = row.get(field)
    if given is None and not others:
        raise ValueError(f"question without an answer; it takes one, or a list of answers; it has {brief(list(row))}")
    return learnt(Counter(others).most_common(1)[0][0] if given is None else given, field), tuple(others)


def string(value: Any, field: str) -> str:
    """A text as it is. ValueError for what is none."""
    if not isinstance(value, str):
        raise ValueError(f"{field}: {brief(value)} is no text; it takes a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field}: {brief(value)} has half a character ({error.reason}); write it anew") from error
    return value


def learnt(value: Any, field: str) -> str:
    """A text that teaches something."""
    if not string(value, field).strip():
        raise ValueError(f"{field}: {brief(value)} teaches nothing; give it words, or leave the row out")
    return str(value)


def listed(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{field}: {brief(value)} is no list")
    return list(value)


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def brief(value: Any) -> str:
    """A value in a message, not at length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
