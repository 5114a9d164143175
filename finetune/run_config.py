"""Settings of `mmlm finetune`; `configs/finetune.yaml` is one to begin with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config import TrainConfig, check_resumable, one_of, within
from finetune.folder import check_folder
from mmlm.data.source import Source
from mmlm.launched import check_teams, sharded, zero_stage
from mmlm.names import DECODER, VISION

KEEPS_WHOLE = ("device_map", "quantization_config")  # decoder_kwargs that know no parts


@dataclass
class DataConfig(Source):
    """One data set."""

    path: str = ""
    """File, folder, URL, hub id or name, as `mmlm.data.open_data` takes it."""
    weight: float | None = within("(0, inf)", None)
    """Its share of the steps, beside other data sets; None: as it has images."""


@dataclass
class ModelConfig:
    """What is trained: arguments of `MultimodalLM.from_parts`, where they are said."""

    decoder: str = DECODER
    """The frozen decoder: hub id, folder, or the embedded one."""
    vision: str | list[str] = VISION
    """The frozen backbone, "timm/NAME", "open_clip:NAME/TAG", a folder, or the embedded one; or several."""
    adapter: str | None = None
    """A saved adapter to begin with, folder or hub id, on the decoder and vision it was trained on, which are not to be
    said again. None: an untrained one."""
    every: int | None = None
    """Every so many-th decoder layer has a gated block in front; None: four of the last third have."""
    start: int | None = None
    """The first layer that has one."""
    layers: list[int] | None = None
    """Or just these layers."""
    tokens: str | None = None
    """What the 85 and 170 embeddings are made of: "pyramid", "square", "seven", "triple" or "resampler"."""
    detail: str | None = None
    """Tiling: "high", "low" or "auto"."""
    attend: str | None = None
    """What a text token sees: the "latest" image before it, or "all"."""
    image_last: bool | None = None
    """Images stand after the question, not before it, where the data do not say."""
    ff_factor: float | None = None
    """Width of a block's feed-forward over the decoder's."""
    system: str | None = None
    """System message; "" is an empty one, None the chat template's own."""
    lora: dict[str, Any] | None = None
    """Low-rank adapters besides: fields of `peft.LoraConfig`."""
    unfreeze: list[str] | None = None
    """Patterns of what else is trained: "vision.*", "decoder.*norm*"."""
    ocr: str | None = None
    """What reads the text in images: "rapidocr"."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Other fields of `AdapterConfig`."""
    decoder_kwargs: dict[str, Any] = field(default_factory=dict)
    """For transformers' `from_pretrained`: dtype, device_map, quantization_config, ..."""
    tensor_parallel: int = within("[1, inf)", 1)
    """Processes that have one decoder together, each with a part of every layer; it stays as it is."""


@dataclass
class DenoiseConfig:
    """UL2's mixture of denoisers (Tay et al. 2022, arXiv:2205.05131), on captions; `finetune/denoise.py` shows them."""

    share: float = within("[0, 1]", 0.0)
    """Of captions, how many are denoised whenever a step takes them: learnt in part, the rest given. Those of one or
    two tokens, and those that would grow longer than `longest`, are not. 0: none is."""
    r: float = within("[0, inf)", 1.0)
    """How often, beside the others, short blanks are to be filled in: of about 3 tokens, 15% of a caption."""
    x: float = within("[0, inf)", 1.0)
    """How often long ones are: of about 12 tokens, half of a caption."""
    s: float = within("[0, inf)", 1.0)
    """How often a caption is to be gone on with, from any of its tokens."""


@dataclass
class ScoreConfig:
    """What the model is asked while it learns, and at the end."""

    every: int = within("[1, inf)", 200)
    """Steps between scores."""
    by: str = one_of("loss", "caption", "vqa")
    """What makes a checkpoint the best: the lowest loss, the highest CIDEr or the highest VQA accuracy."""
    take: str = one_of("last", "best")
    """Which weights are saved at the end."""
    samples: int = within("[1, inf)", 200)
    """Held-out samples, at the most, drawn by the seed."""
    cards: int = within("[0, inf)", 24)
    """Of them on samples.html, with what the model says to each."""


@dataclass
class RunConfig(TrainConfig):
    """One run of `mmlm finetune`."""

    data: list[DataConfig] = field(default_factory=list)
    """What is learnt: a data set, or several with weights."""
    held_out: list[DataConfig] = field(default_factory=list)
    """What is scored and never learnt; empty: nothing is."""
    steps: int = within("[0, inf)", 0)
    """Optimizer steps; 0: as many as `epochs` come to."""
    epochs: float = within("(0, inf)", 1.0)
    """How often every image comes, if `steps` is 0; where data sets have weights, in the mean."""
    longest: int = within("[1, inf)", 2048)
    """Tokens of a sample, at the most; longer ones are left out and told."""
    seed: int = within("[0, inf)", 0)
    """Of all that is drawn at random."""
    cache_gb: float = within("[0, inf)", 50.0)
    """What features of images may take on the disk; those not used for longest make room."""
    model: ModelConfig = field(default_factory=ModelConfig)
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


def check_run(config: RunConfig, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Errors that can be told before anything is loaded: FileExistsError or ValueError.

    Args:
        folder, resume, overwrite: as in `finetune.run.finetune`.
    """
    check_folder(folder, resume=resume, overwrite=overwrite)
    if resume:
        check_resumable(config, folder)
    if not config.data:
        raise ValueError("data: nothing to learn from; name a folder, a file or a hub id: --data pairs/")
    for name in ("data", "held_out"):
        for number, one in enumerate(getattr(config, name)):
            if not one.path:
                raise ValueError(f"{name}[{number}]: a data set without its path; give it one")
            if name == "held_out" and one.weight is not None:
                raise ValueError(f"{name}[{number}].weight: held-out samples are drawn alike; leave it out")
    if config.denoise.share and not config.denoise.r + config.denoise.x + config.denoise.s:
        raise ValueError(
            f"denoise.share: {config.denoise.share}, and r, x and s are 0: raise one of them, or set share to 0"
        )
    if config.score.take == "best" and not config.held_out:
        raise ValueError("score.take: best of what is scored, and nothing is held out: name it, --held_out val/")
    parted = sharded() or zero_stage() == 3
    if parted and config.held_out and (config.score.by != "loss" or config.score.cards):
        raise ValueError("score: a sharded model says nothing while it is trained: take by: loss, and cards: 0")
    if config.compile and zero_stage() == 3:
        raise ValueError(
            "compile: ZeRO-3 gathers weights amid what would be compiled: leave it out, or take fsdp2.yaml"
        )
    check_teams(config.model.tensor_parallel)
    if config.model.tensor_parallel > 1:
        check_whole(config)


def check_whole(config: RunConfig) -> None:
    """ValueError for what a decoder that several processes have together cannot do."""
    model, size = config.model, config.model.tensor_parallel
    told = {"model.lora": model.lora, "model.unfreeze": model.unfreeze, "compile": config.compile}
    told |= {f"model.decoder_kwargs.{name}": model.decoder_kwargs.get(name) for name in KEEPS_WHOLE}
    for name, value in told.items():
        if value:
            raise ValueError(f"{name}: {value}, and model.tensor_parallel: {size}: take one of the two")
