"""Best of n: several answers are sampled, a verifier scores each, and the best is taken.

Inference-time compute of the generator-verifier kind: Cobbe et al. 2021, arXiv:2110.14168; Snell et al. 2024,
arXiv:2408.03314. N answers, T tokens of the longest, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmlm.messages import Text, images_of_rows, is_one
from mmlm.model import MultimodalLM
from vision.images import Source, open_image

Verifier = Callable[[list[Source], Text, list[str]], Sequence[float]]
"""Images, prompt and answers to it -> a score for each answer; the highest is the best."""


@dataclass(frozen=True)
class Best:
    """The best answer, and all of them with their scores, the best first."""

    answers: list[tuple[str, float]]

    @property
    def text(self) -> str:
        return self.answers[0][0]

    @property
    def score(self) -> float:
        return self.answers[0][1]


def best_of(
    model: MultimodalLM, images: Any, prompt: Text, n: int = 8, verifier: Verifier | None = None, **kwargs: Any
) -> Best:
    """Samples n answers to one prompt and returns them by score.

    Args:
        images: one image, a list of them, or None.
        prompt: as for `generate`; one, not a list.
        verifier: scores answers; by default the mean log-probability that the model itself gives an answer's tokens, at
            temperature 1 and before any other change to its logits. `ClipVerifier` scores by likeness to the image.
        kwargs: of transformers' `generate`; it samples, without beams.

    Raises ValueError for a list of prompts, n below 1, beams, and a verifier that does not give each answer a score.
    """
    if not is_one(prompt):
        raise ValueError(f"{len(prompt)} prompts: best_of takes one; call it for each")
    if type(n) is not int or n < 1:
        raise ValueError(f"n={n!r}: takes a whole number from 1 on, how many answers to sample")
    if (beams := model.setting(kwargs, "num_beams")) not in (None, 1):
        raise ValueError(f"num_beams={beams}: best_of samples its answers; leave it out, or call generate")
    batch = model.read(images, prompt, kwargs)
    told = {"num_return_sequences": n, "return_dict_in_generate": True, "output_logits": True}
    out = model.generate(**batch, **{"do_sample": True} | kwargs | told)
    tokens = out.sequences[:, batch["input_ids"].shape[1] :]
    texts = [text.strip() for text in model.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    if verifier is None:
        scores: Sequence[float] = own_scores(model, out.logits, tokens, kwargs)
    else:
        [shown] = images_of_rows(images, [prompt])
        scores = [float(score) for score in verifier(shown, prompt, texts)]
    if any(score != score for score in scores):
        raise ValueError(f"the verifier gave {scores}: a score must be a number")
    if len(scores) != len(texts):
        raise ValueError(f"the verifier gave {len(scores)} scores for {len(texts)} answers: it must give one for each")
    return Best(sorted(zip(texts, scores, strict=True), key=lambda pair: -pair[1]))


def own_scores(model: MultimodalLM, logits: Sequence[Tensor], tokens: Tensor, kwargs: Mapping[str, Any]) -> list[float]:
    """Mean log-probability of each answer's tokens [N, T], from `generate`'s T logits [N, V] and keyword arguments."""
    ends, pad = model.setting(kwargs, "eos_token_id"), model.setting(kwargs, "pad_token_id")
    ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
    rows = range(len(tokens))  # one at a time: a batch's logits take much room, and would take it thrice
    each = (torch.stack([step[row : row + 1] for step in logits], 1) for row in rows)
    return [mean_log_probability(its, tokens[[row]], ends, pad).item() for row, its in zip(rows, each, strict=True)]


def mean_log_probability(logits: Tensor, tokens: Tensor, ends: list[int], pad: int | None = None) -> Tensor:
    """Of each answer's tokens, up to its first end and with it: logits [N, T, V], tokens [N, T] -> [N].

    Nor does the padding count of an answer that stopped for another reason.
    """
    chosen = logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
    filled = torch.zeros_like(ended) if pad is None else (tokens == pad).flip(1).cumprod(1).flip(1).bool() & ~ended
    mine = (ended.cumsum(1) - ended.long() == 0) & ~filled
    return chosen.where(mine, 0).sum(1) / mine.sum(1)


class ClipVerifier:
    """Scores an answer by its likeness to the image: the cosine of open_clip's two embeddings, -1 to 1.

    Radford et al. 2021, arXiv:2103.00020. Of several images the mean embedding counts.

    Args:
        model, preprocess, tokenizer: of `open_clip.create_model_and_transforms` and `open_clip.get_tokenizer`.
    """

    def __init__(self, model: nn.Module, preprocess: Callable[[Any], Tensor], tokenizer: Callable[..., Tensor]) -> None:
        self.model, self.preprocess, self.tokenizer = model.eval(), preprocess, tokenizer

    @torch.no_grad()
    def __call__(self, images: list[Source], prompt: Text, answers: list[str]) -> list[float]:
        """The answers' likeness to the images; the prompt is not looked at. ValueError without an image."""
        if not images:
            raise ValueError("ClipVerifier compares answers with an image, and there is none")
        device = next(self.model.parameters()).device
        pixels = torch.stack([self.preprocess(open_image(image)) for image in images]).to(device)
        seen = normalize(self.model.encode_image(pixels).float(), dim=-1).mean(0)  # type: ignore[operator]
        said = normalize(self.model.encode_text(self.tokenizer(answers).to(device)).float(), dim=-1)  # type: ignore[operator]
        return (said @ normalize(seen, dim=-1)).tolist()
