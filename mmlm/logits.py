"""The logits of some tokens alone: those of the others, each as wide as the vocabulary, are never made.

R rows, T text tokens, V vocabulary, L tokens whose logits are wanted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def logits_only(decoder: PreTrainedModel, where: Tensor) -> Iterator[None]:
    """Within it the decoder's logits are those of the tokens `where` (bool [R, T]) alone: [1, L, V].

    The output embedding is given those rows and no others; what a decoder does to logits after it (scaling, soft caps)
    is done as ever.
    """

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        return (args[0][where][None],)

    handle = decoder.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
