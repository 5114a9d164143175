"""CLIPScore: how well a caption fits its image, with no reference or with some.

Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (arXiv:2104.08718). Published
numbers are those of "open_clip:ViT-B-32/openai"; another model's are on another scale.

n captions, w numbers of an embedding.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from eval.paired import References, paired
from vision.images import Lazy, open_image, opened

PROMPT = "A photo depicts "
_WEIGHT = 2.5
_BATCH = 64


class Embedder(Protocol):
    """What `mmlm.data.clip.Clip` does: embeddings of length 1."""

    def pixels(self, image: Image.Image) -> Tensor: ...

    def see(self, pixels: Sequence[Tensor]) -> Tensor: ...

    def read(self, texts: Sequence[str]) -> Tensor: ...


def clip_score_each(
    clip: Embedder, images: Sequence[Lazy], captions: Sequence[str], references: References | None = None
) -> dict[str, list[float]]:
    """`clip_score` of each caption (0..2.5), and with references its `ref_clip_score`.

    CLIPScore is 2.5 * max(cos(caption, image), 0). RefCLIPScore is the harmonic mean of that and the best
    max(cos(caption, reference), 0). Raises ValueError for unequally long lists and a sample without references.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(captions)} captions, {len(images)} images; give as many")
    return clip_scores(clip, see(clip, images), captions, references)


def see(clip: Embedder, images: Sequence[Lazy]) -> Tensor:
    """The images' embeddings [n, w]."""
    starts = range(0, len(images), _BATCH)
    shown = ([clip.pixels(open_image(opened(image))) for image in images[start : start + _BATCH]] for start in starts)
    return torch.cat([clip.see(pixels) for pixels in shown])


def clip_scores(
    clip: Embedder, seen: Tensor, captions: Sequence[str], references: References | None = None
) -> dict[str, list[float]]:
    """As `clip_score_each`, of images whose embeddings [n, w] are known."""
    said = read(clip, [PROMPT + caption for caption in captions])
    fits = (_WEIGHT * (said * seen).sum(-1).clamp(min=0)).tolist()
    if references is None:
        return {"clip_score": fits}
    groups = [group for _, group in paired(captions, references)]
    meant = read(clip, [PROMPT + ref for group in groups for ref in group]).split(list(map(len, groups)))
    near = [max(0.0, (its @ text).max().item()) for its, text in zip(meant, said, strict=True)]
    both = [2 * fit * best / (fit + best) if fit and best else 0.0 for fit, best in zip(fits, near, strict=True)]
    return {"clip_score": fits, "ref_clip_score": both}


def read(clip: Embedder, texts: Sequence[str]) -> Tensor:
    """The texts' embeddings [n, w]."""
    return torch.cat([clip.read(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)])
