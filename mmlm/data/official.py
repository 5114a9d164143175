"""What the sites of known data sets hand out, read as it is; `mmlm.data.named` says what that is and finds it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmlm.data.row import RowReader, brief
from mmlm.data.rows import Rows
from mmlm.data.sample import Sample
from mmlm.data.tables import Coco, Vqa, objects, read_answers, read_coco, read_json

MORE = {"train": ("train", "restval")}  # Karpathy's: what COCO's validation images have left is for training


@dataclass(frozen=True)
class Official:
    """One split of a data set, found on the disk."""

    name: str
    """The source, as the user named it."""
    split: str
    files: tuple[Path, ...]
    images: Mapping[str, Path]
    """The folders of its images, by what the data set calls them."""
    read_by: Callable[[str], RowReader]
    """The reader of rows whose images are relative to a folder."""

    @property
    def folder(self) -> Path:
        """The first of them."""
        return next(iter(self.images.values()))


class Questions(Rows):
    """Questions as rows of `mmlm.data.row`, each with an id of its own.

    Args:
        path: of the file they are from.
    """

    def __init__(self, name: str, path: Path, rows: Iterable[dict[str, Any]], reader: RowReader) -> None:
        super().__init__(name, "questions")
        self.path, self.rows, self.reader = path, list(rows), reader

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, number: int) -> str:
        return f"{self.path}, question {self.rows[number]['id']}"

    def read(self, number: int) -> Sample:
        return self.reader(self.rows[number], str(number))


def karpathy(its: Official) -> Coco:
    """Captions by Karpathy's splits (Karpathy & Fei-Fei 2015, arXiv:1412.2306), of COCO (Lin et al. 2014,
    arXiv:1405.0312) and Flickr30k (Young et al. 2014).

    {"images": [{"split", "filepath", "filename", "sentences": [{"sentid", "raw"}]}]}; Flickr30k has no "filepath".
    """
    (path,) = its.files
    images, captions = list[dict[str, Any]](), list[dict[str, Any]]()
    wanted = MORE.get(its.split, (its.split,))
    for number, one in enumerate(listed(path, read_json(path), "images")):
        if one.get("split") not in wanted:
            continue
        folder = its.images.get(str(one.get("filepath")), its.folder)
        images.append({"id": number, "file_name": str(folder / file_name(one.get("filename")))})
        for said in listed(path, one, "sentences"):
            captions.append({"id": said.get("sentid"), "image_id": number, "caption": said.get("raw")})
    return read_coco(its.name, path, {"images": images, "annotations": captions}, its.read_by(""))


def nocaps(its: Official) -> Coco:
    """Captions of nocaps (Agrawal et al. 2019, arXiv:1812.08658): COCO's format, images with a domain each."""
    (path,) = its.files
    whole = read_json(path)
    parts = {part: listed(path, whole, part) for part in ("images", "annotations")}
    return read_coco(its.name, path, parts, its.read_by(str(its.folder)))


def vqa(its: Official) -> Vqa:
    """Questions of VQAv2 (Goyal et al. 2017, arXiv:1612.00837) and OK-VQA (Marino et al. 2019, arXiv:1906.00067)."""
    path, other = its.files
    (part,) = its.images  # as COCO calls it, and the names of its images do
    questions = listed(path, read_json(path), "questions")
    answers, types = read_answers(other, path, questions)
    return Vqa(its.name, path, questions, answers, types, str(its.folder), f"COCO_{part}_{{:012d}}.jpg")


def textvqa(its: Official) -> Questions:
    """TextVQA (Singh et al. 2019, arXiv:1904.08920): {"data": [{"question_id", "image_id", "question", "answers"}]}."""
    (path,) = its.files
    rows = (
        {
            "id": one.get("question_id"),
            "image": file_name(one.get("image_id"), ".jpg"),
            "question": one.get("question"),
            "answers": one.get("answers"),
        }
        for one in listed(path, read_json(path), "data")
    )
    return Questions(its.name, path, rows, its.read_by(str(its.folder)))


def vizwiz(its: Official) -> Questions:
    """VizWiz (Gurari et al. 2018, arXiv:1802.08218): [{"image", "question", "answers": [{"answer"}], "answer_type"}].

    An image has one question, which has no id.
    """
    (path,) = its.files
    rows = (
        {
            "id": one.get("image"),
            "image": file_name(one.get("image")),
            "question": one.get("question"),
            "answers": one.get("answers"),
            "kind": one.get("answer_type"),
        }
        for one in listed(path, {"questions": read_json(path)}, "questions")
    )
    return Questions(its.name, path, rows, its.read_by(str(its.folder)))


def gqa(its: Official) -> Questions:
    """GQA (Hudson & Manning 2019, arXiv:1902.09506): {id: {"imageId", "question", "answer", "types": {"structural"}}}.

    What else a question has, its program among it, is left aside.
    """
    (path,) = its.files
    whole = read_json(path)
    if not isinstance(whole, dict):
        raise ValueError(f"{path}: {brief(whole)} is no object of questions; fetch it again")
    rows = (
        {
            "id": id,
            "image": file_name(one.get("imageId"), ".jpg"),
            "question": one.get("question"),
            "answers": [answer] if (answer := one.get("answer")) is not None else None,
            "kind": types.get("structural") if isinstance(types := one.get("types"), dict) else None,
        }
        for id, one in zip(whole, objects(path, "questions", list(whole.values())), strict=True)
    )
    return Questions(its.name, path, rows, its.read_by(str(its.folder)))


def easy_vqa(its: Official) -> Questions:
    """easy-VQA (Zhou 2019, github.com/vzhou842/easy-VQA): [[question, answer, image's number]]."""
    (path,) = its.files
    rows, whole = list[dict[str, Any]](), read_json(path)
    for number, one in enumerate(whole if isinstance(whole, list) else [whole]):
        match one:
            case [str() as question, str() as answer, int() as image]:
                said = {"question": question, "answers": [answer], "kind": kind_of(answer)}
                rows.append({"id": f"easy-vqa-{its.split}-{number}", "image": f"{image}.png"} | said)
            case _:
                raise ValueError(f"{path}, row {number}: {brief(one)} is no [question, answer, image]; fetch it again")
    return Questions(its.name, path, rows, its.read_by(str(its.folder)))


def kind_of(answer: str) -> str:
    """The answer type of an easy-VQA question."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"


def listed(path: Path, whole: Any, field: str) -> list[dict[str, Any]]:
    """The objects in a field of what a file holds. ValueError, naming it, if there are none."""
    if not isinstance(whole, dict) or not isinstance(whole.get(field), list):
        raise ValueError(f"{path}: {brief(whole)} has no list of {field}; fetch it again")
    return objects(path, field, whole[field])


def file_name(image: Any, suffix: str = "") -> str:
    """What an image's file is called; "" if its row does not say, which is told when that is read."""
    return f"{image}{suffix}" if isinstance(image, str | int) else ""
