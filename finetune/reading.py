"""Rows of a data set as a step takes them: read, tokenized and encoded when they are asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.encoded import Encoded
from mmlm.data.rows import Rows
from mmlm.model import MultimodalLM
from mmlm.samples import asked
from vision.features import FeatureCache
from vision.images import file_bytes, opened


class Reading(Sequence[Encoded]):
    """Samples of rows. What of their images is not in the cache yet is encoded on the way.

    Args:
        numbers: of the rows that are taken.
    """

    def __init__(self, model: MultimodalLM, cache: FeatureCache, rows: Rows, numbers: NDArray[np.int64]) -> None:
        self.model, self.cache, self.rows, self.numbers = model, cache, rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        """The sample of a row. ValueError, naming it, if the row or an image of it is broken."""
        number = int(self.numbers[index])
        sample = self.rows[number]
        try:
            images = [file_bytes(opened(image)) for image in sample.images]
            keys = tuple(self.cache.add(image) for image in images)
            written = [self.model.processor.describe(image, self.cache.folder.parent / "ocr") for image in images]
            text = asked(self.model, sample, True, written if self.model.processor.reader else ())
        except ValueError as error:
            raise ValueError(self.rows.blame(number, error)) from error
        return Encoded(sample.id, sample.question, sample.answer, keys, text, sum(map(self.cache.size, keys)))
