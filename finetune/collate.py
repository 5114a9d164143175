"""Samples into the batch that a step takes, with what the decoder made of their texts before.

R rows, T text tokens, L learnt tokens of a row.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from finetune.below import Below
from finetune.encoded import IGNORED, Encoded
from mmlm.kept import Parts
from mmlm.marked import Marked
from mmlm.model import MultimodalLM
from mmlm.prefix import Prefixes
from mmlm.samples import media_of
from vision.features import FeatureCache

TOKENS = 2**15  # of texts that are computed ahead


class Collator:
    """Makes batches of samples, whose features are in the cache.

    Args:
        below: what the decoder's lower layers made of texts before; None: they are run anew for each batch.
    """

    def __init__(self, model: MultimodalLM, cache: FeatureCache, below: Below | None = None) -> None:
        self.model, self.cache, self.below = model, cache, below

    def __call__(self, chosen: Sequence[Encoded], coming: Iterable[Sequence[Encoded]] = ()) -> dict[str, Any]:
        """Samples -> what `learnt_loss` takes. It is good for one forward.

        Samples that show nothing get company: a gray picture in a row that teaches nothing. All that is trained then
        has a gradient, be it zero, as processes that add up theirs must have.

        Args:
            coming: the samples of the next batches, whose texts are computed too where some of these are new, so that
                chunks are full.
        """
        if not any(entry.images for entry in chosen):
            chosen = [*chosen, self.company()]
        if self.below and self.below.usable and not self.below.keeps(texts := texts_of(chosen)):
            for batch in coming:
                texts += texts_of(batch)
                # of two pieces each, of which the first must still be kept then
                if len(texts) > self.below.most // 4 or sum(len(part) for text in texts for part in text) > TOKENS:
                    break
            self.below.states(texts)
        return batch_of(self.model, self.cache, chosen, self.below)

    def company(self) -> Encoded:
        """A row that shows a picture and teaches nothing."""
        key = self.cache.add(Image.new("RGB", (64, 64), "gray"))
        end = self.model.processor.tokenizer.eos_token_id or 0
        return Encoded("", "", "", (key,), Marked([end, end], [0, 0]))

    def shown(self, chosen: Sequence[Encoded]) -> dict[str, Any]:
        """What samples show, as media, and teach of it: `labels` [R, L], the answers. No decoder is run."""
        chosen = [entry for entry in chosen if entry.images]
        if not chosen:
            return {"labels": torch.zeros(0, 0, dtype=torch.int64)}
        answers = [torch.tensor(entry.learnt) for entry in chosen]
        labels = pad_sequence(answers, batch_first=True, padding_value=IGNORED)
        index = torch.zeros(len(chosen), 1, dtype=torch.int64)
        return media_of(self.cache, [entry.images for entry in chosen], index) | {"labels": labels}


def texts_of(chosen: Sequence[Encoded]) -> list[Parts]:
    """The texts of samples, parted where they stop to be blind and where answers start."""
    return [entry.split(entry.blind) for entry in chosen]


def batch_of(
    model: MultimodalLM, cache: FeatureCache, chosen: Sequence[Encoded], below: Below | None = None
) -> dict[str, Any]:
    """Samples -> what `learnt_loss` takes: the model's inputs, right-padded, `labels` [R, T], and states from `below`.

    Labels are what each token foretells, where that is learnt. With `below`, text before the images is left to what the
    decoder remembers of it; such a batch is good for one forward.
    """
    prefixes = below.prefixes if below else Prefixes(model.decoder)
    skipped = [entry.blind if below and prefixes.usable else 0 for entry in chosen]
    texts = [entry.split(count) for entry, count in zip(chosen, skipped, strict=True)]
    batch = prefixes.rests([(before, seeing + answer) for before, seeing, answer in texts])
    labels = torch.full_like(batch["input_ids"], IGNORED)
    index = torch.full_like(batch["attention_mask"], -1)
    first = index.shape[1] - labels.shape[1]
    for row, (entry, (_, seeing, answer), count) in enumerate(zip(chosen, texts, skipped, strict=True)):
        rest, ahead = len(seeing) + len(answer), count + 1
        for start, stop in entry.text.learnt:
            labels[row, start - ahead : stop - ahead] = torch.tensor(entry.text.ids[start:stop])
        index[row, first : first + rest] = torch.tensor(entry.text.index[count : count + rest])
    media = media_of(cache, [entry.images for entry in chosen], index)
    states = pad_sequence(below.states(texts), batch_first=True) if below and below.usable else None
    return batch | media | {"labels": labels, "below": states}
