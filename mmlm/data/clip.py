"""How well a text fits an image, as CLIP has it: the cosine of their two embeddings, -1 to 1."""

import os
from collections.abc import Sequence

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from mmlm.decoder import fast_device
from vision.networks import OPEN_CLIP


class Clip:
    """Both towers of one of open_clip's models (Radford et al. 2021, arXiv:2103.00020).

    Args:
        name: "open_clip:MODEL/TAG", where TAG may be a checkpoint's path; "open_clip:hf-hub:NAME" and
            "open_clip:local-dir:PATH", too.

    ValueError for names that open_clip does not know, and for weights that cannot be had.
    """

    def __init__(self, name: str) -> None:
        model, _, tag = name.removeprefix(OPEN_CLIP).partition("/")
        elsewhere = ":" in model
        if elsewhere:
            model, tag = name.removeprefix(OPEN_CLIP), ""
        elif model not in open_clip.list_models():
            raise ValueError(f"{name}: open_clip has no model {model!r}; name one, as 'open_clip:ViT-B-32/openai'")
        elif not open_clip.is_pretrained_cfg(model, tag) and not os.path.isfile(tag):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
            raise ValueError(f"{name}: no weights {tag!r}; of {model} there are {tags}, and a checkpoint's path")
        try:
            self.model, self.look = open_clip.create_model_from_pretrained(model, tag or None)
            self.tokenizer = open_clip.get_tokenizer(model)
        except Exception as error:  # of many kinds: configs and files are the user's
            raise ValueError(
                f"{name}: cannot be loaded ({error}); fetch it where there is a network, or name a checkpoint that is "
                "here, 'open_clip:MODEL/PATH'"
            ) from error
        self.device = fast_device()
        self.model.eval().to(self.device)

    def pixels(self, image: Image.Image) -> Tensor:
        """An image as the model is shown it [3, H, W]; may be called by several threads."""
        pixels: Tensor = self.look(image)
        return pixels

    @torch.no_grad()
    def see(self, pixels: Sequence[Tensor]) -> Tensor:
        """The embedding of each image [N, width], of length 1."""
        return normalize(self.model.encode_image(torch.stack(list(pixels)).to(self.device)).float(), dim=-1)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """The embedding of each text [N, width], of length 1; what is too long is cut."""
        return normalize(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float(), dim=-1)

    def scores(self, images: Sequence[Sequence[Tensor]], texts: Sequence[str]) -> list[float]:
        """The fit of each text and its images (one at least), of which the mean counts; what is too long is cut."""
        seen = self.see([one for its in images for one in its]).split([len(its) for its in images])
        return [(its @ text).mean().item() for its, text in zip(seen, self.read(texts), strict=True)]
