"""Closed sets: each sample's options are ranked by how likely the model holds them, and the first is what is said.

By the mean over an option's tokens, which is to say by perplexity, or by their sum. An option is read as training reads
an answer, with the end after it: what only begins another one does not gain by that.
"""

from dataclasses import replace
from functools import partial

from eval.how import wrong_options
from eval.likelihood import Likelihood, log_likelihoods
from eval.settings import EvalConfig
from eval.together import Answer, Answerer, Together
from mmlm.data import Sample
from mmlm.marked import Marked
from mmlm.model import MultimodalLM
from mmlm.samples import asked, media_of
from vision.features import FeatureCache


def with_options(sample: Sample, config: EvalConfig, mark: str) -> Sample:
    """The sample with the options that are ranked, its own or the run's; with none if none are.

    ValueError, with the mend, for one that has no options, or such as nothing can be chosen among.

    Args:
        mark: what stands for an image.
    """
    if not config.rank:
        return replace(sample, choices=()) if sample.choices else sample
    options = sample.choices or config.choices
    if not options:
        raise ValueError(f'sample {sample.id!r}: no options to rank; give its row "choices", or the run --choices A,B')
    if wrong := wrong_options(options):
        raise ValueError(f"sample {sample.id!r}: choices: {wrong}")
    if marked := [option for option in options if mark in option]:
        raise ValueError(f"sample {sample.id!r}: choices: {marked[0]!r} has {mark}, and a model says no images")
    return replace(sample, choices=options)


def ranking(model: MultimodalLM, cache: FeatureCache, config: EvalConfig) -> Answerer:
    """Answers with the option that ranks first, the earlier of equals.

    `options` tells of each the sum of its tokens' log-probabilities, and how many they are. No more than
    `config.together` options are read at once.
    """

    def worth(its: Likelihood) -> float:
        return its.total / its.tokens if config.rank == "mean" else its.total

    def best(batch: Together) -> list[Answer]:
        pairs = [(row, option) for row, sample in enumerate(batch.samples) for option in sample.choices]
        found: list[dict[str, Likelihood]] = [{} for _ in batch.samples]
        for start in range(0, len(pairs), config.together):
            its = pairs[start : start + config.together]
            texts = [with_answer(model, batch, row, option) for row, option in its]
            media = partial(media_of, cache, [batch.keys[row] for row, _ in its])
            for (row, option), likelihood in zip(its, log_likelihoods(model, texts, media), strict=True):
                found[row][option] = likelihood
        return [
            {
                "said": max(of.items(), key=lambda option: worth(option[1]))[0],
                "options": {option: [its.total, its.tokens] for option, its in of.items()},
            }
            for of in found
        ]

    return best


def with_answer(model: MultimodalLM, batch: Together, row: int, answer: str) -> Marked:
    """A sample as it is asked, and this answer, of which alone the tokens are learnt."""
    sample = batch.samples[row]
    earlier = [replace(turn, learnt=False) for turn in sample.turns[: sample.last]]
    said = replace(sample, turns=(*earlier, replace(sample.turns[sample.last], text=answer)))
    return asked(model, said, answered=True, written=batch.written[row])
