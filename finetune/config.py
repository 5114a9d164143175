"""A run's settings: dataclasses whose docstrings are their documentation, YAML, and dotted overrides."""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml

MAY_BE_ZERO = ("seed", "calibrate", "warmup")  # of the whole numbers


@dataclass
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with warm-up and linear decay."""

    lr: float = 1e-3
    """Peak learning rate of the adapter's weights."""
    gate_lr: float = 5e-3
    """Peak learning rate of the gates."""
    weight_decay: float = 0.01
    """Of weight matrices."""
    beta2: float = 0.95
    """Second moment's decay."""
    warmup: int = 30
    """Steps over which the rates rise to their peak."""
    final: float = 0.02
    """Rates at the end, as a share of the peak."""
    clip: float = 1.0
    """Largest norm of the gradient."""


@dataclass
class BatchConfig:
    """How samples are put together."""

    images: int = 16
    """Images of a batch, each with its own samples; media are projected once per image."""
    per_image: int = 4
    """Samples of each image, at the most."""
    balance: float = 1.0
    """Draw a sample the more often, the rarer its answer is among those to its question: its share to the power of
    -balance. At 1 every answer to a question is as common as any other, so that the question alone gives nothing away;
    at 0 samples are drawn as they come."""


@dataclass
class TrainConfig:
    """One training run."""

    steps: int = 480
    """Optimizer steps."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 200
    """Steps between checkpoints."""
    calibrate: int = 8
    """Batches over which the adapter's norms are fitted to the frozen parts before the first step; 0: not at all."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)


@dataclass
class QuickstartConfig:
    """What `mmlm quickstart` does."""

    vqa_images: int = 1800
    """easy-VQA images to train on, of 4,000; each has about ten questions."""
    vqa_test: int = 2000
    """easy-VQA test questions to score, drawn at random; 9,673 are all."""
    scenes: int = 1600
    """Captioned scenes to train on."""
    scenes_test: int = 300
    """Captioned scenes to score, of object pairs never seen together in training."""
    captions_per_image: int = 2
    """Captions of one scene in a batch, of its five; they are longer than answers."""
    vqa_share: float = 0.65
    """Share of the training batches that are questions; the rest are captions."""
    seed: int = 0
    """Of all that is drawn at random."""
    train: TrainConfig = field(default_factory=TrainConfig)


def resolve(config: Any, given: dict[str, Any], where: str = "") -> Any:
    """The dataclass `config` with the nested values `given` in place of its own.

    ValueError, naming the field and the nearest known one, for unknown fields and values of the wrong type.
    """
    known = {f.name for f in fields(config)}
    hints = get_type_hints(type(config))
    for key, value in given.items():
        name = f"{where}{key}"
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"unknown config field {name!r}; {hint}")
        old = getattr(config, key)
        if is_dataclass(old):
            if not isinstance(value, dict):
                raise ValueError(f"config field {name!r} has fields of its own; {value!r} is not a mapping of them")
            resolve(old, value, f"{name}.")
        else:
            setattr(config, key, convert(value, hints[key], name))
    return config


def convert(value: Any, kind: type, name: str) -> Any:
    """The value as its field's type; ValueError if it is none, or a number that makes no sense."""
    least = 1 if kind is int and name.rpartition(".")[2] not in MAY_BE_ZERO else 0
    if isinstance(value, int | float) and value < least:
        raise ValueError(f"config field {name!r} is at least {least}, not {value!r}")
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    raise ValueError(f"config field {name!r} takes {kind.__name__}, not {value!r}")


def nested(overrides: list[str]) -> dict[str, Any]:
    """["--train.steps", "10"] or ["--train.steps=10"] -> {"train": {"steps": 10}}. ValueError for other forms."""
    given: dict[str, Any] = {}
    words = list(overrides)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or not name[2:]:
            raise ValueError(f"{word!r}: overrides are written --field.name value")
        if not equals:
            if not words:
                raise ValueError(f"{word}: its value is missing")
            value = words.pop(0)
        at = given
        *path, last = name[2:].split(".")
        for part in path:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise ValueError(f"{word}: {part!r} was given the value {at!r} before; it has fields or a value")
        try:
            at[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{name}: {value!r} is no value: {error}") from error
    return given


def write(config: Any, path: Path) -> None:
    """The resolved config as YAML."""
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")
