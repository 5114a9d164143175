"""Samples that are asked together, and what is answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmlm.data import Sample
from mmlm.marked import Marked
from vision.images import Lazy


@dataclass(frozen=True)
class Together:
    """Samples that are asked together, and how."""

    samples: Sequence[Sample]
    """With the images that are shown, after the examples."""
    images: Sequence[tuple[Lazy, ...]]
    """Those of them that are asked about: no example's."""
    keys: Sequence[tuple[str, ...]]
    """Of all that are shown, in the feature cache."""
    written: Sequence[tuple[str, ...]]
    """What is written in these."""
    texts: Sequence[Marked]
    seed: int
    """Of what is drawn to answer them."""


Answer = dict[str, Any]
"""`said`, which is scored, and what else predictions.jsonl tells of it."""

Answerer = Callable[[Together], list[Answer]]
