"""The run over a data set: every sample asked, greedily answered, with the right images and with shuffled ones."""

import random
from collections.abc import Sequence

import torch
from tqdm import tqdm

from mmlm.media import collate
from mmlm.model import MultimodalLM
from mmlm.prefix import Prefixes
from mmlm.samples import Sample, encode_images
from vision.features import FeatureCache

BATCH = 128


def predict(
    model: MultimodalLM,
    cache: FeatureCache,
    samples: Sequence[Sample],
    *,
    prefixes: Prefixes | None = None,
    shuffled: bool = False,
    max_new_tokens: int = 32,
    say: str = "evaluating",
) -> list[str]:
    """What the model says to each sample, greedily, in the samples' order, with a progress bar.

    Args:
        prefixes: of the model's decoder, to be shared by calls that ask the same; None: this call's own.
        shuffled: every sample gets the images of another one: a model that looks must do worse.
        max_new_tokens: of an answer, at the most.
        say: what the progress bar says.
    """
    keys = encode_images(cache, samples, f"{say}: images")
    if shuffled:
        keys = shuffle(keys)
    processor = model.processor
    texts = [processor.tokenize(processor.chat(model.chat(sample.question, len(sample.images)))) for sample in samples]
    prefixes = prefixes or Prefixes(model.decoder)
    answers = [""] * len(samples)
    by_length = sorted(range(len(samples)), key=lambda i: (sum(map(cache.size, keys[i])), len(texts[i].ids)))
    for start in tqdm(range(0, len(samples), BATCH), desc=say, unit="batch"):
        chosen = by_length[start : start + BATCH]
        rows = [texts[i] for i in chosen]
        distinct = {key: n for n, key in enumerate(dict.fromkeys(key for i in chosen for key in keys[i]))}
        ids, mask, index = processor.pad(rows, "left")
        media = collate([cache.load(key) for key in distinct], [[distinct[k] for k in keys[i]] for i in chosen], index)
        batch = {"input_ids": ids, "attention_mask": mask} | media
        batch = {name: _to(value, model.device) for name, value in batch.items()}
        tokens = model.generate_tokens(batch | prefixes.past(rows), max_new_tokens=max_new_tokens, do_sample=False)
        for i, text in zip(chosen, processor.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            answers[i] = text.strip()
    return answers


def shuffle(keys: Sequence[tuple[str, ...]], seed: int = 0) -> list[tuple[str, ...]]:
    """The same images, given to other samples: no distinct image keeps its place, if there are two or more."""
    distinct = list(dict.fromkeys(keys))
    order = distinct[:]
    random.Random(seed).shuffle(order)
    other = {order[i]: order[i - 1] for i in range(len(order))}
    return [other[key] for key in keys]


def _to(value: torch.Tensor | tuple[torch.Tensor, ...], device: torch.device) -> object:
    return tuple(part.to(device) for part in value) if isinstance(value, tuple) else value.to(device)
