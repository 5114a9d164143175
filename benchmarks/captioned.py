"""What a fine-tuning starts from, made anew: JPEGs with captions, a decoder with its tokenizer, an encoder."""

import random
from pathlib import Path

import timm
import torch
from encoding import draw_jpegs
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mmlm import zoo
from mmlm.names import CAPTION_PROMPT

PHOTO = 640, 480
WORDS = {
    "det": "the a one another this some every no any each",
    "adj": "small large old young wooden bright dark blue green yellow empty crowded quiet broken striped shining wet "
    "distant narrow round tall heavy clean dusty painted folded sleeping hungry careful famous",
    "noun": "cat dog horse bicycle train table kitchen street river mountain garden window child woman man player "
    "crowd umbrella boat bridge pizza plate sandwich clock tower giraffe elephant beach wave surfboard snow jacket "
    "helmet truck bus station mirror sink towel lamp book shelf computer keyboard phone bottle glass flower tree bird",
    "verb": "holds watches carries follows pushes crosses touches faces passes covers leaves reaches shows finds keeps",
    "link": "near behind under above beside inside across against between along beyond past",
}


def make(folder: Path, pairs: int, decoder: PreTrainedModel) -> None:
    """`folder/pairs`: JPEGs, each with a .txt beside it. `folder/decoder`: a decoder, and a tokenizer that was trained
    on the captions. `folder/encoder`: the default encoder, its weights random."""
    for name in ("pairs", "decoder", "encoder"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    captions = [caption_of(number) for number in range(pairs)]
    for path, caption in zip(draw_jpegs(folder / "pairs", pairs, PHOTO), captions, strict=True):
        path.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
    tokenizer_of([*captions, *[CAPTION_PROMPT] * pairs]).save_pretrained(folder / "decoder")
    decoder.save_pretrained(folder / "decoder")
    torch.manual_seed(0)
    save_for_hf(timm.create_model(zoo.TIMM), folder / "encoder")


def caption_of(number: int) -> str:
    """5 to 40 words."""
    drawn = random.Random(f"caption {number}")
    kinds = ["det", "adj", "noun", "verb", "det", "adj", "noun", "link"]
    return " ".join(drawn.choice(WORDS[kinds[place % 8]].split()) for place in range(drawn.randint(5, 40)))


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Of 4,096 tokens at most, made for these texts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096, initial_alphabet=letters, special_tokens=["<end>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
