"""Data sets that are known by name: what is measured on them, and how they are usually asked."""

from dataclasses import dataclass

# LLaVA-1.5's (Liu et al. 2023, arXiv:2310.03744), the second of VizWiz
SHORT = "{question}\nAnswer the question using a single word or phrase."
UNSURE = SHORT.replace("\n", "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n")


@dataclass(frozen=True)
class Benchmark:
    """What a data set of `mmlm.data.named` is measured by."""

    task: str
    """Of `mmlm eval`."""
    split: str
    """That is usually scored."""
    prompt: str | None = None
    """None: the task's own."""
    shots: str | None = "train"
    """The split that examples are usually of; None: it has no other."""


BENCHMARKS = {
    "coco-karpathy": Benchmark("caption", "test"),
    "nocaps": Benchmark("caption", "val", shots=None),
    "flickr30k": Benchmark("caption", "test"),
    "vqav2": Benchmark("vqa", "val", SHORT),
    "okvqa": Benchmark("vqa", "val", SHORT),
    "textvqa": Benchmark("vqa", "val", SHORT),
    "vizwiz": Benchmark("vqa", "val", UNSURE),
    "gqa": Benchmark("vqa", "testdev_balanced", SHORT, "train_balanced"),
    "easy-vqa": Benchmark("vqa", "test"),
}
"""By name."""


def benchmark(data: str, task: str) -> tuple[str, Benchmark] | None:
    """The name in "NAME:FOLDER", and what it stands for; None for other data. ValueError if it is for another task."""
    name, colon, _ = data.partition(":")
    if not colon or name not in BENCHMARKS:
        return None
    its = BENCHMARKS[name]
    if its.task != task:
        raise ValueError(f"{data}: {name} is not for `mmlm eval {task}`; take `mmlm eval {its.task}`")
    return name, its
