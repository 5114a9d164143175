"""How samples that are asked together are answered: greedily, unless the run says otherwise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eval.run import answer
from eval.settings import EvalConfig
from mmlm.data import Sample
from mmlm.marked import Marked
from mmlm.model import MultimodalLM
from mmlm.prefix import Prefixes
from vision.features import FeatureCache


@dataclass(frozen=True)
class Together:
    """Samples that are asked together, what each is shown, and how it is asked."""

    samples: Sequence[Sample]
    keys: Sequence[tuple[str, ...]]
    """Of the images each is shown, in the feature cache."""
    texts: Sequence[Marked]
    seed: int
    """Of what is drawn to answer them."""


Answer = dict[str, Any]
"""`said`, which is scored, and what else predictions.jsonl tells of it."""

Answerer = Callable[[Together], list[Answer]]


def answerer(model: MultimodalLM, cache: FeatureCache, config: EvalConfig) -> Answerer:
    """What answers the samples of a run."""

    def greedy(batch: Together) -> list[Answer]:
        prefixes = Prefixes(model.decoder)  # of its own: a batch hangs on nothing that was asked before
        said = answer(model, cache, batch.keys, batch.texts, prefixes, config.max_new_tokens)
        return [{"said": one} for one in said]

    return greedy
