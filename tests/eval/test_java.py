import shutil
from importlib.util import find_spec

import pytest

from eval.java import java_scores

HYPOTHESES = ["a cat sits on the mat", "two dogs"]
REFERENCES = [["a cat is sitting on a mat"], ["two dogs play", "a pair of dogs"]]


def test_without_java_it_is_said_what_is_lacking(monkeypatch):
    monkeypatch.setenv("PATH", "")
    scores, each, how = java_scores(HYPOTHESES, REFERENCES)
    assert scores == each == {}
    assert how.keys() == {"meteor", "spice"} and all("not installed" in reason for reason in how.values())


@pytest.mark.skipif(not (find_spec("pycocoevalcap") and shutil.which("java")), reason="needs pycocoevalcap and Java")
def test_meteor_is_that_of_pycocoevalcap():
    scores, each, how = java_scores(HYPOTHESES, REFERENCES)
    assert scores["meteor"] == pytest.approx(0.36949404, abs=1e-6)
    assert each["meteor"] == pytest.approx([0.40917256, 0.29170666], abs=1e-6)
    assert how["meteor"].startswith("pycocoevalcap")
