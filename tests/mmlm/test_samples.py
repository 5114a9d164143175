"""Samples: what is asked is what `ask` asks, and a batch loads each image once."""

import pytest
import torch

from mmlm.samples import Sample, asked, encode_images, media_of
from vision.encoder import VisionEncoder
from vision.features import FeatureCache
from vision.images import ImageError


@pytest.mark.parametrize("image_last", [False, True])
def test_what_is_asked_is_what_ask_asks(image_last, make_model, picture):
    model, images = make_model(image_last=image_last), (picture(0), picture(1))
    batch = model.processor(list(images), model.messages("which?", 2))
    marked = asked(model, Sample.pair("a", images, "which?", "x"))
    assert marked.ids == batch["input_ids"][0].tolist() and marked.index == batch["media_index"][0].tolist()
    assert max(marked.index) == 1 and marked.answer == 0


class Counting(FeatureCache):
    """A feature cache that counts what is loaded."""

    loaded = 0

    def load(self, key):
        self.loaded += 1
        return super().load(key)


def test_an_image_of_several_rows_is_loaded_once(tiny_vision, picture, tmp_path):
    cache = Counting(VisionEncoder(tiny_vision), tmp_path)
    samples = [
        Sample.pair(str(n), images, "?", "x") for n, images in enumerate([(picture(0),), (picture(1), picture(0)), ()])
    ]
    rows = encode_images(cache, samples, "")
    media = media_of(cache, rows, torch.tensor([[0], [1], [-1]]))
    assert cache.loaded == 2
    wanted = [len(cache.load(key).places[0]) + len(cache.load(key).places[1]) for key in rows[1]]
    assert (media["media_owner"] == 0).sum(1).tolist() == [wanted[1], wanted[0], 0]
    assert media_of(cache, [(), ()], torch.tensor([[-1], [-1]])) == {}


def test_images_that_cannot_be_opened_are_counted_once_all_others_are_encoded(tiny_vision, picture, tmp_path):
    cache = FeatureCache(VisionEncoder(tiny_vision), tmp_path)
    samples = [
        Sample.pair(str(n), (image,), "?", "x") for n, image in enumerate([b"one", picture(0), b"two", picture(1)])
    ]
    with pytest.raises(ImageError, match=r"2 of 4 images cannot be opened: .*b'one'"):
        encode_images(cache, samples, "")
    assert len(list(cache.folder.rglob("*.safetensors"))) == 2
