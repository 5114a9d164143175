"""Which scores a run has, and by what they are computed."""

import json

import pytest

from eval.clipscore import clip_score_each
from eval.java import java_how
from eval.metrics import ClipScore, metrics_for
from eval.tasks import TASKS
from mmlm.data import Sample
from mmlm.data.clip import Clip


def test_captions_are_scored_by_clip_if_asked_for(evaluate, adapter, captions, nano_clip, tmp_path):
    out = tmp_path / "run"
    evaluate("caption", adapter, captions, out, "--clip", nano_clip, "--prompt", "What is it?")
    report = json.loads((out / "scores.json").read_text())
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_bytes().splitlines()]
    for way, said in (("true", "said"), ("shuffled", "said_shuffled"), ("blind", "said_blind")):
        args = ([line["images"][0] for line in lines], [line[said] for line in lines])
        wanted = clip_score_each(Clip(nano_clip), *args, [line["references"] for line in lines])
        for name, its in wanted.items():
            assert report["scores"][name][way]["value"] == pytest.approx(sum(its) / len(its), abs=1e-6)
    assert report["metrics"]["clip_score"] == report["settings"]["clip"] == nano_clip
    assert report["metrics"]["cider"] == "mmlm" and report["metrics"].items() >= java_how().items()
    page = (out / "report.html").read_text()
    assert nano_clip in page and "clip_score by" in page and "meteor by" in page


def test_of_several_images_the_mean_counts(nano_clip, shapes):
    clip, (one, other) = Clip(nano_clip), [str(path) for path, *_ in shapes[:2]]
    apart = clip_score_each(clip, [one, other], ["a cat"] * 2, ["a cat"] * 2)["clip_score"]
    both = ClipScore(clip)(["a cat"], [Sample.pair("1", (one, other), "?", "a cat")])["clip_score"]
    assert both.value == pytest.approx(sum(apart) / 2, abs=1e-6)


def test_answers_have_no_scores_of_captions():
    assert metrics_for(TASKS["vqa"]).how == {} and not metrics_for(TASKS["vqa"]).more
