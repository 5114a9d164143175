import math
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.captions import caption_metrics, caption_scores
from eval.intervals import Measured, drawn, ends, rows_of
from eval.scores import tabled

Interval = namedtuple("Interval", "score low high n")


def interval(its, draws=1000, seed=0):
    low, high = ends([its.of(sums) for sums in drawn(its.rows, draws, seed)])
    return Interval(its.value, low, high, len(its.rows))


def mean_interval(scores, **how):
    return interval(Measured.mean(scores), **how)


def gain(before, after, of=None):
    """How much more the second has, on the same draws."""
    table = tabled({"B": {"x": after}, "A": {"x": before}}, of or range(len(before.rows)))
    its = table["x"]["gained"]["A"]
    return Interval(its["value"], its["low"], its["high"], table["x"]["n"])


def mean_difference(left, right):
    return gain(Measured.mean(left), Measured.mean(right))


scores = st.lists(st.floats(0, 1), min_size=1, max_size=20)
CAPTIONS = ["a cat on a mat", "two dogs run", "a man rides a red bicycle", "the boy eats", "a bus", "three birds fly"]
REFERENCES = [["a cat lies on a mat"], ["two dogs are running"], ["a man rides a bicycle", "a red bicycle"]]
REFERENCES += [["a boy eats a pizza"], ["a bus on a street"], ["three birds"]]


@given(scores)
def test_an_interval_lies_within_the_scores_and_names_their_number(each):
    found = mean_interval(each, draws=50)
    assert found.score == pytest.approx(sum(each) / len(each)) and found.n == len(each)
    assert min(each) - 1e-9 <= found.low <= found.high <= max(each) + 1e-9


def test_a_mean_has_the_interval_of_the_normal_law():
    each = np.random.default_rng(1).normal(5, 2, 10_000)
    found, width = mean_interval(each.tolist()), 1.96 * each.std() / math.sqrt(len(each))
    assert found.low == pytest.approx(found.score - width, abs=width / 8)
    assert found.high == pytest.approx(found.score + width, abs=width / 8)


def test_the_true_mean_lies_in_about_95_of_100_intervals():
    random = np.random.default_rng(2)
    found = [mean_interval(random.random(60).tolist(), draws=200, seed=seed) for seed in range(200)]
    assert 0.88 <= np.mean([one.low <= 0.5 <= one.high for one in found]) <= 0.99


def test_the_seed_decides():
    each = np.random.default_rng(3).random(50).tolist()
    assert mean_interval(each) == mean_interval(each)
    assert mean_interval(each) != mean_interval(each, seed=1)


@given(scores, st.floats(-1, 1))
def test_runs_that_differ_by_the_same_everywhere_differ_for_sure(each, more):
    found = mean_difference(each, [score + more for score in each])
    assert (found.low, found.score, found.high) == pytest.approx((more, more, more))


def test_a_pair_tells_what_two_intervals_do_not():
    random = np.random.default_rng(4)
    left = random.random(300)
    right = left + random.normal(0.02, 0.05, 300)
    apart, together = [mean_interval(its.tolist()) for its in (left, right)], mean_difference(left, right)
    assert apart[1].low < apart[0].high  # they overlap
    assert together.low > 0


@given(scores, st.data())
def test_to_swap_the_runs_turns_the_interval_round(left, data):
    right = data.draw(st.lists(st.floats(0, 1), min_size=len(left), max_size=len(left)))
    there, back = mean_difference(left, right), mean_difference(right, left)
    assert (there.low, there.score, there.high) == pytest.approx((-back.high, -back.score, -back.low))


def test_a_ratio_of_sums_is_not_a_mean_of_ratios():
    found = interval(Measured(rows_of([(1, 1), (1, 9)]), lambda sums: sums[0] / sums[1]))
    assert (found.score, found.low, found.high) == (0.2, pytest.approx(1 / 9), 1)


def test_caption_intervals_are_about_the_corpus_scores():
    its, corpus = caption_metrics(CAPTIONS, REFERENCES), caption_scores(CAPTIONS, REFERENCES)
    found = {name: interval(its[name], draws=100) for name in corpus}
    assert {name: one.score for name, one in found.items()} == pytest.approx(corpus)
    assert all(one.low < one.score < one.high and one.n == 6 for one in found.values())


def test_captions_that_are_references_score_more():
    better = [group[0] for group in REFERENCES]
    before, after = (caption_metrics(its, REFERENCES) for its in (CAPTIONS, better))
    found = {name: gain(before[name], after[name]) for name in before}
    left, right = caption_scores(CAPTIONS, REFERENCES), caption_scores(better, REFERENCES)
    assert {name: found[name].score for name in left} == pytest.approx({n: right[n] - left[n] for n in left})
    assert all(one.low > 0 for one in found.values())


def test_samples_of_an_image_are_drawn_together():
    """Two questions about each, answered alike: as many images, as wide an interval as one question about each."""
    each = np.random.default_rng(5).random(100).tolist()
    once, twice = Measured.mean(each), Measured.mean(each * 2)
    none = Measured.mean([0] * 200)
    alone, together = gain(Measured.mean([0] * 100), once), gain(none, twice, [*range(100)] * 2)
    assert (together.score, together.low, together.high) == pytest.approx((alone.score, alone.low, alone.high))
    apart = gain(none, twice)
    assert apart.high - apart.low < 0.8 * (together.high - together.low)


def test_no_sample_no_score():
    with pytest.raises(ValueError, match="no scores to draw from"):
        Measured.mean([])
