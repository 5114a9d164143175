"""What the quickstart tells, of answers made by hand."""

from pathlib import Path

import pytest

from finetune.quickstart_report import (
    card_scores,
    cards_of,
    facts_of,
    make_cards,
    markdown,
    report_of,
    rows_of,
    show,
    write,
)
from mmlm.samples import Sample


def question(n, image, asked, answer, kind):
    return Sample.pair(f"q{n}", (image,), asked, answer, (answer,), kind)


TRAIN = [
    *(question(n, f"t{n}.png", "is it red?", "no", "yes/no") for n in range(3)),
    question(3, "t3.png", "is it red?", "yes", "yes/no"),
    *(question(n, f"t{n}.png", "what color is it?", "teal", "color") for n in (4, 5)),
    question(6, "t6.png", "what color is it?", "red", "color"),
]
TEST = [
    question(0, "a.png", "is it red?", "no", "yes/no"),
    question(1, "a.png", "what color is it?", "red", "color"),
    question(2, "b.png", "is it red?", "yes", "yes/no"),
    question(3, "c.png", "is it red?", "no", "yes/no"),
]
SCENES = [
    Sample.pair(
        "s0", ("s0.png",), "Describe the image.", "a cat above a dog", ("a cat above a dog", "a dog below a cat")
    ),
    Sample.pair(
        "s1", ("s1.png",), "Describe the image.", "two birds beside a red car", ("two birds beside a red car",)
    ),
    Sample.pair("s2", ("s2.png",), "Describe the image.", "a green apple on a table", ("a green apple on a table",)),
]


def ways(true, shuffled, blind):
    return {"true": true, "shuffled": shuffled, "blind": blind}


VQA_SAID = ways(["no", "red", "yes", "yes"], ["no", "teal", "no", "no"], ["no", "no", "no", "no"])
RIGHT = [sample.answer for sample in SCENES]


def test_answers_are_scored_by_kind_beside_what_questions_give_away():
    found = report_of("vqa", TEST, VQA_SAID, TRAIN)
    values = {way: found["scores"]["accuracy"][way]["value"] for way in VQA_SAID}
    assert found["n"] == 4 and values == {"true": 0.75, "shuffled": 0.5, "blind": 0.5}
    assert found["kinds"]["color"]["accuracy"]["true"]["value"] == 1
    # "no" and "teal" are the commonest in training: right, wrong, wrong, right
    assert found["prior"] == {"": 0.5, "color": 0, "yes/no": pytest.approx(2 / 3)}


def test_captions_are_scored():
    said = ways(RIGHT, [RIGHT[1], RIGHT[2], RIGHT[0]], ["a dog below a cat", RIGHT[1], "nothing"])
    scores = report_of("caption", SCENES, said)["scores"]
    assert {way: scores["exact"][way]["value"] for way in said} == pytest.approx(ways(1, 0, 2 / 3))
    assert scores["bleu4"]["true"]["value"] == pytest.approx(1) and scores["bleu4"]["shuffled"]["value"] < 0.1
    assert scores["cider"]["true"]["value"] > 5 > 10 * scores["cider"]["shuffled"]["value"]


def test_cards_are_of_different_images_as_they_come():
    cards = make_cards(TEST, ["no", "red", "no", "no"], 2)
    assert [(card.sample.id, card.said, card.right) for card in cards] == [("q0", "no", True), ("q2", "no", False)]
    captions = [Sample.pair(s.id, s.images, s.question, s.answer, s.references, "caption") for s in SCENES]
    cards = make_cards(captions, ["A dog below a cat.", "two birds", ""], 12)
    assert [card.right for card in cards] == [True, False, False]


def test_cards_of_images_that_are_objects(picture):
    image = picture()
    samples = [Sample.pair("a", (image,), "?", "x", ("x",)), Sample.pair("b", (image,), "?", "x", ("x",))]
    assert [card.sample.id for card in make_cards(samples, ["x", "x"], 12)] == ["a"]


@pytest.fixture
def report():
    return {
        "easy_vqa": report_of("vqa", TEST, VQA_SAID, TRAIN),
        "easy_vqa_redrawn": report_of("vqa", TEST[:2], ways(["no", "teal"], ["no", "teal"], ["", ""]), TRAIN),
        "shapes": report_of("caption", SCENES[:2], ways([SCENES[0].answer, "x"], ["y", "z"], ["", ""])),
        "scenes": report_of("caption", SCENES, ways(RIGHT, ["x", "y", "z"], [""] * 3)),
        "seconds": {"fetch": 0.1, "train": 12.6},
        "resumed": False,
        "peak_rss_gb": 2.5,
        "parameters": {"total": 300_000_000, "active": 200_000_000, "trainable": 12_000_000},
    }


def test_scores_are_told_beside_their_controls(report):
    rows = {name: cells for name, *cells in rows_of(report)}
    assert [cell[:5] for cell in rows["easy-VQA, accuracy (4)"]] == ["0.750", "0.500", "0.500", "0.500"]
    assert rows["easy-VQA, color (1)"] == ["1.000 (1.000 to 1.000)", *["0.000 (0.000 to 0.000)"] * 2, "0.000"]
    assert [cell[:5] for cell in rows["shapes redrawn, exact (2)"]] == ["0.500", "0.000", "0.000", ""]
    assert rows["scenes, exact (3)"][0] == "1.000 (1.000 to 1.000)"
    facts = dict(facts_of(report))
    assert facts["seconds"] == "fetch 0, train 13" and facts["parameters"] == "total 300M, active 200M, trainable 12M"
    assert "seconds since it was resumed" in dict(facts_of(report | {"resumed": True}))


def test_the_model_card_has_all_of_them(report):
    scores = card_scores(report)
    assert scores["easy-VQA, accuracy"] == 0.75 and scores["easy-VQA, accuracy, images shuffled"] == 0.5
    assert scores["scenes, cider, no image"] == 0 and len(scores) == 18


def test_the_table_and_the_page_have_them_too(report, picture, tmp_path):
    shown = [Sample.pair("q0", (picture(),), "is it red?", "no", ("no",), "yes/no")]
    tests = dict.fromkeys(("easy_vqa", "easy_vqa_redrawn", "scenes"), shown)
    write(tmp_path, report, cards_of(tests, dict.fromkeys(tests, ways(["no"], ["yes"], [""]))), "a run")
    lines = (tmp_path / "scores.md").read_text().splitlines()
    assert lines[:2] == ["| held-out | score | images shuffled | no image | question alone |", "| --- " * 5 + "|"]
    assert markdown(report).splitlines() == lines and len(lines) == 2 + len(list(rows_of(report)))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 3 and "scenes, bleu4 (3)" in page and "95% intervals" in page


def test_the_terminal_ends_with_samples_and_what_to_type_next(report, capsys):
    """Of a small test, whose cards are fewer than twelve, as well."""
    said = {"easy_vqa": VQA_SAID, "scenes": ways(["x", "y", "z"], [""] * 3, [""] * 3)}
    said["easy_vqa_redrawn"] = ways([], [], [])
    tests = {"easy_vqa": TEST, "easy_vqa_redrawn": [], "scenes": SCENES}
    show(Path("runs/mine"), report, cards_of(tests, said))
    told = capsys.readouterr().out
    assert "✓ is it red?\n    said 'no', right 'no'\n" in told
    assert all(f"✗ Describe the image.\n    said {word!r}, right" in told for word in "xyz")
    assert "mmlm caption IMAGE --model runs/mine" in told and "mmlm ask IMAGE " in told
    assert "runs/mine/report.html shows 6 held-out images" in told
