"""The run over a data set: every sample asked, greedily answered, with the right images and with shuffled ones."""

import random
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm
from transformers import BatchFeature

from eval.tasks import blind
from mmlm.marked import Marked
from mmlm.model import MultimodalLM
from mmlm.prefix import Prefixes
from mmlm.samples import Sample, asked, encode_images, media_of, read_images
from vision.features import FeatureCache

Shown = TypeVar("Shown", bound=tuple[Hashable, ...])
"""What tells the images of a sample."""

BATCH = 96  # at 2 of 4 experts each, 48 rows an expert: few pass the 64 that they are padded to


def in_three_ways(
    model: MultimodalLM,
    cache: FeatureCache,
    samples: Sequence[Sample],
    keys: Sequence[tuple[str, ...]],
    *,
    max_new_tokens: int = 32,
    say: str = "evaluating",
) -> dict[str, list[str]]:
    """What the model says to each sample with its own images, "true", with another's, "shuffled", with none, "blind".

    Arguments as in `predict`.
    """
    prefixes = Prefixes(model.decoder)
    written = read_images(model, cache, samples, f"{say}: text")
    none: list[tuple[str, ...]] = [()] * len(samples)
    how: dict[str, Any] = {"prefixes": prefixes, "max_new_tokens": max_new_tokens}
    seen = how | {"keys": keys, "written": written}
    return {
        "true": predict(model, cache, samples, say=say, **seen),
        "shuffled": predict(model, cache, samples, shuffled=True, say=f"{say}, images shuffled", **seen),
        "blind": predict(
            model, cache, list(map(blind, samples)), keys=none, written=none, say=f"{say}, no image", **how
        ),
    }


def predict(
    model: MultimodalLM,
    cache: FeatureCache,
    samples: Sequence[Sample],
    *,
    keys: Sequence[tuple[str, ...]] | None = None,
    written: Sequence[tuple[str, ...]] | None = None,
    prefixes: Prefixes | None = None,
    shuffled: bool = False,
    max_new_tokens: int = 32,
    say: str = "evaluating",
) -> list[str]:
    """What the model says to each sample, greedily, in the samples' order, with a progress bar.

    Args:
        keys: of the samples' images in the cache, from `encode_images`; None: it is called here.
        written: what is written in the samples' images, from `read_images`; None: it is called here.
        prefixes: of the model's decoder, to be shared by calls that ask the same; None: this call's own.
        shuffled: every sample gets the images of another one, and what is written in them: a model that looks must do
            worse.
        max_new_tokens: of an answer, at the most.
        say: what the progress bar says.
    """
    keys = encode_images(cache, samples, f"{say}: images") if keys is None else keys
    written = read_images(model, cache, samples, f"{say}: text") if written is None else written
    found = dict(zip(keys, written, strict=True))
    if shuffled:
        keys = shuffle(keys)
    texts = [asked(model, sample, written=found[shown]) for sample, shown in zip(samples, keys, strict=True)]
    prefixes = prefixes or Prefixes(model.decoder)
    firsts = alike(keys, texts, [sample.choices for sample in samples])
    kinds = [sample.kind for sample in samples]
    answers: dict[int, str] = {}
    for rows in tqdm(batches(cache, list(dict.fromkeys(firsts)), kinds, keys, texts, BATCH), desc=say, unit="batch"):
        said = answer(model, cache, [keys[i] for i in rows], [texts[i] for i in rows], prefixes, max_new_tokens)
        answers |= zip(rows, said, strict=True)
    return [answers[first] for first in firsts]


def alike(keys: Sequence[tuple[str, ...]], texts: Sequence[Marked], choices: Sequence[tuple[str, ...]]) -> list[int]:
    """For each sample the first that is asked the very same, with the same options."""
    first: dict[tuple[object, ...], int] = {}
    each = enumerate(zip(keys, texts, choices, strict=True))
    return [first.setdefault((its, tuple(text.ids), tuple(text.index), of), row) for row, (its, text, of) in each]


def batches(
    cache: FeatureCache,
    rows: Sequence[int],
    kinds: Sequence[str],
    keys: Sequence[tuple[str, ...]],
    texts: Sequence[Marked],
    size: int,
) -> list[list[int]]:
    """Which of the samples `rows` are asked together, at most `size`: of one kind, with as much to look at and read."""
    # like with like: media cost most, and a batch goes on until its longest answer ends
    order = sorted(rows, key=lambda i: (kinds[i], sum(map(cache.size, keys[i])), len(texts[i].ids)))
    return [order[start : start + size] for start in range(0, len(order), size)]


def answer(
    model: MultimodalLM,
    cache: FeatureCache,
    keys: Sequence[tuple[str, ...]],
    texts: Sequence[Marked],
    prefixes: Prefixes,
    max_new_tokens: int,
) -> list[str]:
    """What the model says, greedily, to texts that are asked together, with the images of these keys."""
    processor = model.processor
    ids, mask, index = processor.pad(texts, "left")
    media = media_of(cache, keys, index)
    batch = BatchFeature({"input_ids": ids, "attention_mask": mask} | media).to(model.device)
    tokens = model.generate_tokens(dict(batch) | prefixes.past(texts), max_new_tokens=max_new_tokens, do_sample=False)
    return [text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def shuffle(keys: Sequence[Shown], seed: int = 0) -> list[Shown]:
    """The same images, given to other samples that show as many.

    None keep their place unless no others are as many; a sample without images goes without.
    """
    groups: dict[int, list[Shown]] = {}
    for images in dict.fromkeys(keys):
        groups.setdefault(len(images), []).append(images)
    drawn = random.Random(seed)
    other: dict[Shown, Shown] = {}
    for group in groups.values():
        drawn.shuffle(group)
        other |= {images: group[place - 1] for place, images in enumerate(group)}
    return [other[images] for images in keys]
