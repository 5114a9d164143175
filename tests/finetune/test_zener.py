"""The comparison of token configurations: its settings, its curriculum, its tables, and both walks to the end."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.commands import sizes
from finetune import compare, zener
from finetune.compare import curriculum
from finetune.config import leaves, read_settings, resolve
from finetune.page import put, tables
from finetune.zener_config import TuneConfig, ZenerConfig
from mmlm import zoo
from mmlm.config import AdapterConfig

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "configs" / "zener.yaml"

SMALL = {
    "tokens": ["pyramid", "square", "resampler"],
    "k": "1-2",
    "cards": 4,
    "probe": {"pictures": 4, "steps": 2, "batch": 4, "width": 32, "heads": 2},
    "tune": {
        "blocks_from": 4,
        "cards": 8,
        "train": {"steps": 4, "save_every": 2, "log_every": 2, "calibrate": 1, "words": 2, "batch": {"images": 4}},
    },
}


def test_the_shipped_settings_are_settings():
    config = read_settings(ZenerConfig(), SHIPPED)
    assert sizes(config.k) == list(range(1, 14))
    assert all(AdapterConfig(tokens=name).pyramid for name in config.tokens)
    assert config.vision == zoo.VISION and config.decoder == zoo.DECODER


def test_every_field_says_what_it_is(capsys):
    with pytest.raises(SystemExit, match="0"):
        zener.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, value in leaves(ZenerConfig()):
        at = said.index(f"--{name} {type(value).__name__.upper()} ")
        assert said[at:].partition("(default:")[0].count(" ") >= 4, name


@given(
    st.sets(st.integers(1, 13), min_size=1),
    st.integers(1, 500),
    st.floats(0, 3),
    st.integers(1, 9),
    st.integers(1, 600),
)
def test_lessons_cost_about_the_same_and_small_grids_come_often(ks, cards, favor, repeats, steps):
    settings = resolve(TuneConfig(), {"cards": cards, "favor": favor, "repeats": repeats, "train": {"steps": steps}})
    lessons = curriculum(sorted(ks), settings)
    assert list(lessons) == sorted(ks) and sum(its.share for its in lessons.values()) == pytest.approx(1)
    shares = [its.share for its in lessons.values()]
    assert shares == sorted(shares, reverse=True)
    for k, its in lessons.items():
        assert 1 <= its.images <= min(settings.train.batch.images, its.pictures)
        assert its.images * k**2 <= max(1.5 * cards, k**2)
        assert its.pictures * repeats >= steps * its.share * its.images


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokenz: [pyramid]", "did you mean tokens?"),
        ("probe: {steps: 0}", r"'probe.steps' is in \[1, inf\)"),
        ("tokens: pyramid", "'tokens' takes list"),
        ("- 1", "is no mapping"),
        ("a: [", "while parsing"),
    ],
)
def test_settings_that_do_not_fit_are_told(text, said, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"(?s)mine.yaml: .*{said}"):
        read_settings(ZenerConfig(), tmp_path / "mine.yaml")


def test_grids_that_are_none_are_told(tmp_path, capsys):
    assert zener.main(["probe", str(SHIPPED), "--run", str(tmp_path / "run"), "--k", "1-14"]) == 1
    assert capsys.readouterr().err.startswith("mmlm: k: '1-14' is no choice of grids: numbers from 1 to 13")
    assert not (tmp_path / "run").exists()


def part(right):
    return {"accuracy": right, "low": 0.0, "high": 1.0, "shuffled": 0.05, "uniform": 0.04, "constant": 0.1}


def test_tables_have_every_score():
    report = {
        "tokens": {
            name: {
                "parameters": 1234567,
                "seconds": {"train": 61.6},
                "k": {k: {"both": part(right), "symbol": part(0.5), "color": part(0.75)} for k in ("1", "13")},
            }
            for name, right in (("pyramid", 0.9), ("square", 0.25))
        }
    }
    lines = tables(report).splitlines()
    assert lines[0] == "Symbol and color right, by k:"
    assert lines[2:8] == [
        "| tokens | 1 | 13 |",
        "|---|---|---|",
        "| pyramid | 0.90 | 0.90 |",
        "| square | 0.25 | 0.25 |",
        "| images shuffled, the most of any | 0.05 | 0.05 |",
        "| chance | 0.10 | 0.10 |",
    ]
    assert "| pyramid | 0.75 | 0.75 |" in lines and "| square | 1,234,567 | 62 |" in lines


def test_tables_go_between_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- probe -->\nold\n<!-- /probe -->\nbetween\n<!-- tune -->\n<!-- /tune -->\nafter\n")
    put(page, "probe", "new")
    put(page, "tune", "newer")
    put(page, "tune", "newest")
    assert page.read_text() == (
        "before\n<!-- probe -->\nnew\n<!-- /probe -->\nbetween\n<!-- tune -->\nnewest\n<!-- /tune -->\nafter\n"
    )
    with pytest.raises(ValueError, match=r"page.md: has no place for the tables; mark it with the lines <!-- eval -->"):
        put(page, "eval", "x")


def test_the_page_has_both_places(tmp_path):
    page = tmp_path / "zener.md"
    page.write_text((ROOT / "docs" / "zener.md").read_text(encoding="utf-8"), encoding="utf-8")
    for section in ("probe", "tune"):
        put(page, section, f"the tables of {section}")
        assert f"the tables of {section}" in page.read_text(encoding="utf-8")


@pytest.fixture
def settings(tmp_path, monkeypatch, tiny_decoder, tokenizer, tiny_vision):
    """A file of small settings: a saved small decoder, and the backbone of the tests."""
    monkeypatch.setenv("MMLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compare, "backbones_of", lambda _: [tiny_vision])
    tiny_decoder().save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL | {"decoder": str(tmp_path / "decoder")}))
    return tmp_path / "small.yaml"


def words(what, settings, *more):
    return [what, str(settings), "--run", str(settings.parent / "run"), *more]


def test_probes_are_compared(settings, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- probe -->\n<!-- /probe -->\n")
    assert zener.main(words("probe", settings, "--page", str(page), "--probe.steps=3", "--k=1")) == 0
    report = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert list(report["tokens"]) == ["pyramid", "square", "resampler"] and report["config"]["probe"]["steps"] == 3
    for one in report["tokens"].values():
        assert set(one["k"]) == {"1"} and one["parameters"] > 1000 and "train" in one["seconds"]
        assert [its["pictures"] for its in one["k"].values()] == [4]
    assert tables(report) in page.read_text() and tables(report) in capsys.readouterr().out
    for plot in (tmp_path / "run" / "probe.png", tmp_path / "page-probe.png"):
        with Image.open(plot) as picture:
            assert picture.format == "PNG"


def test_a_folder_of_something_else_is_left_alone(settings, tmp_path, capsys):
    mine = tmp_path / "run" / "square" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert zener.main(words("tune", settings)) == 1
    assert "square: something else is there" in capsys.readouterr().err
    assert [path.name for path in mine.parent.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_decoders_are_compared_and_what_is_done_is_not_done_again(settings, tmp_path, capsys):
    run = tmp_path / "run"
    assert zener.main(words("tune", settings)) == 0
    report = json.loads((run / "tune.json").read_text())
    assert list(report["tokens"]) == ["pyramid", "square", "resampler"]
    for name, one in report["tokens"].items():
        assert one["tokens"] == name and set(one["seconds"]) == {"encode", "train", "eval"} and not one["resumed"]
        assert {"model.safetensors", "config.json", "loss.png", "tuned.json", "zener.json", "zener.png"} <= {
            path.name for path in (run / name).iterdir()
        }
        assert AdapterConfig.load(run / name / "config.json").tokens == name
    first = (run / "pyramid" / "tuned.json").read_bytes()
    weights = (run / "square" / "model.safetensors").read_bytes()

    (run / "pyramid" / "zener.json").write_text('{"seconds": 1.0}')  # as by `mmlm eval zener`
    (run / "square" / "tuned.json").unlink()  # as of a run that was stopped while it was scored
    assert zener.main(words("tune", settings)) == 0
    assert (run / "pyramid" / "tuned.json").read_bytes() == first
    assert (run / "square" / "model.safetensors").read_bytes() == weights
    assert json.loads((run / "square" / "tuned.json").read_text())["resumed"]

    capsys.readouterr()
    assert zener.main(words("tune", settings, "--tune.train.steps=5")) == 1
    assert "--tune.train.steps is 4 in " in capsys.readouterr().err
    others = ("--tune.train.steps=5", "--tune.heads=6", "--tune.kv_heads=3", "--tokens=[square]", "--overwrite")
    assert zener.main(words("tune", settings, *others)) == 0
    its = AdapterConfig.load(run / "square" / "config.json")
    assert (its.heads, its.kv_heads) == (6, 3)
    assert (run / "square" / "model.safetensors").read_bytes() != weights
    assert (run / "pyramid" / "tuned.json").read_bytes() == first
