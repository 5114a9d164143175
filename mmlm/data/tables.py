"""JSON files as data sets come in: LLaVA's and other arrays of rows, COCO's captions, VQAv2's questions."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmlm.data.lines import BOM, SPACE, Lines, array_spans
from mmlm.data.row import RowReader, answers_of, brief, learnt, string
from mmlm.data.rows import Rows
from mmlm.data.sample import Sample

PARTS = ("images", "annotations", "questions")  # of COCO and VQAv2
IDS = ("id", "image_id", "question_id")  # of what is in them


class Coco(Rows):
    """Captions of COCO, one sample each; all captions of its image are its references.

    Args:
        path: of the json file.
        captions: (id, image, text) of each; values as they are there.
        files: of the images, by their ids.
        kinds: of the images that have one: nocaps' domains.
        reader: for where the images are, and what asks for a caption.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        captions: list[tuple[Any, Any, Any]],
        files: dict[Any, Any],
        kinds: dict[Any, str],
        reader: RowReader,
    ) -> None:
        super().__init__(name, "coco")
        self.path, self.captions, self.files, self.kinds, self.reader = path, captions, files, kinds, reader
        self.references: dict[Any, list[Any]] = {}
        for _, image, text in captions:
            self.references.setdefault(image, []).append(text)

    def __len__(self) -> int:
        return len(self.captions)

    def place(self, number: int) -> str:
        return f"{self.path}, annotation {self.captions[number][0]}"

    def read(self, number: int) -> Sample:
        id, image, text = self.captions[number]
        if image not in self.files:
            raise ValueError(f"image_id {brief(image)} is none of its images; mend it, or take the annotation out")
        said = learnt(text, "caption")
        references = [one for one in self.references[image] if isinstance(one, str)]
        shown = self.reader.image(self.files[image], "file_name")
        kind = self.kinds.get(image, "caption")
        return Sample.pair(str(id), (shown,), self.reader.prompt, said, references, kind)


class Vqa(Rows):
    """VQAv2's questions, each with the answer that most people gave; all answers are its references.

    Args:
        path: of the questions.
        answers: annotations by question_id.
        types: what question types are called, where the annotations say so, as OK-VQA's do.
        folder, pattern: of the images: where they are, and their names by their ids.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        questions: list[Any],
        answers: dict[Any, Any],
        types: dict[str, str],
        folder: str,
        pattern: str,
    ) -> None:
        super().__init__(name, "vqa")
        self.path, self.questions, self.answers, self.types = path, questions, answers, types
        self.folder, self.pattern = folder, pattern

    def __len__(self) -> int:
        return len(self.questions)

    def place(self, number: int) -> str:
        return f"{self.path}, question {self.questions[number].get('question_id', f'number {number}')}"

    def read(self, number: int) -> Sample:
        row = self.questions[number]
        question, image = string(row.get("question"), "question"), row.get("image_id")
        if not isinstance(image, int):
            raise ValueError(f"image_id: {brief(image)} is no number")
        found = self.answers.get(row.get("question_id"))
        if found is None:
            raise ValueError("no annotation has its question_id; name the annotations that belong to these questions")
        answer, others = answers_of(found)
        shown = str(Path(self.folder, self.pattern.format(image)))
        type = str(found.get("question_type", ""))
        kind = self.types.get(type, type) if self.types else found.get("answer_type", "")
        return Sample.pair(str(row.get("question_id")), (shown,), question, answer, others, str(kind))


def open_json(
    name: str,
    path: Path,
    images: str | os.PathLike[str] | None,
    annotations: str | os.PathLike[str] | None,
    read_by: Callable[[str], RowReader],
) -> Rows:
    """What a JSON file holds, by looking at it.

    Args:
        images: folder of the images, if it is not found.
        annotations: of VQAv2's questions, if they are not found.
        read_by: the reader of rows whose images are relative to a folder.

    ValueError, with the mend, for a file that is no JSON, or of no format that is known.
    """
    text = read_text(path)
    found = SPACE.match(text, text.startswith(BOM))
    assert found  # it may be empty
    own = str(path.parent if images is None else images)
    try:
        if text.startswith("[", found.end()):
            spans = array_spans(text)
            first = json.loads(text.encode()[slice(*spans[0, :2])]) if len(spans) else {}
            kind = "llava" if isinstance(first, dict) and "conversations" in first else "json"
            return Lines(name, kind, path, spans, read_by(own), "row")
        whole = json.loads(text[text.startswith(BOM) :])
    except (ValueError, RecursionError) as error:
        raise no_json(path, error) from error
    del text
    parts = {part: whole[part] for part in PARTS if isinstance(whole, dict) and isinstance(whole.get(part), list)}
    notes = parts.get("annotations", [])
    if "questions" in parts:
        return open_vqa(name, path, whole, annotations, images)
    if "images" in parts and notes and isinstance(notes[0], dict) and "caption" in notes[0]:
        return open_coco(name, path, parts, images, read_by)
    if notes and isinstance(notes[0], dict) and "question_id" in notes[0]:
        raise ValueError(
            f"{path}: VQAv2's annotations, and the questions are in another file; name that one, and this one by "
            "annotations= if it is not beside it"
        )
    fields = brief(list(whole)) if isinstance(whole, dict) else brief(whole)
    raise ValueError(
        f"{path}: of no known format ({fields}); it takes an array of rows (LLaVA's, or as in JSONL), COCO's captions "
        "(images, annotations with a caption each), or VQAv2's questions"
    )


def open_coco(
    name: str,
    path: Path,
    parts: dict[str, list[Any]],
    images: str | os.PathLike[str] | None,
    read_by: Callable[[str], RowReader],
) -> Coco:
    """COCO's captions: {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}."""
    files = (one.get("file_name") for one in objects(path, "images", parts["images"]))
    first = [one for one in files if isinstance(one, str)][:1]
    folder, _ = locate(path, first, path.stem.rpartition("_")[2], images)
    return read_coco(name, path, parts, read_by(folder))


def read_coco(name: str, path: Path, parts: dict[str, list[Any]], reader: RowReader) -> Coco:
    """COCO's captions, of images whose folder is known. Images of nocaps have a "domain"."""
    images = objects(path, "images", parts["images"])
    files = {one.get("id"): one.get("file_name") for one in images}
    kinds = {one.get("id"): one["domain"] for one in images if isinstance(one.get("domain"), str)}
    notes = objects(path, "annotations", parts["annotations"])
    captions = [(one.get("id", number), one.get("image_id"), one.get("caption")) for number, one in enumerate(notes)]
    return Coco(name, path, captions, files, kinds, reader)


def open_vqa(
    name: str,
    path: Path,
    whole: dict[str, Any],
    annotations: str | os.PathLike[str] | None,
    images: str | os.PathLike[str] | None,
) -> Vqa:
    """VQAv2's questions and annotations: {"questions": [{"question_id", "image_id", "question"}], "data_subtype"}."""
    questions = objects(path, "questions", whole["questions"])
    if annotations is None:
        named = path.name.replace("OpenEnded_", "").replace("MultipleChoice_", "").replace("questions", "annotations")
        beside = path.with_name(named)
        if beside == path or not beside.is_file():
            raise ValueError(
                f"{path}: questions without their answers: no {named} beside it; put it there, or name the file, "
                "annotations= (--annotations)"
            )
        annotations = beside
    answers, types = read_answers(Path(annotations), path, questions)
    split = str(whole.get("data_subtype", ""))
    first = next((one["image_id"] for one in questions if isinstance(one.get("image_id"), int)), 0)
    patterns = [f"COCO_{split}_{{:012d}}.jpg", "{:012d}.jpg", "{}.jpg", "{}.png"]
    folder, which = locate(path, [pattern.format(first) for pattern in patterns], split, images)
    return Vqa(name, path, questions, answers, types, folder, patterns[which])


def read_answers(
    path: Path, asked: Path, questions: Sequence[dict[str, Any]]
) -> tuple[dict[Any, dict[str, Any]], dict[str, str]]:
    """VQAv2's annotations by question_id; and what they call question types, where they say.

    ValueError for a file without them, or with those of other questions than the file `asked` has.
    """
    notes = read_json(path)
    if not isinstance(notes, dict) or not isinstance(notes.get("annotations"), list):
        raise ValueError(f"{path}: no annotations of VQAv2; it takes {{'annotations': [...]}}")
    answers = {one.get("question_id"): one for one in objects(path, "annotations", notes["annotations"])}
    if questions and not any(one.get("question_id") in answers for one in questions):
        raise ValueError(f"{path}: none of its annotations is of a question of {asked}; name those of the same split")
    types = notes.get("question_types")
    return answers, types if isinstance(types, dict) else {}


def locate(path: Path, names: Sequence[str], split: str, images: str | os.PathLike[str] | None) -> tuple[str, int]:
    """The folder of a data set's images, and by which of the names the first of them is there.

    It is looked for in `images`, or beside the file, in the folder of its split, and where COCO has it. ValueError,
    naming all that was looked for.
    """
    if images is None:
        roots = [path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images"]
    else:
        roots = [Path(images)]
    tried = [folder for root in roots for folder in (root, root / split) if split or folder == root]
    for folder in dict.fromkeys(tried):
        for which, name in enumerate(names):
            if (folder / name).is_file():
                return str(folder), which
    if not names:
        return str(tried[0]), 0
    raise ValueError(
        f"{path}: its images are not found; looked for {' or '.join(names)} in "
        f"{', '.join(map(str, dict.fromkeys(tried)))}; name their folder, images= (--images)"
    )


def objects(path: Path, field: str, values: list[Any]) -> list[dict[str, Any]]:
    """A list of objects, whose ids are numbers or texts. ValueError for another value in it."""
    for number, value in enumerate(values):
        where = f"{path}, {field}[{number}]"
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {brief(value)} is no object; fetch or export it again")
        for name in IDS:
            if not isinstance(id := value.get(name), int | str | None):
                raise ValueError(f"{where}: {name} {brief(id)} is no number; fetch or export it again")
    return values


def read_json(path: Path) -> Any:
    """What a JSON file holds. ValueError, naming it, if it is none."""
    text = read_text(path)
    try:
        return json.loads(text.removeprefix(BOM))
    except (ValueError, RecursionError) as error:
        raise no_json(path, error) from error


def no_json(path: Path, error: Exception) -> ValueError:
    where, why = (f", line {error.lineno}", error.msg) if isinstance(error, json.JSONDecodeError) else ("", str(error))
    return ValueError(f"{path}{where}: not JSON ({why}); fetch or export it again")


def read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
