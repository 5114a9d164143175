"""A sample: images, turns of a chat about them, and which of its text is learnt. Every data set is read into these."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmlm.names import MARK
from vision.images import Lazy


@dataclass(frozen=True)
class Turn:
    """What one of the speakers says."""

    role: str
    """ "system", "user", "assistant", or what else the decoder's chat template knows."""
    text: str
    """As it stands in the data, with `<image>` where an image stands."""
    learnt: bool = False
    """Is the model taught to say this? Of assistants alone."""


@dataclass(frozen=True)
class Sample:
    """What the model is shown, asked and taught.

    ValueError for one that teaches nothing or another than the assistant, for marks that are not as many as images, and
    for a mark in what is learnt: a model says no images.
    """

    id: str
    """Unique in its data set."""
    images: tuple[Lazy, ...]
    """In the order of their marks. A function, called by one thread or another, makes one when it is needed."""
    turns: tuple[Turn, ...]
    """Of the chat. Where no turn has a mark, the images stand as the adapter's config says (`image_last`), in the first
    turn of the user."""
    references: tuple[str, ...] = ()
    """All right answers, to score against."""
    kind: str = ""
    """Group in reports: "yes/no", "shape", ..."""
    choices: tuple[str, ...] = ()
    """Answers among which one is right, where a data set has such."""

    def __post_init__(self) -> None:
        learnt = [turn for turn in self.turns if turn.learnt]
        if not learnt:
            raise ValueError(f"sample {self.id!r}: nothing to learn in it; it needs an assistant's turn that is learnt")
        for turn in learnt:
            if turn.role != "assistant":
                raise ValueError(f"sample {self.id!r}: what the {turn.role} says is learnt; only an assistant's may be")
            if MARK in turn.text:
                raise ValueError(
                    f"sample {self.id!r}: {MARK} in what is learnt ({turn.text[:60]!r}), and a model says no images; "
                    "put it into the turn before, or take it out"
                )
        if (marks := self.marks) not in (0, len(self.images)):
            raise ValueError(
                f"sample {self.id!r}: {marks} {MARK} mark{'s' * (marks != 1)} in its turns but {len(self.images)} "
                f"image{'s' * (len(self.images) != 1)}; give one for each mark, or take all marks out"
            )

    @classmethod
    def pair(
        cls,
        id: str,
        images: Sequence[Lazy],
        question: str,
        answer: str,
        references: Sequence[str] = (),
        kind: str = "",
        choices: Sequence[str] = (),
    ) -> "Sample":
        """A question and its answer, which is learnt; a caption is the answer to what asks for one."""
        turns = Turn("user", question), Turn("assistant", answer, True)
        return cls(id, tuple(images), turns, tuple(references), kind, tuple(choices))

    @property
    def marks(self) -> int:
        """How many `<image>` are in its turns."""
        return sum(turn.text.count(MARK) for turn in self.turns)

    @property
    def last(self) -> int:
        """Place of the last turn that is learnt; nothing after it bears on what is."""
        return max(place for place, turn in enumerate(self.turns) if turn.learnt)

    @property
    def question(self) -> str:
        """What is said before the last answer, turns in lines of their own; of a pair the question."""
        return "\n".join(turn.text for turn in self.turns[: self.last])

    @property
    def answer(self) -> str:
        """The last text that is learnt; of a pair all that is."""
        return self.turns[self.last].text
