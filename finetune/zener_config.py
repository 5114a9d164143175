"""Settings of what compares token configurations on the Zener test; `configs/zener.yaml` has the values in use."""

from dataclasses import dataclass, field

from finetune.config import BatchConfig, OptimConfig, TrainConfig, within
from mmlm.names import DECODER, VISION


@dataclass
class ProbeConfig:
    """A head on the embeddings alone, without a decoder."""

    pictures: int = within("[1, inf)", 100)
    """Pictures of each k to train on."""
    steps: int = within("[1, inf)", 1000)
    """Optimizer steps."""
    batch: int = within("[1, inf)", 32)
    """Pictures of a step."""
    cards: int = within("[1, inf)", 16)
    """Cards asked of each of them, at the most, drawn anew at every step."""
    width: int = within("[8, inf)", 128)
    """Of an embedding and of the head."""
    heads: int = within("[1, inf)", 4)
    """Of each block's cross-attention; they share the width."""
    blocks: int = within("[1, inf)", 1)
    """Gated blocks of the head, one after the other."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-3, warmup=50))


@dataclass
class TuneConfig:
    """An adapter on a decoder."""

    blocks_from: int = within("[0, inf)", 27)
    """The first decoder layer (of the default one's 30) that has a gated block in front; so have those after it."""
    heads: int = within("[0, inf)", 0)
    """Query heads of the blocks' cross-attention; 0: as many as `from_parts` gives them."""
    kv_heads: int = within("[0, inf)", 0)
    """Key heads of the blocks' cross-attention; 0: as many as `from_parts` gives them."""
    cards: int = within("[1, inf)", 200)
    """Cards of a step, about: its pictures are all of one k, at most `train.batch.images`, and few where k is large."""
    favor: float = within("[0, inf)", 0.5)
    """The curriculum: k has a share of the steps in proportion to k to the power of -favor."""
    repeats: int = within("[1, inf)", 3)
    """How often each picture is shown, about; what the lower layers make of its text is computed once."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=300, words=240, batch=BatchConfig(images=24, per_image=1, balance=0.0)
        )
    )


@dataclass
class ZenerConfig:
    """Token configurations, compared on the same pictures, steps and seed."""

    tokens: list = field(default_factory=lambda: ["pyramid", "square", "seven", "triple", "resampler"])
    """Names of `vision.TOKENS`: each is given the same budget."""
    vision: str = VISION
    """The frozen backbone, as `from_parts` takes it."""
    decoder: str = DECODER
    """The frozen decoder of what is tuned, as `from_parts` takes it."""
    k: str = "1-13"
    """Cards on a side, trained and scored: "1-13", "5" or "1-3,7,13"."""
    cards: int = within("[1, inf)", 200)
    """Cards of each k to score, at least, and at least 4 pictures."""
    seed: int = within("[0, inf)", 0)
    """Of all that is drawn at random."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
