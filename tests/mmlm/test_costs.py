"""A batch costs what its real content costs: counted in floating-point operations, of which padding has none."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmlm.media import KEYS


@pytest.fixture(scope="module", params=["pyramid", "resampler"])
def model(request, make_model, open_gates):
    """One whose blocks are folded already, as they are from the second call on."""
    model = open_gates(make_model(tokens=request.param)).eval()
    for block in model.adapter.blocks:
        block.folded(torch.float32)
    return model


@torch.no_grad()
def look(model, batch, copies=1, steps=(None,)):
    """What all blocks cost, over a prompt (None) and further steps, once the view is there."""
    view = model.view({key: batch[key] for key in KEYS if key in batch})
    rows, length = batch["input_ids"].shape
    with FlopCounterMode(display=False) as counter:
        for number, step in enumerate(steps):
            view.move(0 if step is None else length + number, step or length, rows * copies)
            for block in range(len(model.adapter.blocks)):
                view.look(block, torch.zeros(rows * copies, step or length, model.config.hidden))
    return counter.get_total_flops()


@torch.no_grad()
def see(model, batch):
    """What vision, media projection and all keys and values cost."""
    with FlopCounterMode(display=False) as counter:
        view = model.view({key: batch[key] for key in KEYS if key in batch})
        for block in range(len(model.adapter.blocks)):
            view.keys_values(block)
    return counter.get_total_flops()


def test_images_of_one_batch_cost_what_each_costs_alone(model, picture):
    """However different their numbers of tiles, and whoever else shows them."""
    images = [picture(0), picture(1, (1100, 600)), picture(2, (700, 300)), picture(3, (520, 500))]
    texts = ["<image>What?", "And <image> this <image>?", "nothing", "<image><image>which?"]
    rows = [[images[0]], [images[1], images[2]], [], [images[3], images[0]]]
    alone = [see(model, model.processor(image, "What?")) for image in images]
    assert see(model, model.processor(rows, texts)) == sum(alone)
    assert alone[0] < alone[2] < alone[3] < alone[1]
    assert see(model, model.processor([[images[1]] * 3] * 2, ["<image>" * 3 + "?"] * 2)) == alone[1]


def test_rows_without_an_image_and_text_before_the_first_cost_nothing(model, picture):
    image = picture(1, (700, 300))
    alone = look(model, model.processor(image, "<image>What is it?"))
    assert look(model, model.processor([[image], [], []], ["<image>What is it?", "blind", "also blind"])) == alone > 0
    assert look(model, model.processor(image, "A long text before the <image>What is it?")) == alone


def test_beams_share_what_is_looked_at(model, picture):
    """Four beams have four times the queries, and the keys and values of one."""
    batch = model.processor(picture(1, (1100, 600)), "<image>What is it?")
    keys = see(model, batch) - see_without_keys(model, batch)
    one, four = (look(model, batch, copies) for copies in (1, 4))
    assert four - keys == 4 * (one - keys)


def test_a_token_costs_no_keys_and_no_vision(model, picture):
    batch = model.processor(picture(1, (1100, 600)), "<image>What is it?")
    length = batch["input_ids"].shape[1]
    prompt, more = look(model, batch), look(model, batch, steps=(None, 1, 1))
    keys = see(model, batch) - see_without_keys(model, batch)
    assert (more - prompt) * length == 2 * (prompt - keys)


@torch.no_grad()
def see_without_keys(model, batch):
    with FlopCounterMode(display=False) as counter:
        model.view({key: batch[key] for key in KEYS if key in batch})
    return counter.get_total_flops()
