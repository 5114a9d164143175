"""Best of n: the answers that were sampled, scored as the verifier says, the best first."""

import math

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parts import media_of
from transformers import GenerationConfig, LogitsProcessor

from mmlm.best import ClipVerifier, best_of, mean_log_probability

HOW = {"max_new_tokens": 6, "temperature": 1.5}


@pytest.fixture(scope="module")
def model(make_model, open_gates):
    return open_gates(make_model())


def test_answers_come_by_their_mean_log_probability(model, picture):
    torch.manual_seed(0)
    best = best_of(model, picture(1), "What is it?", n=5, **HOW)
    scores = [score for _, score in best.answers]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    assert (best.text, best.score) == best.answers[0] and len({text for text, _ in best.answers}) > 1
    torch.manual_seed(0)
    said = model.generate(picture(1), "What is it?", do_sample=True, num_return_sequences=5, **HOW)
    assert sorted(said) == sorted(text for text, _ in best.answers)


def test_the_score_is_what_teacher_forcing_gives(model, picture):
    batch = model.processor(picture(1), "What is it?")
    out = model.generate(
        **batch, do_sample=True, temperature=2.0, max_new_tokens=5, return_dict_in_generate=True, output_logits=True
    )
    start = batch["input_ids"].shape[1]
    tokens = out.sequences[:, start:]
    media = media_of(batch)
    with torch.no_grad():
        forced = model(input_ids=out.sequences, **media).logits[:, start - 1 : -1]
    wanted = forced.log_softmax(-1).gather(-1, tokens[..., None]).mean()
    got = mean_log_probability(torch.stack(out.logits, 1), tokens, [])
    torch.testing.assert_close(got[0], wanted, atol=1e-4, rtol=1e-4)


@given(length=st.integers(1, 6), end=st.integers(0, 7))
def test_what_comes_after_the_end_does_not_count(length, end):
    tokens = torch.full((1, 6), 1)
    tokens[0, end:] = 0  # 0 ends an answer, and pads what is after it
    logits = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(length))
    counted = min(end + 1, 6)
    wanted = logits.log_softmax(-1).gather(-1, tokens[..., None])[0, :counted, 0].mean()
    torch.testing.assert_close(mean_log_probability(logits, tokens, [0])[0], wanted)


@pytest.mark.parametrize("how", ["end", "config", "string"])
def test_an_answer_that_stops_for_another_reason_counts_up_to_there(how, model, picture):
    """Its padding is as unlikely as any other token."""
    end = model.processor.tokenizer("e")["input_ids"][0]
    told = {
        "end": {"eos_token_id": end, **HOW},
        "config": {"generation_config": GenerationConfig(eos_token_id=[end], pad_token_id=258, **HOW)},
        "string": {"stop_strings": ["e"], **HOW},
    }[how]
    told |= {"logits_processor": [LogitBias({end: 7.0})]}
    torch.manual_seed(0)
    best = best_of(model, picture(1), "What is it?", n=6, **told)
    batch = model.processor(picture(1), "What is it?")
    start, wanted, lengths = batch["input_ids"].shape[1], [], set()
    media = media_of(batch)
    torch.manual_seed(0)
    for ids in model.generate(**batch, do_sample=True, num_return_sequences=6, **told):
        answer = ids[start:].tolist()
        answer = answer[: answer.index(end) + 1] if end in answer else answer
        with torch.no_grad():
            forced = (
                model(input_ids=ids[None, : start + len(answer)], **media).logits[0, start - 1 : -1].log_softmax(-1)
            )
        wanted.append(sum(float(chances[token]) for chances, token in zip(forced, answer, strict=True)) / len(answer))
        lengths.add(len(answer))
    assert len(lengths) > 1
    assert [score for _, score in best.answers] == pytest.approx(sorted(wanted, reverse=True), abs=1e-3)


class LogitBias(LogitsProcessor):
    """Makes tokens likelier."""

    def __init__(self, bias):
        self.bias = bias

    def __call__(self, input_ids, scores):
        more = torch.zeros_like(scores)
        more[:, list(self.bias)] = torch.tensor(list(self.bias.values()))
        return scores + more


def test_any_callable_verifies(model, picture):
    image, seen = picture(1), []

    def longest(images, prompt, answers):
        seen.append((images, prompt))
        return [len(answer) for answer in answers]

    best = best_of(model, image, "What is it?", n=4, verifier=longest, **HOW)
    assert seen == [([image], "What is it?")]
    assert best.score == max(len(text) for text, _ in best.answers)


def test_an_answer_like_the_image_is_the_better_one(picture):
    torch.manual_seed(0)
    sizes = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(embed_dim=16, vision_cfg=sizes, text_cfg=text)
    verifier = ClipVerifier(clip, open_clip.image_transform(32, is_train=False), open_clip.SimpleTokenizer())
    image, answers = picture(1), ["a cat", "two dogs", "nothing"]
    scores = verifier([image], "What is it?", answers)
    assert len(scores) == 3 and all(-1 <= score <= 1 for score in scores) and len(set(scores)) == 3
    assert verifier([image, image], "", answers) == pytest.approx(scores, abs=1e-5)
    assert verifier([picture(2)], "", answers) != scores
    with pytest.raises(ValueError, match="there is none"):
        verifier([], "", answers)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"n": 0}, "n=0: takes a whole number"),
        ({"n": 2.5}, r"n=2\.5: takes"),
        ({"prompt": ["a", "b"]}, "2 prompts: best_of takes one"),
        ({"verifier": lambda *_: [1.0]}, "1 scores for 2 answers"),
        ({"verifier": lambda *_: [1.0, math.nan]}, "a score must be a number"),
        ({"num_beams": 2}, "num_beams=2: best_of samples"),
    ],
)
def test_what_cannot_be_is_refused(given_, message, model, picture):
    with pytest.raises(ValueError, match=message):
        best_of(model, picture(1), **{"prompt": "What?", "n": 2, **HOW} | given_)


def test_one_answer_needs_no_image(model):
    best = best_of(model, None, "Nothing to see", n=1, **HOW)
    assert len(best.answers) == 1 and best.score < 0 and not math.isnan(best.score)
