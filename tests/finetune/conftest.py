"""A few samples about a few images, and a cache for their features."""

import json
from pathlib import Path

import pytest

from finetune.batches import Batches
from finetune.below import Below
from finetune.collate import Collator
from finetune.encoded import encode
from mmlm.samples import Sample
from vision.encoder import VisionEncoder
from vision.features import FeatureCache
from vision.pyramid import parse_tokens

ROOT = Path(__file__).parents[2]

WORDS = ("red", "blue", "green", "cat", "dog", "two birds", "a", "no", "yes", "circle")


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    """Where the features of all tiny models are kept."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def tokens():
    """What the tiny models' embeddings are made of; a file of tests may say other names."""
    return "pyramid"


@pytest.fixture
def tiny_model(make_model, tokens):
    return make_model(tokens=tokens)


@pytest.fixture
def cache(tiny_vision, tokens, features):
    """The feature cache of the tiny models: they all have the same eyes."""
    return FeatureCache(VisionEncoder(tiny_vision, parse_tokens(tokens)), features)


@pytest.fixture(scope="session")
def make_samples(picture):
    """Makes samples: make_samples(images, questions of each image)."""

    def make(images, each=1):
        shown = [picture(seed, (64 + 40 * (seed % 3), 96)) for seed in range(images)]
        return [
            Sample.pair(f"{i}-{q}", (image,), "what is it" + " now" * q + "?", WORDS[(3 * i + q) % len(WORDS)])
            for i, image in enumerate(shown)
            for q in range(each)
        ]

    return make


@pytest.fixture
def encoded(tiny_model, cache, make_samples):
    """Encoded samples: encoded(images, questions of each image)."""
    return lambda images, each=1: encode(tiny_model, cache, make_samples(images, each), "encoding")


class Collated:
    """The batches of a data set as a step takes them: collated(model, cache, samples, config)[step]."""

    def __init__(self, model, cache, data, config, seed=0):
        self.batches, self.collate = Batches(data, config, seed), Collator(model, cache, Below(model))

    def chosen(self, number):
        return [self.batches.data[sample] for sample in self.batches.part(number)]

    def __getitem__(self, number):
        coming = (self.chosen(ahead) for ahead in range(number + 1, number + 16))
        return self.collate(self.chosen(number), coming)

    def shown(self, number):
        return self.collate.shown(self.chosen(number))

    @property
    def words(self):
        return self.batches.facts.words


@pytest.fixture(scope="session")
def collated():
    return Collated


@pytest.fixture(scope="module")
def parts(home, saved_parts):
    """A small decoder and a small backbone, as folders, and the settings that name them."""
    return saved_parts | {"start": 3, "every": 2}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, draw_shapes):
    """A folder of twelve drawn shapes and their captions."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    folder.mkdir()
    for path, color, shape in draw_shapes(folder, 32):
        path.with_suffix(".txt").write_text(f"a {color} {shape}\n")
    return folder


@pytest.fixture
def write(tmp_path, parts, pairs):
    """Writes a config, and returns the words of a command that names it: write(**settings)."""

    def write_(folder="run", **settings):
        whole = {
            "data": str(pairs),
            "model": parts,
            "steps": 8,
            "save_every": 3,
            "log_every": 2,
            "calibrate": 2,
            "words": 4,
            "batch": {"images": 4},
        }
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(whole | settings))  # JSON is YAML
        return [str(path), "--run", str(tmp_path / folder)]

    return write_
