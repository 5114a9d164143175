"""transformers' generate, unmodified: every mode of it says what a plain loop says, wherever theory has it so.

The plain loops here have no cache: for every token the whole text goes through the model again.
"""

import copy
import threading

import pytest
import torch
from parts import media_of
from torch._dynamo.utils import counters
from transformers import (
    CompileConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    MaxLengthCriteria,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

from mmlm.media import EYES
from mmlm.model import NEW_TOKENS

GREEDY = {"max_new_tokens": 10, "do_sample": False}
PROMPTS = {
    "one": ([0], "<image>What is it?"),
    "late": ([1], "What is in this: <image>"),
    "interleaved": ([2, 3, 4], "First <image>, then <image> and <image>: which?"),
    "none": ([], "Nothing to see"),
}
ROWS = [
    ([1], (96, 64), "<image>What is it?"),
    ([], (96, 64), "This row is blind, and much longer than the other rows are"),
    ([2, 3], (700, 300), "One <image> two <image> which?"),
    ([4], (96, 64), "In the <image>"),
]


@torch.no_grad()
def forced(model, ids, batch):
    """Logits [T, V] of one row's whole text."""
    return model(input_ids=ids, use_cache=False, **media_of(batch)).logits[0]


def plain_loop(model, batch, steps=10, noise=None):
    """New tokens of one row, each the likeliest by logits that are computed from the whole text; up to an end."""
    ids, start = batch["input_ids"], batch["input_ids"].shape[1]
    for _ in range(steps):
        scores = forced(model, ids, batch)[-1]
        scores = scores if noise is None else scores + noise(ids.shape[1])
        ids = torch.cat([ids, scores.argmax().view(1, 1)], 1)
        if ids[0, -1] == model.decoder.generation_config.eos_token_id:
            break
    return ids[0, start:].tolist()


def up_to_end(model, tokens):
    tokens, end = tokens.tolist(), model.decoder.generation_config.eos_token_id
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


@pytest.fixture(scope="module")
def shared(make_model, open_gates):
    """A model with open gates that no test changes."""
    return open_gates(make_model(), 0.9).eval()


ALL = [{"attend": "all"}, {"attend": "all", "tokens": "resampler"}]


@pytest.fixture(scope="module", params=ALL, ids=str)
def of_all(request, make_model, open_gates):
    """One that attends to all images before."""
    return open_gates(make_model(**request.param), 0.9).eval()


@pytest.fixture
def read(picture):
    """Makes the batch of one of PROMPTS."""

    def make(model, case):
        seeds, text = PROMPTS[case]
        return model.processor([[picture(seed) for seed in seeds]], [text])

    return make


@pytest.fixture
def rows(picture):
    """Images and texts of ROWS."""
    return [[picture(seed, size) for seed in seeds] for seeds, size, _ in ROWS], [text for *_, text in ROWS]


# -- the plain loop ---------------------------------------------------------------------------------------------------

MODES = {
    "cached": {},
    "uncached": {"use_cache": False},
    "sampling from one": {"do_sample": True, "top_k": 1},
    "sampling from the likeliest share": {"do_sample": True, "top_p": 1e-9, "temperature": 3.0},
    "static cache": {"cache_implementation": "static"},
    "prompt in pieces": {"prefill_chunk_size": 5},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "prompt lookup, sampling from one": {"prompt_lookup_num_tokens": 3, "do_sample": True, "top_k": 1},
}


@pytest.mark.parametrize("how", MODES.values(), ids=list(MODES))
@pytest.mark.parametrize("case", PROMPTS)
def test_one_row_says_what_the_plain_loop_says(case, how, shared, read):
    batch = read(shared, case)
    assert shared.generate_tokens(batch, **GREEDY | how)[0].tolist() == plain_loop(shared, batch)


@pytest.mark.parametrize("case", PROMPTS)
def test_attending_to_all_it_says_what_the_plain_loop_says(case, of_all, read):
    batch = read(of_all, case)
    assert of_all.generate_tokens(batch, **GREEDY)[0].tolist() == plain_loop(of_all, batch)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_a_batch_that_attends_to_all_says_what_each_prompt_says_alone(how, of_all, rows):
    test_a_batch_says_what_each_prompt_says_alone(how, of_all, rows)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_a_batch_says_what_each_prompt_says_alone(how, shared, rows):
    """Rows of different numbers of images, tiles and tokens; one blind."""
    alone = [shared.generate([images], [text], **GREEDY, **how)[0] for images, text in zip(*rows, strict=True)]
    assert shared.generate(*rows, **GREEDY, **how) == alone
    assert len(set(alone)) == len(alone)


@pytest.mark.parametrize(
    "how", [{"num_beams": 3, "num_return_sequences": 3}, {"cache_implementation": "static"}], ids=str
)
def test_a_batch_agrees_with_no_cache(how, shared, rows):
    batch = shared.processor(*rows)
    plain = {name: value for name, value in how.items() if name != "cache_implementation"}
    assert torch.equal(
        shared.generate_tokens(batch, **GREEDY, **how),
        shared.generate_tokens(batch, **GREEDY, **plain, use_cache=False),
    )


def test_cached_logits_are_the_uncached_ones(shared, rows):
    batch = shared.processor(*rows)
    told = {"return_dict_in_generate": True, "output_logits": True}
    out = shared.generate(**batch, **GREEDY, **told, min_new_tokens=10)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 10), value=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = {"input_ids": out.sequences, "attention_mask": mask, "position_ids": positions, **media_of(batch)}
    with torch.no_grad():
        logits = shared(**whole).logits[:, batch["input_ids"].shape[1] - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, 1), logits, atol=5e-4, rtol=1e-4)


# -- samples, beams, processors ---------------------------------------------------------------------------------------


class Noise(LogitsProcessor):
    """Adds to every row's logits noise of its own: Gumbel's, with which the likeliest token is a fair sample."""

    def __call__(self, input_ids, scores):
        return scores + torch.stack([self.of(row, input_ids.shape[1]) for row in range(len(scores))])

    @staticmethod
    def of(row, length, size=259):
        random = torch.Generator().manual_seed(1000 * row + length)
        return -torch.empty(size).exponential_(generator=random).log()


def test_each_of_several_samples_is_a_sample_of_its_own(shared, read):
    batch = read(shared, "interleaved")
    how = {"do_sample": True, "top_k": 1, "num_return_sequences": 4, "max_new_tokens": 8, "logits_processor": [Noise()]}
    said = [up_to_end(shared, row) for row in shared.generate_tokens(batch, **how)]
    assert said == [plain_loop(shared, batch, 8, lambda length, row=row: Noise.of(row, length)) for row in range(4)]
    assert len({tuple(one) for one in said}) == 4


def test_a_seed_gives_the_same_samples_with_and_without_a_cache(shared, rows):
    batch = shared.processor(*rows)
    how = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8}
    said = []
    for cache in (True, False):
        torch.manual_seed(1)
        said.append(shared.generate_tokens(batch, **how, use_cache=cache))
    assert torch.equal(*said) and len(said[0]) == 3 * len(ROWS)


def plain_beams(model, batch, width, steps):
    """New tokens of the `width` likeliest beams, the likeliest first, and their log-probabilities; none ends."""
    start, beams = batch["input_ids"].shape[1], [(0.0, batch["input_ids"])]
    for _ in range(steps):
        grown = []
        for score, ids in beams:
            chances = forced(model, ids, batch)[-1].log_softmax(-1)
            chances[model.decoder.generation_config.eos_token_id] = -torch.inf
            grown += [(score + float(chances[t]), torch.cat([ids, t.view(1, 1)], 1)) for t in chances.topk(width)[1]]
        beams = sorted(grown, key=lambda pair: -pair[0])[:width]
    return [ids[0, start:].tolist() for _, ids in beams], [score for score, _ in beams]


@pytest.mark.parametrize("case", PROMPTS)
def test_beams_are_those_of_a_plain_search(case, shared, read):
    batch = read(shared, case)
    told = {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    how = {"num_beams": 3, "num_return_sequences": 3, "min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}
    out = shared.generate(**batch, **how, **told)
    beams, scores = plain_beams(shared, batch, 3, 6)
    assert out.sequences[:, batch["input_ids"].shape[1] :].tolist() == beams
    torch.testing.assert_close(out.sequences_scores, torch.tensor(scores), atol=1e-3, rtol=1e-4)


def test_sampled_beams_say_something(shared, read):
    """What they must say no theory tells, but a beam's score is its tokens' log-probability."""
    batch = read(shared, "one")
    how = {
        "num_beams": 3,
        "do_sample": True,
        "top_k": 20,
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "length_penalty": 0.0,
    }
    told = {"return_dict_in_generate": True, "output_scores": True, "renormalize_logits": False}
    out = shared.generate(**batch, **how, **told)
    start = batch["input_ids"].shape[1]
    chances = forced(shared, out.sequences, batch)[start - 1 : -1].log_softmax(-1)
    wanted = chances.gather(-1, out.sequences[0, start:, None]).sum()
    torch.testing.assert_close(out.sequences_scores[0], wanted, atol=1e-3, rtol=1e-4)


class Record(LogitsProcessor):
    """Keeps the scores that it sees, and rules one token out."""

    def __init__(self, ruled_out):
        self.ruled_out, self.seen = ruled_out, []

    def __call__(self, input_ids, scores):
        self.seen.append(scores.clone())
        return scores.index_fill(1, torch.tensor([self.ruled_out]), -torch.inf)


def test_a_processor_sees_the_plain_loops_logits_and_is_obeyed(shared, read):
    batch = read(shared, "interleaved")
    first = plain_loop(shared, batch)[0]
    record = Record(first)
    tokens = shared.generate_tokens(batch, **GREEDY, logits_processor=[record])
    assert first not in tokens[0]
    whole = torch.cat([batch["input_ids"], tokens], 1)
    logits = forced(shared, whole, batch)[batch["input_ids"].shape[1] - 1 : -1]
    torch.testing.assert_close(torch.cat(record.seen), logits, atol=5e-4, rtol=1e-4)


# -- where it stops, and what is heard of it --------------------------------------------------------------------------


def test_it_stops_at_a_string(shared, picture):
    batch = shared.processor(picture(3), "What is it?")
    tokens = plain_loop(shared, batch, 30)
    words = [shared.processor.tokenizer.decode(token) for token in tokens]
    place = next(i for i in range(4, 28) if words[i].isascii() and words[i].isprintable())
    stop = words[place]
    stopped = shared.generate_tokens(batch, do_sample=False, max_new_tokens=30, stop_strings=[stop])
    assert stopped[0].tolist() == tokens[: words.index(stop) + 1]


class Rows(StoppingCriteria):
    """Stops each row after as many tokens as it says."""

    def __init__(self, start, lengths):
        self.ends = start + torch.tensor(lengths)

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= self.ends


def test_each_row_stops_by_its_own_reason(shared, rows):
    batch = shared.processor(*rows)
    start, lengths = batch["input_ids"].shape[1], [2, 7, 1, 5]
    free = shared.generate_tokens(batch, **GREEDY, min_new_tokens=10)
    tokens = shared.generate_tokens(batch, **GREEDY, min_new_tokens=10, stopping_criteria=[Rows(start, lengths)])
    assert tokens.shape[1] == 7
    for row, length in enumerate(lengths):
        assert tokens[row, :length].tolist() == free[row, :length].tolist()
        assert (tokens[row, length:] == shared.processor.tokenizer.pad_token_id).all()


class Listener(BaseStreamer):
    def __init__(self):
        self.heard, self.ended = [], False

    def put(self, value):
        self.heard += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize("how", [{}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_a_streamer_hears_the_prompt_and_every_token(how, shared, read):
    batch, listener = read(shared, "one"), Listener()
    tokens = shared.generate_tokens(batch, **GREEDY, **how, streamer=listener)
    assert listener.ended and listener.heard == batch["input_ids"][0].tolist() + tokens[0].tolist()


def test_streamed_text_is_generated_text(shared, picture):
    for seed in range(3):
        pieces = list(shared.stream(picture(seed), "What is it?", **GREEDY | {"max_new_tokens": 30}))
        said = shared.generate(picture(seed), "What is it?", **GREEDY | {"max_new_tokens": 30})
        assert "".join(pieces).strip() == said
        assert all(pieces)


def test_a_stream_that_nobody_reads_on_ends(tiny_model, picture):
    passes = []
    tiny_model.decoder.register_forward_hook(lambda *_: passes.append(1))
    stream = tiny_model.stream(picture(1), "What is it?", do_sample=False, min_new_tokens=400, max_new_tokens=400)
    before = set(threading.enumerate())
    next(stream)
    (worker,) = set(threading.enumerate()) - before
    stream.close()
    worker.join(timeout=20)
    assert not worker.is_alive() and len(passes) < 400


def test_a_stream_heeds_other_reasons_to_stop(shared, picture):
    stop = MaxLengthCriteria(shared.processor(picture(1), "What is it?")["input_ids"].shape[1] + 4)
    said = "".join(shared.stream(picture(1), "What is it?", **GREEDY, stopping_criteria=[stop]))
    assert said.strip() == shared.generate(picture(1), "What is it?", do_sample=False, max_new_tokens=4)


def test_a_stream_has_its_own_streamer(shared, picture):
    with pytest.raises(ValueError, match="streamer= is for generate"):
        list(shared.stream(picture(1), "What?", streamer=object()))


def test_what_fails_while_streaming_is_raised_to_the_reader(shared, picture):
    with pytest.raises(ValueError, match="num_beams"):
        list(shared.stream(picture(1), "What?", num_beams=2))


def test_answers_end_by_themselves_or_after_64_tokens(shared, picture):
    batch = shared.processor(picture(1), "What?")
    assert shared.generate_tokens(batch, do_sample=False, min_new_tokens=64).shape == (1, NEW_TOKENS)
    start = batch["input_ids"].shape[1]
    assert shared.generate_tokens(batch, do_sample=False, max_length=start + 5).shape[1] <= 5


def test_generating_twice_from_one_batch_sees_the_image_twice(shared, picture):
    batch = dict(shared.processor(picture(1), "What is it?"))
    assert torch.equal(shared.generate_tokens(batch, **GREEDY), shared.generate_tokens(batch, **GREEDY))
    assert "pixel_values" in batch


# -- computed once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 4},
    ],
    ids=str,
)
def test_media_keys_and_values_are_computed_once(how, shared, picture):
    calls = []
    handles = [
        block.k.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, block in enumerate(shared.adapter.blocks)
    ]
    shared.generate(picture(1), "What is it?", **GREEDY | how)
    for handle in handles:
        handle.remove()
    assert sorted(calls) == [0, 1, 2]


@pytest.mark.parametrize("how", [{"num_beams": 4}, {"do_sample": True, "num_return_sequences": 4}], ids=str)
def test_copies_of_a_row_share_its_keys_and_values(how, shared, picture):
    """No more of them are held for four beams than for one."""
    batch = dict(shared.processor([picture(1), picture(2)], ["What is it?", "And this?"]))
    with shared.looking(batch):
        view = shared.splice.view
        shared.decoder.generate(**batch, **GREEDY | how)
        held = [len(k) for k, _ in view.kv]
    assert held == [2] * 3


# -- compiled ---------------------------------------------------------------------------------------------------------


def compiling(backend):
    config = CompileConfig(backend=backend, mode="default" if backend == "inductor" else None)
    config._compile_all_devices = True  # a CPU, too
    return {"cache_implementation": "static", "compile_config": config}


@pytest.fixture
def compilable(make_model, tiny_decoder, open_gates):
    """With experts that torch can compile: the padded ones count rows."""
    decoder = tiny_decoder(num_hidden_layers=2)
    decoder.set_experts_implementation("batched_mm")
    return open_gates(make_model(decoder, layers=[0, 1]), 0.9).eval()


@pytest.mark.parametrize("copies", [1, 2])
def test_compiled_it_says_the_same_and_is_compiled_once(copies, compilable, rows, fresh_compiler):
    batch = compilable.processor(*rows)
    how = {"do_sample": True, "top_k": 1, "num_return_sequences": copies, "min_new_tokens": 12, "max_new_tokens": 12}
    plain = compilable.generate_tokens(batch, **how)
    graphs = []
    for most in (3, 12):
        stop = Rows(batch["input_ids"].shape[1], [most] * copies * len(ROWS))
        tokens = compilable.generate_tokens(batch, **how, **compiling("eager"), stopping_criteria=[stop])
        assert torch.equal(tokens, plain[:, :most])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0, "compiled again for another token"
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compiled_into_machine_code_it_says_the_same(compilable, rows, fresh_compiler):
    batch = compilable.processor(*rows)
    assert torch.equal(
        compilable.generate_tokens(batch, **GREEDY, **compiling("inductor")),
        compilable.generate_tokens(batch, **GREEDY),
    )
    assert counters["stats"]["unique_graphs"] > 0


@torch.no_grad()
def test_a_compiled_forward_gives_the_same_logits(compilable, rows, fresh_compiler):
    batch = dict(compilable.processor(*rows))
    plain = compilable(**batch).logits
    blind = compilable.decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    compiled = torch.compile(compilable.decoder, backend="eager")
    with compilable.looking(batch):
        got = compiled(**batch).logits
    torch.testing.assert_close(got, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, blind, atol=0.1) and counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


# -- assisted ---------------------------------------------------------------------------------------------------------

LONG = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
DRAFT = 4


@pytest.fixture(scope="module")
def text_only(tokenizer):
    """A small dense decoder of the same tokenizer."""
    torch.manual_seed(3)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, **ids, bos_token_id=None, initializer_range=0.2)).eval()


@pytest.fixture(scope="module")
def small(make_model, tiny_decoder, open_gates):
    """A smaller model, whose adapter is smaller, too."""
    decoder = tiny_decoder(num_hidden_layers=2, hidden_size=32, seed=5)
    return open_gates(make_model(decoder, layers=[1], media_dim=16, ff_factor=1.0), 0.9)


@pytest.fixture
def twin(make_model, open_gates):
    """A model of the weights of `shared`, which drafts `DRAFT` tokens at a time."""
    model = open_gates(make_model(), 0.9)
    often(model.decoder)
    return model


def often(decoder):
    """An assistant that drafts `DRAFT` tokens at a time, however sure it is."""
    config = decoder.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = DRAFT, "constant"
    config.assistant_confidence_threshold = 0.0
    return decoder


def passes_of(model, generate):
    """How often the model's decoder ran, and what `generate` returned."""
    passes = []
    handle = model.decoder.register_forward_hook(lambda *_: passes.append(1))
    result = generate()
    handle.remove()
    return len(passes), result


@pytest.mark.parametrize("case", PROMPTS)
def test_an_assistant_without_eyes_changes_no_word(case, shared, text_only, read):
    batch = read(shared, case)
    assert shared.generate_tokens(batch, **GREEDY, assistant_model=text_only)[0].tolist() == plain_loop(shared, batch)


@pytest.mark.parametrize("case", PROMPTS)
def test_an_assistant_with_eyes_changes_no_word(case, shared, small, read, picture):
    batch = read(shared, case)
    wanted = plain_loop(shared, batch)
    assert shared.generate_tokens(batch, **GREEDY, assistant_model=small)[0].tolist() == wanted
    seeds, text = PROMPTS[case]
    said = shared.generate([picture(seed) for seed in seeds], text, **GREEDY, assistant_model=small)
    assert said == shared.processor.tokenizer.decode(wanted, skip_special_tokens=True).strip()
    assert shared.splice.view is small.splice.view is None


@pytest.mark.parametrize("case", ["one", "late", "interleaved"])
def test_all_that_a_twin_with_eyes_drafts_is_accepted(case, shared, twin, tiny_decoder, read):
    """Its decoder without eyes, which does not see what the twin sees, is wrong more often."""
    batch = read(shared, case)
    seeing, one = passes_of(shared, lambda: shared.generate_tokens(batch, **LONG, assistant_model=twin))
    blind_twin = often(tiny_decoder())
    blind, other = passes_of(shared, lambda: shared.generate_tokens(batch, **LONG, assistant_model=blind_twin))
    assert torch.equal(one, other)
    assert seeing == LONG["max_new_tokens"] / (DRAFT + 1) < blind


@pytest.mark.parametrize(
    "eyes",
    [
        {"detail": "low"},
        {"tokens": "resampler"},
        {"tokens": {"tile": [[1, -1], [5, -2], [12, -2]]}},
        {"mark": "<picture>"},
    ],
    ids=str,
)
def test_an_assistant_may_have_other_eyes(eyes, shared, make_model, open_gates, picture):
    other = open_gates(make_model(**eyes), 0.9)
    image, text = picture(1, (700, 600)), "What is in the <image> here?"
    seen = []
    handle = other.vision.register_forward_hook(lambda _, args, out: seen.append([len(values) for values in out]))
    said = shared.generate(image, text, **LONG, assistant_model=other)
    assert "".join(shared.stream(image, text, **LONG, assistant_model=other)).strip() == said
    handle.remove()
    assert said == shared.generate(image, text, **LONG)
    own = other.processor(image, text.replace("<image>", other.processor.mark))
    assert seen == [[len(cells) for cells in own["media_cells"]]] * 2


def test_an_assistant_looks_once(shared, twin, picture):
    calls = []
    twin.vision.register_forward_hook(lambda *_: calls.append("eyes"))
    for block in twin.adapter.blocks:
        block.k.register_forward_hook(lambda *_: calls.append("keys"))
    shared.generate(picture(1), "What is it?", **LONG, assistant_model=twin)
    assert sorted(calls) == ["eyes", *["keys"] * 3]


def test_a_model_may_be_its_own_assistant(shared, read):
    batch = read(shared, "one")
    assert shared.generate_tokens(batch, **GREEDY, assistant_model=shared)[0].tolist() == plain_loop(shared, batch)


def test_sampling_from_one_an_assistant_changes_no_word(shared, small, read):
    batch = read(shared, "one")
    how = {"do_sample": True, "top_k": 1, "assistant_model": small}
    assert shared.generate_tokens(batch, **GREEDY | how)[0].tolist() == plain_loop(shared, batch)


def test_features_seen_before_serve_an_assistant_of_the_same_eyes(shared, small, make_model, tiny_vision, read):
    batch = read(shared, "one")
    wanted = plain_loop(shared, batch)
    batch["media_values"] = shared.vision(*(batch.pop(key) for key in EYES))
    assert shared.generate_tokens(batch, **GREEDY, assistant_model=small)[0].tolist() == wanted
    with pytest.raises(ValueError, match="are what the model's own eyes saw, and assistant_model= has others"):
        shared.generate(**batch, assistant_model=make_model(vision=copy.deepcopy(tiny_vision)))


def test_an_assistant_that_cannot_see_is_refused(tiny_model, make_model, small, picture, tokenizer):
    batch = tiny_model.processor(picture(1), "What is it?")
    with pytest.raises(ValueError, match=r"tiles or pools images otherwise .* call generate\(images, prompt"):
        tiny_model.generate(**batch, assistant_model=make_model(detail="low"))
    with pytest.raises(ValueError, match="on the model's own decoder"):
        tiny_model.generate(**batch, assistant_model=make_model(tiny_model.decoder))
    with pytest.raises(ValueError, match="must have the model's own tokenizer"):
        tiny_model.generate(**batch, assistant_model=small, tokenizer=tokenizer, assistant_tokenizer=tokenizer)
