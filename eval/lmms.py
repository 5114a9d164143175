"""The model as lmms-eval takes it (Zhang et al. 2024, arXiv:2407.12772), which finds it by the entry point
`lmms_eval.models`: `python -m lmms_eval --model mmlm --model_args pretrained=RUN --tasks ...`.

This is the only module that imports lmms_eval, which is no dependency: whoever runs it has it.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from eval.harness import chat_of, continued, in_batches, weighed
from mmlm.data.folder import SUFFIXES
from mmlm.decoder import fast_device
from mmlm.messages import Message
from mmlm.model import MultimodalLM

Round = tuple[list[Message] | None, list[str], Any]
"""What is asked next, if anything; what was said so far; and what the task is to be told then."""


def manifest() -> ModelManifest:
    """What the entry point names."""
    return ModelManifest("mmlm", simple_class_path="eval.lmms.MmlmSimple", chat_class_path="eval.lmms.MmlmChat")


class Mmlm(lmms):
    """A saved adapter, be its tasks told as chats or as images and a text.

    Args:
        pretrained: folder or hub id of the adapter.
        batch_size: requests that are asked together.
        device: "cuda", "cuda:1", "cpu", ...; of several processes each has its own.
        system_prompt: another one than the adapter's: words, or a file of them.
        max_batch_size: is not looked at: no batch size is found by itself.
        kwargs: of `MultimodalLM.from_pretrained`: dtype, revision, ocr, device_map, attn_implementation, ...

    ValueError for a batch size that is no number, and as `from_pretrained`.
    """

    def __init__(
        self,
        pretrained: str = "",
        batch_size: int | str = 1,
        device: str | None = None,
        system_prompt: str | None = None,
        max_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not pretrained:
            raise ValueError("pretrained: names no adapter; --model_args pretrained=RUN, a folder or a hub id")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size}: takes a number, 1 or more; none is found by itself")
        self.batch_size, self.accelerator = int(batch_size), Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.model = MultimodalLM.from_pretrained(pretrained, **kwargs)
        if "device_map" not in kwargs:
            self.model.to(self.accelerator.device if self._world_size > 1 else torch.device(device or fast_device()))
        self.device = self.model.device
        if system_prompt is not None:
            self.model.config.system = self._resolve_system_prompt(system_prompt)

    # -- what lmms-eval calls -----------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """What is said to each request, in their order."""
        with tqdm(total=len(requests), desc="answering", disable=self.rank != 0) as bar:

            def ask(some: list[Instance]) -> list[str]:
                bar.update(len(some))
                return self.say([self.messages(request) for request in some], self.settings(some[0]))

            def group(request: Instance) -> str:
                return json.dumps(self.settings(request), sort_keys=True, default=str)

            return in_batches(requests, group, order, self.batch_size, ask)

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """What is said in each round of each request: the task makes the next of what was said before."""
        return [self.rounds(request) for request in tqdm(requests, desc="answering", disable=self.rank != 0)]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """How likely each continuation is, and whether it is what would be said greedily, in the requests' order.

        A choice is ranked by its loss, the sum over its tokens: lmms-eval takes the least. Other tasks get the
        logarithm of the likelihood.
        """
        with tqdm(total=len(requests), desc="weighing", disable=self.rank != 0) as bar:

            def ask(some: list[Instance]) -> list[GenerationResult]:
                bar.update(len(some))
                return self.weigh(some)

            return in_batches(requests, lambda request: None, order, self.batch_size, ask)

    # -- how it is asked ----------------------------------------------------------------------------------------------

    def say(self, chats: Sequence[Sequence[Message]], settings: dict[str, Any]) -> list[str]:
        """What is said to chats that are asked together."""
        return continued(self.model, [chat_of(self.model.config, messages) for messages in chats], settings)

    def rounds(self, request: Instance) -> list[str]:
        """What is said in each round."""
        messages: list[Message] | None = self.messages(request)
        said, info = list[str](), None
        while messages is not None:
            said += self.say([messages], self.settings(request))
            messages, said, info = self.next_round(request, said, info)
        return said

    def weigh(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """As `loglikelihood`, of requests that are asked together; those about one document share its images."""
        docs = {place(request): self.doc(request) for request in requests}
        first = {place(request): request.args[2] for request in requests}
        shown = {which: visuals_of(first[which], doc) for which, doc in docs.items()}
        asked = [user(request.args[0], shown[place(request)]) for request in requests]
        targets = [request.args[1] for request in requests]
        words = [
            target(docs[place(request)]) if callable(target) else target
            for request, target in zip(requests, targets, strict=True)
        ]
        found = weighed(self.model, [chat_of(self.model.config, messages) for messages in asked], words)
        # as a pair alone lmms-eval (0.7.3) would make a string of it
        return [
            GenerationResult(text=(its.total if callable(target) else -its.total, its.greedy))
            for its, target in zip(found, targets, strict=True)
        ]

    def doc(self, request: Instance) -> Any:
        """The document that a request is about."""
        number, task, split = request.args[-3:]
        return self.task_dict[task][split][number]

    # -- what a request asks: the two interfaces have it in other places ----------------------------------------------

    @abstractmethod
    def messages(self, request: Instance) -> list[Message]:
        """The chat that is to be continued; of several rounds the first."""

    @abstractmethod
    def settings(self, request: Instance) -> dict[str, Any]:
        """The task's generation settings."""

    @abstractmethod
    def next_round(self, request: Instance, said: list[str], info: Any) -> Round:
        """What is asked after what was said."""


class MmlmChat(Mmlm):
    """Asked by chats, images and text as the task has put them."""

    is_simple = False

    def messages(self, request: Instance) -> list[Message]:
        found: list[Message] = request.args[1](self.doc(request))
        return found

    def settings(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[2])

    def next_round(self, request: Instance, said: list[str], info: Any) -> Round:
        told = {"round_idx": len(said), "previous_output": list(said), "previous_round_info": info}
        found = request.args[1](self.doc(request), **told)
        if not isinstance(found, tuple):
            return None, said, info
        messages, ended, _, info = found
        return None if ended else messages, said, info


class MmlmSimple(Mmlm):
    """Asked by images and a text: what multiple choice by likelihood takes, with lmms-eval's `--force_simple`."""

    is_simple = True

    def messages(self, request: Instance) -> list[Message]:
        return user(request.args[0], visuals_of(request.args[2], self.doc(request)))

    def settings(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[1])

    def next_round(self, request: Instance, said: list[str], info: Any) -> Round:
        told = {"round_idx": len(said), "previous_output": list(said), "previous_round_info": info}
        visuals, text, ended, outputs, info = request.args[3](self.doc(request), **told)
        return None if ended else user(text, visuals), list(outputs or said), info


def place(request: Instance) -> tuple[str, str, int]:
    """Task, split and number of a request's document."""
    number, task, split = request.args[-3:]
    return task, split, number


def order(request: Instance) -> tuple[Any, ...]:
    """The longest texts first, and those about one document after each other."""
    return -len(request.args[0]), *place(request)


def visuals_of(doc_to_visual: Any, doc: Any) -> list[Any]:
    """The images of a document; none of a task that has no function for them."""
    return list(doc_to_visual(doc) or []) if doc_to_visual is not None else []


def user(text: str, visuals: Sequence[Any] | None) -> list[Message]:
    """What a user shows and asks, as a chat."""
    shown = [{"type": kind(visual), "url": visual} for visual in visuals or ()]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def kind(visual: Any) -> str:
    """Image, video or audio, as lmms-eval tells them apart."""
    if isinstance(visual, dict):
        return str(visual.get("type", "audio"))
    if isinstance(visual, str):
        return "image" if Path(visual).suffix.lower() in SUFFIXES else "video"
    return "image"
