import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.vqa import accuracy_each, normalize_answer, question_prior, vqa_accuracy

# By hand, from the rules of the official VQA evaluation code (Antol et al. 2015).
NORMAL = {
    "The two dogs!": "2 dogs",
    "None": "0",
    "ten": "10",
    "eleven": "eleven",
    "An apple a day": "apple day",
    "dont": "don't",
    "couldntve": "couldntve",  # the table knows only one apostrophe lost at a time
    "couldn'tve": "couldn't've",
    "Im": "im",  # listed with its capital, after lower case: never found
    "somebody'd": "somebodyd",
    "shes": "shes",
    "hes": "he's",
    "red/blue": "red blue",
    "red / blue": "red blue",
    "red, blue": "red blue",
    "red,blue": "red blue",
    "1,000": "1000",
    "1,000 red-hot": "1000 redhot",  # a comma between digits deletes every mark
    "t-shirt": "t shirt",
    "yes.": "yes",
    "1.5": "1.5",
    "5.": "5",
    "u.s.a.": "usa",
    "5.5.a": "5.5a",
    ".5": ".5",
    "yes? ": "yes",
    "a\nb\tc": "b c",
    "": "",
    "the": "",
    "what's": "what's",
    "." * 33 + "x": ".x",  # only the first 32 full stops go
}
HUMANS = ["red"] * 3 + ["dark red"] * 2 + ["blue"] * 5

texts = st.text(alphabet="abtheno1,.'-/? ", max_size=12)


@pytest.mark.parametrize(("text", "normal"), NORMAL.items())
def test_normal_form(text, normal):
    assert normalize_answer(text) == normal


@given(texts)
def test_case_and_outer_space_do_not_matter(text):
    assert normalize_answer(f" {text.upper()}\n") == normalize_answer(text)


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [
        ("blue", 1),  # five others, or four
        ("Red.", 0.3 * 2 / 3 + 0.7 * 1),  # leaving out one who said so leaves two
        ("dark red", 0.2 * 1 / 3 + 0.8 * 2 / 3),
        ("green", 0),
        ("", 0),
    ],
)
def test_each_annotator_is_left_out_in_turn(answer, accuracy):
    assert accuracy_each([answer], [HUMANS]) == [pytest.approx(accuracy)]


def test_unanimous_references_are_compared_as_they_are():
    assert accuracy_each(["two", "2", "two "], [["two"] * 10] * 3) == [1, 0, 1]
    assert accuracy_each(["two", "2"], [["two"] * 9 + ["2"]] * 2) == [1, 1]


def test_accuracies_are_those_of_the_official_code():
    """On answers of many kinds: see regenerate.py."""
    official = json.loads(gzip.decompress((Path(__file__).parent / "golden_vqa.json.gz").read_bytes()))
    answers, references = zip(*((answer, refs) for answer, *refs in official["answers"]), strict=True)
    assert len(answers) >= 5000
    assert accuracy_each(answers, references) == pytest.approx(official["each"], abs=1e-8)


def test_fewer_than_four_references_cannot_make_a_full_point():
    assert accuracy_each(["no"], [["no", "no", "no"]]) == [pytest.approx(2 / 3)]


def test_a_single_reference_is_matched_after_normalization():
    assert accuracy_each(["Two.", "The cat", "dog"], ["2", ["cat"], "cat"]) == [1, 1, 0]


@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=10)), min_size=1, max_size=5))
def test_accuracy_is_a_mean_of_points_between_0_and_1(samples):
    answers, references = zip(*samples, strict=True)
    each = accuracy_each(answers, references)
    assert all(0 <= score <= 1 for score in each)
    assert vqa_accuracy(answers, references) == pytest.approx(sum(each) / len(each))
    assert accuracy_each(answers, [group[::-1] for group in references]) == pytest.approx(each)


@pytest.mark.parametrize("score", [accuracy_each, vqa_accuracy])
@pytest.mark.parametrize(
    ("answers", "references", "message"),
    [
        (["a", "b"], ["a"], "2 texts but references for 1 samples"),
        ([], [], "nothing to score"),
        (["a", "b"], ["a", []], "sample 1 has no references"),
    ],
)
def test_bad_input_is_named(score, answers, references, message):
    with pytest.raises(ValueError, match=message):
        score(answers, references)


def test_prior_answers_by_question_then_overall_and_ties_by_alphabet():
    train = [("q", "yes"), ("q", "no"), ("r", "yes"), ("r", "yes"), ("s", "no")]
    assert question_prior(train, [("q", "no")]) == 1  # a tie
    assert question_prior(train, [("r", "yes"), ("s", "yes")]) == 0.5
    assert question_prior(train, [("never asked", "yes")]) == 1


@given(st.permutations([("q", "b"), ("q", "a"), ("q", "b"), ("q", "a"), ("r", "c")]))
def test_prior_does_not_depend_on_order(train):
    assert question_prior(iter(train), [("q", "a"), ("t", "a")]) == 1


def test_prior_needs_both_sides():
    with pytest.raises(ValueError, match="train is empty"):
        question_prior([], [("q", "a")])
    with pytest.raises(ValueError, match="test is empty"):
        question_prior([("q", "a")], [])


def test_prior_of_easy_vqa():
    easy_vqa = pytest.importorskip("easy_vqa")
    train, test = (
        zip(*split[:2], strict=True) for split in (easy_vqa.get_train_questions(), easy_vqa.get_test_questions())
    )
    assert question_prior(train, test) == pytest.approx(0.670, abs=1e-3)
