"""Text as it is made: a generation in a thread of its own, read piece by piece."""

from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer


class Until(StoppingCriteria):
    """Ends a generation, at its next token, once the event is set."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def pieces(generate: Callable[..., Any], tokenizer: PreTrainedTokenizerBase, kwargs: dict[str, Any]) -> Iterator[str]:
    """Yields the text that `generate(**kwargs)` makes; a reader who stops reading ends it.

    Raises in the reader's thread what `generate` raises in its own.
    """
    if "streamer" in kwargs:
        raise ValueError("streamer= is for generate; stream has its own, and yields what it gets")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    gone = Event()
    until = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), Until(gone)])
    failed: list[BaseException] = []

    def work() -> None:
        try:
            generate(**kwargs | {"streamer": streamer, "stopping_criteria": until})
        except BaseException as error:  # raised again below, in the thread of the one who reads
            failed.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        gone.set()  # not waited for: at exit, where an unread stream is closed, a daemon's end never comes
    thread.join()
    if failed:
        raise failed[0]
