import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from autopeft.errors import DataError, SpecError
from autopeft.objectives.objective import METRICS
from autopeft.trainers.batches import collate
from autopeft.trainers.data import LabelKind, Split
from autopeft.trainers.job import DataSpec, TaskSpec
from autopeft.trainers.task import TASKS, check_task, resolve_task, tokenize_split
from tests.models import WORDS, save_model, tokenizer
from tests.trainers.test_data import rows_of, write

CPU = torch.device("cpu")


def spec(**changes: object) -> TaskSpec:
    fields: dict[str, object] = {
        "kind": "text-classification",
        "data": DataSpec(train="t.csv"),
        "text": ("text",),
        "label": "label",
        "metric": "accuracy",
    }
    return TaskSpec(**(fields | changes))  # type: ignore[arg-type]


def language(*, text: tuple[str, ...] = ("text",)) -> TaskSpec:
    return spec(kind="causal-lm", label=None, metric="perplexity", text=text)


def split_of(*texts: tuple[str, ...]) -> Split:
    return Split(name="train", place="t.csv", rows=tuple(range(1, len(texts) + 1)), texts=texts, labels=())


def test_every_metric_of_a_task_is_an_objective() -> None:
    measured = {name for variants in TASKS.values() for task in variants for name in task.metrics}
    assert measured == set(METRICS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "text-clasification"}, r"task\.kind: got 'text-clasification'; allowed are .*did you mean 'text-cl"),
        ({"metric": "acuracy"}, r"task\.metric: got 'acuracy'; text-classification measures .*did you mean 'accuracy'"),
        ({"metric": "perplexity"}, r"task\.metric: got 'perplexity'; text-classification measures accuracy"),
        ({"extra_metrics": ("pearson",)}, r"task\.extra_metrics: 'pearson' cannot be measured beside 'accuracy'"),
        ({"text": ()}, r"task\.text: got \[\]; one or two different columns"),
        ({"text": ("a", "a")}, r"task\.text: got \['a', 'a'\]"),
        ({"label": None}, r"task\.label: got nothing; text-classification needs a label column"),
        (
            {"kind": "causal-lm", "metric": "perplexity"},
            r"causal-lm has no label .*\[text, label\] for prompt and compl",
        ),
    ],
)
def test_a_task_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve_task(spec(**changes))


def test_the_metric_decides_what_a_label_is() -> None:
    assert resolve_task(spec(metric="f1", extra_metrics=("accuracy",))).label is LabelKind.CLASS
    assert resolve_task(spec(metric="spearman")).label is LabelKind.NUMBER
    assert resolve_task(language()).label is LabelKind.NONE
    assert [resolve_task(spec(metric=name)).n_labels(("a", "b", "c")) for name in ("f1", "pearson")] == [3, 1]
    assert resolve_task(language()).n_labels(()) is None


def test_check_summarises_without_a_model(tmp_path: Path) -> None:
    rows = [(f"{'word ' * (1 + i % 10)}{i}", i % 3) for i in range(60)]
    train = write(tmp_path / "t.csv", rows)
    summary = check_task(spec(data=DataSpec(train=train, validation=write(tmp_path / "v.csv", rows[:6]))))
    assert summary.rows == {"train": 55, "validation": 6, "test": 5}
    assert sum(summary.classes.values()) == 55
    assert list(summary.classes) == ["0", "1", "2"]
    assert (summary.words_median, summary.words_95) == (7, 11)
    assert summary.shared_with_train == {"validation": 6, "test": 0}
    assert summary.places["test"] == train


def test_check_loads_nothing_heavy(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", rows_of(20))
    code = (
        "import sys\n"
        "from autopeft.trainers.job import DataSpec, TaskSpec\n"
        "from autopeft.trainers.task import check_task\n"
        f"check_task(TaskSpec(kind='text-classification', data=DataSpec(train={file!r}), text=('text',), "
        "label='label', metric='accuracy'))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_pair_becomes_one_row_cut_at_the_longer_text() -> None:
    task = resolve_task(spec(text=("a", "b")))
    pair = (" ".join(WORDS[:10]), " ".join(WORDS[10:12]))
    (row,) = task.encode(tokenizer(), [pair], 9)
    assert len(row.ids) == 9
    assert list(row.ids).count(2) == 2, "both separators are there"
    assert tokenizer().decode(row.ids[-3:-1]) == pair[1]


def test_one_text_of_a_language_model_is_all_target_but_its_first_token() -> None:
    task = resolve_task(language())
    rows = task.encode(tokenizer(), [(" ".join(WORDS[:4]),), (" ".join(WORDS[:9]),)], 6)
    assert [len(row.ids) for row in rows] == [5, 6]
    assert [row.start for row in rows] == [1, 1]
    assert rows[0].ids[0] == 1, "the tokenizer's begin token gives the first word a context"


def test_a_prompt_is_no_target_and_gives_way_to_the_completion() -> None:
    task = resolve_task(language(text=("prompt", "completion")))
    words = tokenizer()
    prompt, completion = WORDS[:8], WORDS[20:23]
    (whole,) = task.encode(words, [(" ".join(prompt), " ".join(completion))], 40)
    assert words.decode(whole.ids[whole.start : -1]) == " ".join(completion)
    assert whole.ids[-1] == words.eos_token_id
    (cut,) = task.encode(words, [(" ".join(prompt), " ".join(completion))], 7)
    assert words.decode(cut.ids[1 : cut.start]) == " ".join(prompt[-2:]), "the oldest prompt tokens go first"
    assert words.decode(cut.ids[cut.start : -1]) == " ".join(completion)
    (tight,) = task.encode(words, [(" ".join(prompt), " ".join(completion))], 3)
    assert words.decode(tight.ids[tight.start :]) == " ".join(completion[:2])


def test_rows_without_a_target_are_left_out_with_a_warning() -> None:
    task, words = resolve_task(language(text=("prompt", "completion"))), tokenizer()
    words.eos_token = None
    split = split_of((WORDS[0], WORDS[1]), (WORDS[2], " "))
    with pytest.warns(
        UserWarning, match=r"t\.csv: 1 rows with no token to predict are left out \(the first is row 2\)"
    ):
        kept = tokenize_split(task, split, classes=(), tokenizer=words, max_length=8, cache=None)
    assert len(kept) == 1
    with pytest.raises(DataError, match="no row of the train split has a token to predict"):
        tokenize_split(task, split_of((WORDS[0], "")), classes=(), tokenizer=words, max_length=8, cache=None)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_logits_of_targets_alone_equal_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path, language_model=True)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    task = resolve_task(language())
    texts = split_of((" ".join(WORDS[:7]),), (" ".join(WORDS[5:8]),))
    split = tokenize_split(task, texts, classes=(), tokenizer=tokenizer(), max_length=20, cache=None)
    batch = collate(split, np.array([0, 1]), pad_id=0)
    logits, targets = task.outputs(model, batch, CPU)
    whole = model(input_ids=torch.from_numpy(batch.ids_BT), attention_mask=torch.from_numpy(batch.mask_BT)).logits
    wanted = torch.from_numpy(batch.targets) != -100
    assert torch.allclose(logits, whole[wanted], atol=1e-5)
    expected = torch.nn.functional.cross_entropy(whole.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
    assert torch.allclose(task.loss(logits, targets), expected, atol=1e-5)
    statistics = task.statistics(logits, targets).detach().numpy()
    scores = task.score(["perplexity"], statistics, targets.numpy())
    assert scores["perplexity"] == pytest.approx(float(expected.exp().detach()), rel=1e-4)
