"""Few-shot: examples before a sample, as in a chat with their images; never of its own image."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from eval.asking import prepare
from eval.known import Known
from eval.measure import read_examples
from eval.run import predict, shuffle
from eval.settings import EvalConfig
from eval.shots import Chooser, at_random, choose, few, others
from eval.tasks import TASKS
from mmlm.data import Sample, Turn, open_data
from mmlm.messages import begun, pictures
from mmlm.model import MultimodalLM
from mmlm.samples import asked
from mmlm.turns import asking
from vision.features import FeatureCache
from vision.images import ImageError

ROOT = Path(__file__).parents[2]
TWO = ["--shots", "2", "--limit", "6", "--batch", "18"]


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_bytes().splitlines()]


def said(text):
    return {"role": "assistant", "content": text}


def chat(config, *turns, last):
    """What a person would write: (image, question, answer) in turn, and the last image and question."""
    messages = begun([], config.system)
    for image, question, answer in (*turns, (*last, None)):
        (message,) = asking(config, question, 1)[-1:]
        parts = [part | ({"image": image} if part["type"] == "image" else {}) for part in message["content"]]
        messages += [{"role": "user", "content": parts}, said(answer)]
    return messages[:-1]


# -- how examples are told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_last", [False, True])
@pytest.mark.parametrize("system", [None, "Say little."])
def test_examples_are_earlier_turns_of_the_chat(image_last, system, make_model, picture):
    model, images = make_model(image_last=image_last, system=system), [picture(seed) for seed in range(3)]
    told = [(images[0], "what?", "a cat"), (images[1], "and?", "a dog")]
    shots = [Sample.pair(str(n), its[:1], *its[1:]) for n, its in enumerate(told)]
    sample = Sample.pair("asked", images[2:], "which?", "an owl")
    whole = few(model.config, shots, sample)
    batch = model.processor(text=chat(model.config, *told, last=(images[2], "which?")))
    marked = asked(model, whole)
    assert marked.ids == batch["input_ids"][0].tolist() and marked.index == batch["media_index"][0].tolist()
    assert list(whole.images) == images and [turn.learnt for turn in whole.turns] == [False] * 5 + [True]
    assert (whole.id, whole.answer) == ("asked", "an owl")
    assert few(model.config, [], sample) is sample


def test_an_answer_after_an_example_is_that_of_a_chat(make_model, open_gates, picture, tmp_path):
    model, short = open_gates(make_model(), 1.5), {"max_new_tokens": 6, "do_sample": False}
    talk = model.chat(picture(0))
    first, second = talk.ask("what is it?", **short), talk.ask("and this?", images=picture(1), **short)
    shot = Sample.pair("a", (picture(0),), "what is it?", first)
    sample = Sample.pair("b", (picture(1),), "and this?", "x")
    cache = FeatureCache(model.vision, tmp_path)
    assert predict(model, cache, [few(model.config, [shot], sample)], max_new_tokens=6) == [second]
    assert predict(model, cache, [sample], max_new_tokens=6) != [second], "it looks at what was said before"


def test_a_system_message_stands_once_and_chats_are_whole(tiny_model):
    """Of an example all up to its last answer is told; marks of its own are kept."""
    ask, own = Turn("user", "<image> or <image>?"), Turn("system", "Be brief.")
    shot = Sample("a", ("0", "1"), (own, ask, Turn("assistant", "the first", True), Turn("user", "sure?")))
    sample = Sample("b", ("2",), (own, Turn("user", "what?"), Turn("assistant", "x", True)))
    turns = few(tiny_model.config, [shot, shot], sample).turns
    assert [turn.role for turn in turns] == ["system", *["user", "assistant"] * 3]
    assert [turn.text for turn in turns[:4]] == ["Be brief.", ask.text, "the first", ask.text]
    assert turns[5].text == "<image>what?"


@pytest.mark.parametrize(
    ("turns", "shown"),
    [
        ("user:<image>what? assistant:it user:<image>and?", "0"),
        ("user:what? assistant:it user:<image>and<image>?", ""),
        ("user:what? assistant:it user:and?", "01"),
        ("system:<image> user:<image>what? assistant:it", "1"),
        ("assistant:it user:what?", ""),
        ("user:<image>what? assistant:it user:<image>and? assistant:that", "01"),
    ],
)
def test_of_an_example_the_images_up_to_its_last_answer_are_shown(turns, shown, make_model, picture, tmp_path):
    """No others: what comes after it is not told, nor a system message."""
    model, images = make_model(), [picture(seed) for seed in range(3)]
    said = [Turn(role, text, role == "assistant") for role, _, text in (one.partition(":") for one in turns.split())]
    shot, sample = Sample("a", tuple(images[:2]), tuple(said)), Sample.pair("b", images[2:], "which?", "x")
    whole = few(model.config, [shot], sample)
    assert list(whole.images) == [images[int(n)] for n in shown] + images[2:] and whole.marks == len(whole.images)
    spare = Sample.pair("spare", images[:1], "what?", "x")
    cache, config = FeatureCache(model.vision, tmp_path), EvalConfig("vqa", "", "", shots=1 + bool(shown))
    found, broken = prepare(model, cache, [sample], [shot, spare], Chooser(config))
    assert not broken and {one.id for one in found.shots[0]} == ({"a", "spare"} if shown else {"spare"})
    once = found.together("true", [0], 0)
    assert once.images == [(images[2],)] and len(once.keys[0]) == 2 + len(shown)


def test_a_question_without_words_is_told(tiny_model):
    shot, sample = Sample.pair("a", ("0",), "what?", "x"), Sample.pair("b", ("1",), " ", "x")
    with pytest.raises(ValueError, match="sample 'b': the question is empty"):
        few(tiny_model.config, [shot], sample)


@pytest.mark.slow
@pytest.mark.parametrize("attend", ["latest", "all"])
def test_an_answer_after_32_examples_is_that_of_a_chat(attend, make_model, open_gates, picture, tmp_path):
    """More images than have places of their own (`mmlm.adapter.IMAGES`)."""
    model, cache = open_gates(make_model(attend=attend), 1.5), FeatureCache(make_model().vision, tmp_path)
    told = [(picture(seed), f"{seed}?", "x" * (seed % 3)) for seed in range(33)]
    *shots, sample = [Sample.pair(str(n), its[:1], *its[1:]) for n, its in enumerate(told)]
    (said,) = predict(model, cache, [few(model.config, shots, sample)], max_new_tokens=4)
    messages = chat(model.config, *told[:-1], last=told[-1][:2])
    assert said == model.generate(None, messages, max_new_tokens=4, do_sample=False)
    assert predict(model, cache, [sample], max_new_tokens=4) != [said]


# -- which examples are chosen ----------------------------------------------------------------------------------------


class Names:
    """In place of a feature cache: an image is a name, whose first letter tells its pixels; x cannot be opened."""

    def add_all(self, images):
        return (ImageError(name) if name[0] == "x" else name[0] for name in images)


names = st.lists(st.text("abcdefx", min_size=1, max_size=2), min_size=1, max_size=2).map(tuple)
fine = st.lists(st.text("abcdef", min_size=1, max_size=2), max_size=2).map(tuple)


def samples_of(shown, prefix=""):
    return [Sample.pair(f"{prefix}{number}", images, "what?", "x") for number, images in enumerate(shown)]


def pixels(sample):
    return {name[0] for name in sample.images}


@given(shown=st.lists(names, max_size=12), own=st.lists(fine, min_size=1, max_size=4), count=st.integers(1, 4))
def test_examples_are_as_many_as_asked_for_and_never_of_the_samples_own_image(shown, own, count):
    examples, samples, known = samples_of(shown), samples_of(own, "asked"), Known(None, Names())
    known.add(samples)
    fit = {
        its.id: [one for one in examples if "x" not in pixels(one) and pixels(one).isdisjoint(pixels(its))]
        for its in samples
    }
    order = at_random(len(examples), 0)
    if min(map(len, fit.values())) < count:
        with pytest.raises(ValueError, match=rf"sample 'asked\d': only \d+ examples .* asks for {count}"):
            choose(known, samples, examples, count, order)
        return
    chosen = choose(known, samples, examples, count, order)
    for sample, shots in zip(samples, chosen, strict=True):
        assert len({shot.id for shot in shots}) == len(shots) == count
        assert all(shot in fit[sample.id] for shot in shots)
        assert all(known.keys(shot) for shot in shots), "they are encoded"
        alone = Known(None, Names())
        alone.add([sample])
        assert choose(alone, [sample], examples, count, order) == [shots], "whatever is asked beside it"
        (fewer,) = choose(alone, [sample], examples, count - 1, order)
        assert fewer == shots[1:], "the best stand last"


def test_examples_are_chosen_for_all_questions_about_an_image_in_turn():
    """So that no more than one order is to be remembered; they come back in the samples' order."""
    examples, samples = samples_of([("a",), ("b",), ("c",)]), samples_of([("a",), ("b",), ("a",), ("b",)], "q")
    orders, taken, known = {"q0": [1], "q1": [0], "q2": [2], "q3": [2]}, [], Known(None, Names())
    known.add(samples)

    def order(sample):
        taken.append(sample.id)
        return iter(orders[sample.id])

    assert choose(known, samples, examples, 1, order) == [[examples[1]], [examples[0]], [examples[2]], [examples[2]]]
    assert taken == ["q0", "q2", "q1", "q3"]


@given(count=st.integers(0, 40), seed=st.integers(0, 9))
def test_every_place_is_drawn_once(count, seed):
    sample = Sample.pair("a", (), "what?", "x")
    drawn = list(at_random(count, seed)(sample))
    assert sorted(drawn) == list(range(count)) and drawn == list(at_random(count, seed)(sample))


def test_places_are_drawn_as_often_and_anew_for_each_sample_and_seed():
    samples = [Sample.pair(str(n), (), "what?", "x") for n in range(600)]
    orders = [tuple(at_random(3, 0)(sample)) for sample in samples]
    assert len(set(orders)) == 6 and all(70 < orders.count(order) < 130 for order in set(orders))
    assert [next(at_random(1000, 0)(one)) for one in samples[:5]] != [next(at_random(1000, 1)(one)) for one in samples]


# -- each way of asking -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ocr", [False, True])
def test_in_each_way_the_prompt_is_that_of_a_chat(ocr, make_model, picture, tmp_path):
    """The examples keep their images when the sample's are another's, and lose them with it; so does what is written
    in them."""
    model, images = make_model(), [picture(seed, (96, 64 + seed)) for seed in range(7)]
    model.processor.ocr = (lambda image: [(str(image.size[1]), (0, 0, *image.size))]) if ocr else ""
    told = [(image, f"what is {n}?", f"a {n}") for n, image in enumerate(images)]
    samples = [Sample.pair(str(n), its[:1], *its[1:]) for n, its in enumerate(told)]
    cache = FeatureCache(model.vision, tmp_path)
    config = EvalConfig("vqa", "", "", shots=2)
    found, broken = prepare(model, cache, samples[:4], samples, Chooser(config))
    assert not broken and found.samples == samples[:4]
    of = {cache.add(image): image for image in images}
    for row, (sample, shots) in enumerate(zip(samples[:4], found.shots, strict=True)):
        before = [told[int(shot.id)] for shot in shots]
        assert found.ways["shuffled"][row].keys[-1] not in found.ways["true"][row].keys
        for way in ("true", "shuffled"):
            *first, last = [of[key] for key in found.ways[way][row].keys]
            assert first == [image for image, *_ in before] and (last is images[row]) == (way == "true")
            batch = model.processor(text=chat(model.config, *before, last=(last, sample.question)))
            assert found.ways[way][row].text.ids == batch["input_ids"][0].tolist()
            assert found.ways[way][row].text.index == batch["media_index"][0].tolist()
        words = chat(model.config, *before, last=(None, sample.question))
        words = [one | {"content": one["content"][-1]["text"]} if one["role"] == "user" else one for one in words]
        assert found.ways["blind"][row].text.ids == model.processor(text=words)["input_ids"][0].tolist()
        assert found.ways["blind"][row].keys == () and not pictures(words)
    assert sum(found.ways["shuffled"][row].keys[-1] in of for row in range(4)) == 4


def test_what_cannot_be_an_example_is_passed_over(tiny_model, picture, tmp_path):
    """Broken images, found only when they are chosen; samples without an image; questions without words."""
    cache, config = FeatureCache(tiny_model.vision, tmp_path), EvalConfig("vqa", "", "", shots=2)
    fine = [Sample.pair(f"fine{n}", (picture(n),), "what?", "x") for n in range(3)]
    bad = [Sample.pair(f"bad{n}", (b"no image %d" % n,), "what?", "x") for n in range(5)]
    none = Sample.pair("none", (), "what?", "x")
    blank, mark = (Sample.pair(asks, (picture(3),), asks, "x") for asks in ("", "<image>"))
    found, broken = prepare(tiny_model, cache, fine[:1], [*bad, none, *fine, blank, mark], Chooser(config))
    assert not broken and {shot.id for shot in found.shots[0]} == {"fine1", "fine2"}
    with pytest.raises(ValueError, match="3 samples with an image, and shots=4"):
        prepare(tiny_model, cache, fine[:1], [none, *fine], Chooser(replace(config, shots=4)))


def test_a_sample_without_an_image_is_like_no_other(tiny_model, picture, tmp_path):
    cache, config = FeatureCache(tiny_model.vision, tmp_path), EvalConfig("vqa", "", "", shots=1, shots_by="similar")
    samples = [Sample.pair(str(n), (picture(n),), "what?", "x") for n in range(3)]
    none = Sample.pair("none", (), "what?", "x")
    found, broken = prepare(tiny_model, cache, [none, *samples], samples, Chooser(config))
    assert found.samples == samples and "sample 'none': no image to find similar ones by" in broken[0]
    found, broken = prepare(tiny_model, cache, [none], samples, Chooser(replace(config, shots_by="random")))
    assert found.samples == [none] and not broken
    assert len(found.ways["shuffled"][0].keys) == 1, "the example's, which stays"


@given(
    shown=st.lists(st.lists(st.sampled_from("abcdef"), max_size=2).map(tuple), max_size=9),
    data=st.data(),
)
def test_shuffled_images_are_none_of_the_examples_wherever_others_would_do(shown, data):
    before = [data.draw(st.sets(st.sampled_from("abcdef"), max_size=5)) for _ in shown]
    for own, other, examples, usual in zip(shown, others(shown, before), before, shuffle(shown), strict=True):
        rest = {its for its in shown if len(its) == len(own)} - {own}
        fit = {its for its in rest if examples.isdisjoint(its)}
        assert other in (fit or {usual})
        assert other == usual or not examples.isdisjoint(usual)


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(evaluate, adapter, questions, tmp_path_factory):
    """A run over six of the questions with two examples each."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    evaluate("vqa", adapter, questions, folder, *TWO)
    return folder


def test_a_run_with_examples_says_what_a_chat_says(two, adapter, questions):
    rows = {row["id"]: row for row in map(json.loads, questions.read_text().splitlines())}
    model, found = MultimodalLM.from_pretrained(adapter), lines(two)
    for line in found:
        row, shots = rows[line["id"]], [rows[id] for id in line["shots"]]
        assert len(shots) == 2 and row["image"] not in [shot["image"] for shot in shots]
        assert line["question"] == row["question"] and line["images"] == [str(questions.parent / row["image"])]
    for line in found[:3]:
        shots = [rows[id] for id in line["shots"]]
        told = [(questions.parent / row["image"], row["question"], row["answers"][0]) for row in shots]
        messages = chat(model.config, *told, last=(line["images"][0], line["question"]))
        assert line["said"] == model.generate(None, messages, max_new_tokens=5, do_sample=False)
    report = json.loads((two / "scores.json").read_text())
    assert report["settings"]["shots"] == 2 and report["settings"]["shots_by"] == "random"
    page = (two / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 6 and "shots_by" in page, "samples are shown without their examples"


def test_examples_do_not_depend_on_what_else_is_asked(two, evaluate, adapter, questions, tmp_path):
    data = tmp_path / "some.jsonl"
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows = [row | {"image": str(questions.parent / row["image"])} for row in rows]
    asked_before = [line["id"] for line in lines(two)][:2]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows if row["id"] in asked_before))
    words = ["--shots", "2", "--shots-from", str(questions)]
    evaluate("vqa", adapter, data, tmp_path / "few", *words)
    assert [line["shots"] for line in lines(tmp_path / "few")] == [line["shots"] for line in lines(two)[:2]]
    evaluate("vqa", adapter, data, tmp_path / "seed", *words, "--seed", "1")
    assert [line["shots"] for line in lines(tmp_path / "seed")] != [line["shots"] for line in lines(two)[:2]]


def test_similar_examples_are_those_whose_images_look_alike(evaluate, adapter, captions, shapes, tmp_path):
    """By the mean of the deepest feature map."""
    more = ["--shots", "3", "--shots-by", "similar", "--limit", "4", "--batch", "16"]
    evaluate("caption", adapter, captions, tmp_path / "run", *more)
    model = MultimodalLM.from_pretrained(adapter)
    seen = torch.stack([model.vision.encode(path).values[0][0] for path, *_ in shapes])
    near = normalize(seen - seen.mean(0), dim=-1)
    near = (near @ near.T).fill_diagonal_(-2)
    places, found = [str(path) for path, *_ in shapes], lines(tmp_path / "run")
    of = {row.id: places.index(row.images[0]) for row in open_data(captions)}
    for line in found:
        best = near[places.index(line["images"][0])].topk(3).indices.tolist()
        assert [of[shot] for shot in line["shots"]] == best[::-1], "the most similar last"
    assert len(found) == 4


def test_examples_are_taken_from_other_data(evaluate, adapter, questions, shapes, tmp_path, capsys):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows = [row | {"image": str(questions.parent / row["image"])} for row in rows]
    train = [row | {"id": f"train{n}"} for n, row in enumerate(rows[:6])] + [{"text": "no image"}]
    for name, its in (("train", train), ("val", rows[4:8])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in its))
    words = ["--shots", "4", "--shots-from", str(tmp_path / "train.jsonl")]
    evaluate("vqa", adapter, tmp_path / "val.jsonl", tmp_path / "run", *words)
    found = lines(tmp_path / "run")
    assert set(found[0]["shots"]) == {f"train{n}" for n in range(4)}, "the others have its image"
    assert all(id.startswith("train") for line in found for id in line["shots"]) and len(found) == 4
    assert "train.jsonl, of which examples are taken: 7 samples" in capsys.readouterr().err


def test_broken_examples_of_another_split_are_told(tiny_model, tmp_path, capsys):
    for split, answer in (("train", "<image>"), ("test", "a cat")):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "questions.json").write_text(json.dumps([["what?", "a cat", 0], ["and?", answer, 0]]))
    config = EvalConfig("vqa", "", f"easy-vqa:{tmp_path}", shots=1)
    examples = read_examples(config, TASKS["vqa"], "{question}", tiny_model, ())
    assert [one.id for one in examples] == ["easy-vqa-train-0"]
    said = capsys.readouterr().err
    assert "of which examples are taken: 1 samples, 1 left out" in said and "<image> in what is learnt" in said


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--shots", "3"], "shots was 2 when its run began, and is 3 now"),
        (["--shots", "0"], "shots was 2 when its run began, and is 0 now"),
        (["--shots-by", "similar"], "shots_by was 'random' when its run began, and is 'similar' now"),
    ],
)
def test_a_run_goes_on_with_its_own_examples(evaluate, words, field, two, adapter, questions, capsys):
    before = (two / "scores.json").read_bytes()
    evaluate("vqa", adapter, questions, two, *TWO, "--resume", *words, status=1)
    assert field in capsys.readouterr().err and (two / "scores.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots-from", "train.jsonl"], "shots_from='train.jsonl' (--shots-from) is of examples, and none are shown"),
        (["--shots-split", "train"], "(--shots-split) is of examples, and none are shown: give shots (--shots)"),
        (["--shots-by", "similar"], "shots_by='similar' (--shots-by) is of examples"),
        (["--shots", "2", "--shots-by", "best"], "takes random, similar or open_clip:MODEL/TAG"),
        (["--shots", "2", "--shots-by", "open_clip:None/none"], "open_clip has no model 'None'"),
        (["--shots", "25"], "questions.jsonl: 24 samples with an image, and shots=25 (--shots)"),
        (["--shots", "23"], "sample '0-color': only 22 examples of other images than its own"),
        (["--shots", "1", "--shots-from", "words.jsonl"], "words.jsonl: 0 samples with an image, and shots=1"),
    ],
)
def test_misuse_is_told(evaluate, words, message, adapter, questions, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.jsonl").write_text('{"question": "what?", "answer": "x"}\n')
    evaluate("vqa", adapter, questions, tmp_path / "run", *words, status=1)
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"shots": 4}, "vqa-mine-val-4-shots"),
        ({"shots": 4, "shots_by": "similar"}, "vqa-mine-val-4-shots-similar"),
        ({"shots": 8, "shots_by": "open_clip:ViT-B-32/openai"}, "vqa-mine-val-8-shots-open_clipViT-B-32openai"),
    ],
)
def test_runs_with_examples_have_folders_of_their_own(fields, name):
    assert EvalConfig("vqa", "mine", "val", **fields).folder.name == name


def test_as_many_images_are_asked_together():
    assert [EvalConfig("vqa", "", "", shots=shots).together for shots in (0, 4, 32, 100)] == [96, 19, 2, 1]


@pytest.mark.slow
def test_two_processes_choose_and_say_the_same_as_one(nano_clip, evaluate, adapter, questions, tmp_path):
    words = [*TWO, "--shots-by", nano_clip]
    evaluate("vqa", adapter, questions, tmp_path / "one", *words)
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "eval", "vqa"]
    words = [str(adapter), str(questions), "--out", str(tmp_path / "two"), "--max-new-tokens", "5", *words]
    fresh = os.environ | {"MMLM_HOME": str(tmp_path / "home")}  # where each has its share to see
    done = subprocess.run([sys.executable, "-m", *launch, *words], cwd=ROOT, env=fresh, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("predictions.jsonl", "scores.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
