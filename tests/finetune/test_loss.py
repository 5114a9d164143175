"""The loss is the plain one, and so are its gradients: what is left out costs nothing but time."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune.below import Below
from finetune.collate import batch_of
from finetune.config import BatchConfig
from finetune.encoded import IGNORED, encode
from finetune.loss import ROWS, CrossEntropy, learnt_loss, spendable


@pytest.fixture(params=["pyramid", "resampler"])
def tokens(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["image first", "image last"])
def model(request, make_model, open_gates, tokens):
    return open_gates(make_model(image_last=request.param, tokens=tokens))


@pytest.fixture
def batches(model, cache, make_samples, collated):
    return collated(model, cache, encode(model, cache, make_samples(4, 3), "encoding"), BatchConfig(3, 2))


def plainly(model, batch):
    """The cross-entropy over the logits of all tokens."""
    inputs = dict(batch)
    labels = inputs.pop("labels")
    logits = model(**inputs).logits
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def gradients(model):
    taken = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return taken


def test_loss_and_gradients_are_those_of_the_whole_text(model, batches, cache):
    """Whatever the batch leaves out: prefixes that see no image, logits of what is not learnt."""
    loss, learnt = learnt_loss(model, model, batches[0])
    chosen = batches.chosen(0)
    assert learnt == sum(entry.text.answer for entry in chosen)
    check(model, loss, batch_of(model, cache, chosen))


@pytest.mark.parametrize("template", [True, False])
def test_the_same_words_with_an_image_and_without(template, model, cache, make_samples):
    """What may be kept of a text ends where its image begins: at its first token where no template has words before."""
    if not template:
        model.processor.tokenizer = copy.deepcopy(model.processor.tokenizer)
        model.processor.tokenizer.chat_template = None
    shown = make_samples(2)
    samples = [*shown, *(replace(sample, images=()) for sample in shown)]
    chosen = encode(model, cache, samples, "encoding")
    below = Below(model)
    loss, _ = learnt_loss(model, model, batch_of(model, cache, chosen, below))
    check(model, loss, batch_of(model, cache, chosen))
    again, _ = learnt_loss(model, model, batch_of(model, cache, chosen[::-1], below))
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)


def check(model, loss, whole):
    """The loss and its gradients are those of the whole batch, plainly."""
    loss.backward()
    got = gradients(model)
    wanted_loss = plainly(model, whole)
    wanted_loss.backward()
    wanted = gradients(model)
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_same_step_has_the_same_gradient_to_the_last_bit(
    make_model, tokens, open_gates, cache, make_samples, picture
):
    """With media enough for the threads to race: the gradient of plain indexing is summed in no fixed order."""
    model = open_gates(make_model(tokens=tokens))
    samples = [replace(sample, images=(picture(seed, (1024, 1024)),)) for seed, sample in enumerate(make_samples(8))]
    batch = batch_of(model, cache, encode(model, cache, samples, "encoding"))
    runs = []
    for _ in range(4):
        learnt_loss(model, model, batch)[0].backward()
        runs.append(gradients(model))
    for name, gradient in runs[0].items():
        assert all(gradient.equal(run[name]) for run in runs[1:]), name


def test_images_that_rows_share_at_other_places_teach_what_they_teach_alone(
    make_model, tokens, open_gates, cache, make_samples
):
    """Under attend="all", where their embeddings are others in each row."""
    model = open_gates(make_model(attend="all", tokens=tokens))
    one, two, three = make_samples(3)
    shown = [one.images + two.images, two.images + one.images, one.images + one.images]
    rows = [replace(row, images=images) for row, images in zip((one, two, three), shown, strict=True)]
    chosen = encode(model, cache, rows, "encoding")
    learnt_loss(model, model, batch_of(model, cache, chosen, Below(model)))[0].backward()
    together = gradients(model)
    for entry in chosen:
        learnt_loss(model, model, batch_of(model, cache, [entry]))[0].backward()
    alone = gradients(model)
    assert alone["adapter.images"][0].any() and not alone["adapter.images"][1:].any(), "no row has a third"
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_gradient_is_in_the_adapter_alone(model, batches):
    loss, _ = learnt_loss(model, model, batches[0])
    loss.backward()
    moved = {name for name, gradient in gradients(model).items() if gradient.any()}
    assert moved and all(name.startswith("adapter.") for name in moved)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("adapter.")}
    rows_and_columns = {"adapter.media.row", "adapter.media.column"}
    assert trained - moved <= rows_and_columns, "the tiny images have one tile; all else is trained"


def test_a_blind_model_learns_nothing_but_its_gates(make_model, tokens, cache, make_samples):
    """Born exact: behind shut gates only the gates have a gradient."""
    model = make_model(tokens=tokens)
    data = encode(model, cache, make_samples(2), "encoding")
    loss, _ = learnt_loss(model, model, batch_of(model, cache, data))
    loss.backward()
    moved = {name for name, gradient in gradients(model).items() if gradient.any()}
    assert moved == {name for name, _ in model.named_parameters() if name.endswith("_gate")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 2 * ROWS, 2 * ROWS + 3])
def test_cross_entropy_is_torchs_own(rows, dtype):
    """And its gradient, as finely as the logits' dtype has it."""
    logits = (5 * torch.randn(rows, 40)).to(dtype).requires_grad_()
    wanted = torch.randint(40, (rows,))
    found, plain = CrossEntropy.apply(logits, wanted), cross_entropy(logits.double(), wanted, reduction="sum")
    torch.testing.assert_close(found.double(), plain, rtol=1e-5, atol=1e-6)
    grads = (torch.autograd.grad(3 * loss, logits)[0] for loss in (found, plain))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_in_place_of_the_logits_it_is_the_same(dtype):
    """But for fp16, whose gradient takes more bits than they have."""
    leaf, wanted = (5 * torch.randn(ROWS + 3, 40)).to(dtype).requires_grad_(), torch.randint(40, (ROWS + 3,))
    grads = []
    for spent in (False, True):
        logits = 2 * leaf
        before = logits.clone()
        loss = CrossEntropy.apply(logits, wanted, spent)
        assert torch.equal(logits, before) == (not spent or dtype == torch.float16)
        grads.append(torch.autograd.grad(loss, leaf)[0])
    assert torch.equal(*grads)


def test_a_decoders_logits_are_given_up_for_their_gradient(model, batches):
    made = []
    model.decoder.get_output_embeddings().register_forward_hook(lambda _, __, logits: made.append(logits))
    loss, _ = learnt_loss(model, model, batches[0])
    assert loss.grad_fn.back.data_ptr() == made[0].data_ptr()


def test_logits_that_backward_needs_are_not_given_up():
    x, weight = torch.randn(1, 5, 8, requires_grad=True), torch.randn(40, 8)
    logits = torch.nn.functional.linear(x, weight)
    assert spendable(logits.squeeze(0)) and spendable((30 * torch.tanh(logits / 30)).squeeze(0))
    assert not spendable(torch.tanh(logits).squeeze(0)) and not spendable(torch.log_softmax(logits[0], -1))
    assert not spendable(x.squeeze(0)) and not spendable(logits.detach())
    CrossEntropy.apply(torch.tanh(logits[0]), torch.arange(5), False).backward()
    assert x.grad.any()


def test_a_gradient_is_given_once():
    logits = torch.randn(3, 40, requires_grad=True)
    loss = CrossEntropy.apply(logits, torch.tensor([1, 2, 3]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()


def test_small_gradients_are_not_lost_in_fp16():
    logits = (4 * torch.randn(8, 2000)).half().requires_grad_()
    wanted = torch.randint(2000, (8,))
    plain = cross_entropy(logits.float(), wanted, reduction="sum")
    found, exact = (
        torch.autograd.grad(2.0**12 * loss, logits)[0] for loss in (CrossEntropy.apply(logits, wanted), plain)
    )
    torch.testing.assert_close(found, exact)


def test_nothing_as_wide_as_the_vocabulary_is_made_twice():
    """What goes back takes the logits' bytes, and of the rest no more is there at a time than a few rows."""
    logits, wanted = torch.randn(4 * ROWS, 512).bfloat16().requires_grad_(), torch.randint(512, (4 * ROWS,))
    with torch.profiler.profile(profile_memory=True) as seen:
        loss = CrossEntropy.apply(logits, wanted)
    assert loss.grad_fn is not None
    held = sum(event.self_cpu_memory_usage for event in seen.key_averages())
    assert held < 1.1 * logits.nbytes
