"""Several answers drawn to each sample, of which a verifier takes the best: `mmlm eval --best-of N`.

What is drawn follows from the seed of the batch alone: neither from the process that asks it, nor from what that has
asked before.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from eval.how import SELF
from eval.settings import EvalConfig
from eval.together import Answer, Answerer, Together
from mmlm.best import own_scores
from mmlm.data.clip import Clip
from mmlm.model import MultimodalLM
from mmlm.prefix import Prefixes
from mmlm.ranks import main_first
from mmlm.samples import media_of
from vision.features import FeatureCache
from vision.images import Lazy, identity, open_image, opened

Drawn = list[tuple[str, float | None]]
"""Answers to a sample, as they were drawn, each with the verifier's score."""


def sampling(model: MultimodalLM, cache: FeatureCache, config: EvalConfig) -> Answerer:
    """Answers with the best of `config.best_of` by `config.verifier`, and tells all that were `drawn`.

    Of equals the first drawn is the best, and of answers that the verifier has nothing to compare with. ValueError for
    a verifier that cannot be had.
    """
    likeness = None if config.verifier == SELF else Likeness(config.verifier)

    def best(batch: Together) -> list[Answer]:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(batch.seed)
            drawn = draw(model, cache, config, batch)
        if likeness:
            for its, images in zip(drawn, batch.images, strict=True):
                texts = [text for text, _ in its]
                its[:] = zip(texts, likeness(images, texts), strict=True)
        return [{"said": its[ranked(its)[0]][0], "drawn": its} for its in drawn]

    return best


def ranked(drawn: Sequence[tuple[str, float | None]]) -> list[int]:
    """The places of answers, the verifier's best first."""
    return sorted(range(len(drawn)), key=lambda place: -(drawn[place][1] or 0))


def draw(model: MultimodalLM, cache: FeatureCache, config: EvalConfig, batch: Together) -> list[Drawn]:
    """What is drawn to each sample, with the mean log-probability that the model gives it if that verifies.

    No more than `config.together` sequences are drawn at once.
    """
    n, at_once, prefixes = config.best_of, config.together, Prefixes(model.decoder)
    rows, times = max(1, at_once // n), [min(at_once, n - first) for first in range(0, n, at_once)]
    drawn: list[Drawn] = [[] for _ in batch.texts]
    for start in range(0, len(drawn), rows):
        its = slice(start, start + rows)
        ids, mask, index = model.processor.pad(batch.texts[its], "left")
        whole = {"input_ids": ids, "attention_mask": mask} | media_of(cache, batch.keys[its], index)
        asked = dict(BatchFeature(whole).to(model.device))
        for count in times:
            past = prefixes.past(batch.texts[its])
            for kept in past.values():
                kept.batch_repeat_interleave(count)
            found = answers(model, asked | past, config, count)
            for row, one in enumerate(found):
                drawn[start + row // count].append(one)
    return drawn


def answers(model: MultimodalLM, batch: dict[str, Any], config: EvalConfig, count: int) -> Drawn:
    """So many answers to each row of a batch, those of the same row together."""
    how: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "do_sample": True,
        "num_beams": 1,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": 0,  # whatever the decoder's own settings are
        "num_return_sequences": count,
        "return_dict_in_generate": True,
        "output_logits": config.verifier == SELF,
    }
    out = model.continued({**batch, **how})
    tokens = out.sequences[:, batch["input_ids"].shape[1] :]
    texts = [text.strip() for text in model.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    scores = own_scores(model, out.logits, tokens, how) if config.verifier == SELF else [None] * len(texts)
    return list(zip(texts, scores, strict=True))


class Likeness:
    """CLIP's likeness of answers to the images that were shown, of which the mean counts; None where none was.

    Radford et al. 2021, arXiv:2103.00020. ValueError, as `Clip` has it, for a model that cannot be had.
    """

    def __init__(self, name: str) -> None:
        self.clip = main_first(lambda: Clip(name))
        self.seen: dict[Hashable, Tensor] = {}

    def __call__(self, images: Sequence[Lazy], answers: Sequence[str]) -> Sequence[float] | Sequence[None]:
        """Of answers to the same images."""
        for image in images:
            if identity(image) not in self.seen:  # alone: an embedding's last bits may depend on the company
                [self.seen[identity(image)]] = self.clip.see([self.clip.pixels(open_image(opened(image)))])
        if not images:
            return [None] * len(answers)
        seen = torch.stack([self.seen[identity(image)] for image in images]).mean(0)
        likeness: list[float] = (self.clip.read(answers) @ seen).tolist()
        return likeness
