"""The Zener test: how many of k x k cards does a model name rightly, and would it without looking?

Beside each score stand what the same answers get on other pictures of the same k ("shuffled"), what a uniform guess
gets, and what the best constant answer gets; the larger of the last two is the chance line.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from eval.cards import COLORS, FULL, SYMBOLS, Card, Cards, chance, read
from eval.run import predict, shuffle
from mmlm.model import MultimodalLM
from mmlm.samples import Sample, encode_images
from vision.features import FeatureCache
from vision.files import write_json

REPORT, PLOT = "zener.json", "zener.png"
FEWEST = 4  # pictures of each k: of fewer, a few hard ones would decide
TOGETHER = (4, 8)  # k up to 4 are asked together, those up to 8, and larger ones: a batch ends with its longest answer
SPARE = 8  # tokens that an answer may be longer than the longest right one
OPTIONS = {"symbol": len(SYMBOLS), "color": len(COLORS), "both": len(FULL)}
"""What is scored of a card, and how many there are to guess from."""

Read = Sequence[Card | None]


def decks(k: int, cards: int, limit: int = 0, seed: int | str = 0, size: int = 512) -> list[Cards]:
    """Pictures of k x k cards: so many that they have `cards` cards, at least 4, and at most `limit` (0: no limit).

    There are two at least, since one cannot be shuffled.
    """
    wanted = max(FEWEST, math.ceil(cards / k**2))
    return [Cards(k, number, seed, size) for number in range(max(2, min(wanted, limit or wanted)))]


def sample_of(deck: Cards) -> Sample:
    """A picture of cards, asked about."""
    name = f"zener-{deck.seed}-{deck.k}-{deck.number}"
    return Sample.pair(name, (deck,), deck.question, deck.answer, (deck.answer,), f"{deck.k} x {deck.k}")


def zener(
    model: MultimodalLM,
    cache: FeatureCache,
    ks: Sequence[int],
    *,
    cards: int = 200,
    limit: int = 0,
    seed: int | str = 0,
    size: int = 512,
) -> dict[str, Any]:
    """Asks a model about grids of each of the sizes `ks` and scores what it says: what `zener.json` holds.

    Args:
        cache: of the model's eyes.
        cards: of each k, at least, unless `limit` pictures have fewer.
        seed, size: of the pictures.
    """
    started = time.perf_counter()
    asked = {k: decks(k, cards, limit, seed, size) for k in ks}
    samples = {k: [sample_of(deck) for deck in its] for k, its in asked.items()}
    keys = iter(encode_images(cache, [sample for its in samples.values() for sample in its], "drawing and encoding"))
    scores, said = {}, {}
    for _, group in groupby(samples, key=lambda k: sum(k > most for most in TOGETHER)):
        its = list(group)
        each = [sample for k in its for sample in samples[k]]
        tokens = model.processor.tokenizer([sample.answer for sample in each], add_special_tokens=False)["input_ids"]
        room, shown = max(map(len, tokens)) + SPARE, [next(keys) for _ in each]
        answers = predict(model, cache, each, keys=shown, max_new_tokens=room, say=f"k = {its[0]} to {its[-1]}")
        given = zip(shown, answers, strict=True)
        for k in its:
            mine = list(islice(given, len(samples[k])))
            found = {key: read(text, k) for key, text in mine}
            # all are asked the same: what is said depends on the picture
            others = shuffle([key for key, _ in mine])
            scores[k] = score(asked[k], [found[key] for key, _ in mine], [found[key] for key in others])
            said[k] = mine[0][1]
    return {
        "size": size,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "k": {str(k): scores[k] | {"said": said[k]} for k in ks},
    }


def score(decks: Sequence[Cards], said: Sequence[Read], shuffled: Sequence[Read]) -> dict[str, Any]:
    """Shares (0..1) of cards that are right, with symbol, color and both; of pictures of one k.

    Args:
        said: of each picture, what was read of an answer about it.
        shuffled: the same, of an answer about another picture.
    """
    right = [card for deck in decks for card in deck.cards]
    true, other = ([card for its in each for card in its] for each in (said, shuffled))
    assert len(right) == len(true) == len(other)
    report: dict[str, Any] = {
        "pictures": len(decks),
        "cards": len(right),
        "answered": sum(card is not None for card in true) / len(right),
    }
    for part, options in OPTIONS.items():
        facts = [_part(card, part) for card in right]
        hits = sum(_part(card, part) == fact for card, fact in zip(true, facts, strict=True))
        misled = sum(_part(card, part) == fact for card, fact in zip(other, facts, strict=True))
        low, high = wilson(hits, len(facts))
        report[part] = {
            "accuracy": hits / len(facts),
            "low": low,
            "high": high,
            "shuffled": misled / len(facts),
            "uniform": 1 / options,
            "constant": max(Counter(facts).values()) / len(facts),
        }
    return report


def _part(card: Card | None, part: str) -> str | Card | None:
    return card if card is None or part == "both" else card[part == "symbol"]


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share: Wilson 1927, doi:10.1080/01621459.1927.10502953. It takes cards as independent."""
    share, square = hits / count, z**2 / count
    middle = (share + square / 2) / (1 + square)
    reach = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def table(report: Mapping[str, Any]) -> str:
    """A report's scores by k, for people."""
    lines = [f"{'k':>2} {'cards':>6} {'answered':>8}  {'both right':20} shuffled chance  symbol  color"]
    for k, its in report["k"].items():
        both = its["both"]
        interval = f"{both['accuracy']:.3f} ({both['low']:.3f} to {both['high']:.3f})"
        lines.append(
            f"{k:>2} {its['cards']:6} {its['answered']:8.3f}  {interval:20} {both['shuffled']:8.3f} "
            f"{chance(both):6.3f} {its['symbol']['accuracy']:7.3f} {its['color']['accuracy']:6.3f}"
        )
    return "\n".join(lines)


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Writes zener.json and zener.png into the folder. ImportError, with the mend, without matplotlib."""
    from eval.plots import plot_zener

    write_json(folder / REPORT, report)
    plot_zener({report["model"]: report["k"]}, folder / PLOT)
