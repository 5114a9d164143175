"""Closed sets: the option that the model holds likeliest is what it says."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval.rank import ranking, with_options
from eval.settings import EvalConfig
from eval.together import Together
from mmlm.data import Turn
from mmlm.model import MultimodalLM
from mmlm.samples import Sample, asked, encode_images
from vision.features import FeatureCache

COLORS = ("red", "green", "blue", "gold", "no color at all")
ROOT = Path(__file__).parents[2]
WAYS = ("", "_shuffled", "_blind")


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def closed(questions):
    """The questions: those about shapes with options of their own."""
    path = questions.parent / "closed.jsonl"
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    own = {"shape": {"choices": ["circle", "square", "bar"]}, "color": {}}
    path.write_text("".join(json.dumps(row | own[row["kind"]]) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(evaluate, adapter, closed, tmp_path_factory):
    """A run that ranks them."""
    folder = tmp_path_factory.mktemp("runs") / "ranked"
    evaluate("vqa", adapter, closed, folder, "--rank", "--choices", ", ".join(COLORS))
    return folder


@pytest.fixture(scope="module")
def model(adapter):
    return MultimodalLM.from_pretrained(adapter)


@torch.no_grad()
def by_hand(model, images, chat, answer):
    """Sum of the log-probabilities of an answer and its end, and of how many tokens: one forward of one row."""
    tokenizer = model.processor.tokenizer
    prompt = model.processor.render(chat, add_generation_prompt=True)
    batch = model.processor(images, prompt + answer + tokenizer.eos_token, add_special_tokens=False)
    count = len(tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"])
    chances = model(**batch).logits[0, -count - 1 : -1].log_softmax(-1)
    return chances.gather(-1, batch["input_ids"][0, -count:, None]).sum().item(), count


def test_options_are_worth_what_one_forward_of_one_row_gives(run, model):
    """Their own, or the run's; with their images, with those of another sample, and with none."""
    found = lines(run)
    for line in found[::3]:
        options = COLORS if line["kind"] == "color" else ("circle", "square", "bar")
        [image] = line["images"]
        for way, shown in (("", [image]), ("_blind", [])):
            its = line[f"options{way}"]
            assert tuple(its) == options
            for option, (total, tokens) in its.items():
                wanted, count = by_hand(model, shown, model.messages(line["question"], len(shown)), option)
                assert (total, tokens) == (pytest.approx(wanted, abs=1e-3), count)
    for line in found:
        for way in WAYS:
            its = line[f"options{way}"]
            assert line[f"said{way}"] == max(its, key=lambda option: its[option][0] / its[option][1])
        assert line["options_shuffled"] != line["options"] != line["options_blind"]
    report = json.loads((run / "scores.json").read_text())
    right = [line["said"] == line["references"][0] for line in found]
    assert report["scores"]["accuracy"]["true"]["value"] == pytest.approx(sum(right) / 24)
    assert report["settings"]["rank"] == "mean" and report["settings"]["choices"] == list(COLORS)


def test_a_sum_is_against_long_options(evaluate, run, adapter, closed, tmp_path):
    evaluate("vqa", adapter, closed, tmp_path / "run", "--rank", "sum", "--choices", ",".join(COLORS), "--limit", "8")
    differ, known = 0, {line["id"]: line for line in lines(run)}
    for line in lines(tmp_path / "run"):
        mean = known[line["id"]]
        for way in WAYS[::2]:
            its = mean[f"options{way}"]
            assert line[f"options{way}"] == {option: [pytest.approx(of[0]), of[1]] for option, of in its.items()}
            assert line[f"said{way}"] == max(its := line[f"options{way}"], key=lambda option: its[option][0])
            differ += line[f"said{way}"] != mean[f"said{way}"]
    assert differ


def test_what_is_ranked_goes_on_as_it_began(evaluate, run, adapter, closed, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    before = [(copy / name).read_bytes() for name in ("predictions.jsonl", "scores.json", "report.html")]
    evaluate("vqa", adapter, closed, copy, "--resume", "--rank", "sum", "--choices", ",".join(COLORS), status=1)
    assert "rank was 'mean' when its run began, and is 'sum' now" in capsys.readouterr().err
    evaluate("vqa", adapter, closed, copy, "--resume", "--rank", "--choices", "red,green", status=1)
    assert "choices was ['red', 'green', 'blue', 'gold', 'no color at all']" in capsys.readouterr().err
    part = copy / "parts" / "0.jsonl"
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[::2])[:-9])
    (copy / "predictions.jsonl").unlink()
    evaluate("vqa", adapter, closed, copy, "--resume", "--rank", "--choices", ",".join(COLORS))
    assert [(copy / name).read_bytes() for name in ("predictions.jsonl", "scores.json", "report.html")] == before


def test_samples_with_other_options_are_asked_by_themselves_and_those_with_none_named(
    evaluate, adapter, closed, shapes, tmp_path, capsys
):
    row = {"image": str(shapes[0][0]), "question": "what?", "answer": "red"}
    sets = (["red", "blue"], ["red", "gold"], ["red", "red"], ["red", " "], ["red"], ["a", "<image>"], [])
    data = tmp_path / "data.jsonl"
    rows = [json.dumps(row | {"id": str(n), "choices": its}) + "\n" for n, its in enumerate(sets)]
    data.write_text("".join(rows) + json.dumps(row | {"choices": "red"}))
    evaluate("vqa", adapter, data, tmp_path / "run", "--rank")
    assert [list(line["options"]) for line in lines(tmp_path / "run")] == [["red", "blue"], ["red", "gold"]]
    broken, told = json.loads((tmp_path / "run" / "scores.json").read_text())["broken"], capsys.readouterr().err
    assert len(broken) == 6 and "2 samples, 6 left out" in told
    for one, message in zip(
        broken,
        (
            "choices: 'red' is there twice; take one out",
            "choices: ' ' says nothing",
            "choices: ['red'] leaves no choice; give two or more",
            "choices: '<image>' has <image>",
            'no options to rank; give its row "choices", or the run --choices A,B',
            "line 8: choices: 'red' is no list",
        ),
        strict=True,
    ):
        assert message in one


def test_without_rank_options_are_nothing(evaluate, adapter, closed, finished, tmp_path):
    evaluate("vqa", adapter, closed, tmp_path / "run", "--limit", "8")
    known = {line["id"]: line["said"] for line in lines(finished)}
    assert [line["said"] for line in lines(tmp_path / "run")] == [known[line["id"]] for line in lines(tmp_path / "run")]


def test_an_answer_before_does_not_count(model, shapes, tmp_path):
    """In a chat only what is said last is ranked."""
    before = (Turn("user", "<image>\nwhich shape?"), Turn("assistant", "a bar", True), Turn("user", "which color?"))
    sample = Sample("1", (str(shapes[0][0]),), (*before, Turn("assistant", "red", True)), choices=("red", "a hue"))
    cache = FeatureCache(model.vision, tmp_path)
    keys = encode_images(cache, [sample], "")
    together = Together([sample], [sample.images], keys, [("",)], [asked(model, sample)], 0)
    config = EvalConfig("vqa", "", "", rank="sum")
    [found] = ranking(model, cache, config)(together)
    chat = [{"role": "user", "content": "<image>\nwhich shape?"}, {"role": "assistant", "content": "a bar"}]
    chat.append({"role": "user", "content": "which color?"})
    system = model.messages("x", 0)[:-1]
    for option, (total, tokens) in found["options"].items():
        wanted, count = by_hand(model, list(sample.images), [*system, *chat], option)
        assert (total, tokens) == (pytest.approx(wanted, abs=1e-3), count)


def test_options_follow_examples(evaluate, adapter, closed, model, tmp_path):
    """Which need no options of their own."""
    evaluate("vqa", adapter, closed, tmp_path / "run", "--rank", "--shots", "1", "--limit", "12")
    rows, found = [json.loads(line) for line in closed.read_text().splitlines()], lines(tmp_path / "run")
    known = {row["id"]: row for row in rows}
    assert len(found) > 4 and any("choices" not in known[line["shots"][0]] for line in found)
    for line in found[::3]:
        shot = known[line["shots"][0]]
        said = {"role": "assistant", "content": shot["answers"][0]}
        chat = [*model.messages(shot["question"]), said, model.messages(line["question"])[-1]]
        for way, images in (("", [closed.parent / shot["image"], *line["images"]]), ("_blind", [])):
            turns = (
                chat
                if images
                else [model.messages(shot["question"], 0)[-1], said, model.messages(line["question"], 0)[-1]]
            )
            for option, (total, tokens) in line[f"options{way}"].items():
                wanted, count = by_hand(model, images, turns, option)
                assert (total, tokens) == (pytest.approx(wanted, abs=1e-3), count)


def test_what_it_would_say_ranks_first_of_single_tokens(
    make_model, open_gates, tokenizer, tiny_decoder, picture, tmp_path
):
    """Where no end follows an answer: that would have to be likely, too."""
    model = open_gates(make_model(), 1.5)
    model.processor.tokenizer = endless = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer)
    endless.chat_template, endless.pad_token_id = tokenizer.chat_template, tokenizer.pad_token_id
    letters = tuple("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?")
    asks = ["what?", "which one", "is it a cat?", "how many are there?", "where", "why, then?"]
    images = [picture(seed) for seed in range(6)]
    samples = [Sample.pair(ask, (image,), ask, "x", choices=letters) for ask, image in zip(asks, images, strict=True)]
    cache = FeatureCache(model.vision, tmp_path)
    keys = encode_images(cache, samples, "")
    texts = [asked(model, sample) for sample in samples]
    together = Together(samples, [sample.images for sample in samples], keys, [()] * 6, texts, 0)
    found = ranking(model, cache, EvalConfig("vqa", "", "", rank="mean", batch=40))(together)
    allowed = endless("".join(letters))["input_ids"]
    suppress = [token for token in range(len(tokenizer)) if token not in allowed]
    said = [
        model.ask(image, ask, max_new_tokens=1, do_sample=False, suppress_tokens=suppress)
        for ask, image in zip(asks, images, strict=True)
    ]
    assert [its["said"] for its in found] == said and len(set(said)) > 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": "median"}, r"rank='median' \(--rank\): takes mean or sum"),
        ({"choices": ("red", "blue")}, r"choices \(--choices\) are to be ranked: give rank"),
        ({"rank": "sum", "choices": ("red",)}, r"choices \(--choices\): \['red'\] leaves no choice"),
        ({"rank": "sum", "choices": ("red", "red")}, r"choices \(--choices\): 'red' is there twice"),
        ({"rank": "sum", "choices": ("red", "")}, r"choices \(--choices\): '' says nothing"),
    ],
)
def test_what_cannot_be_is_told(fields, message):
    with pytest.raises(ValueError, match=message):
        EvalConfig("vqa", "", "", **fields)


@pytest.mark.parametrize(
    ("fields", "name"), [({"rank": "sum"}, "rank-sum"), ({"best_of": 4}, "best-of-4"), ({"best_of": 1}, "")]
)
def test_runs_are_kept_by_how_they_answer(fields, name):
    """The greedy one is still there."""
    folder = EvalConfig("vqa", "runs/mine", "data/val.jsonl", **fields).folder
    assert folder.name == "-".join(filter(None, ["vqa-mine-val", name]))


def test_own_options_come_before_the_runs():
    sample = Sample.pair("1", (), "which?", "a", choices=("a", "b"))
    config = EvalConfig("vqa", "", "", rank="mean", choices=("c", "d"))
    assert with_options(sample, config, "<image>") == sample
    assert with_options(replace(sample, choices=()), config, "<image>").choices == ("c", "d")
