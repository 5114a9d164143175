"""The Zener test: shares as by hand, no points without a look, and the command from a saved run to a plot."""

import copy
import json
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.cards import FULL, Cards, chance, read
from eval.commands import evaluate, sizes
from eval.run import predict
from eval.zener import OPTIONS, SPARE, decks, sample_of, score, table, wilson, zener
from mmlm import cli
from mmlm.model import MultimodalLM
from vision.features import FeatureCache


@pytest.fixture
def model(make_model, open_gates, tiny_decoder):
    return open_gates(make_model(tiny_decoder(max_position_embeddings=2048)), 1.5)


def shares(report, name="accuracy"):
    return {part: report[part][name] for part in OPTIONS}


def test_shares_are_those_by_hand():
    its = [Cards(2, 0), Cards(2, 1)]
    (color, symbol), *rest = its[0].cards
    other = next(s for c, s in FULL if s != symbol)
    said = [[(color, other), *rest], [None, *its[1].cards[1:]]]
    report = score(its, said, [[None] * 4] * 2)
    assert report["pictures"] == 2 and report["cards"] == 8 and report["answered"] == 7 / 8
    assert shares(report) == {"symbol": 6 / 8, "color": 7 / 8, "both": 6 / 8}
    assert shares(report, "shuffled") == dict.fromkeys(OPTIONS, 0)
    assert shares(report, "uniform") == {"symbol": 1 / 5, "color": 1 / 5, "both": 1 / 25}


@pytest.mark.parametrize("k", [1, 2, 5, 13])
def test_right_is_all_and_nothing_is_none(k):
    its = decks(k, 50)
    right = [read(deck.answer, k) for deck in its]
    assert shares(score(its, right, right)) == dict.fromkeys(OPTIONS, 1)
    assert shares(score(its, [read("?", k) for _ in its], right)) == dict.fromkeys(OPTIONS, 0)


@pytest.mark.parametrize(
    "guess",
    [
        lambda deck: Cards(deck.k, deck.number, "another").answer,
        lambda deck: Cards(13, 0, "one for all").answer,
        lambda deck: "red star " * deck.k**2,
        lambda deck: " ".join(f"{color} {symbol}" for color, symbol in FULL) * 20,
        lambda deck: "\n".join(" ".join(random.Random(deck.number).choices(["red", "blue", "star", "circle"], k=40))),
    ],
    ids=["another grid", "one grid for all", "one card", "every card", "letters"],
)
def test_without_a_look_there_is_no_more_than_chance(guess):
    its = [Cards(k, number) for k in range(1, 14) for number in range(20)]
    for k in range(1, 14):
        some = [deck for deck in its if deck.k == k]
        report = score(some, [read(guess(deck), k) for deck in some], [[None] * k * k] * len(some))
        for part in OPTIONS:
            low, _ = wilson(round(report[part]["accuracy"] * report["cards"]), report["cards"], z=4)
            assert low <= chance(report[part])


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share(drawn):
    hits, count = drawn
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count + 1e-12 and hits / count - 1e-12 <= high <= 1 and low < high
    assert wilson(count - hits, count) == pytest.approx((1 - high, 1 - low))


def test_the_interval_is_wilsons():
    """Of 8 in 10: Brown, Cai & DasGupta 2001, doi:10.1214/ss/1009213286, have 0.490 to 0.943."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)


@pytest.mark.parametrize(
    ("k", "cards", "limit", "pictures"),
    [(1, 200, 0, 200), (7, 200, 0, 5), (13, 200, 0, 4), (1, 200, 8, 8), (5, 1, 1, 2)],
)
def test_each_k_has_about_as_many_cards(k, cards, limit, pictures):
    its = decks(k, cards, limit)
    assert len(its) == len(set(its)) == pictures


def test_a_model_is_asked_and_scored(model, tmp_path):
    """A random one, which names no cards: the whole report, and all of it from one seed."""
    cache = FeatureCache(model.vision, tmp_path)
    report = zener(model, cache, [1, 2], cards=4)
    assert set(report["k"]) == {"1", "2"} and report["k"]["2"]["pictures"] == 4
    for its in report["k"].values():
        assert all(its[part]["accuracy"] <= chance(its[part]) for part in OPTIONS)
    again = zener(model, cache, [2], cards=4)
    assert again["k"]["2"] == report["k"]["2"], "what is asked of one k does not depend on the others"
    said = [model.ask(deck(), deck.question, max_new_tokens=60, do_sample=False) for deck in decks(2, 4)[:1]]
    assert said[0].startswith(report["k"]["2"]["said"][:20])
    assert [line.split()[0] for line in table(report).splitlines()] == ["k", "1", "2"]


def test_there_is_room_for_every_right_answer(model, tmp_path, monkeypatch):
    """With a byte a token, some answers are much longer than others."""
    room = {}

    def answered(model, cache, samples, *, keys, max_new_tokens, say):
        kinds = " and ".join(dict.fromkeys(sample.kind for sample in samples))
        room[kinds] = max_new_tokens - max(len(sample.answer) for sample in samples)
        return [sample.answer for sample in samples]

    monkeypatch.setattr("eval.zener.predict", answered)
    report = zener(model, FeatureCache(model.vision, tmp_path), [1, 3, 5, 9], cards=36)
    assert room == {"1 x 1 and 3 x 3": SPARE, "5 x 5": SPARE, "9 x 9": SPARE}
    assert all(its["both"]["accuracy"] == 1 for its in report["k"].values()), "each k has its own answers"


def test_shuffled_is_what_is_said_of_the_other_pictures(model, tmp_path, monkeypatch):
    """All pictures of one k are asked the same, so nothing is to be asked again."""
    scored = []
    monkeypatch.setattr("eval.zener.read", lambda text, k: text)
    monkeypatch.setattr("eval.zener.score", lambda decks, *answers: scored.append(answers) or {})
    cache, samples = FeatureCache(model.vision, tmp_path), [sample_of(deck) for deck in decks(2, 40)]
    zener(model, cache, [2], cards=40)
    longest = {"max_new_tokens": max(len(sample.answer) for sample in samples) + SPARE}
    (said, shuffled), *_ = scored
    assert len(set(said)) > 2, "it looks"
    assert said == predict(model, cache, samples, **longest)
    assert shuffled == predict(model, cache, samples, **longest, shuffled=True)
    assert sorted(said) == sorted(shuffled) and said != shuffled


def test_samples_ask_what_the_cards_ask():
    sample = sample_of(Cards(3, 5))
    assert sample.answer == Cards(3, 5).answer and "3 x 3 cards" in sample.question
    assert sample.images == (Cards(3, 5),) and isinstance(sample.images[0](), Image.Image)


@given(st.sets(st.integers(1, 13), min_size=1))
def test_sizes_are_said_in_ranges(ks):
    assert sizes(",".join(map(str, ks))) == sorted(ks)
    assert sizes(f"{min(ks)}-{max(ks)}") == list(range(min(ks), max(ks) + 1))


@pytest.mark.parametrize("word", ["", "0", "14", "3-2", "1-99999999999", "a", "1,", "-3", "1.5"])
def test_other_sizes_are_refused(word, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed("zener", "run", f"--k={word}")
    assert "numbers from 1 to 13" in capsys.readouterr().err


def parsed(*words):
    parser = cli.Parser(prog="mmlm eval")
    evaluate(parser)
    return parser.parse_args(words)


@pytest.fixture
def run(tmp_path, model, tokenizer, monkeypatch):
    """A saved run on a saved decoder; its backbone is the one of the tests, its features have a folder of their own."""
    monkeypatch.setenv("MMLM_HOME", str(tmp_path / "home"))
    model.decoder.save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    model.config.decoder = str(tmp_path / "decoder")
    model.save_pretrained(tmp_path / "run")
    opened, backbone = MultimodalLM.from_pretrained.__func__, copy.deepcopy(model.vision.backbones[0])
    monkeypatch.setattr(
        MultimodalLM, "from_pretrained", classmethod(lambda cls, name: opened(cls, name, vision=backbone))
    )
    return tmp_path / "run"


def test_the_command_writes_report_and_plot(run, tmp_path, capsys):
    args = parsed("zener", str(run), "--k", "1,2", "--cards", "4", "--limit", "2", "--out", str(tmp_path / "out"))
    assert args.run(args) is None
    report = json.loads((tmp_path / "out" / "zener.json").read_text())
    assert report["model"] == str(run) and report["tokens"] == "pyramid"
    assert [its["pictures"] for its in report["k"].values()] == [2, 2]
    with Image.open(tmp_path / "out" / "zener.png") as plot:
        assert plot.format == "PNG" and plot.width > 600
    assert "zener.png" in capsys.readouterr().out


def test_a_missing_package_is_told_before_anything_is_done(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    args = parsed("zener", str(run), "--out", str(tmp_path / "out"))
    with pytest.raises(ImportError, match=r'matplotlib comes with an extra: pip install -e "\.\[quickstart\]"'):
        args.run(args)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = parsed("zener", "runs/none")
    with pytest.raises(ValueError, match="runs/none: no such folder"):
        args.run(args)
