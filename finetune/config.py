"""A run's settings: dataclasses whose docstrings are their documentation, YAML, and dotted overrides."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from mmlm.kinds import fits

NAME = "config.yaml"
# What a run may change when it is resumed: it learns the same.
FREE = (
    "log_every",
    "save_every",
    "keep",
    "trackers",
    "broken",
    "trouble",
    "spike",
    "passes",
    "recompute",
    "compile",
    "cache_gb",
    "tensor_parallel",
)


def within(interval: str, default: Any) -> Any:
    """A field of a number in an interval as mathematicians write it: "[0, 1)" has 0 and has no 1."""
    return field(default=default, metadata={"in": interval})


def one_of(*values: str) -> Any:
    """A field that takes one of these, by default the first."""
    return field(default=values[0], metadata={"of": values})


@dataclass
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with warm-up and linear decay."""

    lr: float = within("[0, inf)", 1e-3)
    """Peak learning rate of the adapter's weights."""
    gate_lr: float = within("[0, inf)", 5e-3)
    """Peak learning rate of the gates."""
    width: int = within("[0, inf)", 0)
    """Width of the decoder that `lr` was found on. Matrices that read n times as many numbers on this run's decoder
    then learn at an n-th of it (muP, Yang et al. 2022, arXiv:2203.03466). 0: all learn at `lr`."""
    weight_decay: float = within("[0, inf)", 0.01)
    """Of weight matrices."""
    beta2: float = within("[0, 1)", 0.95)
    """Second moment's decay."""
    warmup: int = within("[0, inf)", 30)
    """Steps over which the rates rise to their peak; a fifth of all at the most."""
    final: float = within("[0, 1]", 0.02)
    """Rates at the end, as a share of the peak."""
    clip: float = within("(0, inf)", 1.0)
    """Largest norm of the gradient."""


@dataclass
class BatchConfig:
    """How samples are put together."""

    images: int = within("[1, inf)", 16)
    """Images of a step, each with its own samples, parted among processes and passes; media are projected once per
    image."""
    per_image: int = within("[1, inf)", 4)
    """Samples of each image, at the most."""
    balance: float = within("[0, inf)", 1.0)
    """Draw a sample the more often, the rarer its answer is among those to its question: its share to the power of
    -balance. At 0 samples are drawn as they come, at 1 answers to a question are nearly as common as each other: not
    quite, since an image's samples are drawn without replacement."""
    passes: int = within("[1, inf)", 1)
    """Forward and backward passes of each process in a step, each with its part of the images: more take less memory
    (gradient accumulation)."""


@dataclass
class TrainConfig:
    """One training run."""

    steps: int = within("[1, inf)", 640)
    """Optimizer steps."""
    log_every: int = within("[1, inf)", 10)
    """Steps between lines of metrics.jsonl."""
    save_every: int = within("[1, inf)", 50)
    """Steps between checkpoints."""
    keep: int = within("[1, inf)", 2)
    """Checkpoints that are kept, beside the one that scored best."""
    trouble: str = one_of("stop", "skip")
    """What is done about a step whose loss or gradient is no number, or spikes: "stop" the run, or "skip" the step."""
    spike: float = within("[0, inf)", 0.0)
    """A loss of more than so many times the smoothed one is trouble, too; 0: it never is."""
    broken: float = within("[0, 1]", 0.05)
    """The largest share of samples that may be broken (an image that cannot be opened); they are left out and named."""
    recompute: bool = False
    """Compute activations again in backward: less memory for a third more time (activation checkpointing), and more
    where texts come again, since nothing is kept of what lower layers made of them."""
    compile: bool = False
    """Compile what has a backward (torch.compile), once for all shapes, in a minute or more: faster steps, unless texts
    come again, since nothing is kept of what lower layers made of them."""
    trackers: str = ""
    """What else metrics go to, of what Accelerate knows, with commas between: "tensorboard", "wandb,mlflow", "all"."""
    calibrate: int = within("[0, inf)", 8)
    """Batches over which the adapter's norms are fitted to the frozen parts before the first step; 0: not at all."""
    words: int = within("[0, inf)", 480)
    """Batches on which media learn the answers' words, without the decoder, once calibrated; 0: not at all."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)


@dataclass
class QuickstartConfig:
    """What `mmlm quickstart` does."""

    vqa_images: int = within("[1, inf)", 3200)
    """easy-VQA images to train on, of 4,000; each has about ten questions."""
    redrawn: float = within("[0, 1]", 0.5)
    """Share of those images that are drawn again, some 50 to 1,000 pixels wide: easy-VQA's own are all 64x64."""
    vqa_test: int = within("[1, inf)", 2000)
    """easy-VQA test questions to score, drawn at random; 9,673 are all."""
    redrawn_test: int = within("[1, inf)", 500)
    """How many of those test questions are scored on redrawn images, too."""
    shapes_test: int = within("[1, inf)", 100)
    """Redrawn test images to caption ("a red circle") and score."""
    scenes: int = within("[1, inf)", 1600)
    """Captioned scenes to train on."""
    scenes_test: int = within("[1, inf)", 200)
    """Captioned scenes to score, of object pairs never seen together in training."""
    blocks_from: int = within("[0, inf)", 27)
    """The first decoder layer, of 30, that has a gated block in front; those after it have one each."""
    captions_per_image: int = within("[1, inf)", 2)
    """Captions of one scene in a batch, of its five; they are longer than answers."""
    vqa_share: float = within("[0, 1]", 0.7)
    """Share of the training batches that are of easy-VQA: questions, and captions of shapes. The rest are of scenes."""
    seed: int = within("[0, inf)", 0)
    """Of all that is drawn at random."""
    train: TrainConfig = field(default_factory=TrainConfig)


def resolve(config: Any, given: Mapping[str, Any], where: str = "") -> Any:
    """The dataclass `config` with the nested values `given` in place of its own.

    ValueError, naming the field, for an unknown one (with the nearest known), a value of the wrong type, and a number
    that makes no sense.
    """
    known = {entry.name: entry for entry in fields(config)}
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
            continue
        value = convert(value, hints[key], name)
        interval = known[key].metadata.get("in")
        if interval and value is not None and not inside(value, interval):
            raise ValueError(f"config field {name!r} is in {interval}, not {value!r}")
        choices = known[key].metadata.get("of")
        if choices and value not in choices:
            raise ValueError(f"config field {name!r} is {' or '.join(choices)}, not {value!r}")
        setattr(config, key, value)
    return config


def convert(value: Any, kind: type, name: str) -> Any:
    """The value as its field's type; ValueError if it is none."""
    if get_origin(kind) is list and is_dataclass(inner := get_args(kind)[0]):
        return [one_config(inner, one, f"{name}[{number}]") for number, one in enumerate(listed(value))]
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except (ValueError, OverflowError):
            pass
    elif kind is str and (value is None or type(value) is int):
        return "" if value is None else str(value)  # as YAML reads k: and k: 5
    elif fits(value, kind):
        return value
    raise ValueError(f"config field {name!r} takes {name_of(kind)}, not {value!r}")


def one_config(kind: Any, value: Any, name: str) -> Any:
    """A config of a list of them: a mapping of its fields, or the value of its first one that needs no name."""
    if not isinstance(value, Mapping):
        value = {next(entry.name for entry in fields(kind) if not entry.kw_only): value}
    return resolve(kind(), value, f"{name}.")


def listed(value: Any) -> list[Any]:
    """A list, or the one thing that a list was to have."""
    return value if isinstance(value, list) else [value]


def name_of(kind: Any) -> str:
    """A type as people write it."""
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)


def inside(value: float, interval: str) -> bool:
    """Is the number in the interval? "Not a number" is in none."""
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


def leaves(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every field that is no config itself."""
    found = []
    for entry in fields(config):
        value = getattr(config, entry.name)
        name = f"{prefix}{entry.name}"
        found += leaves(value, f"{name}.") if is_dataclass(value) else [(name, value)]
    return found


def nested(said: Mapping[str, str]) -> dict[str, Any]:
    """{"train.steps": "10"} -> {"train": {"steps": 10}}: values are YAML. ValueError if they are not."""
    given: dict[str, Any] = {}
    for name, value in said.items():
        at = given
        *path, last = name.split(".")
        for part in path:
            at = at.setdefault(part, {})
        try:
            at[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--{name}: {value!r} is no value: {error}") from error
    return given


def write(config: Any, folder: Path) -> None:
    """The resolved config as YAML, into a run's folder."""
    (folder / NAME).write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")


def read(config: Any, folder: Path) -> Any:
    """The config with the values that `write` wrote. ValueError if there are none, some are missing or do not fit."""
    path = folder / NAME
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        resolve(config, given)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing; put it there, or start over with --overwrite") from error
    except (yaml.YAMLError, AttributeError) as error:  # no YAML, or none of a mapping
        raise ValueError(f"{path}: damaged; put a whole one there, or start over with --overwrite") from error
    for name, _ in leaves(config):
        if not has(given, name):
            raise ValueError(f"{path}: written by another version, it has no {name}; start over with --overwrite")
    return config


def read_settings(config: Any, path: Path) -> Any:
    """The config with the values of a YAML file in place of its own. ValueError, naming it, for one that is none."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(given, dict):
            raise ValueError(f"{given!r} is no mapping of fields to values")
        return resolve(config, given)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def has(given: Any, name: str) -> bool:
    """Do the nested values have one of this dotted name?"""
    for part in name.split("."):
        if not isinstance(given, Mapping) or part not in given:
            return False
        given = given[part]
    return True


def check_resumable(config: Any, folder: Path) -> None:
    """ValueError if a setting is another than that of the run in the folder, and not one of `FREE`."""
    for (name, value), (_, kept) in zip(leaves(config), leaves(read(type(config)(), folder)), strict=True):
        if value != kept and name.rpartition(".")[2] not in FREE:
            raise ValueError(
                f"--{name} is {kept} in {folder / NAME}, and {value} as config and flags have it now: a run goes on "
                f"with its own settings; give --{name} {kept}, or start over with --overwrite"
            )
