"""What the frozen decoder makes of a text, computed once and kept; the same bits whatever it was computed beside.

The last bits of a row of a product depend on how many rows there are. So that a run that is resumed, whose new texts
come in other company, ends with the same bytes as one that was not, a text is computed in a chunk whose shape follows
from the text alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Parts = tuple[tuple[int, ...], ...]  # a text's token ids in parts: what is remembered of it already, what is computed

# Of a chunk: 32 rows of 24 take half as long as 8 and 8 and so on. `padded_experts` see to their own shapes.
TOKENS = 768

ROOM = 2**31  # bytes of all results that are kept


class Kept(ABC):
    """Results by text. A subclass says how a chunk of texts is computed.

    Args:
        most: results that are kept, if they take no more than `ROOM`; the oldest make room.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: dict[Parts, Tensor] = {}  # the oldest first
        self.bytes = 0

    @abstractmethod
    def compute(self, texts: Sequence[Parts], widths: Sequence[int]) -> Iterable[Tensor]:
        """The result of each text; each part is to be padded to its width."""

    @torch.no_grad()
    def __call__(self, texts: Sequence[Parts]) -> list[Tensor]:
        """The result of each text; what is not kept is computed first."""
        found = {text: self.kept[text] for text in texts if text in self.kept}
        alike: dict[tuple[int, ...], list[Parts]] = {}
        for text in dict.fromkeys(texts):
            if text not in found:
                alike.setdefault(tuple(wide(len(part)) for part in text), []).append(text)
        for widths, new in alike.items():
            rows = max(1, TOKENS // widths[-1])
            for start in range(0, len(new), rows):
                chunk = new[start : start + rows]
                filled = chunk + chunk[-1:] * (rows - len(chunk))
                made = dict(zip(chunk, self.compute(filled, widths), strict=False))
                found |= made
                self.kept |= made
                self.bytes += sum(result.nbytes for result in made.values())
        while len(self.kept) > self.most or self.bytes > ROOM:
            self.bytes -= self.kept.pop(next(iter(self.kept))).nbytes
        return [found[text] for text in texts]


def wide(tokens: int) -> int:
    """The least of 0, 8, 12, 16, 24, 48, 72, ... that holds so many tokens: with few shapes most chunks are full."""
    return next((width for width in (0, 8, 12, 16) if tokens <= width), -(-tokens // 24) * 24)
