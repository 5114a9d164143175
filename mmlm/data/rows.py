"""Rows: a data set as a sequence of samples, each read when it is asked for."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from mmlm.data.sample import Sample


class SampleError(ValueError):
    """A row that gives no sample: the message names file, line or key, what is wrong, and the mend."""


class Rows(Sequence[Sample]):
    """Samples of a data set, in an order that is always the same; `rows[i]` reads one, SampleError if it is broken.

    No more is held than where each row is. It can be pickled, for data workers, and read by several threads at once. A
    subclass says how many rows there are (`__len__`), reads one (`read`) and says where it is (`place`).
    """

    def __init__(self, name: str, format: str) -> None:
        self.name = name
        """The source, as the user named it."""
        self.format = format
        """As `open_data` calls it."""

    @abstractmethod
    def read(self, number: int) -> Sample:
        """Row `number`, from 0. ValueError or OSError, without its place, if it is broken."""

    @abstractmethod
    def place(self, number: int) -> str:
        """Where row `number` is, for people: "pairs.jsonl, line 7"."""

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int):
            raise TypeError(f"{index!r}: rows are read one by one, rows[number]")
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name}: no row {index}, it has {len(self)}")
        try:
            return self.read(number)
        except (ValueError, OSError) as error:
            raise SampleError(self.blame(number, error)) from error

    def blame(self, number: int, error: Exception) -> str:
        """What is wrong with row `number`, with its place if the error does not begin with that."""
        place, said = self.place(number), str(error)
        return said if said.startswith(place) else f"{place}: {said}"

    def each(self) -> Iterator[Sample | SampleError]:
        """All samples in order, an error in the place of one that is broken."""
        return (self.tried(number) for number in range(len(self)))

    def tried(self, number: int) -> Sample | SampleError:
        """Row `number`, or why there is none."""
        try:
            sample: Sample = self[number]
            return sample
        except SampleError as error:
            return error

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {self.name} ({self.format})>"
