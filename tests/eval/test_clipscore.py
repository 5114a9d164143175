import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from eval.clipscore import PROMPT, clip_score_each
from mmlm.data.clip import Clip

numbers = st.floats(-1, 1, width=32)


class Planes:
    """Embeds an image by its red and green, and a text by the two numbers it says."""

    def pixels(self, image):
        red, green, _ = image.getpixel((0, 0))
        return torch.tensor([red - 128.0, green - 128.0])

    def see(self, pixels):
        return normalize(torch.stack(list(pixels)), dim=-1)

    def read(self, texts):
        said = [[float(word) for word in text.removeprefix(PROMPT).split()] for text in texts]
        return normalize(torch.tensor(said), dim=-1)


def pictures(*colours):
    return [Image.new("RGB", (1, 1), (*colour, 0)) for colour in colours]


def test_clip_score_is_a_weighted_cosine_and_never_negative():
    images = pictures((228, 128), (228, 128), (228, 128))
    scores = clip_score_each(Planes(), images, ["1 0", "1 1", "-1 0"], [["0 1", "1 0"], "1 1", "-1 0"])
    assert scores["clip_score"] == pytest.approx([2.5, 2.5 / 2**0.5, 0], abs=1e-6)
    fit = 2.5 / 2**0.5
    assert scores["ref_clip_score"] == pytest.approx([2 * 2.5 / 3.5, 2 * fit / (fit + 1), 0], abs=1e-6)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=3))
def test_more_references_never_hurt(references):
    texts = [f"{x:f} {y:f}" for x, y in references]
    some, more = (
        clip_score_each(Planes(), pictures((228, 200)), ["1 1"], [refs])["ref_clip_score"][0]
        for refs in (texts, [*texts, "1 1"])
    )
    assert 0 <= some <= more + 1e-6


def test_batches_do_not_show():
    images, captions = pictures(*((128 + n % 100, 228) for n in range(150))), [f"{n} 1" for n in range(150)]
    together = clip_score_each(Planes(), images, captions, captions)
    alone = [clip_score_each(Planes(), [image], [text], [text]) for image, text in zip(images, captions, strict=True)]
    for name, scores in together.items():
        assert scores == pytest.approx([one[name][0] for one in alone], abs=1e-5)


def test_the_clip_that_prunes_data_scores_captions(nano_clip):
    clip = Clip(nano_clip)
    images = pictures((0, 0), (250, 9))
    scores = clip_score_each(clip, images, ["a cat", "a dog"], ["a cat", "a bird"])
    cosines = clip.scores([[clip.pixels(image)] for image in images], [f"{PROMPT}a cat", f"{PROMPT}a dog"])
    assert scores["clip_score"] == pytest.approx([2.5 * max(cosine, 0) for cosine in cosines], abs=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 captions, 1 images"):
        clip_score_each(Planes(), pictures((0, 0)), ["1 0", "0 1"])
    with pytest.raises(ValueError, match="sample 0 has no references"):
        clip_score_each(Planes(), pictures((0, 0)), ["1 0"], [[]])
