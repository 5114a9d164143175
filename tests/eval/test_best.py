"""The score against n: of all choices of so many draws, exactly."""

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.best import against_n, best_each, score_best
from eval.tasks import TASKS
from mmlm.data import Sample

COLORS = ("red", "green", "blue", "gold")


@given(scores=st.lists(st.floats(0, 10), min_size=1, max_size=7))
def test_the_best_of_k_is_the_mean_over_all_choices_of_k(scores):
    """Of each choice the first is taken."""
    [found] = best_each([scores])
    wanted = [fmean(its[0] for its in combinations(scores, k)) for k in range(1, len(scores) + 1)]
    assert found.tolist() == pytest.approx(wanted)


@st.composite
def runs(draw, ways=("true", "shuffled", "blind")):
    """Answers of colors with what a verifier thinks of them, to a few samples in each way, and what is right."""
    samples, n = draw(st.integers(2, 3)), draw(st.integers(2, 4))
    one = st.tuples(st.sampled_from(COLORS), st.integers(0, 3) | st.none())
    drawn = st.lists(st.lists(one, min_size=n, max_size=n), min_size=samples, max_size=samples)
    return {way: draw(drawn) for way in ways}, draw(
        st.lists(st.sampled_from(COLORS), min_size=samples, max_size=samples)
    )


@settings(max_examples=25)
@given(run=runs(), task=st.sampled_from(sorted(TASKS)))
def test_scores_against_n_are_those_of_every_choice(run, task):
    """By verifier and by the score itself; a draw's CIDEr is that within the corpus, of which only references tell."""
    drawn, right = run
    references = [[f"a {color} thing"] if task == "caption" else [color] * 10 for color in right]
    answers = {way: [{"drawn": its} for its in drawn[way]] for way in drawn}
    samples = [Sample.pair(f"{n}", (), "?", its[0], its) for n, its in enumerate(references)]
    found = against_n(TASKS[task], answers, samples)
    n = len(drawn["true"][0])
    assert list(found) == [str(k) for k in range(1, n + 1)]
    metric = TASKS[task].each
    for way, its in drawn.items():
        columns = [metric([one[place][0] for one in its], references) for place in range(n)]
        for k in range(1, n + 1):
            taken, best = [], []
            for row, one in enumerate(its):
                for places in combinations(range(n), k):
                    chosen = max(places, key=lambda place: one[place][1] or 0)  # the first of equals
                    taken.append(columns[chosen][row])
                    best.append(max(columns[place][row] for place in places))
            of_k = found[str(k)]
            assert of_k[way]["value"] == pytest.approx(fmean(taken))
            assert of_k["oracle"][way]["value"] == pytest.approx(fmean(best))
            assert of_k[way]["low"] <= of_k[way]["value"] + 1e-9 and of_k[way]["value"] <= of_k[way]["high"] + 1e-9
            assert of_k["n"] == len(right)


def test_where_nothing_is_drawn_there_is_nothing_to_tell(tmp_path):
    greedy = {way: [{"said": "red"}] for way in ("true", "shuffled", "blind")}
    assert score_best(TASKS["vqa"], greedy, [Sample.pair("1", (), "?", "red")], tmp_path) == {} and not list(
        tmp_path.iterdir()
    )
