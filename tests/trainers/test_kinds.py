"""Every kind of task, learned by a tiny model on data made here."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from transformers import BartConfig, BlenderbotConfig, M2M100Config, PretrainedConfig, T5Config

from autopeft.errors import DataError, ModelError, SpecError
from autopeft.spaces.configuration import Configuration
from autopeft.trainers.batches import collate
from autopeft.trainers.inject import inject
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainJob
from autopeft.trainers.kinds import KINDS
from autopeft.trainers.model import decoder_inputs, load_model
from autopeft.trainers.task import TASKS, check_task, load_task, resolve_task
from autopeft.trainers.tokens import tokenize
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.models import HIDDEN, MODELS, VOCABULARY_SIZE, WORDS, save_model, tokenizer
from tests.trainers import support
from tests.trainers.test_data import write
from tests.trainers.test_sources import fake_datasets

LORA = configuration(setting("lora", (0, 1, 2), rank=8, targets=MODELS["bert"].query_value, alpha=16.0))
TAGGER = replace(LORA, training=(("learning_rate", 3e-2),))
CHANCE = random.Random(7)


def test_every_kind_can_be_loaded_and_learned() -> None:
    assert set(KINDS) == set(TASKS)


def lines(file: Path, rows: Sequence[dict[str, object]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def train(trainer: Trainer, config: Configuration, *, epochs: int = 6, out: Path | None = None) -> dict[str, float]:
    job = TrainJob(configurations=(config,), seeds=(1,), epochs=epochs, output_dirs=(out,), evaluate_test=True)
    *_, last = trainer.run(job)
    assert last.measurement is not None, last.failure
    return {f"test_{name}": value for name, value in last.test_metrics.items()} | dict(last.measurement.metrics)


def tag(word: str) -> str:
    return ("O", "O", "B-X", "B-Y")[WORDS.index(word) % 4]


def tagged(n: int) -> list[tuple[list[str], list[str]]]:
    rows = [CHANCE.choices(WORDS, k=CHANCE.randint(3, 8)) for _ in range(n)]
    return [(row, [tag(word) for word in row]) for row in rows]


def words_task(train_file: str, **changes: object) -> TaskSpec:
    spec = TaskSpec(
        kind="token-classification",
        data=DataSpec(train=train_file),
        text=("text",),
        label="label",
        metric="micro_f1",
        extra_metrics=("accuracy", "f1"),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]  # fields by name


def test_words_are_tagged(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", [(" ".join(words), " ".join(tags)) for words, tags in tagged(300)])
    trainer = support.trainer(tmp_path, words_task(file))
    found = train(trainer, TAGGER, epochs=12, out=tmp_path / "best")
    assert trainer.splits.classes == ("O", "B-X", "B-Y")
    assert found["micro_f1"] > 0.9
    assert found["accuracy"] > 0.9 < found["test_accuracy"]
    again = trainer.evaluate(tmp_path / "best", "validation")
    assert again["micro_f1"] == pytest.approx(found["micro_f1"])


def test_lists_and_texts_of_words_mean_the_same(tmp_path: Path) -> None:
    rows = tagged(40)
    listed = lines(tmp_path / "t.jsonl", [{"text": words, "label": tags} for words, tags in rows])
    plain = write(tmp_path / "t.csv", [(" ".join(words), " ".join(tags)) for words, tags in rows])
    _, one = load_task(words_task(listed), seed=0)
    _, other = load_task(words_task(plain), seed=0)
    assert one.train.texts == other.train.texts
    assert one.train.labels == other.train.labels
    summary = check_task(words_task(listed))
    assert set(summary.classes) == {"O", "B-X", "B-Y"}
    assert sum(summary.classes.values()) == sum(len(label.split()) for label in one.train.labels)


def test_a_word_counts_once_however_many_tokens_it_has() -> None:
    (task,) = TASKS["token-classification"]
    (row,) = task.encode(tokenizer(), [("baran-cesel\x1efovor\x1e,,",)], 20)
    assert tokenizer().convert_ids_to_tokens(list(row.ids)) == [
        *("[CLS]", "baran", "[UNK]", "cesel", "fovor", "[UNK]", "[SEP]")
    ]
    assert row.words == [-1, 0, -1, -1, 1, 2, -1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a b", "O")], r"t\.csv row 1: 2 words \('text'\) and 1 tags \('label'\).*every word one tag"),
        ([("a", "O"), ("b", "O")], r"every row has the label 'O'; two classes are needed"),
        ([("a", "X"), ("b", "Y")], r"micro_f1 leaves the tag 'O' out, which column 'label' does not have"),
    ],
)
def test_tags_that_cannot_be_used_are_refused(rows: list[tuple[str, str]], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", rows * 10)
    with pytest.raises(DataError, match=message):
        load_task(words_task(file, data=DataSpec(train=file, validation=file, test=file)), seed=0)


def test_the_tag_of_no_part_is_class_zero_whatever_the_data_set_calls_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tags:
        feature = datasets.ClassLabel(names=["B-X", "B-Y", "O"])

    class Rows:
        column_names = ("text", "label")
        features = {"text": object(), "label": Tags()}

        def __getitem__(self, column: str) -> list[list[object]]:
            return [["a", "b", "c"]] * 9 if column == "text" else [[2, 0, 1]] * 9

    fake_datasets(monkeypatch, {"train": Rows(), "validation": Rows(), "test": Rows()})
    _, splits = load_task(words_task("", data=DataSpec(hub="x")), seed=0)
    assert splits.classes == ("O", "B-X", "B-Y")


def test_a_single_word_and_its_tag_need_no_list(tmp_path: Path) -> None:
    rows = [{"text": word, "label": index % 2} for index, word in enumerate(WORDS[:20])]
    _, splits = load_task(words_task(lines(tmp_path / "t.jsonl", rows), metric="f1", extra_metrics=()), seed=0)
    assert splits.classes == ("0", "1")


def test_an_empty_part_of_a_list_is_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "t.jsonl", [{"text": ["a", " "], "label": ["O", "X"]}])
    with pytest.raises(DataError, match=r"row 1: a part of 'text' is empty"):
        load_task(words_task(file), seed=0)


def test_a_dict_for_words_is_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "t.jsonl", [{"text": {"a": 1}, "label": ["O"]}])
    with pytest.raises(DataError, match=r"row 1: column 'text' holds a dict; words are needed"):
        load_task(words_task(file), seed=0)


def test_a_tokenizer_without_places_is_refused() -> None:
    (task,) = TASKS["token-classification"]

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"Slow: token-classification needs a tokenizer that knows where"):
        task.encode(Slow(), [("a",)], 8)  # type: ignore[arg-type]  # asked for one thing only


def test_the_tokens_of_words_and_parts_come_back_from_the_cache(tmp_path: Path) -> None:
    texts = {
        "token-classification": [("baran\x1ecesel,fovor",), ("hazum",)],
        "multiple-choice": [("baran", "cesel", "fovor hazum"), ("cesel", "baran", "kevor")],
        "seq2seq": [("baran cesel", "fovor"), ("hazum", "kevor baran")],
    }
    for kind, rows in texts.items():
        (task,) = TASKS[kind]
        make = partial(
            tokenize, rows, tokenizer(), encoder=task.encode, encoding=task.encoding, max_length=9, cache=tmp_path
        )
        made, found = make(), make()
        for name in ("ids", "offsets", "starts", "types", "words", "parts"):
            np.testing.assert_array_equal(getattr(made, name), getattr(found, name))
        assert (made.words is None) == (kind != "token-classification")
        backwards = made.take(np.array([1, 0]))
        assert backwards.widths.tolist() == made.widths.tolist()[::-1]


def test_choices_become_rows_of_their_own() -> None:
    (task,) = TASKS["multiple-choice"]
    rows = [("baran", "cesel", "fovor hazum kevor"), ("cesel dizum", "baran", "kevor")]
    split = tokenize(rows, tokenizer(), encoder=task.encode, encoding="choices", max_length=20, cache=None)
    split = replace(split, labels=np.array([1, 0]), types=np.arange(len(split.ids), dtype=np.uint8))
    batch = collate(split, np.array([1, 0]), pad_id=0)
    pairs = [(question, choice) for question, *choices in (rows[1], rows[0]) for choice in choices]
    expected = tokenizer()([q for q, _ in pairs], [c for _, c in pairs], padding=True, return_tensors="np")
    np.testing.assert_array_equal(batch.ids_BT, expected["input_ids"])
    np.testing.assert_array_equal(batch.mask_BT, expected["attention_mask"])
    assert batch.types_BT is not None
    first = int(split.lengths[0])
    in_turn = [*range(first, len(split.ids)), *range(first)]
    np.testing.assert_array_equal(batch.types_BT[batch.mask_BT == 1], in_turn)
    assert batch.targets.tolist() == [0, 1]
    assert batch.tokens == int(batch.mask_BT.sum())
    assert split.widths.tolist() == [2 * 7, 2 * 6]


def questions(n: int) -> list[tuple[str, list[str], int]]:
    rows: list[tuple[str, list[str], int]] = []
    for index in range(n):
        right = index % 3
        choices = [" ".join(CHANCE.choices(WORDS[:25] if c == right else WORDS[25:], k=3)) for c in range(3)]
        rows.append((" ".join(CHANCE.choices(WORDS, k=4)), choices, right))
    return rows


def choice_task(file: str, **changes: object) -> TaskSpec:
    spec = TaskSpec(
        kind="multiple-choice",
        data=DataSpec(train=file),
        text=("question", "choices"),
        label="answer",
        metric="accuracy",
    )
    return replace(spec, **changes)  # type: ignore[arg-type]  # fields by name


def test_the_right_choice_is_learned(tmp_path: Path) -> None:
    rows = [{"question": q, "choices": choices, "answer": right} for q, choices, right in questions(150)]
    trainer = support.trainer(tmp_path, choice_task(lines(tmp_path / "q.jsonl", rows)))
    found = train(trainer, LORA)
    assert found["accuracy"] > 0.8 < found["test_accuracy"] + 0.1
    assert trainer.tokens("train").parts is not None


def test_choices_may_have_columns_of_their_own_and_names_of_any_kind(tmp_path: Path) -> None:
    header = ("question", "a", "b", "c", "answer")
    made = questions(30)
    found = {}
    for name, spell in {"zero": str, "one": lambda i: str(i + 1), "letter": lambda i: "ABC"[i]}.items():
        rows = [(q, *choices, spell(right)) for q, choices, right in made]
        file = write(tmp_path / f"{name}.csv", rows, header=header)
        task, splits = load_task(choice_task(file, text=("question", "a", "b", "c")), seed=0)
        found[name] = task.labels(splits.train, splits.classes)
        assert len(splits.train.texts[0]) == 4
    assert found["zero"] is not None
    assert (found["zero"] == found["one"]).all()
    assert (found["zero"] == found["letter"]).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": "a"}, r"row 2: column 'choices' holds no list of two or more choices"),
        ({"choices": ["a"]}, r"row 2: column 'choices' holds no list of two or more choices"),
        ({"choices": ["a", "b", "c"]}, r"row 2: 3 choices; row 1 has 2"),
        ({"answer": "7"}, r"label '7' names no choice; the choices are 0, 1 .*number the choices from 0"),
    ],
)
def test_choices_that_cannot_be_used_are_refused(row: dict[str, object], message: str, tmp_path: Path) -> None:
    good: dict[str, object] = {"question": "q", "choices": ["a", "b"], "answer": "0"}
    file = lines(tmp_path / "q.jsonl", [good, good | row])
    with pytest.raises(DataError, match=message):
        load_task(choice_task(file, data=DataSpec(train=file, validation=file, test=file)), seed=0)


CONFIGS: dict[str, PretrainedConfig] = {
    "t5": T5Config(
        vocab_size=VOCABULARY_SIZE,
        d_model=HIDDEN,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=2,
        initializer_factor=4.0,
        decoder_start_token_id=0,  # type: ignore[call-arg]  # a base class keeps it
    ),
    "bart": BartConfig(
        vocab_size=VOCABULARY_SIZE,
        d_model=HIDDEN,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        init_std=0.3,
    ),
}


@pytest.fixture(params=CONFIGS)
def pair_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        transformers.AutoModelForSeq2SeqLM.from_config(CONFIGS[request.param]).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def sequence_task(folder: Path) -> TaskSpec:
    rows: list[tuple[str, str]] = []
    chance = random.Random(11)
    for index in range(400):
        half, answer = (WORDS[:25], WORDS[0]) if index % 2 else (WORDS[25:], WORDS[30])
        rows.append((" ".join(chance.choices(half, k=chance.randint(2, 6))), f"{answer} {WORDS[7]}"))
    file = write(folder / "pairs.csv", rows, header=("source", "target"))
    return TaskSpec(
        kind="seq2seq",
        data=DataSpec(train=file),
        text=("source", "target"),
        label=None,
        metric="perplexity",
        extra_metrics=("accuracy",),
    )


def everywhere(n_layers: int, targets: Sequence[Sequence[str]]) -> Configuration:
    return configuration(
        setting("lora", tuple(range(n_layers)), rank=8, targets=[tuple(row) for row in targets]),
        setting("parallel_adapter", tuple(range(n_layers)), bottleneck=8),
        learning_rate=1e-2,
    )


def test_a_source_is_turned_into_its_target(pair_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(name=str(pair_model))
    trainer = Trainer(spec, sequence_task(tmp_path), support.SETTINGS, device="cpu", cache=tmp_path / "cache")
    sites = [[s.name for s in row if s.name.endswith((".q", ".v", "q_proj", "v_proj"))] for row in trainer.shape.layers]
    assert [len(row) for row in sites] == [2, 2, 4], "a decoder attends to itself and to the encoder"
    found = train(trainer, everywhere(3, sites), epochs=10, out=tmp_path / "best")
    assert found["accuracy"] > 0.9
    assert found["perplexity"] < 2.0 < VOCABULARY_SIZE / 4
    again = trainer.evaluate(tmp_path / "best", "test")
    assert again["perplexity"] == pytest.approx(found["test_perplexity"])


def test_target_logits_equal_those_of_the_whole_model(pair_model: Path) -> None:
    loaded = load_model(ModelSpec(name=str(pair_model), attention="eager"), kind="seq2seq", n_labels=None)
    (task,) = TASKS["seq2seq"]
    source, target = " ".join(WORDS[:5]), " ".join(WORDS[5:8])
    texts = loaded.tokenizer([source, WORDS[1]], return_tensors="pt", padding=True, return_token_type_ids=False)
    labels = loaded.tokenizer([target, WORDS[2]], return_tensors="pt", padding=True)["input_ids"]
    whole = loaded.model(**texts, labels=labels.masked_fill(labels == 0, -100))
    split = tokenize(
        [(source, target), (WORDS[1], WORDS[2])],
        loaded.tokenizer,
        encoder=task.encode,
        encoding="sequences",
        max_length=20,
        cache=None,
    )
    batch = collate(split, np.array([0, 1]), pad_id=0)
    logits, targets = task.outputs(loaded.model, batch, torch.device("cpu"))
    assert torch.equal(targets, labels[labels != 0])
    assert torch.allclose(logits, whole.logits[labels != 0], atol=1e-5)
    assert torch.allclose(task.loss(logits, targets), whole.loss, atol=1e-5)


def test_adapters_on_encoder_and_decoder_merge_and_leave_no_trace(pair_model: Path) -> None:
    loaded = load_model(ModelSpec(name=str(pair_model)), kind="seq2seq", n_labels=None)
    ids = torch.tensor([[5, 6, 7, 2]])
    before = loaded.model(input_ids=ids, decoder_input_ids=ids).logits
    sites = [[s.name for s in row if s.name.endswith((".q", "q_proj"))] for row in loaded.shape.layers]
    config = configuration(setting("lora", (0, 1, 2), rank=4, targets=[tuple(row) for row in sites]))
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1)
    changed = loaded.model(input_ids=ids, decoder_input_ids=ids).logits
    assert not torch.allclose(before, changed)
    adapters.remove()
    assert torch.equal(loaded.model(input_ids=ids, decoder_input_ids=ids).logits, before)


OTHERS: dict[str, PretrainedConfig] = {
    "m2m_100": M2M100Config(
        vocab_size=VOCABULARY_SIZE,
        d_model=HIDDEN,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        pad_token_id=0,
        decoder_start_token_id=2,
    ),
    "blenderbot": BlenderbotConfig(
        vocab_size=VOCABULARY_SIZE,
        d_model=HIDDEN,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        pad_token_id=0,
        decoder_start_token_id=1,
    ),
}


@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS])
def test_the_decoder_is_given_what_the_library_gives_it(name: str, tmp_path: Path) -> None:
    config = (CONFIGS | OTHERS)[name]
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = load_model(ModelSpec(name=str(tmp_path)), kind="seq2seq", n_labels=None)
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    ids = torch.tensor([[5, 6], [7, 8]])
    given = decoder_inputs(loaded.model, labels)
    assert given[:, 0].tolist() == [config.decoder_start_token_id] * 2
    assert given.min() >= 0
    whole = loaded.model(input_ids=ids, labels=labels)
    logits = loaded.model(input_ids=ids, decoder_input_ids=given).logits
    torch.testing.assert_close(logits, whole.logits)


def test_a_decoder_that_does_not_know_how_to_begin_is_refused(tmp_path: Path) -> None:
    transformers.AutoModelForSeq2SeqLM.from_config(CONFIGS["t5"]).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    spec = ModelSpec(name=str(tmp_path))
    drop_start(tmp_path / "config.json")
    assert load_model(spec, kind="seq2seq", n_labels=None).model.config.decoder_start_token_id == 0
    drop_start(tmp_path / "generation_config.json")
    with pytest.raises(ModelError, match=r"config\.json names no decoder_start_token_id.*T5 it is pad_token_id"):
        load_model(spec, kind="seq2seq", n_labels=None)


def drop_start(file: Path) -> None:
    data = json.loads(file.read_text())
    del data["decoder_start_token_id"]
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(("family", "kind"), [("llama", "multiple-choice"), ("gptj", "token-classification")])
def test_a_family_without_a_class_for_the_kind_is_refused(family: str, kind: str, tmp_path: Path) -> None:
    spec = ModelSpec(name=str(save_model(family, tmp_path)))
    with pytest.raises(ModelError, match=rf"transformers has no {family} model for {kind} \(use another model; bert, "):
        load_model(spec, kind=kind, n_labels=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "seq2seq", "label": None, "metric": "perplexity"}, r"two different columns, source and target"),
        ({"kind": "token-classification", "text": ("a", "b")}, r"task\.text: got \['a', 'b'\]; one column is needed"),
        ({"kind": "multiple-choice"}, r"task\.text: got \['text'\]; two or more different columns are needed: a quest"),
        (
            {"kind": "seq2seq", "text": ("a", "b"), "metric": "perplexity"},
            r"seq2seq has no label .*\[a, label\] for source and target",
        ),
    ],
)
def test_columns_that_a_kind_cannot_use_are_refused(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {
        "kind": "text-classification",
        "data": DataSpec(train="t.csv"),
        "text": ("text",),
        "label": "label",
        "metric": "accuracy",
    }
    with pytest.raises(SpecError, match=message):
        resolve_task(TaskSpec(**(fields | changes)))  # type: ignore[arg-type]  # fields by name


def test_a_decoder_tags_words_too(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", [(" ".join(words), " ".join(tags)) for words, tags in tagged(120)])
    where = save_model("llama", tmp_path / "llama")
    task = words_task(file, metric="accuracy", extra_metrics=())
    trainer = Trainer(ModelSpec(name=str(where)), task, support.SETTINGS, device="cpu", cache=tmp_path / "cache")
    lora = setting("lora", (0, 1, 2), rank=8, targets=MODELS["llama"].query_value)
    assert train(trainer, configuration(lora, learning_rate=3e-2), epochs=12)["accuracy"] > 0.75


def test_padding_of_source_and_target_is_left_out_of_the_balance_loss(pair_model: Path) -> None:
    loaded = load_model(ModelSpec(name=str(pair_model)), kind="seq2seq", n_labels=None)
    targets = [tuple(site.name for site in row) for row in loaded.shape.layers]
    adapters = inject(
        loaded.model,
        loaded.shape,
        configuration(setting("mola", (0, 1, 2), experts=3, rank=2, targets=targets)),
        seed=0,
    ).train()
    mask, target_mask = torch.ones(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.long)
    mask[0, 3:], target_mask[1, 2:] = 0, 0
    ids = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(1))

    def penalty(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        given = {"attention_mask": mask, "decoder_attention_mask": target_mask}
        loaded.model(input_ids=source, decoder_input_ids=target, **given)
        found = adapters.penalty()
        assert found is not None
        return found

    other = torch.where(mask == 0, 7, ids), torch.where(target_mask == 0, 9, ids)
    torch.testing.assert_close(penalty(*other), penalty(ids, ids))
    assert not torch.isclose(penalty(other[1], ids), penalty(ids, ids), rtol=1e-4), "real tokens matter"


def test_the_density_of_a_pair_does_not_depend_on_what_it_is_batched_with(pair_model: Path, tmp_path: Path) -> None:
    found: list[dict[str, float]] = []
    for size in (1, 16):
        settings = replace(support.SETTINGS, measure_density=True, evaluation_batch_size=size)
        trainer = Trainer(ModelSpec(name=str(pair_model)), uneven_pairs(tmp_path), settings, device="cpu")
        adapters = inject(trainer.loaded.model, trainer.shape, configuration(), seed=0)
        found.append(trainer.evaluate(adapters, "validation"))
        adapters.remove()
    for name in ("activation_density", "activation_nonzero"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-9)


def uneven_pairs(folder: Path) -> TaskSpec:
    """Targets as long as sources and longer, so that padded widths are equal in many batches."""
    chance = random.Random(4)
    rows = [(" ".join(chance.choices(WORDS, k=n)), " ".join(chance.choices(WORDS, k=8 - n))) for n in (2, 4, 6) * 20]
    return replace(
        sequence_task(folder), data=DataSpec(train=write(folder / "uneven.csv", rows, header=("source", "target")))
    )
