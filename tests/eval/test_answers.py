import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.answers import anls_each, exact_each, relaxed_each

texts = st.text(alphabet="ab 1.", max_size=8)
SCORES = [exact_each, anls_each, relaxed_each]


def test_exact_match_is_of_normal_forms():
    assert exact_each(["Two dogs!", "a cat", "red"], [["one", "2 dogs"], "the cat", ["blue"]]) == [1, 1, 0]


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Hello  World", ["hello world"], 1),
        ("hellp", ["hello", "x"], 0.8),
        ("abcd", ["abxy"], 0),  # half of it differs
        ("abcdef", ["abcdxy"], 2 / 3),
        ("", ["a"], 0),
        ("kitten", ["sitting"], 4 / 7),
    ],
)
def test_anls_forgives_slips(answer, references, score):
    assert anls_each([answer], [references]) == [pytest.approx(score)]


@given(texts, texts)
def test_anls_does_not_mind_which_is_the_answer(left, right):
    assert anls_each([left], [right]) == anls_each([right], [left])
    assert anls_each([left], [[right, left]]) == [1]


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("105", "100", 1),
        ("95.0", "100", 1),
        ("106", "100", 0),
        ("-104", "-100", 1),
        ("10.2%", "0.1", 1),
        ("10", "10%", 0),
        ("0.01", "0", 0),
        ("0", "0", 1),
        ("Red", "red", 1),
        ("reds", "red", 0),
        ("about 100", "100", 0),
        ("nan", "100", 0),
    ],
)
def test_relaxed_accuracy_lets_numbers_be_a_little_off(answer, reference, score):
    assert relaxed_each([answer], [["other", reference]]) == [score]


@pytest.mark.parametrize("score", SCORES)
@given(texts, texts)
def test_a_reference_itself_is_right_and_all_scores_lie_between_0_and_1(score, left, right):
    assert score([left, left], [[left, right], right])[0] == 1
    assert 0 <= score([left], [right])[0] <= 1


@pytest.mark.parametrize("score", SCORES)
def test_bad_input_is_named(score):
    with pytest.raises(ValueError, match="2 texts but references for 1 samples"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="sample 1 has no references"):
        score(["a", "b"], ["a", []])
