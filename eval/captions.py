"""Caption scores on the scale of the COCO caption evaluation: CIDEr-D, CIDEr, BLEU-1..4, ROUGE-L and exact match.

The numbers are those of pycocoevalcap (arXiv:1504.00325) within 1e-6, tokenizer included, so they stand beside
published ones; a test holds them to what it made of 7,000 captions of many kinds, and eval/ptb.py says what it splits
otherwise. All take plain captions; `references` holds, for each sample, one caption or several.
"""

import math
from collections import Counter
from collections.abc import Sequence

from eval.intervals import Measured, Statistic, rows_of
from eval.paired import References, paired
from eval.ptb import ptb_tokenize

Tokens = list[str]

_ORDERS = 4  # n-grams of one to four words
_SIGMA = 6.0  # CIDEr-D's tolerance for a difference in length
_BETA = 1.2  # ROUGE-L's weight of recall over precision


def caption_scores(hypotheses: Sequence[str], references: References) -> dict[str, float]:
    """Corpus scores of one hypothesis per sample: `cider` (0..10), `bleu1`..`bleu4` and `rouge_l` (0..1).

    CIDEr here is CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726), the "CIDEr" of every COCO table, where it is often
    printed times 100: 1.2 here is 120 there. It weighs words by their rarity over the references of this very corpus:
    a corpus of one sample scores 0. BLEU (Papineni et al. 2002) takes the closest reference length and pools its counts
    over the corpus; ROUGE-L (Lin 2004) is a mean over samples. An empty hypothesis scores 0, but for the ROUGE-L of 1
    that the original gives it beside an empty reference.

    Raises ValueError for empty or unequally long lists and for a sample without references.
    """
    hyps, refs = _tokenize(hypotheses, references)
    cider = _cider(hyps, refs)
    rouge = [_rouge_l(hyp, ref) for hyp, ref in zip(hyps, refs, strict=True)]
    bleu = bleu_of([sum(column) for column in zip(*_bleu_counts(hyps, refs), strict=True)])
    return {"cider": math.fsum(cider) / len(cider), **bleu, "rouge_l": math.fsum(rouge) / len(rouge)}


def caption_scores_each(hypotheses: Sequence[str], references: References) -> dict[str, list[float]]:
    """The scores of each sample by name: those of `caption_scores`, and `cider_plain`.

    `cider` and `rouge_l` average to the corpus scores. BLEU does not: here it is that of a corpus of one sample.
    `cider_plain` is CIDEr as first defined, with neither CIDEr-D's clipping nor its penalty for another length, which
    makes it easier to game; what COCO tables and pycocoevalcap call "CIDEr" is CIDEr-D, `cider`.
    """
    hyps, refs = _tokenize(hypotheses, references)
    bleu = [bleu_of(counts) for counts in _bleu_counts(hyps, refs)]
    return {
        "cider": _cider(hyps, refs),
        "cider_plain": _cider(hyps, refs, plain=True),
        **{name: [scores[name] for scores in bleu] for name in bleu[0]},
        "rouge_l": [_rouge_l(hyp, ref) for hyp, ref in zip(hyps, refs, strict=True)],
    }


def caption_metrics(hypotheses: Sequence[str], references: References) -> dict[str, Measured]:
    """The scores of `caption_scores`, `cider_plain` (see `caption_scores_each`) and `exact`, with their samples."""
    hyps, refs = _tokenize(hypotheses, references)
    counts = rows_of(_bleu_counts(hyps, refs))
    return {
        "cider": Measured.mean(_cider(hyps, refs)),
        "cider_plain": Measured.mean(_cider(hyps, refs, plain=True)),
        **{f"bleu{order}": Measured(counts, _bleu(f"bleu{order}")) for order in range(1, _ORDERS + 1)},
        "rouge_l": Measured.mean([_rouge_l(hyp, ref) for hyp, ref in zip(hyps, refs, strict=True)]),
        "exact": Measured.mean(_exact(hyps, refs)),
    }


def bleu_of(counts: Sequence[float]) -> dict[str, float]:
    """`bleu1`..`bleu4` of a corpus: from the sums of both lengths, the n-grams (1..4), and those that are correct."""
    (hyp_length, ref_length), guessed, correct = counts[:2], counts[2 : 2 + _ORDERS], counts[2 + _ORDERS :]
    # the original's guards against dividing by zero; they also make 0 of 0 four-grams 1e-6 and not 0
    tiny, small = 1e-15, 1e-9
    ratio = (hyp_length + tiny) / (ref_length + small)
    brevity = math.exp(min(0.0, 1 - 1 / ratio))
    product, scores = 1.0, {}
    for order in range(_ORDERS):
        product *= (correct[order] + tiny) / (guessed[order] + small)
        scores[f"bleu{order + 1}"] = product ** (1 / (order + 1)) * brevity
    return scores


def cider_each(hypotheses: Sequence[str], references: References) -> list[float]:
    """CIDEr-D of each sample within this corpus (0..10); their mean is the `cider` of `caption_scores`."""
    return _cider(*_tokenize(hypotheses, references))


def rouge_l_each(hypotheses: Sequence[str], references: References) -> list[float]:
    """ROUGE-L of each sample (0..1); their mean is the `rouge_l` of `caption_scores`."""
    hyps, refs = _tokenize(hypotheses, references)
    return [_rouge_l(hyp, ref) for hyp, ref in zip(hyps, refs, strict=True)]


def exact_match(hypotheses: Sequence[str], references: References) -> float:
    """Share of hypotheses (0..1) that are, token by token and not empty, one of their references."""
    hyps, refs = _tokenize(hypotheses, references)
    return sum(_exact(hyps, refs)) / len(hyps)


def _tokenize(hypotheses: Sequence[str], references: References) -> tuple[list[Tokens], list[list[Tokens]]]:
    pairs = paired(hypotheses, references)
    return [ptb_tokenize(hyp) for hyp, _ in pairs], [[ptb_tokenize(ref) for ref in group] for _, group in pairs]


def _ngrams(tokens: Tokens) -> list[Counter[tuple[str, ...]]]:
    """Counts of the n-grams of each order, from 1."""
    # a token may hold a no-break space ("2 1/2"): the original counts it as two words here and as one in ROUGE-L
    words = " ".join(tokens).split()
    return [
        Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))
        for order in range(1, _ORDERS + 1)
    ]


def _cider(hypotheses: list[Tokens], references: list[list[Tokens]], plain: bool = False) -> list[float]:
    hyps, refs = [_ngrams(hyp) for hyp in hypotheses], [[_ngrams(ref) for ref in group] for group in references]
    seen_in = Counter(gram for group in refs for gram in {gram for ref in group for grams in ref for gram in grams})

    def weigh(counts: Counter[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], float], float]:
        weights = {gram: n * math.log(len(refs) / max(1, seen_in[gram])) for gram, n in counts.items()}
        return weights, math.sqrt(math.fsum(weight**2 for weight in weights.values()))

    def similarity(hyp: list[Counter[tuple[str, ...]]], ref: list[Counter[tuple[str, ...]]]) -> float:
        total = 0.0
        for hyp_counts, ref_counts in zip(hyp, ref, strict=True):
            (hyp_weights, hyp_norm), (ref_weights, ref_norm) = weigh(hyp_counts), weigh(ref_counts)
            # clipped at the reference's weight, which is the D of CIDEr-D: repeating a word gains nothing
            dot = math.fsum(
                (weight if plain else min(weight, ref_weights[gram])) * ref_weights[gram]
                for gram, weight in hyp_weights.items()
                if gram in ref_weights
            )
            total += dot / (hyp_norm * ref_norm) if hyp_norm and ref_norm else 0.0
        # the original measures length in bigrams
        difference = 0 if plain else hyp[1].total() - ref[1].total()
        return total / _ORDERS * math.exp(-(difference**2) / (2 * _SIGMA**2))

    return [
        10.0 * math.fsum(similarity(hyp, ref) for ref in group) / len(group)
        for hyp, group in zip(hyps, refs, strict=True)
    ]


def _bleu_counts(hypotheses: list[Tokens], references: list[list[Tokens]]) -> list[list[int]]:
    rows = []
    for hyp, group in zip((_ngrams(hyp) for hyp in hypotheses), references, strict=True):
        refs = [_ngrams(ref) for ref in group]
        length = hyp[0].total()
        closest = min((ref[0].total() for ref in refs), key=lambda other: (abs(other - length), other))
        correct = []
        for order, counts in enumerate(hyp):
            most: Counter[tuple[str, ...]] = Counter()
            for ref in refs:
                most |= ref[order]
            correct.append((counts & most).total())
        rows.append([length, closest, *(counts.total() for counts in hyp), *correct])
    return rows


def _bleu(name: str) -> Statistic:
    return lambda sums: bleu_of(sums.tolist())[name]


def _exact(hypotheses: list[Tokens], references: list[list[Tokens]]) -> list[float]:
    return [float(bool(hyp) and hyp in ref) for hyp, ref in zip(hypotheses, references, strict=True)]


def _rouge_l(hypothesis: Tokens, references: list[Tokens]) -> float:
    hypothesis, references = hypothesis or [""], [ref or [""] for ref in references]  # the original's empty captions
    common = [_longest_common(hypothesis, ref) for ref in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(shared / len(ref) for shared, ref in zip(common, references, strict=True))
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(left: Tokens, right: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for token in left:
        diagonal = 0
        for column, other in enumerate(right, 1):
            above = row[column]
            row[column] = diagonal + 1 if token == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
