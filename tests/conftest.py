"""Small parts to build models from: everything random, seeded, and real transformers, tokenizers and timm modules."""

import os

import setuptools  # noqa: F401  # before anything imports distutils, which it replaces: torch's inductor imports both

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # waiting OpenMP threads spin; it is read when torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the hub

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch._dynamo import reset
from torch._dynamo.utils import counters
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from mmlm.experts import use_padded_experts
from mmlm.model import MultimodalLM
from vision.backbone import Backbone, load_backbone

torch.set_num_threads(2)
settings.register_profile(
    "tests", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")

COLORS, SHAPES = ("red", "green", "blue", "gold"), ("circle", "square", "bar")
START, END, PAD = "<|start|>", "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte is a token; with a chat template, an end and a padding token. 259 ids."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    whole = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, additional_special_tokens=[START]
    )
    whole.chat_template = TEMPLATE
    return whole


@pytest.fixture(scope="session")
def tiny_decoder(tokenizer: PreTrainedTokenizerFast) -> Callable[..., MixtralForCausalLM]:
    """Makes a fresh random Mixtral in fp32: tiny_decoder(seed=0, **fields of MixtralConfig).

    Its experts are padded, as the default decoder's are on a CPU. transformers' own multiply as many rows as the router
    sends, and a product's last bits depend on how many those are.
    """

    def make(seed: int = 0, **fields: object) -> MixtralForCausalLM:
        small: dict[str, object] = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,  # wide, so that tokens attend to each other and the logits are far apart
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            decoder = MixtralForCausalLM(MixtralConfig(**small | fields)).eval()
        use_padded_experts(decoder)
        return decoder

    return make


@pytest.fixture(scope="session")
def tiny_vision() -> Backbone:
    """A small random CNN with feature maps. Shared: copy it before changing it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_backbone(timm.create_model("test_efficientnet", features_only=True))


@pytest.fixture(scope="session")
def make_model(
    tiny_decoder: Callable[..., MixtralForCausalLM], tokenizer: PreTrainedTokenizerFast, tiny_vision: Backbone
) -> Callable[..., MultimodalLM]:
    """Makes a fresh model of the small parts, gates shut: make_model(decoder=None, **settings of from_parts)."""

    def make(decoder: nn.Module | None = None, **fields: object) -> MultimodalLM:
        fields = {"layers": [1, 3, 5], "vision": tiny_vision} | fields
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return MultimodalLM.from_parts(decoder=decoder or tiny_decoder(), tokenizer=tokenizer, **fields)

    return make


@pytest.fixture
def tiny_model(make_model: Callable[..., MultimodalLM]) -> MultimodalLM:
    """A fresh model of the small parts, gates shut."""
    return make_model()


@pytest.fixture(scope="session")
def saved_parts(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_decoder: Callable[..., MixtralForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
) -> dict[str, str]:
    """A small decoder with its tokenizer and a small backbone, as folders: arguments of from_parts."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_decoder().save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_efficientnet")
    timm.models.save_for_hf(network, folder / "vision", model_config={"num_classes": 1000})
    return {"decoder": str(folder / "decoder"), "vision": str(folder / "vision")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of a module's own, for runs and the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMLM_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        yield


@pytest.fixture(scope="session")
def draw_shapes() -> Callable[[Path, int], list[tuple[Path, str, str]]]:
    """Draws twelve shapes into a folder: draw_shapes(folder, wider) -> (path, color, shape) of each.

    They are of three widths, `wider` pixels apart.
    """

    def draw_(folder: Path, wider: int) -> list[tuple[Path, str, str]]:
        drawn = []
        for number, (color, shape) in enumerate((color, shape) for color in COLORS for shape in SHAPES):
            picture = Image.new("RGB", (96 + wider * (number % 3), 96), "white")
            draw, box = ImageDraw.Draw(picture), (10, 40, 86, 56) if shape == "bar" else (20, 20, 76, 76)
            (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=color)
            picture.save(folder / f"{number:02}.png")
            drawn.append((folder / f"{number:02}.png", color, shape))
        return drawn

    return draw_


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """What torch.compile has made and counted before is forgotten, before and after."""
    reset()
    counters.clear()
    yield
    reset()
    counters.clear()


@pytest.fixture(scope="session")
def open_gates() -> Callable[..., MultimodalLM]:
    """Opens every gate and makes every weight of the blocks random: open_gates(model, value=0.7) -> the model."""

    def open_(model: MultimodalLM, value: float = 0.7, seed: int = 0) -> MultimodalLM:
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in model.adapter.blocks.modules():
                if isinstance(module, nn.Linear):
                    module.weight.copy_(torch.randn(module.weight.shape, generator=random) * module.in_features**-0.5)
            for block in model.adapter.blocks:
                block.attention_gate.fill_(value)
                block.ff_gate.fill_(value)
        return model

    return open_


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Makes an image of a few coloured patches: picture(seed=0, size=(width, height))."""

    def make(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
        patches = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        return Image.fromarray(patches).resize(size, Image.Resampling.NEAREST)

    return make
