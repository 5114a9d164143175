"""Captions with blanks to fill in, or with a beginning that is given: UL2's mixture of denoisers, in plain text.

    causal  A cat sits on the mat.<end>                         all of it is learnt
    S       A cat sits on the mat.<end>                         but for a beginning of it, "A cat"
    R, X    A [1] on the [2].\\n[1] cat sits\\n[2] mat<end>       of it " cat sits", " mat<end>"

UL2 (Tay et al. 2022, "Unifying Language Learning Paradigms", arXiv:2205.05131) has sentinels in its vocabulary. A
frozen decoder gets no new tokens: its blanks are numbers in brackets. Blanks and what is in them stand in one sequence,
as UL2 has them for decoders alone. Numbers are not learnt, so that nothing is taught to write blanks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random

from transformers import PreTrainedTokenizerBase

from finetune.encoded import Encoded
from finetune.run_config import DenoiseConfig
from mmlm.marked import Marked
from mmlm.names import MARK

BLANKS = {"r": (0.15, 3.0), "x": (0.5, 12.0)}  # share of the tokens in blanks, tokens of a blank in the mean
FEWEST = 3  # tokens of a caption that is denoised

Span = tuple[int, int]
"""(start, stop) in a caption's own tokens."""


class Denoiser:
    """Makes of a share of captions what one of the denoisers makes of them; all else stays as it is.

    Args:
        prompt: what asks for a caption; a sample with more turns than that and its answer is none.
        longest: tokens of a sample; a caption that would grow longer stays as it is.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: str, config: DenoiseConfig, seed: int, longest: int
    ) -> None:
        self.tokenizer, self.prompt, self.config = tokenizer, prompt.strip(), config
        self.seed, self.longest = seed, longest
        self.special = set(tokenizer.all_special_ids)

    def __call__(self, entry: Encoded, step: int, name: tuple[int, int]) -> Encoded:
        """The sample as a step takes it: it follows from the seed, the step and the sample's name alone."""
        drawn, config = Random(f"{self.seed} denoise {step} {name}"), self.config
        if drawn.random() >= config.share or entry.question.replace(MARK, "").strip() != self.prompt:
            return entry
        ((start, stop),) = entry.text.learnt
        while stop > start and entry.text.ids[stop - 1] in self.special:
            stop -= 1
        if stop - start < FEWEST:
            return entry
        (kind,) = drawn.choices("rxs", (config.r, config.x, config.s))
        if kind == "s":
            made = begun(entry.text, drawn.randrange(1, stop - start))
        else:
            made = blanked(entry.text, stop, blanks(stop - start, *BLANKS[kind], drawn), self.after_a_word)
        return entry if len(made.ids) > self.longest else replace(entry, text=made, given=made.prompt - start)

    def after_a_word(self, text: str) -> list[int]:
        """The tokens of a text as it stands after a word: some tokenizers put a space before one that stands alone."""
        word, both = self.tokenizer(["a", f"a{text}"], add_special_tokens=False)["input_ids"]
        return list(both[len(word) :])


def begun(text: Marked, given: int) -> Marked:
    """A text whose answer's first tokens, so many, are not learnt."""
    ((start, stop),) = text.learnt
    return replace(text, learnt=((start + given, stop),))


def blanked(text: Marked, stop: int, spans: Sequence[Span], code: Callable[[str], list[int]]) -> Marked:
    """A text whose answer has blanks, and after it what is in them, which is learnt; the end is, after the last.

    Args:
        stop: where the answer's own tokens stop, and those of its end start.
        spans: what is blanked, in order; there is one at least.
        code: the tokens of a number in brackets, after a space or a new line.
    """
    ((start, _),) = text.learnt
    said, ids, place = text.ids[start:stop], text.ids[:start], 0
    for number, (first, last) in enumerate(spans, 1):
        ids += said[place:first] + code(f" [{number}]")
        place = last
    ids += said[place:]
    learnt = []
    for number, (first, last) in enumerate(spans, 1):
        ids += code(f"\n[{number}]")
        learnt.append((len(ids), len(ids) + last - first))
        ids += said[first:last]
    ids += text.ids[stop:]
    learnt[-1] = learnt[-1][0], len(ids)
    # all of an answer sees the same image
    return Marked(ids, text.index[:start] + text.index[start : start + 1] * (len(ids) - start), tuple(learnt))


def blanks(count: int, rate: float, mean: float, drawn: Random) -> list[Span]:
    """Spans of `count` tokens to be blanked: a share `rate` of them, `mean` tokens long, none next to another.

    One token at least is blanked, and one is not. Each token is as likely as any other to be: spans are drawn on a
    ring, which is then cut anywhere. One that is cut becomes two, at the beginning and at the end.
    """

    def whole(number: float) -> int:
        return int(number + drawn.random())  # in the mean it is the number

    def parted(tokens: int, parts: int) -> list[int]:
        cuts = [0, *sorted(drawn.sample(range(1, tokens), parts - 1)), tokens]
        return [stop - start for start, stop in pairwise(cuts)]

    lost = min(max(whole(count * rate), 1), count - 1)
    number = min(max(whole(lost / mean), 1), lost, count - lost)
    lengths = zip(parted(count - lost, number), parted(lost, number), strict=True)
    ring = [blank for stays, goes in lengths for blank in [False] * stays + [True] * goes]
    cut = drawn.randrange(count)
    line = [False, *ring[cut:], *ring[:cut], False]
    edges = [place for place, (one, other) in enumerate(pairwise(line)) if one != other]
    return list(zip(edges[::2], edges[1::2], strict=True))
