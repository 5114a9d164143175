import os
import shutil
import sys
from importlib.util import find_spec

import pytest

from eval import java
from eval.intervals import drawn, ends
from eval.java import LEFT_OUT, java_how, java_metrics, opened, spice

HYPOTHESES = ["a cat sits on the mat", "two dogs", "a man riding a bicycle down the street", ""]
REFERENCES = [["a cat is sitting on a mat"], ["two dogs play", "a pair of dogs"], ["a man rides a bike"], ["a bus"]]
FLAGS = "JDK_JAVA_OPTIONS"
with_both = pytest.mark.skipif(
    not (find_spec("pycocoevalcap") and shutil.which("java")), reason="needs pycocoevalcap and Java"
)


@pytest.fixture
def no_java(tmp_path, monkeypatch):
    """Puts a program in the place of Java, a script."""

    def put(script):
        (tmp_path / "java").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "java").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.fixture
def laid_out(tmp_path, monkeypatch):
    """A package that is laid out as pycocoevalcap, with models; its SPICE runs Java and finds one caption of two."""
    found = "[{'All': {'f': 0.5}}, {'All': {'f': float('nan')}}][: len(right)]"
    script = f"""
import subprocess

class Spice:
    def compute_score(self, right, said):
        subprocess.check_call(["java", "-version"])
        return 0.5, {found}
"""
    folder = tmp_path / "packages" / "pycocoevalcap"
    for name, text in ((java.MODELS, ""), ("spice/spice.py", script), ("meteor/meteor.py", "")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "__init__.py").touch()
    about = folder.parent / "pycocoevalcap-1.2.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: pycocoevalcap\nVersion: 1.2\n")
    forget()
    monkeypatch.syspath_prepend(str(folder.parent))
    yield
    forget()


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocoevalcap"]:
        del sys.modules[name]


def test_without_java_it_is_said_what_is_lacking(monkeypatch):
    monkeypatch.setenv("PATH", "")
    how = java_how()
    assert how.keys() == {"meteor", "spice"} and all("not installed" in reason for reason in how.values())
    assert java_metrics(HYPOTHESES, REFERENCES, how) == {}


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'Error: no memory' >&2; exit 1", "java ended with exit status 1: Error: no memory"),
        ("read line; exit 3", "java ended with exit status 3"),
        ("while read line; do echo what; done", "'what'"),
    ],
)
def test_a_java_that_does_not_run_is_found_before_a_run(no_java, laid_out, script, why):
    no_java(script)
    meteor = java_how()["meteor"]
    assert meteor.startswith(f"{LEFT_OUT}meteor does not run here (") and why in meteor and "\n" not in meteor


def test_spice_is_left_out_where_java_fails(no_java, laid_out):
    no_java("exit 1")
    how = java_how()
    assert how["spice"] == "left out: spice does not run here (java ended with exit status 1)"
    assert java_metrics(HYPOTHESES, REFERENCES, how) == {}


def test_spice_without_a_score_counts_as_0_and_java_is_told_what_to_open(no_java, laid_out, tmp_path, monkeypatch):
    monkeypatch.setenv(FLAGS, "-Xmx1G")
    no_java(f'echo "${FLAGS}" > {tmp_path}/told')
    assert spice([("a cat", ["a cat"]), ("", ["."])]) == [0.5, 0.0]
    told = (tmp_path / "told").read_text().split()
    assert told[0] == "-Xmx1G" == os.environ[FLAGS]
    assert "--add-opens=java.base/java.lang=ALL-UNNAMED" in told
    monkeypatch.delenv(FLAGS)
    with opened():
        assert FLAGS in os.environ
    assert FLAGS not in os.environ


@with_both
def test_where_java_fails_the_real_meteor_is_left_out(no_java):
    no_java("exit 1")
    assert java_how()["meteor"] == "left out: meteor does not run here (java ended with exit status 1)"


@pytest.mark.slow
@with_both
def test_meteor_is_that_of_pycocoevalcap():
    from pycocoevalcap.meteor.meteor import Meteor as Official

    how = java_how()
    assert how["meteor"].startswith("pycocoevalcap 1.")
    its = java_metrics(HYPOTHESES, REFERENCES, how)["meteor"]
    wanted, _ = Official().compute_score(dict(enumerate(REFERENCES)), {n: [one] for n, one in enumerate(HYPOTHESES)})
    assert its.value == pytest.approx(wanted, abs=1e-9)
    few = java_metrics(HYPOTHESES[:2], REFERENCES[:2], how)["meteor"]
    assert few.value == pytest.approx(0.36949404, abs=1e-6)
    assert [few.of(row) for row in few.rows] == pytest.approx([0.40917256, 0.29170666], abs=1e-6)
    low, high = ends([its.of(sums) for sums in drawn(its.rows, 50)])
    assert low < its.value < high
