"""How samples that are asked together are answered: greedily, unless the run says otherwise."""

from eval.rank import ranking
from eval.run import answer
from eval.sampled import sampling
from eval.settings import EvalConfig
from eval.together import Answer, Answerer, Together
from mmlm.model import MultimodalLM
from mmlm.prefix import Prefixes
from vision.features import FeatureCache


def answerer(model: MultimodalLM, cache: FeatureCache, config: EvalConfig) -> Answerer:
    """What answers the samples of a run. ValueError for a verifier that cannot be had."""
    if config.rank:
        return ranking(model, cache, config)
    if config.best_of > 1:
        return sampling(model, cache, config)

    def greedy(batch: Together) -> list[Answer]:
        prefixes = Prefixes(model.decoder)  # of its own: a batch hangs on nothing that was asked before
        said = answer(model, cache, batch.keys, batch.texts, prefixes, config.max_new_tokens)
        return [{"said": one} for one in said]

    return greedy
