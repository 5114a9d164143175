"""A decoder's cache with room to grow: a token's keys and values are written behind the others, which stay in place.

transformers' own copies all that a layer remembers for every token, which in all grows with the square of the text: of
a small decoder's time (50M parameters, fp32, a CPU) that was 6% at 8 rows of 80 tokens, and is under 2% with room.

R rows, K heads, T tokens, d width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

MORE = 64  # tokens there is room for, at least, when it had to be made


class Room:
    """Memory [R, K, more than T, d] whose first T tokens are taken."""

    def __init__(self, past: Tensor, new: Tensor) -> None:
        self.taken = past.shape[-2] if past.numel() else 0
        tokens = self.taken + new.shape[-2]
        self.memory = new.new_empty(*new.shape[:-2], tokens + max(MORE, tokens // 4), new.shape[-1])
        if self.taken:
            self.memory[..., : self.taken, :] = past

    def holds(self, past: Tensor, new: Tensor) -> bool:
        """Is `past` all that is taken, and is there room for `new` behind it?

        Not so for a cache that was cropped, or whose rows were chosen; nor for the second of two that grow on from the
        same: what one remembers is never written over.
        """
        if self.memory.is_inference() and not torch.is_inference_mode_enabled():
            return False
        same = past.data_ptr() == self.memory.data_ptr() and past.shape[-2] == self.taken
        rows = self.memory.shape[:2] == past.shape[:2] == new.shape[:2]
        return same and rows and self.taken + new.shape[-2] <= self.memory.shape[-2]

    def add(self, new: Tensor) -> Tensor:
        """All that is taken, the new tokens among it."""
        first, self.taken = self.taken, self.taken + new.shape[-2]
        self.memory.narrow(-2, first, self.taken - first).copy_(new)
        return self.memory.narrow(-2, 0, self.taken)


class RoomyLayer(DynamicLayer):
    """transformers' layer of a cache but for where it keeps what it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms: list[Room | None] = [None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [R, K, T, d], the new ones among them."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # what backward needs may not be written to
            self.rooms = [None, None]
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys, self.values = keys, values = (
            self.grown(0, self.keys, key_states),
            self.grown(1, self.values, value_states),
        )
        return keys, values

    def grown(self, which: int, past: Tensor, new: Tensor) -> Tensor:
        room = self.rooms[which]
        if room is None or not room.holds(past, new):
            room = self.rooms[which] = None  # its memory before that of the new one
            room = self.rooms[which] = Room(past, new)
        return room.add(new)

    def reset(self) -> None:
        """Forgets all."""
        self.rooms = [None, None]
        super().reset()


def make_room(cache: Any) -> None:
    """Of a cache that is still empty, gives the layers that remember all tokens room to grow. Others stay as they are.

    So they are where what is remembered lies elsewhere between its uses (offloading), or in a form of its own.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        return
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = RoomyLayer
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[number] = RoomyLayer()
