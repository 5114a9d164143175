"""What the next steps need is read ahead, in threads: rows, tokens, and features of images not seen before."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from finetune.batches import Mixture, Name
from finetune.encoded import Encoded
from vision.ahead import cores

AHEAD = 16  # steps


class Fetched:
    """The samples of the parts of each step that are this process's, read ahead.

    Args:
        passes: how many parts of each step are this process's.
        rank, world: which process it is, and of how many.
        steps: of the whole run; nothing is read beyond.
    """

    def __init__(self, mixture: Mixture, passes: int, rank: int, world: int, steps: int) -> None:
        self.mixture, self.steps = mixture, steps
        self.places, self.parts = range(rank * passes, (rank + 1) * passes), world * passes
        self.pool = ThreadPoolExecutor(cores())
        self.first = 0  # step of those that wait
        self.waiting: deque[list[list[Future[Encoded | str]]]] = deque()
        self.broken: list[str] = []
        """Samples of the step taken last that could not be read, and why."""

    def __enter__(self) -> "Fetched":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=True)

    def take(self, step: int) -> list[list[Encoded]]:
        """The samples of each of our parts of a step, but for broken ones."""
        if step != self.first:
            self.waiting.clear()
            self.first = step
        self.read_ahead()
        self.first += 1
        found = [[future.result() for future in part] for part in self.waiting.popleft()]
        self.broken = [entry for part in found for entry in part if isinstance(entry, str)]
        return [[entry for entry in part if not isinstance(entry, str)] for part in found]

    def coming(self) -> Iterator[list[Encoded]]:
        """Our parts of the steps after the one taken last, as far as they are there already."""
        self.read_ahead()
        for parts in list(self.waiting):
            for part in parts:
                if not all(future.done() for future in part):
                    return
                found = [future.result() for future in part]
                yield [entry for entry in found if not isinstance(entry, str)]

    def read_ahead(self) -> None:
        """Has the next steps read."""
        while len(self.waiting) < AHEAD and (step := self.first + len(self.waiting)) < self.steps:
            parts = [self.mixture.part(step, place, self.parts) for place in self.places]
            self.waiting.append([[self.pool.submit(read, self.mixture, name, step) for name in part] for part in parts])


def read(mixture: Mixture, name: Name, step: int | None = None) -> Encoded | str:
    """A sample, as a step takes it if one is named, or what is wrong with it."""
    try:
        return mixture.read(name, step)
    except ValueError as error:  # an image's error is one, too
        return str(error)
