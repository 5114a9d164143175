"""The probe: it reads cards off the embeddings, does not without a look, and the backbone sees each picture once."""

import copy

import pytest
import torch

from eval.cards import COLORS, SYMBOLS, Cards, chance
from eval.run import shuffle
from eval.zener import decks, score, wilson
from finetune.compare import cache_of, encode_decks, probe_config, seen_once
from finetune.config import OptimConfig
from finetune.probe import Shown, batch_of, places_of, tell, train_probe
from finetune.zener_config import ProbeConfig

SETTINGS = ProbeConfig(steps=120, batch=24, cards=4, width=64, heads=2, optim=OptimConfig(lr=5e-3, warmup=10))
NAMES = ("pyramid", "square")


@pytest.fixture(scope="module")
def caches(tiny_vision, tmp_path_factory):
    """Configuration and cache of each kind of tokens."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MMLM_HOME", str(tmp_path_factory.mktemp("home")))
    configs = {name: probe_config(name, tiny_vision, SETTINGS) for name in NAMES}
    yield {name: (its, cache_of(its, tiny_vision)) for name, its in configs.items()}
    patch.undo()


@pytest.fixture(scope="module")
def shown(caches, tiny_vision):
    """For each kind of tokens pictures to train on, and others by k."""
    known = [Cards(k, number, "train") for k in (1, 2) for number in range(80)]
    tests = {k: decks(k, 60, seed="test") for k in (1, 2)}
    every = known + [deck for its in tests.values() for deck in its]
    keys = encode_decks([cache for _, cache in caches.values()], tiny_vision, every)
    return {
        name: (
            [Shown(deck, mine[deck]) for deck in known],
            {k: [Shown(deck, mine[deck]) for deck in its] for k, its in tests.items()},
        )
        for name, mine in zip(caches, keys, strict=True)
    }


def scores(probe, cache, tests):
    right = {}
    for k, its in tests.items():
        said = tell(probe, cache, its)
        right[k] = score([one.deck for one in its], said, said)
    return right


@pytest.mark.parametrize("name", NAMES)
def test_cards_can_be_read_off_the_embeddings(name, caches, shown):
    """Of a random backbone, even: better than chance, and the cards far better, on pictures not trained on."""
    known, tests = shown[name]
    trained, seconds = train_probe(*caches[name], known, SETTINGS, 0, name)
    assert seconds > 0 and not trained.training
    for k, report in scores(trained, caches[name][1], tests).items():
        for part in ("symbol", "color", "both"):
            assert report[part]["low"] > chance(report[part]), (k, part, report[part])
        assert report["both"]["accuracy"] > 2 * chance(report["both"])


def test_without_a_look_they_cannot(caches, shown):
    """Trained and asked in the same way, but each picture's features are another's."""
    known, tests = shown["pyramid"]
    config, cache = caches["pyramid"]
    others = [Shown(one.deck, key) for one, (key,) in zip(known, shuffle([(one.key,) for one in known]), strict=True)]
    trained, _ = train_probe(config, cache, others, SETTINGS, 0, "blind")
    for report in scores(trained, cache, tests).values():
        for part in ("symbol", "color", "both"):
            low, _ = wilson(round(report[part]["accuracy"] * report["cards"]), report["cards"], z=3)
            assert low <= chance(report[part])


def test_the_seed_alone_decides(caches, shown):
    known, _ = shown["square"]
    config, cache = caches["square"]
    short = ProbeConfig(steps=3, batch=4, cards=2, width=32, heads=2)
    config = probe_config("square", cache.encoder.backbones[0], short)
    one, again, other = (train_probe(config, cache, known, short, seed, "")[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_rate_that_is_too_high_is_told(caches, shown):
    known, _ = shown["pyramid"]
    config, cache = caches["pyramid"]
    hot = ProbeConfig(steps=6, batch=4, width=64, heads=2, optim=OptimConfig(lr=1e30, warmup=0))
    with pytest.raises(FloatingPointError, match=r"lower --probe\.optim\.lr"):
        train_probe(config, cache, known, hot, 0, "hot")


def test_a_batch_has_the_chosen_cards_at_their_places(caches, shown):
    known, _ = shown["pyramid"]
    some = [known[0], known[-1]]
    media, places, cards = batch_of(caches["pyramid"][1], some, [[0], [3, 1]])
    assert places.shape == (2, 2, 3) and media["media_gather"].shape == (2, 255)
    assert places[1].tolist() == [[0.75, 0.75, 0.5], [0.75, 0.25, 0.5]] and places[0, 0].tolist() == [0.5, 0.5, 1]
    named = [(list(COLORS)[color], list(SYMBOLS)[symbol]) for color, symbol in cards[1].tolist()]
    assert named == [some[1].deck.cards[3], some[1].deck.cards[1]] and cards[0, 1].tolist() == [-100, -100]


@pytest.mark.parametrize("k", [1, 2, 13])
def test_places_are_in_the_cards_order(k):
    places = places_of(k)
    assert places.shape == (k * k, 3) and places.min() > 0 and places.max() <= 1
    assert (places[:, :2] * k - 0.5).round().int().flip(1).tolist() == [list(divmod(n, k)) for n in range(k * k)]


def test_the_backbone_sees_each_picture_once(tiny_vision, tmp_path, monkeypatch):
    """And what is kept is what each encoder gives by itself, bit for bit."""
    monkeypatch.setenv("MMLM_HOME", str(tmp_path))
    backbone, seen = copy.deepcopy(tiny_vision), []
    backbone.maps.register_forward_hook(lambda *_: seen.append(1))
    caches = [cache_of(probe_config(name, backbone, SETTINGS), backbone) for name in (*NAMES, "seven", "triple")]
    its = [Cards(2, number) for number in range(5)]
    keys = encode_decks(caches, backbone, its)
    assert len(seen) == len(its) and all(len(set(own_keys.values())) == len(its) for own_keys in keys)
    assert "forward" not in vars(backbone)
    for cache, own_keys in zip(caches, keys, strict=True):
        for deck in its:
            kept, own = cache.load(own_keys[deck]), cache.encoder.encode(deck())
            assert all(torch.equal(a, b) for a, b in zip(kept.values, own.values, strict=True))


def test_what_was_seen_is_forgotten_after_an_error(tiny_vision):
    backbone = copy.deepcopy(tiny_vision)
    with pytest.raises(RuntimeError, match="stop"), seen_once(backbone):
        raise RuntimeError("stop")
    assert "forward" not in vars(backbone)
