import shutil
from importlib.util import find_spec

import pytest

from eval.intervals import drawn, ends
from eval.java import java_how, java_metrics

HYPOTHESES = ["a cat sits on the mat", "two dogs", "a man riding a bicycle down the street", ""]
REFERENCES = [["a cat is sitting on a mat"], ["two dogs play", "a pair of dogs"], ["a man rides a bike"], ["a bus"]]


def test_without_java_it_is_said_what_is_lacking(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert java_metrics(HYPOTHESES, REFERENCES) == {}
    how = java_how()
    assert how.keys() == {"meteor", "spice"} and all("not installed" in reason for reason in how.values())


@pytest.mark.skipif(not (find_spec("pycocoevalcap") and shutil.which("java")), reason="needs pycocoevalcap and Java")
def test_meteor_is_that_of_pycocoevalcap():
    from pycocoevalcap.meteor.meteor import Meteor

    its = java_metrics(HYPOTHESES, REFERENCES)["meteor"]
    wanted, _ = Meteor().compute_score(dict(enumerate(REFERENCES)), {n: [one] for n, one in enumerate(HYPOTHESES)})
    assert its.value == pytest.approx(wanted, abs=1e-9) and wanted > 0.3
    low, high = ends([its.of(sums) for sums in drawn(its.rows, 50)])
    assert low < its.value < high
    assert java_how()["meteor"].startswith("pycocoevalcap 1.")
