"""What a run has been told so far, on disk: each process adds a line for each batch that it has finished.

    parts/0.jsonl      {"way": "shuffled", "rows": [12, 3], "answers": [{"said": "a cat"}, {"said": "two dogs"}]}

A process that is killed leaves half a line at the most, which is passed over.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from eval.settings import PARTS
from eval.together import Answer

Batch = tuple[str, tuple[int, ...]]
"""The way it is asked, and which samples."""


def read(folder: Path) -> dict[Batch, list[Answer]]:
    """The answers to each batch that any process has finished."""
    found: dict[Batch, list[Answer]] = {}
    for path in sorted((folder / PARTS).glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                one = json.loads(line)
            except ValueError:  # half a line
                continue
            found[one["way"], tuple(one["rows"])] = one["answers"]
    return found


class Part:
    """This process's file, which goes on where it ended."""

    def __init__(self, folder: Path, process: int) -> None:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        path = folder / PARTS / f"{process}.jsonl"
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        self.file = path.open("ab", buffering=0)
        if torn:
            self.file.write(b"\n")

    def add(self, batch: Batch, answers: Sequence[Answer]) -> None:
        """Adds a batch, in one write."""
        way, rows = batch
        self.file.write(json.dumps({"way": way, "rows": rows, "answers": answers}).encode() + b"\n")

    def close(self) -> None:
        """Nothing more is added."""
        self.file.close()
