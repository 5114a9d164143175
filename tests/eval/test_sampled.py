"""Best of n: what is drawn hangs on the seed and on what is asked, and the verifier takes one of it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval.sampled import sampling
from eval.settings import EvalConfig
from eval.together import Together
from mmlm.best import best_of
from mmlm.data.clip import Clip
from mmlm.model import MultimodalLM
from mmlm.samples import Sample, asked, encode_images
from vision.features import FeatureCache
from vision.images import open_image

ROOT = Path(__file__).parents[2]
FILES = ("predictions.jsonl", "scores.json", "report.html", "best-of.png")
WARM = ["--best-of", "3", "--temperature", "1.5"]


def contents(folder):
    return [(folder / name).read_bytes() for name in FILES]


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_bytes().splitlines()]


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture(scope="module")
def sampled(evaluate, adapter, questions, tmp_path_factory):
    """A run of three answers to each question."""
    folder = tmp_path_factory.mktemp("runs") / "sampled"
    evaluate("vqa", adapter, questions, folder, *WARM)
    return folder


@pytest.fixture(scope="module")
def model(adapter):
    return MultimodalLM.from_pretrained(adapter)


@pytest.fixture(scope="module")
def batch(model, shapes, tmp_path_factory):
    """A cache, and five samples asked together: each of an image, but the last, and one with two."""
    cache = FeatureCache(model.vision, tmp_path_factory.mktemp("features"))
    images = [str(path) for path, *_ in shapes[:5]]
    shown = [(images[0],), (images[1], images[2]), (images[3],), (images[4],), ()]
    samples = [Sample.pair(str(n), its, "what " + "now " * n + "is it?", "x") for n, its in enumerate(shown)]
    keys = encode_images(cache, samples, "")
    return cache, Together(samples, shown, keys, [()] * 5, [asked(model, one) for one in samples], 7)


def config(**fields):
    return EvalConfig("vqa", "", "", max_new_tokens=5, **{"best_of": 3, "temperature": 1.5, "batch": 96} | fields)


def test_the_verifiers_best_is_said_and_all_that_were_drawn_are_told(sampled, questions):
    found = lines(sampled)
    for line in found:
        for said, drawn in (("said", "drawn"), ("said_shuffled", "drawn_shuffled"), ("said_blind", "drawn_blind")):
            assert len(line[drawn]) == 3 and all(score < 0 for _, score in line[drawn])
            assert line[said] == max(line[drawn], key=lambda one: one[1])[0]
    assert sum(len({text for text, _ in line["drawn"]}) == 3 for line in found) > 20
    assert len({line["drawn"][0][0] for line in found}) > 12
    report = scores(sampled)
    best, main = report["best_of"], report["scores"]["accuracy"]
    assert list(best) == ["1", "2", "3"]
    for way in ("true", "shuffled", "blind"):
        assert best["3"][way] == {name: main[way][name] for name in ("value", "low", "high")}
    assert report["settings"]["best_of"] == 3 and report["settings"]["temperature"] == 1.5


def test_the_report_has_the_curve(sampled):
    page = (sampled / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 24 + 1 and "accuracy, 3" in page and "verifier" in page
    assert open_image(sampled / "best-of.png").size[0] > 500


def test_each_draw_is_generates(model, batch):
    """Of one sample, alone, under the batch's seed."""
    cache, whole = batch
    for row in (0, 1, 4):
        one = slice(row, row + 1)
        alone = Together(*(getattr(whole, name)[one] for name in ("samples", "images", "keys", "written", "texts")), 7)
        [answer] = sampling(model, cache, config(best_of=6, top_p=0.9))(alone)
        how = {"max_new_tokens": 5, "temperature": 1.5, "top_p": 0.9, "top_k": 0}
        torch.manual_seed(7)
        shown = whole.samples[row].images
        wanted = best_of(model, list(shown), model.messages(whole.samples[row].question, len(shown)), 6, **how)
        assert sorted(answer["drawn"]) == sorted(
            (text, pytest.approx(score, abs=1e-3)) for text, score in wanted.answers
        )
        assert answer["said"] == wanted.text


def test_what_is_drawn_hangs_on_the_seed_alone(model, batch):
    cache, together = batch
    reply, other = sampling(model, cache, config()), sampling(model, cache, config())
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = reply(together)
    assert torch.equal(torch.random.get_rng_state(), before), "nor does anything hang on what is drawn"
    torch.rand(5)
    assert other(replace(together, seed=8)) != first
    assert other(together) == first == reply(together)


@pytest.mark.parametrize("size", [1, 2, 4, 96])
def test_no_more_is_drawn_at_once_than_is_asked_together(size, model, batch, monkeypatch):
    cache, together = batch
    sizes, continued = [], model.continued
    monkeypatch.setattr(
        model,
        "continued",
        lambda kwargs: sizes.append(len(kwargs["input_ids"]) * kwargs["num_return_sequences"]) or continued(kwargs),
    )
    found = sampling(model, cache, config(batch=size))(together)
    assert max(sizes) <= size and sum(sizes) == 15
    assert [len(its["drawn"]) for its in found] == [3] * 5
    assert all(len({text for text, _ in its["drawn"]}) > 1 for its in found)


def test_from_the_likeliest_alone_the_greedy_answer_is_drawn(evaluate, adapter, questions, finished, tmp_path):
    evaluate("vqa", adapter, questions, tmp_path / "run", "--best-of", "2", "--top-p", "1e-9", "--limit", "8")
    known = {line["id"]: line for line in lines(finished)}
    for line in lines(tmp_path / "run"):
        greedy = known[line["id"]]
        assert [text for text, _ in line["drawn"]] == [greedy["said"]] * 2
        assert line["said_blind"] == greedy["said_blind"]


def test_one_answer_is_the_greedy_one(evaluate, adapter, questions, finished, sampled, tmp_path):
    """And nothing is left of the run that was there."""
    copy = Path(shutil.copytree(sampled, tmp_path / "copy"))
    evaluate("vqa", adapter, questions, copy, "--best-of", "1", "--overwrite")
    assert [(copy / name).read_bytes() for name in FILES[:3]] == [(finished / name).read_bytes() for name in FILES[:3]]
    assert not (copy / "best-of.png").exists()


@pytest.mark.parametrize("shots", ["0", "1"])
def test_clip_likens_answers_to_what_was_shown(evaluate, shots, adapter, picture, nano_clip, tmp_path):
    """Not to examples. With no image nothing is to be seen, and the first drawn is taken."""
    for seed in range(5):
        picture(seed).save(tmp_path / f"{seed}.png")
    rows = [json.dumps({"image": f"{seed}.png", "text": "a thing"}) + "\n" for seed in range(5)]
    (tmp_path / "data.jsonl").write_text("".join(rows))
    evaluate(
        "caption", adapter, tmp_path / "data.jsonl", tmp_path / "run", *WARM, "--verifier", nano_clip, "--shots", shots
    )
    found, judge = lines(tmp_path / "run"), Clip(nano_clip)

    def likeness(image, answers):
        return judge.scores([[judge.pixels(open_image(image))]] * len(answers), answers)

    images = [line["images"][0] for line in found]
    for line in found:
        texts = [text for text, _ in line["drawn"]]
        assert [score for _, score in line["drawn"]] == pytest.approx(likeness(line["images"][0], texts), abs=1e-5)
        assert line["said"] == max(line["drawn"], key=lambda one: one[1])[0]
        assert [score for _, score in line["drawn_blind"]] == [None] * 3
        assert line["said_blind"] == line["drawn_blind"][0][0]
        texts, given = zip(*line["drawn_shuffled"], strict=True)
        others = [image for image in images if likeness(image, texts) == pytest.approx(given, abs=1e-5)]
        assert others and line["images"][0] not in others


def test_a_mean_counts_of_several_images(model, batch, nano_clip):
    cache, together = batch
    judge, found = Clip(nano_clip), sampling(model, cache, config(verifier=nano_clip))(together)
    texts, given = zip(*found[1]["drawn"], strict=True)
    pixels = [judge.pixels(open_image(image)) for image in together.samples[1].images]
    assert len(pixels) == 2 and given == pytest.approx(judge.scores([pixels] * 3, texts), abs=1e-5)


def test_a_run_that_draws_goes_on_as_it_began(evaluate, sampled, adapter, questions, tmp_path, capsys):
    copy = Path(shutil.copytree(sampled, tmp_path / "copy"))
    for words, field in (
        (["--best-of", "4", "--temperature", "1.5"], "best_of was 3 when its run began, and is 4 now"),
        ([*WARM, "--top-p", "0.5"], "top_p was 1.0"),
    ):
        evaluate("vqa", adapter, questions, copy, "--resume", *words, status=1)
        assert field in capsys.readouterr().err and contents(copy) == contents(sampled)
    said = (copy / "parts" / "0.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "parts" / "0.jsonl").write_bytes(b"".join(said[1::2])[:-9])
    for name in FILES:
        (copy / name).unlink()
    evaluate("vqa", adapter, questions, copy, "--resume", *WARM)
    assert contents(copy) == contents(sampled)


@pytest.mark.slow
def test_two_processes_draw_the_same_as_one(sampled, adapter, questions, tmp_path):
    out = tmp_path / "two"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "eval"]
    few = ["--max-new-tokens", "5", "--batch", "4", *WARM]
    command = [sys.executable, "-m", *launch, "vqa", str(adapter), str(questions), "--out", str(out), *few]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(sampled) and len(list((out / "parts").iterdir())) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"best_of": 2, "rank": "mean"}, r"rank \(--rank\) chooses among given options, best_of=2 \(--best-of\)"),
        ({"best_of": 0}, r"best_of=0 \(--best-of\): takes a whole number"),
        ({"best_of": 2, "verifier": "clip"}, r"verifier='clip' \(--verifier\): takes self, or open_clip:MODEL/TAG"),
        ({"best_of": 2, "temperature": 0.0}, r"temperature=0.0 \(--temperature\): takes a number above 0"),
        ({"best_of": 2, "temperature": float("nan")}, "temperature=nan"),
        ({"best_of": 2, "top_p": 1.5}, r"top_p=1.5 \(--top-p\): takes a number above 0, up to 1"),
        ({"temperature": 0.7}, r"temperature=0.7 \(--temperature\) is of answers that are drawn.* best_of"),
        ({"top_p": 0.7}, r"top_p=0.7 \(--top-p\) is of answers that are drawn"),
        ({"verifier": "open_clip:x/y"}, r"verifier='open_clip:x/y' \(--verifier\) is of answers that are drawn"),
    ],
)
def test_what_cannot_be_is_told(fields, message):
    with pytest.raises(ValueError, match=message):
        EvalConfig("vqa", "", "", **fields)


def test_a_verifier_that_is_not_there_is_told_before_anything_is_asked(evaluate, adapter, questions, tmp_path, capsys):
    evaluate("vqa", adapter, questions, tmp_path / "run", *WARM, "--verifier", "open_clip:ViT-Z/x", status=1)
    assert "open_clip has no model 'ViT-Z'" in capsys.readouterr().err and not (tmp_path / "run").exists()
