"""What the quickstart tells of itself: scores with intervals, beside their controls, and what the model says."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from eval.captions import exact_match
from eval.metrics import Metrics, own
from eval.page import aligned, cell
from eval.report import Card, page, section, table
from eval.scores import WAYS, Said, score
from eval.tasks import TASKS
from eval.vqa import accuracy_each, question_prior
from finetune.folder import PAGE, TABLE
from mmlm.cli import command
from mmlm.samples import Sample
from vision.files import whole_file
from vision.images import identity

VQA = {"easy_vqa": "easy-VQA", "easy_vqa_redrawn": "easy-VQA redrawn"}  # test sets, and what people read
CAPTIONS = {"shapes": "shapes redrawn", "scenes": "scenes"}
TITLES = VQA | CAPTIONS
SCORES = {**dict.fromkeys(VQA, ("accuracy",)), "shapes": ("exact",), "scenes": ("cider", "bleu4", "exact")}
CARDS = {"easy_vqa": 6, "easy_vqa_redrawn": 6, "scenes": 12}
SHOWN = ("easy_vqa", "scenes")  # of which the terminal has the first few cards
FEW = 3
DATA = ["easy-VQA, in part redrawn", "scenes of OpenMoji drawings"]  # for the model card
HEAD = ("held-out", "score", "images shuffled", "no image", "question alone")


def report_of(task: str, test: Sequence[Sample], said: Said, train: Sequence[Sample] = ()) -> dict[str, Any]:
    """The scores of a test, in all and by kind, as in scores.json of `mmlm eval`.

    Args:
        train: with which "prior" is told, what questions alone give away, by kind ("" for all); none if there are none.
    """
    found = score(Metrics(own(TASKS[task]), (), {}), said, test)
    report: dict[str, Any] = {"n": len(test), "scores": found.table, "kinds": found.kinds}
    if train:
        known = [(sample.question, sample.answer) for sample in train]
        asked = [(sample.kind, (sample.question, sample.answer)) for sample in test]
        report["prior"] = {
            kind: question_prior(known, [pair for its, pair in asked if kind in ("", its)])
            for kind in ("", *found.kinds)
        }
    return report


def card_scores(report: Mapping[str, Any]) -> dict[str, float]:
    """The report's scores for the model card, each with those of shuffled images and of none."""
    ways = zip(WAYS, ("", ", images shuffled", ", no image"), strict=True)
    return {
        f"{TITLES[test]}, {name}{words}": report[test]["scores"][name][way]["value"]
        for way, words in ways
        for test, names in SCORES.items()
        for name in names
    }


def rows_of(report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The report's scores as cells, as `HEAD` says."""
    for test, title in TITLES.items():
        its = report[test]
        for name in SCORES[test]:
            for kind, scores in {"": its["scores"], **its["kinds"]}.items():
                one, what = scores[name], kind or name
                prior = f"{its['prior'][kind]:.3f}" if "prior" in its else ""
                yield f"{title}, {what} ({one['n']:,})", *(cell(one[way]) for way in WAYS), prior


def facts_of(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What else is told, as (name, value)."""
    seconds = "seconds" + " since it was resumed" * report["resumed"]
    yield seconds, ", ".join(f"{name} {value:.0f}" for name, value in report["seconds"].items())
    yield "peak memory", f"{report['peak_rss_gb']} GB"
    yield "parameters", ", ".join(f"{name} {value / 1e6:.0f}M" for name, value in report["parameters"].items())


def markdown(report: Mapping[str, Any]) -> str:
    """The scores as a table of Markdown, as the README has it."""
    rows = [HEAD, ("---",) * len(HEAD), *rows_of(report)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def cards_of(tests: Mapping[str, Sequence[Sample]], said: Mapping[str, Said]) -> dict[str, list[Card]]:
    """The cards of each test that has some; what was said to its samples is by the way they were asked."""
    return {name: make_cards(tests[name], said[name]["true"], count) for name, count in CARDS.items()}


def write(folder: Path, report: Mapping[str, Any], cards: Mapping[str, Sequence[Card]], about: str) -> None:
    """Writes scores.md and report.html; `about` is the run."""
    with whole_file(folder / TABLE) as draft:
        draft.write_text(markdown(report), encoding="utf-8")
    body = table(list(rows_of(report)), HEAD) + table(list(facts_of(report)))
    body += section("Held-out images, as they come", list(chain.from_iterable(cards.values())))
    with whole_file(folder / PAGE) as draft:
        draft.write_text(page("mmlm quickstart", f"{about}. In parentheses: 95% intervals.", body), encoding="utf-8")


def make_cards(samples: Sequence[Sample], said: Sequence[str], count: int) -> list[Card]:
    """The first `count` samples of different images, good and bad as they come."""
    seen: set[Any] = set()
    cards: list[Card] = []
    for sample, answer in zip(samples, said, strict=True):
        images = tuple(map(identity, sample.images))
        if images not in seen and len(cards) < count:
            seen.add(images)
            right = (
                exact_match([answer], [sample.references]) == 1
                if sample.kind == "caption"
                else accuracy_each([answer], [sample.references])[0] == 1
            )
            cards.append(Card(sample, answer, right))
    return cards


def show(folder: Path, report: Mapping[str, Any], cards: Mapping[str, Sequence[Card]]) -> None:
    """What the terminal ends with: scores, three answers and three captions, the next commands to type."""
    print(f"\n{aligned([HEAD, *rows_of(report)])}\n\n{aligned(list(facts_of(report)))}\n")
    for name in SHOWN:
        for card in cards[name][:FEW]:
            mark, sample = "✓" if card.right else "✗", card.sample
            print(f"{mark} {sample.question}\n    said {card.said!r}, right {sample.answer!r}")
    print(
        f"\n{folder / PAGE} shows {sum(map(len, cards.values()))} held-out images. Now with an image of your own:\n\n"
        f"    {command()} caption IMAGE --model {folder}\n"
        f'    {command()} ask IMAGE "what color is the shape?" --model {folder}\n'
    )
