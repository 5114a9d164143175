"""A text without its marks: its tokens, which image each of them saw last, and which of them are learnt."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Marked:
    """One prompt without its marks: token ids, and for each of them the image seen last (-1: none yet)."""

    ids: list[int]
    index: list[int]
    learnt: tuple[tuple[int, int], ...] = ()
    """(start, stop) of the tokens that are learnt, in order; none is empty, none is in two."""

    @property
    def answer(self) -> int:
        """How many tokens are learnt."""
        return sum(stop - start for start, stop in self.learnt)

    @property
    def taught(self) -> list[int]:
        """The tokens that are learnt."""
        return [token for start, stop in self.learnt for token in self.ids[start:stop]]

    @property
    def prompt(self) -> int:
        """How many tokens come before the first that is learnt; all, if none is."""
        return self.learnt[0][0] if self.learnt else len(self.ids)


def tokens_of(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """The tokens, from one to before another, that have any of the characters from `start` to before `stop`.

    Args:
        offsets: (start, stop) of each token in the text. Those of one character in several tokens are all the same; of
            white space that a tokenizer trims nothing is left but its end.
    """
    ends = list(accumulate((end for _, end in offsets), max))
    first, last = bisect_right(ends, start), bisect_right(ends, stop)
    if last < len(ends) and offsets[last][0] < stop:
        last += 1  # it goes on after the stop
    return first, max(first, last)


def apart(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The spans that are not empty; a token in two of them is in the first."""
    found, reached = [], 0
    for start, stop in spans:
        if stop > max(start, reached):
            found.append((max(start, reached), stop))
            reached = stop
    return tuple(found)


def lines_of_its_own(text: str, before: str) -> str:
    """What is written in an image, as it stands after what was said before; "" stays ""."""
    return "\n" * (bool(before) and not before.endswith("\n")) + text + "\n" if text else ""
