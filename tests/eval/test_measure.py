"""`mmlm eval caption|vqa`: every sample asked in three ways, whatever happens on the way."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.captions import caption_scores
from eval.settings import EvalConfig
from eval.vqa import vqa_accuracy
from mmlm.model import MultimodalLM


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_bytes().splitlines()]


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_questions_are_answered_in_three_ways(finished, adapter, questions, shapes):
    rows, found = list(map(json.loads, questions.read_text().splitlines())), lines(finished)
    assert [line["id"] for line in found] == [row["id"] for row in rows], "in the data's order"
    model = MultimodalLM.from_pretrained(adapter)
    short = {"max_new_tokens": 5, "do_sample": False}
    asks = {row["question"] for row in rows}
    wanted = {(image, question): model.ask(image, question, **short) for image, *_ in shapes for question in asks}
    unseen = {question: model.generate(None, model.messages(question, 0), **short) for question in asks}
    for line, row, image in zip(found, rows, [image for image, *_ in shapes for _ in range(2)], strict=True):
        question = row["question"]
        assert line["question"] == question and line["references"] == row["answers"]
        assert line["images"] == [str(image)] and "shots" not in line
        assert line["said"] == wanted[image, question] and line["said_blind"] == unseen[question]
        assert line["said_shuffled"] in [wanted[other, question] for other, *_ in shapes if other != image]
    assert len({line["said"] for line in found}) > 6 > len({line["said_blind"] for line in found}) == 2


def test_each_score_stands_beside_its_controls(finished):
    found, report = lines(finished), scores(finished)
    references = [line["references"] for line in found]
    main = report["scores"]["accuracy"]
    for way, said in (("true", "said"), ("shuffled", "said_shuffled"), ("blind", "said_blind")):
        assert main[way]["value"] == vqa_accuracy([line[said] for line in found], references)
        assert main[way]["low"] <= main[way]["value"] <= main[way]["high"]
    assert main["n"] == report["n"] == 24 and report["kinds"].keys() == {"color", "shape"}
    assert report["settings"]["prompt"] == "{question}" and report["settings"]["weights"]
    assert report["versions"].keys() >= {"torch", "transformers"}


def test_captions_of_an_image_are_its_references(evaluate, adapter, captions, shapes, tmp_path):
    evaluate("caption", adapter, captions, tmp_path / "run", "--prompt", "What is there?")
    found, report = lines(tmp_path / "run"), scores(tmp_path / "run")
    assert [line["references"] for line in found] == [[f"a {c} {s}", f"one {c} {s}"] for _, c, s in shapes]
    assert {line["question"] for line in found} == {report["settings"]["prompt"]} == {"What is there?"}
    model = MultimodalLM.from_pretrained(adapter)
    assert found[0]["said"] == model.ask(shapes[0][0], "What is there?", max_new_tokens=5, do_sample=False)
    wanted = caption_scores([line["said"] for line in found], [line["references"] for line in found])
    assert {name: report["scores"][name]["true"]["value"] for name in wanted} == pytest.approx(wanted)
    assert report["scores"]["cider"]["n"] == 12


def test_the_report_shows_samples_and_all_scores(finished):
    class Reader(HTMLParser):
        text = ""

        def handle_data(self, data):
            self.text += data

    page = (finished / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert page.count("<figure>") == page.count("<img ") == 24
    assert [word in reader.text for word in ("Best", "Worst", "no image", "{question}", "accuracy")] == [True] * 5
    assert all(line["question"] in reader.text for line in lines(finished))


def test_a_limit_draws_by_the_seed(evaluate, adapter, questions, tmp_path):
    def drawn(seed):
        out = tmp_path / f"{seed}"
        evaluate("vqa", adapter, questions, out, "--limit", "5", "--seed", str(seed), "--overwrite")
        return [line["id"] for line in lines(out)]

    every = [json.loads(line)["id"] for line in questions.read_text().splitlines()]
    first = drawn(0)
    assert len(first) == 5 and first == sorted(first, key=every.index) and first == drawn(0) != drawn(1)


def test_broken_samples_are_left_out_counted_and_named(evaluate, adapter, questions, tmp_path, capsys):
    rows = [json.loads(line) for line in questions.read_text().splitlines()][:4]
    rows = [row | {"image": str(questions.parent / row["image"])} for row in rows]
    rows[1]["image"] = "absent.png"
    rows[2]["answers"] = []
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows.append(rows[0] | {"id": "bad", "image": str(tmp_path / "bad.png")})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate("vqa", adapter, data, tmp_path / "run")
    assert [line["id"] for line in lines(tmp_path / "run")] == [rows[0]["id"], rows[3]["id"]]
    broken, said = scores(tmp_path / "run")["broken"], capsys.readouterr().err
    assert len(broken) == 3 and "2 samples, 3 left out" in said
    for name in ("absent.png", "bad.png", "line 3"):
        assert any(name in one for one in broken) and name in said


def test_what_is_written_in_an_image_is_not_told_the_blind(evaluate, adapter, shapes, tmp_path):
    """Marks in a chat go, too."""
    chat = [{"role": "user", "content": "<image>\nwhat is it?"}, {"role": "assistant", "content": "a bar"}]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"image": str(path), "messages": chat}) + "\n" for path, *_ in shapes[:3]))
    evaluate("vqa", adapter, data, tmp_path / "run")
    model = MultimodalLM.from_pretrained(adapter)
    wanted = model.generate(None, model.messages("what is it?", 0), max_new_tokens=5, do_sample=False)
    assert {line["said_blind"] for line in lines(tmp_path / "run")} == {wanted}


def test_the_exit_status_tells_whether_it_looks(evaluate, adapter, questions, answered, tmp_path, capsys):
    evaluate("vqa", adapter, answered, tmp_path / "looks", "--require-grounded")
    main = scores(tmp_path / "looks")["scores"]["accuracy"]
    assert main["true"]["value"] == 1 and main["gained"]["blind"]["low"] > 0 < main["gained"]["shuffled"]["low"]
    evaluate("vqa", adapter, questions, tmp_path / "blind", "--require-grounded", status=3)
    assert "mmlm: not grounded: accuracy is 0.000 with the right images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vqa", "--prompt", "what?"], "prompt: 'what?' has no {question}"),
        (["caption", "--prompt", " "], "prompt: ' ' asks nothing"),
        (["vqa", "--resume", "--overwrite"], "give one of them"),
        (["vqa", "--resume"], "no run is there to go on with"),
    ],
)
def test_misuse_is_told(evaluate, words, message, adapter, questions, tmp_path, capsys):
    task, *more = words
    evaluate(task, adapter, questions, tmp_path / "run", *more, status=1)
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "data", "split", "name"),
    [
        ("runs/mine", "data/val.jsonl", None, "vqa-mine-val"),
        ("owner/eyes", "pairs/", "test", "vqa-eyes-pairs-test"),
        ("runs/mine", "tars/data-{000..009}.tar", None, "vqa-mine-data-000"),
    ],
)
def test_runs_are_kept_by_task_model_and_data(model, data, split, name):
    assert EvalConfig("vqa", model, data, split=split).folder == Path("runs", "eval", name)
