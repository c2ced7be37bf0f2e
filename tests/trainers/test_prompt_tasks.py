"""Prompts in training: every kind of task, their rates, how long a sequence may be, and in plain peft."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from transformers import T5ForConditionalGeneration

from autopeft.errors import ConfigurationError, SpecError
from autopeft.spaces.canonical import configuration as canonical
from autopeft.spaces.configuration import FieldValue
from autopeft.trainers.batches import Batch
from autopeft.trainers.checkpoint import check_length
from autopeft.trainers.inject import build, inject
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainJob
from autopeft.trainers.model import load_model
from autopeft.trainers.optimizers import make_optimizer, own_rates, own_ratios
from autopeft.trainers.peft_folder import expected_info, fits_folder, write_folder
from autopeft.trainers.peft_format import check_exportable, save_peft
from autopeft.trainers.peft_prompts import check_kind
from autopeft.trainers.regularizers import DENSE_ABOVE, DensityMeter, feed_forwards
from autopeft.trainers.saved import load_adapter
from autopeft.trainers.sites import measure
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.models import WORDS, build_base, save_model, tokenizer
from tests.trainers import support
from tests.trainers.adapters.test_prompts import LENGTH, T5, dept, disturb, prompt, tokens
from tests.trainers.test_data import write
from tests.trainers.test_kinds import CONFIGS, choice_task, lines, sequence_task, tagged, words_task


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "multitask_prompt_tuning"])
def test_a_trained_prompt_loads_in_plain_peft(method: str, tmp_path: Path) -> None:
    trainer = support.trainer(tmp_path, support.classification(tmp_path))
    own = tmp_path / "own"
    (report,) = trainer.run(TrainJob(configurations=(prompt(method),), seeds=(1,), epochs=1, output_dirs=(own,)))
    assert report.failure is None
    write_folder(own, tmp_path / "peft")
    base = load_model(ModelSpec(name=trainer.loaded.spec.name), kind="text-classification", n_labels=2).model
    plain, ids = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval(), tokens()
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        wanted = load_adapter(own)[0](input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(plain(input_ids=ids, attention_mask=mask).logits, wanted, atol=1e-5, rtol=1e-4)


PLAIN_PEFT = """
import json, sys
import torch, transformers
from peft import PeftModel
found = []
for auto, base, folder, options, inputs in json.loads(sys.argv[1]):
    model = getattr(transformers, auto).from_pretrained(base, **options)
    model = PeftModel.from_pretrained(model, folder).eval()
    logits = model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
    found.append([model.active_peft_config.peft_type.value, logits.tolist()])
print(json.dumps(found))
assert not any(name.startswith("autopeft") for name in sys.modules)
"""
EXPORTED = {
    "causal-lm": ("AutoModelForCausalLM", "gpt2", "p_tuning", {"encoder": "lstm", "width": 6}),
    "seq2seq": ("AutoModelForSeq2SeqLM", "t5", "prompt_tuning", {}),
    "text-classification": ("AutoModelForSequenceClassification", "llama", "adaption_prompt", {}),
    "token-classification": ("AutoModelForTokenClassification", "roberta", "multitask_prompt_tuning", {"ranks": 2}),
}


COMES_TO = {"multitask_prompt_tuning": "PROMPT_TUNING"}


def test_points_of_every_kind_of_task_load_in_plain_peft_with_equal_logits(tmp_path: Path) -> None:
    calls, wanted = [], []
    for kind, (auto, name, method, fields) in EXPORTED.items():
        where = tmp_path / kind
        if name == "t5":
            torch.manual_seed(0)
            T5ForConditionalGeneration(T5).save_pretrained(where / "base")
            tokenizer().save_pretrained(where / "base")
        else:
            save_model(name, where / "base", language_model=kind == "causal-lm")
        labels = 3 if "classification" in kind else None
        loaded = load_model(ModelSpec(name=str(where / "base")), kind=kind, n_labels=labels)
        ids = tokens(2, 6)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs |= {"decoder_input_ids": ids[:, :3]} if name == "t5" else {}
        layers = (1, 2) if method == "adaption_prompt" else (0,)
        config = configuration(setting(method, layers, length=LENGTH, **fields))
        with inject(loaded.model, loaded.shape, config, seed=0) as adapters, torch.no_grad():
            disturb(adapters)
            wanted.append([COMES_TO.get(method, method.upper()), loaded.model(**inputs).logits])
            save_peft(where / "peft", adapters, loaded=loaded)
        options = {"num_labels": labels} if labels else {}
        plain = {name: value.tolist() for name, value in inputs.items()}
        calls.append((auto, str(where / "base"), str(where / "peft"), options, plain))
    command = [sys.executable, "-c", PLAIN_PEFT, json.dumps(calls)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for kind, theirs, ours in zip(EXPORTED, found, wanted, strict=True):
        assert theirs[0] == ours[0], kind
        logits = torch.tensor(theirs[1])
        logits = logits[:, -ours[1].shape[1] :] if logits.dim() == 3 else logits
        torch.testing.assert_close(logits, ours[1], atol=1e-5, rtol=1e-4, msg=kind)


def test_what_peft_has_no_prompts_for_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"prompt_tuning: peft has no model with virtual tokens for multiple-"):
        check_kind(prompt(), kind="multiple-choice")
    with pytest.raises(ConfigurationError, match=r"one bridged or one prompt, this configuration has dept"):
        check_exportable(dept())


@pytest.mark.parametrize(
    ("name", "layers", "lengths", "message"),
    [
        ("bert", (1, 2), [4, 4], r"adaption_prompt: peft has it for llama and mistral, this is a bert model"),
        ("llama", (0, 2), [4, 4], r"adaption_prompt: peft puts it on the last layers, it is on 0, 2 of 3"),
        ("llama", (1, 2), [4, 5], r"adaption_prompt: length: differs by layer, the PEFT format holds one for all"),
    ],
)
def test_gated_rows_that_peft_has_no_place_for_are_refused(
    name: str, layers: tuple[int, ...], lengths: list[FieldValue], message: str, tmp_path: Path
) -> None:
    loaded = load_model(ModelSpec(name=str(save_model(name, tmp_path))), kind="text-classification", n_labels=2)
    config = configuration(setting("adaption_prompt", layers, length=lengths))
    refused = pytest.raises(ConfigurationError, match=message)
    with inject(loaded.model, loaded.shape, config, seed=0) as adapters, refused:
        save_peft(tmp_path / "peft", adapters, loaded=loaded)
    assert not fits_folder(expected_info(loaded.spec, loaded.shape, config, kind="text-classification"))


def test_more_positions_than_the_model_has_are_refused(tmp_path: Path) -> None:
    save_model("bert", tmp_path)
    spec = ModelSpec(name=str(tmp_path))
    check_length(spec, 60, virtual=4)
    with pytest.raises(SpecError, match=r"got 60 and 5 virtual tokens; .* at most 64 tokens .*max_length to 59"):
        check_length(spec, 60, virtual=5)
    with pytest.raises(SpecError, match="use fewer virtual tokens"):
        check_length(spec, 60, virtual=70)


@pytest.mark.parametrize(("name", "most"), [("roberta", 63), ("mpnet", 62), ("gpt2", 64)])
def test_the_longest_sequence_that_is_allowed_can_be_read(name: str, most: int, tmp_path: Path) -> None:
    save_model(name, tmp_path)
    spec, base = ModelSpec(name=str(tmp_path)), build_base(name)
    check_length(spec, most - LENGTH, virtual=LENGTH)
    with pytest.raises(SpecError, match=f"takes at most {most} tokens"):
        check_length(spec, most, virtual=LENGTH)
    ids, longer = tokens(1, most - LENGTH), tokens(1, most - LENGTH + 1)
    with inject(base, measure(base, base.config), prompt(), seed=0), torch.no_grad():
        assert base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.isfinite().all()
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
            base(input_ids=longer, attention_mask=torch.ones_like(longer))


def test_the_density_of_activations_leaves_padding_and_virtual_tokens_out(tmp_path: Path) -> None:
    trainer = support.trainer(tmp_path, support.classification(tmp_path))
    loaded, ids = trainer.loaded, tokens(2, 6)
    mask = np.ones((2, 6), dtype=bool)
    mask[1, 4:] = False
    batch = Batch(ids_BT=ids.numpy(), mask_BT=mask.astype(np.int64), types_BT=None, targets=np.zeros(2), tokens=10)
    meter = DensityMeter(loaded, virtual=LENGTH)
    seen: list[torch.Tensor] = []
    with inject(loaded.model, loaded.shape, prompt(), seed=0), torch.no_grad():
        downs = [down for part in feed_forwards(loaded) for down in part]
        handles = [down.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for down in downs]
        with meter.watch(batch):
            loaded.model(input_ids=ids, attention_mask=torch.from_numpy(mask).long())
        for handle in handles:
            handle.remove()
    real = torch.cat([values[:, LENGTH:][torch.from_numpy(mask)] for values in seen])
    assert meter.values()["activation_density"] == pytest.approx((real.abs() > DENSE_ABOVE).float().mean().item())


def kinds(folder: Path) -> dict[str, tuple[str, TaskSpec]]:
    """A model with a small task, by the kind of task and the model."""
    choices = [
        {"question": "ba", "choices": [word, word[::-1]], "answer": index % 2} for index, word in enumerate(WORDS[:24])
    ]
    file = lines(folder / "choices.jsonl", choices)
    data = DataSpec(train=file, validation=file, test=file)
    tags = write(folder / "tags.csv", [(" ".join(words), " ".join(found)) for words, found in tagged(24)])
    return {
        "text-classification": ("gpt2", support.classification(folder, n=24)),
        "token-classification": ("bert", words_task(tags, metric="accuracy", extra_metrics=())),
        "multiple-choice": ("roberta", choice_task(file, data=data)),
        "causal-lm": ("llama", support.language(folder)),
        "seq2seq": ("bart", sequence_task(folder)),
    }


def trainer_of(kind: str, folder: Path) -> Trainer:
    """A trainer on the model and task of `kinds`."""
    name, task = kinds(folder)[kind]
    where = folder / name
    if name == "bart":
        transformers.AutoModelForSeq2SeqLM.from_config(CONFIGS["bart"]).save_pretrained(where)
        tokenizer().save_pretrained(where)
    else:
        save_model(name, where, language_model=kind == "causal-lm")
    return Trainer(ModelSpec(name=str(where)), task, support.SETTINGS, device="cpu", cache=folder / "cache")


@pytest.mark.parametrize(
    "kind", ["causal-lm", "multiple-choice", "seq2seq", "text-classification", "token-classification"]
)
def test_every_kind_of_task_trains_with_prompts_beside_other_methods(kind: str, tmp_path: Path) -> None:
    trainer = trainer_of(kind, tmp_path)
    sites = trainer.shape.layers[0]
    lora = setting("lora", (0,), rank=2, targets=(sites[0].name,))
    beside = configuration(lora, *dept().methods, *prompt("p_tuning", width=4).methods)
    out = tmp_path / "best"
    (report,) = trainer.run(TrainJob(configurations=(beside,), seeds=(1,), epochs=1, output_dirs=(out,)))
    assert report.failure is None
    assert report.measurement is not None
    found = trainer.evaluate(out, "test")
    assert np.isfinite(list(found.values())).all()


def test_the_prompt_of_dept_has_a_rate_of_its_own_beside_that_of_the_pair() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = canonical({"dept": {"rank": 3, "learning_rate": 5e-4, "prompt_ratio": 600}}, shape)
    adapters = build(shape, config, seed=0)
    rows = list(adapters.named_parameters())
    names = {id(parameter): name for name, parameter in rows}
    made = make_optimizer(rows, support.SETTINGS, rates=own_rates(config), ratios=own_ratios(config))
    rates = {names[id(one)]: group["lr"] for group in made.param_groups for one in group["params"]}
    assert rates == {
        "dept.0.encoder.embedding.weight": pytest.approx(0.3),
        "dept.0.by_position": 5e-4,
        "dept.0.by_width": 5e-4,
    }
    assert own_ratios(prompt()) == {}
