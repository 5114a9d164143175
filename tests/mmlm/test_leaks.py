"""No leak and no NaN, whatever the rows show: an image changes what must see it, and not a bit of anything else."""

from functools import cache
from string import ascii_letters

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import text_of

ADAPTERS = [
    {},
    {"kv_heads": 1, "head_dim": 8, "media_dim": 24, "ff_factor": 0.5, "layers": [0, 3]},
    {"heads": 6, "kv_heads": 3, "head_dim": 32, "media_dim": 96, "layers": None, "every": 2, "start": 1},
    {"heads": 1, "kv_heads": 1, "ff_factor": 2.5, "layers": [2]},
    {"tokens": "resampler", "resampler_layers": 1, "media_dim": 72},
]
SIZES = [(96, 64), (30, 500), (700, 300), (1100, 600)]  # 1, 1, 2 and 6 tiles
words = st.text(ascii_letters + " .", max_size=12)


@st.composite
def batches(draw):
    """Sizes of images; for each row which of them it shows, in order, and the words before, between and after them."""
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4))
    rows = draw(st.lists(st.lists(st.integers(0, len(sizes) - 1), max_size=3), min_size=1, max_size=4))
    texts = ["<image>".join(draw(words) for _ in range(len(row) + 1)) + "?" for row in rows]
    return sizes, rows, texts, draw(st.sampled_from(["left", "right"]))


models = st.tuples(st.integers(0, len(ADAPTERS) - 1), st.sampled_from(["latest", "all"]))


@pytest.fixture(scope="module")
def model_of(make_model, tiny_decoder, open_gates):
    @cache
    def make(adapter, attend):
        decoder = tiny_decoder(num_hidden_layers=4)
        return open_gates(make_model(decoder, **{"layers": [1, 3]} | ADAPTERS[adapter], attend=attend), 0.9).eval()

    return make


def seen_by(batch, rows, attend):
    """For every row and token the images that it sees."""
    blind = torch.full_like(batch["input_ids"], -1)
    return [
        [set(row[0 if attend == "all" else latest : latest + 1]) for latest in its]  # none, if the latest is -1
        for row, its in zip(rows, batch.get("media_index", blind).tolist(), strict=True)
    ]


@torch.no_grad()
def logits_of(model, batch):
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return model(**batch, position_ids=positions).logits


@given(which=models, drawn=batches(), data=st.data())
@settings(max_examples=40)
def test_an_image_changes_what_sees_it_and_nothing_else(which, drawn, data, model_of, picture):
    model, (sizes, rows, texts, side) = model_of(*which), drawn
    changed = data.draw(st.integers(0, len(sizes) - 1))

    def batch_of(seeds):
        images = [picture(seed, size) for seed, size in zip(seeds, sizes, strict=True)]
        return model.processor([[images[i] for i in row] for row in rows], texts, padding_side=side)

    seeds = list(range(len(sizes)))
    batch = batch_of(seeds)
    one, other = logits_of(model, batch), logits_of(model, batch_of([s + 100 * (s == changed) for s in seeds]))
    plain = logits_of(model.decoder, text_of(batch))
    assert torch.isfinite(one).all()
    for row, seen in enumerate(seen_by(batch, rows, which[1])):
        may_know = may_know_any = False  # what a token saw, those after it read from it
        for t, images in enumerate(seen):
            if not batch["attention_mask"][row, t]:
                continue
            may_know |= changed in images
            may_know_any |= bool(images)
            if changed in images:
                assert not torch.equal(one[row, t], other[row, t]), "it must see the image"
            if not may_know:
                assert torch.equal(one[row, t], other[row, t]), "it must not see the image"
            if not may_know_any:
                assert torch.equal(one[row, t], plain[row, t]), "it must not see any"


@given(which=models, drawn=batches())
@settings(max_examples=25)
def test_rows_together_are_what_they_are_alone(which, drawn, model_of, picture):
    model, (sizes, rows, texts, side) = model_of(*which), drawn
    pool = [picture(seed, size) for seed, size in enumerate(sizes)]
    images = [[pool[i] for i in row] for row in rows]
    batch = model.processor(images, texts, padding_side=side)
    together = logits_of(model, batch)
    for row, (mine, text) in enumerate(zip(images, texts, strict=True)):
        alone = logits_of(model, model.processor([mine], [text]))[0]
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(together[row][real], alone, atol=5e-4, rtol=1e-4)


@given(which=models, drawn=batches())
@settings(max_examples=15)
def test_gradients_are_finite(which, drawn, model_of, picture):
    """Of tokens that see nothing, too: what is dropped after a softmax over nothing comes back as NaN."""
    model, (sizes, rows, texts, side) = model_of(*which), drawn
    pool = [picture(seed, size) for seed, size in enumerate(sizes)]
    out = model(**model.processor([[pool[i] for i in row] for row in rows], texts, padding_side=side)).logits
    if any(rows):
        grads = torch.autograd.grad(out.logsumexp(-1).sum(), list(model.adapter.parameters()), allow_unused=True)
        assert all(grad is None or torch.isfinite(grad).all() for grad in grads)
        assert any(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("attend", ["latest", "all"])
def test_what_is_generated_in_a_row_has_seen_that_rows_images_alone(attend, how, model_of, picture):
    model = model_of(1, attend)
    texts = ["<image>What is it?", "none", "One <image> two <image> which?", "This <image>"]
    told = {"min_new_tokens": 6, "max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    outs = []
    for seed in (3, 4):
        images = [[picture(1)], [], [picture(2), picture(seed, (700, 300))], [picture(5)]]
        outs.append(torch.stack(model.generate(**model.processor(images, texts), **told, **how).logits, 1))
    one, other = (out.unflatten(0, (4, -1)) for out in outs)
    assert torch.equal(one[[0, 1, 3]], other[[0, 1, 3]])
    assert not torch.allclose(one[2], other[2], atol=0.1)
