"""From texts as a user has them to labels, numbers or texts: what a served model answers.

Letters: N rows, C classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast, final

import numpy as np
import torch

from autopeft.errors import DataError
from autopeft.trainers.batches import batches_of, evaluation_batches
from autopeft.trainers.labels import UNIT, units
from autopeft.trainers.rows import LabelKind
from autopeft.trainers.task import TASKS
from autopeft.trainers.tokens import TokenizedSplit, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 64
NEW_TOKENS = 128

Answer = dict[str, object]


@final
class Predictor:
    """A trained model that answers rows of texts.

    Args:
        model: In eval mode, with its adapter and head.
        tokenizer: Of its base.
        kind: Of the task.
        metric: The task's; it tells classes from numbers.
        columns: Names of the text columns a row has.
        labels: Names of the classes, in the order of the head's outputs; empty where there are none.
        max_length: Tokens of a row; longer ones are cut as in training.
        new_tokens: Tokens that a language model writes at most.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        kind: str,
        metric: str,
        columns: Sequence[str],
        labels: Sequence[str],
        max_length: int,
        new_tokens: int = NEW_TOKENS,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._task = next(task for task in TASKS[kind] if metric in task.metrics)
        self._labels, self._max_length = tuple(labels), max_length
        self._kind, self._new_tokens = kind, new_tokens
        n_inputs = 1 if self._task.label is LabelKind.NONE else len(columns)
        self.columns = tuple(columns)[:n_inputs]
        """The columns that are read; of a language task the first alone, since the second is what it writes."""

    def predict(self, rows: Sequence[Sequence[object]]) -> list[Answer]:
        """One answer a row, in order; a row has a text for each of `columns`, tags' words and choices also as a list.

        `label` and `score` (its probability) for classes and choices, `value` for numbers, `labels` (one a word;
        empty for words beyond `max_length`) for tags, `text` for language tasks, which are continued greedily.

        Raises:
            DataError: A row has another number of texts than the task.
        """
        for number, row in enumerate(rows, 1):
            if len(row) != len(self.columns):
                raise DataError(
                    f"row {number}: {len(row)} texts; {len(self.columns)} are needed",
                    hint=f"give {', '.join(self.columns)}",
                )
        texts = [self._cells(row) for row in rows]
        if self._task.label is LabelKind.NONE:
            return [{"text": self._continued(cells[0])} for cells in texts]
        return self._classified(texts) if texts else []

    def _cells(self, row: Sequence[object]) -> tuple[str, ...]:
        """A row as `task.encode` takes it: words joined by `UNIT`, a list of choices laid out."""
        if self._task.label is LabelKind.TAGS:
            words = row[0].split() if isinstance(row[0], str) else [str(word) for word in cast("list[object]", row[0])]
            return (UNIT.join(words),)
        flat = [part for cell in row for part in ([cell] if isinstance(cell, str) else cast("list[object]", cell))]
        return tuple(str(part) for part in flat)

    def _classified(self, texts: Sequence[tuple[str, ...]]) -> list[Answer]:
        tokens = self._tokens(texts)
        answers: list[Answer] = [{}] * len(texts)
        batches = evaluation_batches(tokens.widths, BATCH_SIZE)
        pad_id = self._tokenizer.pad_token_id
        for index, batch in zip(
            batches, batches_of(tokens, batches, pad_id=pad_id if isinstance(pad_id, int) else 0), strict=True
        ):
            with torch.inference_mode():
                outputs, _ = self._task.outputs(self._model, batch, self._model.device)
            parts = np.split(outputs.float().cpu().numpy(), np.cumsum(batch.items)[:-1])
            for row, output in zip(index.tolist(), parts, strict=True):
                tagged = self._task.label is LabelKind.TAGS
                answers[row] = self._tagged(output, tokens, row, texts[row][0]) if tagged else self._answer(output)
        return answers

    def _tagged(self, output: np.ndarray, tokens: TokenizedSplit, row: int, text: str) -> Answer:
        """Of the logits `[tagged words, C]` of one row."""
        assert tokens.words is not None, "tagged rows are tokenised by word"
        own = tokens.words[tokens.cells(np.array([row]))]
        labels = [""] * len(units(text, LabelKind.TAGS))
        for word, index in zip(own[own >= 0].tolist(), output.argmax(axis=1).tolist(), strict=True):
            labels[word] = self._labels[index]
        return {"labels": labels}

    def _tokens(self, texts: Sequence[tuple[str, ...]]) -> TokenizedSplit:
        task = self._task
        assert task.encode is not None, "images are no texts"
        tokens = tokenize(
            texts,
            self._tokenizer,
            encoder=task.encode,
            encoding=task.encoding,
            max_length=self._max_length,
            cache=None,
        )
        if task.label is LabelKind.TAGS:
            assert tokens.words is not None
            return replace(tokens, tags=np.where(tokens.words >= 0, 0, -100).astype(np.int64))
        return replace(tokens, labels=np.zeros(len(texts), dtype=np.int64))

    def _answer(self, output: np.ndarray) -> Answer:
        """Of one row's outputs: `[1]` a number, `[1, C]` logits."""
        if self._task.label is LabelKind.NUMBER:
            return {"value": float(output[0])}
        shares = np.exp(output[0] - output[0].max())
        best = int(shares.argmax())
        name = self._labels[best] if best < len(self._labels) else str(best)
        return {"label": name, "score": float(shares[best] / shares.sum())}

    def _continued(self, text: str) -> str:
        ids = self._source(text)
        given = torch.tensor([ids], device=self._model.device)
        with torch.inference_mode():
            written = self._model.generate(  # type: ignore[operator]  # transformers types it as a module
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=self._new_tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        own = written[0] if self._kind == "seq2seq" else written[0, len(ids) :]
        return cast(str, self._tokenizer.decode(own, skip_special_tokens=True))

    def _source(self, text: str) -> list[int]:
        """The prompt as in training: a begin token where the model has one, its end kept when it is too long."""
        plain = cast("list[int]", self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if self._kind == "seq2seq":
            return cast("list[int]", self._tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"])
        end = self._tokenizer.eos_token_id
        begin = [token for token in cast("list[int]", self._tokenizer("")["input_ids"]) if token != end]
        return begin + plain[-max(1, self._max_length - len(begin)) :]
