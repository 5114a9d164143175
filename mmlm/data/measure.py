"""How long samples are: in tokens of the decoder that they are for, or in characters where none is at hand."""

from typing import Any

from mmlm.data.sample import Sample


class Characters:
    """Measures in characters."""

    unit, detail = "characters", "high"

    def __call__(self, sample: Sample) -> tuple[int, int]:
        """(learnt, other) characters of a sample's turns."""
        learnt = sum(len(turn.text) for turn in sample.turns if turn.learnt)
        return learnt, sum(len(turn.text) for turn in sample.turns) - learnt


class Tokens:
    """Measures in tokens of a decoder, those of its chat template and the ends of answers among them.

    Args:
        processor, config: of the adapter that samples are for.
    """

    unit = "tokens"

    def __init__(self, processor: Any, config: Any) -> None:
        from mmlm.turns import read_turns  # here, since it imports transformers

        self.processor, self.config, self.read = processor, config, read_turns
        self.detail: str = config.detail

    def __call__(self, sample: Sample) -> tuple[int, int]:
        """(learnt, other) tokens. ValueError for a sample that the decoder's chat template refuses."""
        marked = self.read(self.processor, self.config, sample, True)
        return marked.answer, len(marked.ids) - marked.answer


Measure = Characters | Tokens


def find_measure(model: str = "", decoder: str = "") -> Measure:
    """Measures in tokens of a saved adapter's decoder, or of a decoder; else of the default one, if it is here.

    ValueError for an adapter or decoder that cannot be loaded.
    """
    from mmlm import zoo
    from mmlm.config import AdapterConfig
    from mmlm.decoder import load_tokenizer
    from mmlm.names import CONFIG
    from mmlm.processor import Processor
    from mmlm.store import find

    if model:
        return Tokens(Processor.from_pretrained(model, ocr=""), AdapterConfig.load(find(model, CONFIG)))
    if not decoder and not zoo.decoder_folder().exists():
        return Characters()
    return Tokens(Processor(load_tokenizer(decoder or zoo.decoder_folder())), AdapterConfig())
