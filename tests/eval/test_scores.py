"""Scores with their intervals, beside those without the right images."""

import pytest

from eval.captions import caption_scores
from eval.metrics import Metrics
from eval.scores import score, ungrounded
from eval.tasks import TASKS, right
from eval.vqa import vqa_accuracy
from mmlm.data import Sample

RIGHT = [["red"] * 10, ["blue"] * 10, ["two"] * 10, ["no"] * 10] * 10


def report(task, said, kinds=("",) * 40):
    samples = [
        Sample.pair(f"{n}", (), "?", its[0], its, kind) for n, (its, kind) in enumerate(zip(RIGHT, kinds, strict=True))
    ]
    own = Metrics(lambda said, samples: TASKS[task].metrics(said, list(map(right, samples))), [], {})
    found = score(own, said, samples)
    return {"main": TASKS[task].main, "scores": found.table, "kinds": found.kinds}


def answers(count):
    """So many right answers, then wrong ones."""
    return [its[0] for its in RIGHT[:count]] + ["green"] * (40 - count)


def test_what_is_gained_is_of_each_sample_by_itself():
    """Scores that hide in each other's intervals differ for certain if every sample agrees."""
    table = report("vqa", {"true": answers(23), "shuffled": answers(18), "blind": answers(0)})["scores"]["accuracy"]
    assert table["true"]["value"] == vqa_accuracy(answers(23), RIGHT)
    assert table["true"]["low"] < table["shuffled"]["value"] and table["shuffled"]["high"] > table["true"]["value"]
    gained = table["gained"]["shuffled"]
    assert gained["value"] == pytest.approx(5 / 40) and 0 < gained["low"] < 5 / 40 < gained["high"]


@pytest.mark.parametrize(
    ("shuffled", "blind", "why"),
    [(5, 5, ""), (40, 5, "shuffled images"), (5, 40, "no image"), (29, 5, "shuffled images")],
)
def test_a_model_that_does_not_look_is_found_out(shuffled, blind, why):
    """One sample more is not enough."""
    said = {"true": answers(30), "shuffled": answers(shuffled), "blind": answers(blind)}
    found = ungrounded(report("vqa", said))
    assert bool(found) == bool(why) and why in found
    assert not why or found.startswith("not grounded: accuracy is 0.750 with the right images")


def test_a_few_samples_show_nothing():
    said = {"true": ["red"], "shuffled": ["green"], "blind": ["green"]}
    own = Metrics(lambda said, samples: TASKS["vqa"].metrics(said, list(map(right, samples))), [], {})
    found = score(own, said, [Sample.pair("1", (), "?", "red")])
    assert ungrounded({"main": "accuracy", "scores": found.table}) == (
        "not grounded: 1 samples are too few to tell; ask 10 or more"
    )


def test_kinds_are_scored_by_themselves():
    said = dict.fromkeys(("true", "shuffled", "blind"), answers(20))
    kinds = report("vqa", said, ["a"] * 20 + ["b"] * 20)["kinds"]
    found = {kind: (its["accuracy"]["n"], its["accuracy"]["true"]["value"]) for kind, its in kinds.items()}
    assert found == {"a": (20, 1), "b": (20, 0)}
    assert report("vqa", said)["kinds"] == {}


def test_captions_have_scores_of_each_and_of_all():
    said = {"true": answers(30), "shuffled": answers(5), "blind": answers(0)}
    table = report("caption", said)["scores"]
    assert list(table) == ["cider", "cider_plain", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "exact"]
    assert table["exact"]["true"]["value"] == table["rouge_l"]["true"]["value"] == 0.75
    assert table["bleu1"]["true"]["value"] == pytest.approx(0.75) and table["bleu1"]["n"] == 40
    gained = table["bleu1"]["gained"]["blind"]
    assert 0.5 < gained["low"] < gained["value"] < gained["high"] < 1


def test_captions_of_a_kind_are_a_corpus_of_their_own():
    """As NoCaps scores its domains."""
    said = dict.fromkeys(("true", "shuffled", "blind"), answers(30))
    kinds = report("caption", said, ["a"] * 20 + ["b"] * 20)["kinds"]
    assert kinds["b"]["cider"]["true"]["value"] == pytest.approx(caption_scores(answers(30)[20:], RIGHT[20:])["cider"])
