"""Known data sets in small: what their official archives unpack to, and the samples that are in it."""

import json
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mmlm.data import Sample
from mmlm.names import CAPTION_PROMPT


@dataclass
class Layout:
    """One split: files by their paths, paths of its images, and (id, image, question, answer, references, kind)."""

    split: str
    files: dict[str, Any]
    images: list[str]
    rows: list[tuple[Any, ...]]
    archives: list[str] = field(default_factory=list)
    """What the files, and then the folders of images, come from."""

    def write(self, folder):
        """Into a folder, which is returned."""
        for name, value in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(value))
        for number, name in enumerate(self.images):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24 + 8 * number, 24), (40 * number, 90, 200)).save(folder / name)
        return folder

    def samples(self, folder):
        """What is read of it there."""
        return [
            Sample.pair(str(id), (str(folder / image),), asked, answer, references, kind)
            for id, image, asked, answer, references, kind in self.rows
        ]


def ten(*answers):
    """What ten people answered, as VQAv2 and VizWiz have it; the last answer fills up."""
    said = [*answers, *[answers[-1]] * (10 - len(answers))]
    return [{"answer": one, "answer_confidence": "yes", "answer_id": n} for n, one in enumerate(said, 1)]


def said(*answers):
    return tuple(one["answer"] for one in ten(*answers))


def karpathy(split, filename, number, *captions, **more):
    """An image of dataset_coco.json or dataset_flickr30k.json."""
    ids = range(10 * number, 10 * number + len(captions))
    sentences = [
        {"tokens": text.lower().strip(" .").split(), "raw": text, "imgid": number, "sentid": id}
        for id, text in zip(ids, captions, strict=True)
    ]
    return {"sentids": [*ids], "imgid": number, "sentences": sentences, "split": split, "filename": filename} | more


def captions(image, number, *texts, kind="caption"):
    return [(10 * number + n, image, CAPTION_PROMPT, text, texts, kind) for n, text in enumerate(texts)]


def coco(split, number, *texts):
    name = "val2014" if split != "train" else "train2014"
    return karpathy(split, f"COCO_{name}_{number:012d}.jpg", number, *texts, filepath=name, cocoid=number)


KARPATHY = {
    "dataset": "coco",
    "images": [
        coco("test", 1, "A cat on a mat.", "a grey cat "),
        coco("train", 2, "A train."),
        coco("restval", 3, "Two dogs.", "Dogs run."),
        coco("val", 4, "A bowl."),
        coco("test", 5, "A kite."),
    ],
}
FLICKR = {
    "dataset": "flickr30k",
    "images": [
        karpathy("train", "1000092795.jpg", 0, "Two friends.", "Two young men."),
        karpathy("test", "1007129816.jpg", 1, "A man in a hat.", "A hat."),
    ],
}
PICTURE, OTHER = "val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000073.jpg"
ASKED = [
    {"image_id": 42, "question": "What is this?", "question_id": 42000},
    {"image_id": 73, "question": "Is it red?", "question_id": 73001},
]
GQA = {
    "201307251": {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "snow (1)"}],
        "entailed": [],
        "equivalent": ["201307251"],
        "question": "Is it overcast?",
        "imageId": "n161313",
        "isBalanced": True,
        "groups": {"global": None, "local": "13-weather_cloudy"},
        "answer": "no",
        "semanticStr": "select: scene->verify weather: overcast [0]",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
    },
    "201640614": {
        "question": "Who is wearing the dress?",
        "imageId": "n235859",
        "isBalanced": True,
        "answer": "woman",
        "types": {"detailed": "categoryRelS", "semantic": "rel", "structural": "query"},
        "fullAnswer": "The woman is wearing a dress.",
    },
}

LAYOUTS = {
    "coco-karpathy": Layout(
        "test",
        {"dataset_coco.json": KARPATHY},
        ["val2014/COCO_val2014_000000000001.jpg", "val2014/COCO_val2014_000000000005.jpg"],
        captions("val2014/COCO_val2014_000000000001.jpg", 1, "A cat on a mat.", "a grey cat ")
        + captions("val2014/COCO_val2014_000000000005.jpg", 5, "A kite."),
        ["caption_datasets.zip", "val2014.zip"],
    ),
    "nocaps": Layout(
        "val",
        {
            "nocaps_val_4500_captions.json": {
                "licenses": [],
                "info": {"url": "http://nocaps.org"},
                "images": [
                    {"id": 0, "open_images_id": "0013ea", "file_name": "0013ea.jpg", "domain": "near-domain"},
                    {"id": 1, "open_images_id": "0014fb", "file_name": "0014fb.jpg", "domain": "out-domain"},
                ],
                "annotations": [
                    {"image_id": 0, "id": 0, "caption": "A baby is standing."},
                    {"image_id": 0, "id": 1, "caption": "A baby."},
                    {"image_id": 1, "id": 10, "caption": "A harp."},
                ],
            }
        },
        ["validation/0013ea.jpg", "validation/0014fb.jpg"],
        captions("validation/0013ea.jpg", 0, "A baby is standing.", "A baby.", kind="near-domain")
        + captions("validation/0014fb.jpg", 1, "A harp.", kind="out-domain"),
        ["nocaps.s3.amazonaws.com", "validation.tar.gz"],
    ),
    "flickr30k": Layout(
        "test",
        {"dataset_flickr30k.json": FLICKR},
        ["flickr30k-images/1007129816.jpg"],
        captions("flickr30k-images/1007129816.jpg", 1, "A man in a hat.", "A hat."),
        ["caption_datasets.zip", "flickr30k-images.tar.gz"],
    ),
    "vqav2": Layout(
        "val",
        {
            "v2_OpenEnded_mscoco_val2014_questions.json": {"data_subtype": "val2014", "questions": ASKED},
            "v2_mscoco_val2014_annotations.json": {
                "data_subtype": "val2014",
                "annotations": [
                    {
                        "question_type": "what is this",
                        "multiple_choice_answer": "net",
                        "answers": ten("netting", "mesh", "net"),
                        "image_id": 42,
                        "answer_type": "other",
                        "question_id": 42000,
                    },
                    {
                        "question_type": "is it",
                        "multiple_choice_answer": "yes",
                        "answers": ten("no", "yes"),
                        "image_id": 73,
                        "answer_type": "yes/no",
                        "question_id": 73001,
                    },
                ],
            },
        },
        [PICTURE, OTHER],
        [
            (42000, PICTURE, "What is this?", "net", said("netting", "mesh", "net"), "other"),
            (73001, OTHER, "Is it red?", "yes", said("no", "yes"), "yes/no"),
        ],
        ["v2_Questions_Val_mscoco.zip", "v2_Annotations_Val_mscoco.zip", "val2014.zip"],
    ),
    "okvqa": Layout(
        "val",
        {
            "OpenEnded_mscoco_val2014_questions.json": {"data_subtype": "val2014", "questions": ASKED},
            "mscoco_val2014_annotations.json": {
                "question_types": {"four": "Sports and Recreation", "eight": "Plants and Animals", "other": "Other"},
                "annotations": [
                    {
                        "image_id": 42,
                        "answer_type": "other",
                        "question_type": "four",
                        "question_id": 42000,
                        "answers": [one | {"raw_answer": "Tennis"} for one in ten("golf", "tennis")],
                        "confidence": 3,
                    },
                    {
                        "image_id": 73,
                        "answer_type": "other",
                        "question_type": "eight",
                        "question_id": 73001,
                        "answers": ten("poppy"),
                        "confidence": 3,
                    },
                ],
            },
        },
        [PICTURE, OTHER],
        [
            (42000, PICTURE, "What is this?", "tennis", said("golf", "tennis"), "Sports and Recreation"),
            (73001, OTHER, "Is it red?", "poppy", said("poppy"), "Plants and Animals"),
        ],
        [
            *("OpenEnded_mscoco_val2014_questions.json.zip", "mscoco_val2014_annotations.json.zip"),
            "val2014.zip",
        ],
    ),
    "textvqa": Layout(
        "val",
        {
            "TextVQA_0.5.1_val.json": {
                "dataset_type": "val",
                "dataset_name": "textvqa",
                "dataset_version": "0.5.1",
                "data": [
                    {
                        "question": "what is the brand?",
                        "image_id": "003a8ae2ef43b901",
                        "image_classes": ["Camera"],
                        "image_width": 1024,
                        "image_height": 664,
                        "answers": ["nous les gosses", *["dakota"] * 9],
                        "question_tokens": ["what", "is", "the", "brand"],
                        "question_id": 34602,
                        "set_name": "val",
                    }
                ],
            }
        },
        ["train_images/003a8ae2ef43b901.jpg"],
        [
            (
                *(34602, "train_images/003a8ae2ef43b901.jpg", "what is the brand?", "dakota"),
                *(("nous les gosses", *["dakota"] * 9), ""),
            )
        ],
        ["dl.fbaipublicfiles.com/textvqa/data", "train_val_images.zip"],
    ),
    "vizwiz": Layout(
        "val",
        {
            "Annotations/val.json": [
                {
                    "image": "VizWiz_val_00000000.jpg",
                    "question": "Ok. There is another picture I hope it is a better one.",
                    "answers": ten("beige", "unanswerable"),
                    "answer_type": "unanswerable",
                    "answerable": 0,
                },
                {
                    "image": "VizWiz_val_00000001.jpg",
                    "question": "What is it?",
                    "answers": ten("tv", "", "tv"),
                    "answer_type": "other",
                    "answerable": 1,
                },
            ]
        },
        ["val/VizWiz_val_00000000.jpg", "val/VizWiz_val_00000001.jpg"],
        [
            (
                *("VizWiz_val_00000000.jpg", "val/VizWiz_val_00000000.jpg"),
                *("Ok. There is another picture I hope it is a better one.", "unanswerable"),
                *(said("beige", "unanswerable"), "unanswerable"),
            ),
            (
                *("VizWiz_val_00000001.jpg", "val/VizWiz_val_00000001.jpg", "What is it?", "tv"),
                *(said("tv", "", "tv"), "other"),
            ),
        ],
        ["Annotations.zip", "val.zip"],
    ),
    "gqa": Layout(
        "testdev_balanced",
        {"testdev_balanced_questions.json": GQA},
        ["images/n161313.jpg", "images/n235859.jpg"],
        [
            (201307251, "images/n161313.jpg", "Is it overcast?", "no", ("no",), "verify"),
            (201640614, "images/n235859.jpg", "Who is wearing the dress?", "woman", ("woman",), "query"),
        ],
        ["questions1.2.zip", "images.zip"],
    ),
    "easy-vqa": Layout(
        "test",
        {
            "data/test/questions.json": [
                ["what is the blue shape?", "rectangle", 0],
                ["is there a triangle?", "no", 0],
                ["what color is the shape?", "teal", 11],
            ]
        },
        ["data/test/images/0.png", "data/test/images/11.png"],
        [
            (
                *("easy-vqa-test-0", "data/test/images/0.png", "what is the blue shape?"),
                *("rectangle", ("rectangle",), "shape"),
            ),
            ("easy-vqa-test-1", "data/test/images/0.png", "is there a triangle?", "no", ("no",), "yes/no"),
            ("easy-vqa-test-2", "data/test/images/11.png", "what color is the shape?", "teal", ("teal",), "color"),
        ],
        ["its folder easy_vqa/data", "its folder easy_vqa/data"],
    ),
}
