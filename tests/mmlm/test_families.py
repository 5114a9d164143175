"""Every causal decoder of the installed transformers, small and random, holds the invariants of DESIGN.md.

What a decoder does not do alone, such as to say the same with its cache as without, it need not do with eyes: that
check is left out, and the summary names it. Of `CORE` none may be left out.
"""

import inspect
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from families import CANNOT, CORE, MAYBE, SIZES, UNLIKE, small, types
from parts import bytes_of, logits, media_of, text_of

from mmlm.experts import use_padded_experts
from mmlm.model import MultimodalLM

GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
LAYERS = [1, 3]
FAMILIES = types()
TABLE = Path(__file__).parents[2] / "docs" / "decoders.md"


def chosen():
    """Families, those of which most people have no need marked slow."""
    return [
        pytest.param(name, marks=[] if name in CORE else pytest.mark.slow) for name in FAMILIES if name not in CANNOT
    ]


def decoder_of(name):
    decoder = small(FAMILIES[name])
    use_padded_experts(decoder)
    return decoder


@pytest.fixture(scope="module", params=chosen())
def family(request):
    return request.param


@pytest.fixture
def told(request, family, record_property):
    """Notes which family a test is about, for the summary; marks what is known of it."""
    record_property("family", family)
    check = request.function.__name__.removeprefix("test_")
    if reason := (UNLIKE | MAYBE).get((family, check)):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=(family, check) in UNLIKE))


def leave_out(family, why):
    """Skips a check that has nothing to compare with."""
    if family in CORE:
        pytest.fail(f"{family} is to hold every check: {why}")
    pytest.skip(why)


@pytest.fixture(scope="module")
def base(family):
    """The decoder alone."""
    return decoder_of(family)


@pytest.fixture(scope="module")
def born(family, make_model):
    """With eyes that are shut."""
    return make_model(decoder_of(family), layers=LAYERS)


@pytest.fixture(scope="module")
def model(family, make_model, open_gates):
    """With eyes wide open."""
    return open_gates(make_model(decoder_of(family), layers=LAYERS), 0.9)


@pytest.fixture
def mixed(model, picture):
    images = [[picture(1)], [], [picture(2), picture(3)]]
    return model.processor(images, ["<image>What is it?", "Nothing to see here", "one <image> two <image>: which?"])


def test_blind_is_exact(told, base, model):
    batch = model.processor(None, ["What is it?", "A much longer prompt, also blind."])
    assert torch.equal(logits(model, batch), logits(base, batch))


def test_blind_rows_are_exact(told, base, model, mixed):
    got, plain = logits(model, mixed), logits(base, text_of(mixed))
    assert torch.isfinite(got).all()
    assert torch.equal(got[1], plain[1])
    assert not torch.allclose(got[0], plain[0], atol=1e-3)
    assert not torch.allclose(got[2], plain[2], atol=1e-3)


def test_text_before_an_image_is_exact(told, base, model, picture):
    batch = model.processor(picture(1), "What is it<image> then?")
    before = int((batch["media_index"][0] < 0).sum())
    got, plain = logits(model, batch), logits(base, text_of(batch))
    assert before == 10 and torch.equal(got[:, :before], plain[:, :before])
    assert not torch.allclose(got[:, before:], plain[:, before:], atol=1e-3)


def test_born_is_exact(told, base, born, mixed):
    assert torch.equal(logits(born, mixed), logits(base, text_of(mixed)))


def test_frozen_is_frozen(told, family, make_model, picture):
    model = make_model(decoder_of(family), layers=LAYERS).train()
    assert model.training and not any(module.training for module in model.decoder.modules())
    before = bytes_of(model.decoder)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    batch = model.processor(picture(1), "What is it?", padding_side="right")
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(
            model(**batch, use_cache=False).logits[0, :-1], batch["input_ids"][0, 1:]
        )
        loss.backward()
        assert all(p.grad is None for p in model.decoder.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert bytes_of(model.decoder) == before
    assert any(gate != 0 for gate in model.adapter.gates().values())


@torch.no_grad()
def forced(model, batch, tokens, **media):
    """What the model would say next after each token of the whole text, its cache unused."""
    whole = torch.cat([batch["input_ids"], tokens], 1)
    decoder = model.decoder if isinstance(model, MultimodalLM) else model
    if "position_ids" in inspect.signature(decoder.forward).parameters:  # RoBERTas count otherwise than generate does
        media["position_ids"] = torch.arange(whole.shape[1])[None]
    out = model(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False, **media).logits.clone()
    out[..., SIZES["eos_token_id"]] = -torch.inf  # which min_new_tokens rules out
    return out[:, batch["input_ids"].shape[1] - 1 : -1].argmax(-1)


def test_cached_is_uncached(told, family, base, model, picture):
    batch = model.processor(picture(1), "What is<image> it?")
    said = base.generate(**text_of(batch), **GREEDY)[:, batch["input_ids"].shape[1] :]
    if not torch.equal(forced(base, batch, said), said):
        leave_out(family, "without eyes, too, it says other things with a cache than without")
    tokens = model.generate_tokens(batch, **GREEDY)
    media = media_of(batch)
    assert torch.equal(forced(model, batch, tokens, **media), tokens)


def test_padded_is_alone(told, family, base, model, picture):
    images, prompts = [[picture(1)], [picture(2)]], ["What?", "And what is this one<image>, please?"]
    both = model.processor(images, prompts)
    ones = [model.processor([image], [prompt]) for image, prompt in zip(images, prompts, strict=True)]

    def said(decoder, batch):
        out = decoder.generate(**text_of(batch), **GREEDY, output_logits=True, return_dict_in_generate=True)
        return out.sequences[:, -6:], out.logits[0]

    plain, apart = (
        said(base, both),
        [torch.cat(parts) for parts in zip(*(said(base, one) for one in ones), strict=True)],
    )
    if not torch.equal(plain[0], apart[0]) or not torch.allclose(plain[1], apart[1], atol=1e-2):
        leave_out(family, "without eyes, too, it says other things when padded")
    alone = torch.cat([model.generate_tokens(one, **GREEDY) for one in ones])
    assert torch.equal(model.generate_tokens(both, **GREEDY), alone)


def test_saved_is_loaded(told, family, model, mixed, tokenizer, tiny_vision, tmp_path):
    model.save_pretrained(tmp_path)
    again = MultimodalLM.from_pretrained(tmp_path, decoder=decoder_of(family), tokenizer=tokenizer, vision=tiny_vision)
    assert torch.equal(logits(again, mixed), logits(model, mixed))


def test_checkpointing_gives_the_same_gradients(told, family, make_model, open_gates, picture):
    model = open_gates(make_model(decoder_of(family), layers=LAYERS), 0.9).train()
    batch = model.processor(picture(1), "What is<image> it?", padding_side="right")
    kept = []
    for _ in range(2):
        model(**batch, use_cache=False).logits.square().mean().backward()
        kept.append([None if p.grad is None else p.grad.clone() for p in model.adapter.parameters()])
        model.zero_grad()
        model.gradient_checkpointing_enable()
    assert any(grad is not None and grad.any() for grad in kept[0])
    for one, other in zip(*kept, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("name", CANNOT)
def test_families_that_cannot_still_cannot(name, make_model, picture):
    """So that the list of them does not outlive its reasons."""
    error, _ = CANNOT[name]

    def look():
        model = make_model(decoder_of(name), layers=LAYERS)
        model(**model.processor(picture(1), "What is it?"), use_cache=False).logits.sum().backward()

    with pytest.raises(Exception, match=error):
        look()


def test_the_decoders_that_most_people_have_are_among_those_that_hold():
    excused = {*CANNOT, *(family for family, _ in UNLIKE | MAYBE)}
    assert len(CORE) == len(set(CORE)) == 42
    assert set(CORE) <= set(FAMILIES) - excused
    assert {*CANNOT, *(family for family, _ in UNLIKE | MAYBE)} <= set(FAMILIES)


def test_the_table_in_the_docs_names_every_family(request):
    """As long as it is of the installed transformers; `make families` makes it anew."""
    text = TABLE.read_text(encoding="utf-8")
    if request.config.getoption("--families", None) or f"transformers {version('transformers')}" not in text:
        pytest.skip("docs/decoders.md is of another version of transformers, or made just now")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    told = {cells[0].strip(" `"): len(cells) for cells in rows}
    assert len(rows) == len(told)
    assert set(told) == set(FAMILIES)
    assert {name for name, cells in told.items() if cells == 3} == set(CANNOT)
