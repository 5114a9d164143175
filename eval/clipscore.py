"""CLIPScore: how well a caption fits its image, with no reference or with some.

Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (arXiv:2104.08718). Published
numbers are those of "open_clip:ViT-B-32/openai"; another model's are on another scale.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from PIL import Image
from torch import Tensor

References = Sequence[Sequence[str] | str]

PROMPT = "A photo depicts "
_WEIGHT = 2.5
_BATCH = 64


class Embedder(Protocol):
    """What `mmlm.data.clip.Clip` does: embeddings of length 1."""

    def pixels(self, image: Image.Image) -> Tensor: ...

    def see(self, pixels: Sequence[Tensor]) -> Tensor: ...

    def read(self, texts: Sequence[str]) -> Tensor: ...


def clip_score_each(
    clip: Embedder, images: Sequence[Image.Image], captions: Sequence[str], references: References | None = None
) -> dict[str, list[float]]:
    """`clip_score` of each caption (0..2.5), and with references its `ref_clip_score`.

    CLIPScore is 2.5 * max(cos(caption, image), 0). RefCLIPScore is the harmonic mean of that and the best
    max(cos(caption, reference), 0). Raises ValueError for unequally long lists and a sample without references.
    """
    groups = [[group] if isinstance(group, str) else list(group) for group in references or []]
    if len(images) != len(captions) or (references is not None and len(groups) != len(captions)):
        raise ValueError(f"{len(captions)} captions, {len(images)} images, references for {len(groups)}; give as many")
    if [] in groups:
        raise ValueError(f"sample {groups.index([])} has no references; give it one or leave the sample out")
    names = ["clip_score"] if references is None else ["clip_score", "ref_clip_score"]
    scores: dict[str, list[float]] = {name: [] for name in names}
    for start in range(0, len(captions), _BATCH):
        part = slice(start, start + _BATCH)
        said = clip.read([PROMPT + caption for caption in captions[part]])
        seen = clip.see([clip.pixels(image) for image in images[part]])
        fits = (_WEIGHT * (said * seen).sum(-1).clamp(min=0)).tolist()
        scores["clip_score"] += fits
        if references is not None:
            meant: Iterator[Tensor] = iter(clip.read([PROMPT + ref for group in groups[part] for ref in group]))
            for fit, text, group in zip(fits, said, groups[part], strict=True):
                best = max(0.0, *((text @ ref).item() for ref in islice(meant, len(group))))
                scores["ref_clip_score"].append(2 * fit * best / (fit + best) if fit and best else 0.0)
    return scores
