"""Every configuration of tokens sees what it is made for: two images that differ in one cell are told apart."""

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from mmlm.media import EYES
from vision.pyramid import TOKENS

STEPS = 50
LETTERS = "AB"


@pytest.fixture
def pair(picture):
    """The same image twice, but for 32 x 32 pixels: one of 16 x 16 cells, and less than one of any coarser grid."""
    one = picture(1, (512, 512))
    other = one.copy()
    other.paste(Image.new("RGB", (32, 32), (255, 0, 0)), (288, 160))
    return one, other


@pytest.mark.parametrize("tokens", TOKENS)
def test_images_that_differ_in_one_cell_are_told_apart(tokens, make_model, tiny_decoder, open_gates, pair):
    """After a few steps, and whichever row they are in: what is learnt is not the row."""
    torch.manual_seed(0)
    model = open_gates(make_model(tiny_decoder(num_hidden_layers=2), layers=[0, 1], tokens=tokens), 0.5)
    answers = torch.tensor([model.processor.tokenizer(letter)["input_ids"][0] for letter in LETTERS])

    def batch_of(images):
        batch = dict(model.processor(list(images), ["Which is it?"] * 2))
        batch["media_values"] = model.vision(*(batch.pop(key) for key in EYES))
        return batch

    def logits(batch):
        return model(**batch).logits[:, -1]

    batch, swapped = batch_of(pair), batch_of(pair[::-1])
    with torch.no_grad():
        assert (logits(batch).argmax(-1) != answers).any(), "there is something to learn"
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=5e-3)
    losses = []
    for _ in range(STEPS):
        loss = cross_entropy(logits(batch), answers)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.adapter.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    if model.adapter.media.resampler is not None:
        assert all(weight.grad.any() for weight in model.adapter.media.resampler.layers.parameters())
    with torch.no_grad():
        assert torch.equal(logits(batch).argmax(-1), answers), losses
        assert torch.equal(logits(swapped).argmax(-1), answers.flip(0))
