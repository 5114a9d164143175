"""What the tasks of this folder show and ask, in the form that lmms-eval calls."""

from PIL import Image


def visuals(doc):
    """The images of a question."""
    return [Image.open(name).convert("RGB") for name in doc["images"]]


def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    """The question; then, as (images, text, is it over?, answers, info), one about its answer, with the images; then
    the end."""
    if not round_idx:
        return doc["question"]
    text = f"you said {len(previous_output[0])} characters, sure?"
    return (
        (visuals(doc), text, False, previous_output, round_idx)
        if round_idx == 1
        else (None, None, True, previous_output, previous_round_info)
    )


def score(doc, results):
    """Was something said in both rounds?"""
    (said,) = results
    return {"said_twice": len(said) == 2 and all(said)}
