"""What users of transformers, PEFT and TRL do with any model, done with this one."""

import copy
import io
import math

import pytest
import timm
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from timm.models import save_for_hf
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
    PreTrainedModel,
    ProcessorMixin,
    Trainer,
    TrainingArguments,
    pipeline,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from mmlm.config import AdapterConfig
from mmlm.model import MultimodalLM
from mmlm.processor import Processor

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}  # of every trainer's arguments
TRL = QUIET | {"bf16": False, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no"}
TRL |= {"per_device_train_batch_size": 2, "max_length": None}
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.fixture
def model(make_model, open_gates):
    return open_gates(make_model())


@pytest.fixture
def run(tiny_decoder, tokenizer, open_gates, tmp_path):
    """A saved adapter whose parts have names."""
    eyes = tmp_path / "eyes"
    save_for_hf(timm.create_model("test_efficientnet"), eyes)
    tiny_decoder().save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    model = open_gates(MultimodalLM.from_parts(decoder=tmp_path / "decoder", vision=eyes, layers=[1, 3]))
    model.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def chat_about(image, words="What is it?"):
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": words}]}]


def test_it_is_what_transformers_calls_a_model(model):
    assert isinstance(model, PreTrainedModel) and isinstance(model, GenerationMixin)
    assert isinstance(model.processor, ProcessorMixin)
    assert model.can_generate() and model.generation_config is model.decoder.generation_config
    assert model.get_input_embeddings() is model.decoder.get_input_embeddings()
    assert model.get_output_embeddings() is model.decoder.get_output_embeddings()
    assert model.config.get_text_config() is model.decoder.config
    assert model.dtype == model.decoder.dtype == torch.float32


def test_generate_takes_ids_in_all_of_transformers_ways(model):
    batch = model.processor(None, "What is it?")
    want = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(batch["input_ids"], **GREEDY), want)
    assert torch.equal(model.generate(inputs=batch["input_ids"], **GREEDY), want)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    said = model.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], **GREEDY)
    assert torch.equal(said, want[:, batch["input_ids"].shape[1] :])


def test_the_vocabulary_is_frozen_too(model, tokenizer):
    assert model.resize_token_embeddings(len(tokenizer)) is model.get_input_embeddings()
    with pytest.raises(ValueError, match=r"resize_token_embeddings\(300\): the decoder is frozen"):
        model.resize_token_embeddings(300)


def test_it_is_copied_and_pickled_with_its_eyes(model, picture):
    batch = model.processor(picture(1), "What is<image> it?")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        logits = model(**batch).logits
        for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert torch.equal(other(**batch).logits, logits)
            other.adapter.blocks[0].ff_gate.fill_(0.1)
            assert not torch.equal(other(**batch).logits, logits)
        assert torch.equal(model(**batch).logits, logits)


def test_the_auto_classes_know_it(run, picture):
    config = AutoConfig.from_pretrained(run)
    assert isinstance(config, AdapterConfig) and config.layers == [1, 3]
    processor = AutoProcessor.from_pretrained(run)
    assert isinstance(processor, Processor)
    one = AutoModelForImageTextToText.from_pretrained(run)
    other = AutoModelForCausalLM.from_pretrained(run, dtype=torch.bfloat16, attn_implementation="eager")
    assert isinstance(one, MultimodalLM) and isinstance(other, MultimodalLM)
    assert other.dtype == torch.bfloat16 and other.decoder.config._attn_implementation == "eager"
    batch = processor(picture(1), "What?")
    with torch.no_grad():
        assert torch.equal(one(**batch).logits, MultimodalLM.from_pretrained(run)(**batch).logits)


def test_settings_of_a_given_config_are_taken_and_shapes_are_not(run, picture):
    config = AutoConfig.from_pretrained(run)
    config.detail, config.system = "low", "Be brief."
    for cls in (MultimodalLM, AutoModelForImageTextToText):
        model = cls.from_pretrained(run, config=config)
        assert model.processor.detail == "low" and model.messages("What?")[0]["content"] == "Be brief."
    config.layers = [0, 2]
    with pytest.raises(ValueError, match=r"config= has layers=\[0, 2\], but its weights were saved with \[1, 3\]"):
        MultimodalLM.from_pretrained(run, config=config)
    config.layers, config.attend = [1, 3], "all"
    with pytest.raises(ValueError, match="config= has attend='all', but its weights were saved with 'latest'"):
        MultimodalLM.from_pretrained(run, config=config)


def test_a_processor_is_saved_and_loaded(run, model, picture):
    model.processor.save_pretrained(run)
    again = AutoProcessor.from_pretrained(run)
    for name, value in model.processor(picture(1), "What is<image> it?").items():
        other = again(picture(1), "What is<image> it?")[name]
        for one, two in zip(value, other, strict=True) if isinstance(value, tuple) else [(value, other)]:
            assert torch.equal(one, two)


def test_pipeline_says_what_ask_says(run, picture, tmp_path):
    pipe = pipeline("image-text-to-text", model=str(run))
    image = picture(1)
    image.save(tmp_path / "image.png")
    model = pipe.model
    want = model.generate([image], model.messages("What is it?"), **GREEDY)
    for shown in ({"image": image}, {"path": str(tmp_path / "image.png")}, {"url": str(tmp_path / "image.png")}):
        chat = chat_about(image)
        chat[0]["content"][0] = {"type": "image", **shown}
        [said] = pipe(text=chat, return_full_text=False, generate_kwargs=GREEDY)
        assert said["generated_text"].strip() == want
    [said] = pipe(images=image, text="<image>What?", return_full_text=False, generate_kwargs=GREEDY)
    assert said["generated_text"].strip() == model.generate(image, "<image>What?", **GREEDY)
    several = pipe(text=[chat_about(image), chat_about(picture(2))], return_full_text=False, generate_kwargs=GREEDY)
    assert several[0][0]["generated_text"].strip() == want
    assert several[1][0]["generated_text"].strip() == model.ask(picture(2), "What is it?", **GREEDY)
    [whole] = pipe(text=chat_about(image), generate_kwargs=GREEDY)
    assert whole["generated_text"][-1]["role"] == "assistant"


def test_a_chat_without_a_system_message_gets_the_adapters(run, picture):
    config = AutoConfig.from_pretrained(run)
    config.system = "Be brief."
    model = MultimodalLM.from_pretrained(run, config=config)
    asked, own = chat_about(picture(1)), [{"role": "system", "content": ""}]
    want = model.processor(picture(1), model.messages("What is it?"))["input_ids"]
    assert torch.equal(model.processor(None, asked)["input_ids"], want)
    assert model.processor.apply_chat_template(asked).startswith("<|start|>system\nBe brief.<|end|>\n<|start|>user\n")
    assert model.processor.apply_chat_template(own + asked).startswith("<|start|>system\n<|end|>\n<|start|>user\n")
    model.save_pretrained(run)
    [said] = pipeline("image-text-to-text", model=str(run))(text=asked, return_full_text=False, generate_kwargs=GREEDY)
    assert said["generated_text"].strip() == model.ask(picture(1), "What is it?", **GREEDY)


def test_pipeline_tells_what_is_written(run, picture):
    pipe = pipeline("image-text-to-text", model=str(run))
    plain = pipe.model.ask(picture(1), "What is it?", **GREEDY)
    for processor in (pipe.processor, pipe.model.processor):
        processor.ocr = lambda image: [("a word", (0, 0, *image.size))]
    want = pipe.model.ask(picture(1), "What is it?", **GREEDY)
    [said] = pipe(text=chat_about(picture(1)), return_full_text=False, generate_kwargs=GREEDY)
    assert said["generated_text"].strip() == want != plain


def test_chat_templates_are_those_of_the_decoder(model, picture):
    chats = [chat_about(picture(1)), [{"role": "user", "content": "Hello"}]]
    text = model.processor.apply_chat_template(chats[0], add_generation_prompt=True)
    assert text == "<|start|>user\n<image>What is it?<|end|>\n<|start|>assistant\n"
    batch = model.processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs={"padding_side": "right"}
    )
    want = model.processor([[picture(1)], []], chats, padding_side="right")
    assert batch.keys() == want.keys() and torch.equal(batch["input_ids"], want["input_ids"])
    assert torch.equal(batch["media_index"], want["media_index"])
    assert model.processor.batch_decode(batch["input_ids"])[0].startswith("<|start|>user\nWhat is it?")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"return_tensors": "np"}, "return_tensors='np'"),
        ({"truncation": True, "max_length": 4}, "max_length=4: a text has 11 tokens"),
        ({"padding": "max_length"}, "padding='max_length'"),
    ],
)
def test_what_the_processor_does_not_do_it_refuses(kwargs, words, model):
    with pytest.raises(ValueError, match=words):
        model.processor(None, "What is it?", **kwargs)


def test_an_image_part_without_an_image_is_refused(model):
    with pytest.raises(ValueError, match="1 <image> mark but 0 images"):
        model.processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=True)


def test_a_chats_own_images_are_shown(model, picture):
    chat = chat_about(picture(1))
    want = model.generate([picture(1)], model.messages("What is it?"), **GREEDY)
    assert model.generate(prompt=chat, **GREEDY) == want == "".join(model.stream(prompt=chat, **GREEDY)).strip()
    assert model.generate(prompt=[chat, "blind"], **GREEDY)[0] == want


def test_guidance_is_refused(model, picture):
    with pytest.raises(ValueError, match="guidance_scale"):
        model.generate(picture(1), "What?", guidance_scale=2.0)


def test_what_is_spread_over_devices_stays_there(model):
    model.hf_device_map = {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(ValueError, match="device_map has put the decoder"):
        model.to("cpu")


class Pairs(torch.utils.data.Dataset):
    """Few enough to be learnt by heart."""

    def __init__(self, model, picture, count=4):
        self.rows = [
            model.processor(picture(i), f"<image>What? {'abcd'[i]}", padding_side="right") for i in range(count)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


def collate(rows):
    [row] = rows
    labels = row["input_ids"].clone()
    labels[:, 0] = -100  # which nothing foretells, and Trainer would count
    return {**row, "labels": labels}


def bytes_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_trains_saves_and_resumes(
    checkpointing, make_model, picture, tokenizer, tiny_vision, tiny_decoder, tmp_path
):
    def trainer(model, steps):
        how = TrainingArguments(
            output_dir=str(tmp_path / "runs"),
            max_steps=steps,
            save_steps=3,
            per_device_train_batch_size=1,
            learning_rate=1e-2,
            activation_checkpointing=checkpointing,
            logging_steps=100,
            **QUIET,
        )
        return Trainer(model=model, args=how, train_dataset=Pairs(model, picture), data_collator=collate)

    model = make_model()
    frozen = bytes_of(model.decoder)
    trainer(model, 6).train()
    assert same(bytes_of(model.decoder), frozen) and not model.decoder.training
    assert any(gate != 0 for gate in model.adapter.gates().values())
    saved = tmp_path / "runs" / "checkpoint-6"
    assert load_file(saved / "model.safetensors").keys() == model.saved().keys()
    again = MultimodalLM.from_pretrained(saved, decoder=tiny_decoder(), tokenizer=tokenizer, vision=tiny_vision)
    assert same(bytes_of(again.adapter), bytes_of(model.adapter))
    resumed = make_model()
    trainer(resumed, 6).train(resume_from_checkpoint=str(tmp_path / "runs" / "checkpoint-3"))
    assert same(bytes_of(resumed.adapter), bytes_of(model.adapter))


def test_trainer_evaluates(model, picture, tmp_path):
    how = TrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=1, **QUIET)
    trainer = Trainer(model=model, args=how, eval_dataset=Pairs(model, picture), data_collator=collate)
    with torch.no_grad():
        losses = [model(**collate([row])).loss.item() for row in Pairs(model, picture)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_peft_wraps_it(make_model, open_gates, picture, tmp_path):
    model = open_gates(make_model())
    batch = model.processor(picture(1), "What is<image> it?", padding_side="right")
    with torch.no_grad():
        before = model(**batch).logits
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        assert torch.allclose(tuned(**batch).logits, before, atol=1e-5)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        tuned(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        after = tuned(**batch).logits
        said = tuned.generate(**batch, **GREEDY)
    assert not torch.allclose(after, before, atol=1e-2)
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(open_gates(make_model()), tmp_path)
    with torch.no_grad():
        assert torch.allclose(again(**batch).logits, after, atol=1e-5)
        merged = again.merge_and_unload()
        assert isinstance(merged, MultimodalLM)
        assert torch.allclose(merged(**batch).logits, after, atol=1e-3)
        assert torch.equal(merged.generate(**batch, **GREEDY), said)


def test_peft_trains_the_adapter_too_if_asked(make_model, picture, tmp_path):
    settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["adapter"])
    tuned = get_peft_model(make_model(), settings)
    batch = tuned.get_base_model().processor(picture(1), "What is<image> it?", padding_side="right")
    tuned(**batch, labels=batch["input_ids"]).loss.backward()
    with pytest.raises(ValueError, match="save the PeftModel"):
        tuned.get_base_model().save_pretrained(tmp_path)
    learnt = {name for name, p in tuned.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("lora_B" in name for name in learnt) and any("attention_gate" in name for name in learnt)


def test_peft_in_the_adapters_own_blocks_counts_without_gradients_too(model, picture):
    """Where blocks are folded, which is of their weights alone."""
    batch = model.processor(picture(1), "What is<image> it?")
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        before = tuned(**batch).logits
        for name, weight in tuned.named_parameters():
            if "adapter.blocks" in name and "lora_B" in name:
                weight.fill_(0.3)
        after = tuned(**batch).logits
    assert not torch.allclose(after, before, atol=0.1)
    torch.testing.assert_close(after, tuned(**batch).logits.detach(), atol=1e-3, rtol=1e-3)


def trained(trainer):
    """The losses of the steps."""
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("lora", [False, True])
def test_trl_fine_tunes_it(lora, make_model, picture, tmp_path):
    model = make_model()
    frozen = bytes_of(model.decoder)
    rows = [
        {
            "images": [picture(i)],
            "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "abcd"[i]}],
        }
        for i in range(4)
    ]
    how = SFTConfig(
        output_dir=str(tmp_path), max_steps=4, router_aux_loss_coef=0.0, activation_checkpointing=False, **TRL
    )
    peft = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]) if lora else None
    trainer = SFTTrainer(
        model=model, args=how, train_dataset=Dataset.from_list(rows), processing_class=model.processor, peft_config=peft
    )
    losses = trained(trainer)
    assert len(losses) == 4 and losses[-1] < losses[0]
    if not lora:
        assert same(bytes_of(model.decoder), frozen)
        assert any(gate != 0 for gate in model.adapter.gates().values())


def test_trl_prefers_with_a_reference_model_of_its_own(run, picture, tmp_path):
    said = {name: [{"role": "assistant", "content": name[0]}] for name in ("chosen", "rejected")}
    rows = [{"images": [picture(i)], "prompt": [{"role": "user", "content": "What?"}], **said} for i in range(2)]
    how = DPOConfig(output_dir=str(tmp_path / "dpo"), max_steps=2, **TRL)
    model = MultimodalLM.from_pretrained(run)
    trainer = DPOTrainer(model=model, args=how, train_dataset=Dataset.from_list(rows), processing_class=model.processor)
    assert isinstance(trainer.ref_model, MultimodalLM)
    losses = trained(trainer)
    assert losses[0] == pytest.approx(math.log(2), abs=0.02) and losses[-1] < losses[0]
