"""The parts of a batch, and what is compared of a model."""

import hashlib

import torch

TEXT = ("input_ids", "attention_mask")


def text_of(batch):
    """A batch as the decoder alone takes it."""
    return {name: batch[name] for name in TEXT}


def media_of(batch):
    """What the decoder alone does not take."""
    return {name: value for name, value in batch.items() if name not in TEXT}


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def bytes_of(module):
    """A hash of every weight, bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
