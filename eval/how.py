"""How the samples of a run are answered, if not greedily."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any

SELF, CLIP = "self", "open_clip:"  # verifiers: the second begins a name


@dataclass(kw_only=True)
class How:
    """Several answers are drawn to each sample, or its options are ranked."""

    best_of: int = 1
    """Answers that are drawn to each sample, of which the best is taken; 1: the greedy one."""
    verifier: str = SELF
    """What scores drawn answers: "self", the mean log-probability that the model gives them; "open_clip:MODEL/TAG",
    their likeness to the images."""
    temperature: float = 1.0
    """Of what is drawn, whatever the decoder's own is."""
    top_p: float = 1.0
    """Share of the probability that is drawn from, the likeliest tokens first, whatever the decoder's own is."""
    rank: str | None = None
    """Nothing is said, but each sample's options are ranked by their log-likelihood: by its "mean" over tokens, which
    is to say by perplexity, or its "sum"."""
    choices: tuple[str, ...] = ()
    """The options of samples that have none of their own."""

    @property
    def how(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(How)}
        return values | {"choices": list(self.choices)}

    @property
    def called(self) -> str:
        """What runs are called by it; "" if answers are greedy."""
        if self.rank:
            return f"rank-{self.rank}"
        return f"best-of-{self.best_of}" if self.best_of > 1 else ""

    def check_how(self) -> None:
        """ValueError, with the mend, for ways of answering that cannot be."""
        if self.rank and self.best_of > 1:
            raise ValueError(
                f"rank (--rank) chooses among given options, best_of={self.best_of} (--best-of) among answers that are "
                "drawn: give one of them"
            )
        if self.rank not in (None, "mean", "sum"):
            raise ValueError(f"rank={self.rank!r} (--rank): takes mean or sum")
        if self.choices and not self.rank:
            raise ValueError("choices (--choices) are to be ranked: give rank='mean' (--rank), too")
        if self.choices and (wrong := wrong_options(self.choices)):
            raise ValueError(f"choices (--choices): {wrong}")
        if self.best_of < 1:
            raise ValueError(f"best_of={self.best_of} (--best-of): takes a whole number from 1 on")
        if self.verifier != SELF and not self.verifier.startswith(CLIP):
            raise ValueError(f"verifier={self.verifier!r} (--verifier): takes {SELF}, or {CLIP}MODEL/TAG")
        if not 0 < self.temperature < inf:
            raise ValueError(f"temperature={self.temperature} (--temperature): takes a number above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} (--top-p): takes a number above 0, up to 1")
        for name, usual in (("verifier", SELF), ("temperature", 1), ("top_p", 1)):
            if self.best_of == 1 and (its := getattr(self, name)) != usual:
                raise ValueError(
                    f"{name}={its!r} (--{name.replace('_', '-')}) is of answers that are drawn, and the greedy one is "
                    "not: give best_of (--best-of), too"
                )


def wrong_options(options: Sequence[str]) -> str:
    """Why nothing can be chosen among these, with the mend; "" if it can."""
    if len(options) < 2:
        return f"{list(options)} leaves no choice; give two or more"
    if blank := [option for option in options if not option.strip()]:
        return f"{blank[0]!r} says nothing; give it words, or take it out"
    twice = [option for place, option in enumerate(options) if option in options[:place]]
    return f"{twice[0]!r} is there twice; take one out" if twice else ""
