"""METEOR and SPICE, which are Java programs: had through pycocoevalcap where it and Java are.

Denkowski and Lavie 2014, "Meteor Universal"; Anderson et al. 2016, "SPICE" (arXiv:1607.08822). Captions are split by
eval/ptb.py, as pycocoevalcap's own tokenizer would.
"""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from eval.captions import References
from eval.ptb import ptb_tokenize


def java_scores(
    hypotheses: Sequence[str], references: References
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, str]]:
    """Corpus scores and those of each sample, by name (`meteor`, `spice`; 0..1), and for both names how they were had.

    A score that cannot be had here is left out of the first two, and the third says what it needs. Nothing is
    downloaded: SPICE is run only where pycocoevalcap has the language models that it fetches when first run by itself.
    """
    spec, java = find_spec("pycocoevalcap"), shutil.which("java")
    if not spec or not spec.submodule_search_locations or not java:
        lack = "Java is not installed" if spec else "pycocoevalcap is not installed: pip install 'mmlm-adapter[coco]'"
        return {}, {}, dict.fromkeys(("meteor", "spice"), f"left out: {lack}")
    hyps = {place: [" ".join(ptb_tokenize(hyp))] for place, hyp in enumerate(hypotheses)}
    refs = {
        place: [" ".join(ptb_tokenize(ref)) for ref in ([group] if isinstance(group, str) else group)]
        for place, group in enumerate(references)
    }
    from pycocoevalcap.meteor.meteor import Meteor

    meteor, meteor_each = Meteor().compute_score(refs, hyps)
    scores, each = {"meteor": float(meteor)}, {"meteor": [float(score) for score in meteor_each]}
    how = {"meteor": f"pycocoevalcap, {java}"}
    if not (Path(spec.submodule_search_locations[0]) / "spice/lib/stanford-corenlp-3.6.0.jar").is_file():
        return (
            scores,
            each,
            how | {"spice": "left out: its language models are not there; run pycocoevalcap's SPICE once"},
        )
    from pycocoevalcap.spice.spice import Spice

    spice, spice_each = Spice().compute_score(refs, hyps)
    each["spice"] = [float(sample["All"]["f"]) for sample in spice_each]
    return scores | {"spice": float(spice)}, each, how | {"spice": how["meteor"]}
