"""A folder of images, each with its caption beside it: cat.jpg and cat.txt."""

import os
from pathlib import Path

from mmlm.data.row import learnt
from mmlm.data.rows import Rows
from mmlm.data.sample import Sample

SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Of files that are images."""


class Pairs(Rows):
    """Images of a folder and those below it, in order of their paths. One without a caption is a broken row.

    Args:
        folder: that the images are in.
        names: of the images, relative to it.
        prompt: what asks for a caption.
    """

    def __init__(self, name: str, folder: Path, names: list[str], prompt: str) -> None:
        super().__init__(name, "folder")
        self.folder, self.names, self.prompt = folder, names, prompt

    def __len__(self) -> int:
        return len(self.names)

    def place(self, number: int) -> str:
        return str(self.folder / self.names[number])

    def read(self, number: int) -> Sample:
        image = self.folder / self.names[number]
        text = image.with_suffix(".txt")
        try:
            said = text.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise ValueError(f"no {text.name} beside it; write its caption there, or take the image out") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{text.name} is not UTF-8 ({error.reason}); save it as UTF-8") from error
        said = learnt(said.removesuffix("\n"), text.name)  # read_text makes \r\n one; it ends the line, not the caption
        return Sample.pair(self.names[number], (str(image),), self.prompt, said, (said,), "caption")


def is_image(name: str) -> bool:
    """Does the name say so? Hidden files are none: some systems put them beside every file."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not os.path.basename(name).startswith(".")


def find_pairs(folder: Path) -> list[str]:
    """Images of a folder and those below it, relative to it and in order; [] if none has its caption beside it."""
    names, captioned = [], False
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        texts = {name for name in files if name.endswith(".txt")}
        images = [name for name in files if is_image(name)]
        captioned = captioned or any(f"{os.path.splitext(name)[0]}.txt" in texts for name in images)
        names += [os.path.relpath(os.path.join(where, name), folder) for name in images]
    return sorted(names) if captioned else []
