"""Images in the order of their likeness: by known vectors, by the model's own eyes, by CLIP."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.similar import ClipLook, Similar, from_the_most, overview
from mmlm.data import Sample
from mmlm.data.clip import Clip
from vision.encoder import VisionEncoder, prepare
from vision.pyramid import TOKENS, Pyramid, parse_tokens


def samples(*shown):
    return [Sample.pair(str(number), images, "what?", "x") for number, images in enumerate(shown)]


def ordered(vectors, centred, own, *shown):
    """Places of samples that show images of these vectors, by their likeness to what `own` shows."""
    look = {name: None if its is None else np.array(its, np.float32) for name, its in vectors.items()}
    similar = Similar(samples(*shown), lambda images: [look[image] for image in images], centred)
    return list(similar(samples(own)[0]))


VECTORS = {"east": (9, 0), "northeast": (1, 1), "north": (0, 2), "west": (-1, 0), "broken": None}


def test_the_most_similar_come_first_and_equals_as_they_are():
    """By the angle, however long; a sample of two images lies between them."""
    shown = [("west",), ("north",), ("east",), ("northeast",), ("east",)]
    assert ordered(VECTORS, False, ("east",), *shown) == [2, 4, 3, 1, 0]
    assert ordered(VECTORS, False, ("north",), *shown) == [1, 3, 0, 2, 4]
    assert ordered(VECTORS, False, ("northeast",), ("west",), ("east", "north"), ("northeast",)) == [2, 1, 0]
    assert ordered(VECTORS, False, ("north",), ("east",), ("broken",), ("north", "broken"), ("north",)) == [3, 0]
    with pytest.raises(ValueError, match="sample '0': no image of it to look for similar ones"):
        ordered(VECTORS, False, ("broken",), *shown)


def test_what_all_have_in_common_is_taken_from_each():
    vectors = {"a": (100, 1), "b": (100, -1), "c": (103, -1), "own": (50, 0.5)}
    shown = ("b",), ("c",), ("a",)
    assert ordered(vectors, False, ("own",), *shown) == [2, 1, 0]
    middle = np.mean([vectors[name] for (name,) in shown], 0)
    near = {name: np.array(vector) - middle for name, vector in vectors.items()}
    near = {name: vector / np.linalg.norm(vector) for name, vector in near.items()}
    wanted = sorted(range(3), key=lambda place: -(near[shown[place][0]] @ near["own"]))
    assert ordered(vectors, True, ("own",), *shown) == wanted != [2, 1, 0]


def test_questions_about_an_image_are_put_in_order_once():
    """However far each order is read, and whichever is read first."""
    looked, vectors = [], np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)

    def look(images):
        looked.append(list(images))
        return [vectors[image] for image in images]

    examples, own = samples(*((number,) for number in range(40))), samples((5,), (5,), (5,), (7,), (7,), (5,))
    wanted = [list(Similar(examples, look, False)(one)) for one in own]
    looked.clear()
    similar = Similar(examples, look, False)
    orders = [similar(one) for one in own]
    assert looked[1:] == [[5], [7], [5]]
    begun = [list(islice(order, number)) for number, order in enumerate(orders)]
    assert [some + list(order) for some, order in zip(begun, orders, strict=True)] == wanted
    assert wanted[0] == wanted[5] != wanted[3]


def test_images_that_are_all_the_same_are_in_order():
    assert ordered({"a": (1, 2), "b": (3, 4)}, True, ("b",), ("a",), ("a",)) == [0, 1]
    with pytest.raises(ValueError, match="no image of the examples can be opened"):
        ordered({"a": None, "b": (3, 4)}, True, ("b",), ("a",))


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(1, 12))
def test_values_are_sorted_however_few_at_first(values, first):
    wanted = sorted(range(len(values)), key=lambda place: -values[place])
    assert list(from_the_most(np.array(values, np.float32), first)) == wanted


@pytest.mark.parametrize("tokens", TOKENS)
def test_an_image_as_a_whole_is_the_mean_of_its_deepest_map(tokens, tiny_vision, picture):
    encoder, plain, image = VisionEncoder(tiny_vision, parse_tokens(tokens)), Pyramid(), picture(0, (700, 700))
    (maps,) = VisionEncoder(tiny_vision, plain).maps(prepare(image, plain, "high").pixels[:1])
    deepest = maps[-1].mean((2, 3))[0]
    torch.testing.assert_close(overview(encoder.encode(image), encoder.pyramid), deepest, rtol=1e-4, atol=1e-5)


def test_clip_sees_each_image_once(nano_clip, picture, tmp_path, monkeypatch):
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, name in enumerate(names):
        picture(number % 2, (64, 48)).save(name)
    rows = [*samples(names[:1], names[1:2], [names[2], names[0]], [b"no image"]), Sample.pair("none", (), "?", "x")]
    look = ClipLook(nano_clip, tmp_path / "clip")
    look.add(rows)
    found, model = look([*names, b"no image"]), Clip(nano_clip)
    wanted = [model.see([model.pixels(picture(number % 2, (64, 48)))])[0] for number in range(3)]
    assert torch.equal(torch.from_numpy(np.stack(found[:3])), torch.stack(wanted)), "whatever is seen beside it"
    assert found[3] is None and (found[0] == found[2]).all()
    assert len(list((tmp_path / "clip").rglob("*.npy"))) == 2, "of one picture in two files one"
    again = ClipLook(nano_clip, tmp_path / "clip")
    monkeypatch.setattr(again.clip, "see", None)
    again.add(rows)
    assert [one.tolist() for one in again(names)] == [one.tolist() for one in found[:3]]
