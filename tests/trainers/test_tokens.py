from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from autopeft.trainers import tokens
from autopeft.trainers.tokens import Row, TokenizedSplit, cache_folder, cache_key, tokenize
from tests.models import sentences, tokenizer

TEXTS = [(sentence,) for sentence in sentences(30)]


class Counted:
    """An encoder that notes how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]], max_length: int
    ) -> list[Row]:
        self.calls += 1
        encoded = tokenizer([cells[0] for cells in texts], truncation=True, max_length=max_length)
        return [Row(ids=ids, types=[0] * len(ids), start=1) for ids in encoded["input_ids"]]


def run(encoder: Counted, cache: Path | None, *, max_length: int = 12) -> TokenizedSplit:
    return tokenize(TEXTS, tokenizer(), encoder=encoder, encoding="test", max_length=max_length, cache=cache)


def same(a: TokenizedSplit, b: TokenizedSplit) -> bool:
    pairs = [(a.ids, b.ids), (a.offsets, b.offsets), (a.starts, b.starts), (a.types, b.types)]
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)  # type: ignore[arg-type]


def test_tokens_are_made_once_and_read_back_equal(tmp_path: Path) -> None:
    encoder = Counted()
    first, second, apart = run(encoder, tmp_path), run(encoder, tmp_path), run(Counted(), None)
    assert encoder.calls == 1
    assert same(first, second)
    assert same(first, apart)
    assert first.lengths.max() <= 12
    assert [file.suffix for file in (tmp_path / "tokens").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("damage", [b"", b"not a cache file", None])
def test_a_damaged_cache_file_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    encoder = Counted()
    first = run(encoder, tmp_path)
    (file,) = (tmp_path / "tokens").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content) if damage is None else damage)
    assert same(run(encoder, tmp_path), first)
    assert encoder.calls == 2
    assert same(run(encoder, tmp_path), first)
    assert encoder.calls == 2, "the damaged file was replaced"


def test_the_key_changes_with_everything_that_changes_the_tokens() -> None:
    words = tokenizer()
    base = cache_key(TEXTS, words, encoding="a", max_length=8)
    assert base == cache_key(TEXTS, tokenizer(), encoding="a", max_length=8)
    words(["ba ce"], truncation=True, max_length=2, padding="max_length")
    assert base == cache_key(TEXTS, words, encoding="a", max_length=8), "a call's truncation is no part of a tokenizer"
    words.add_tokens(["newword"])
    others = {
        cache_key(TEXTS, words, encoding="a", max_length=8),
        cache_key(TEXTS, tokenizer(), encoding="b", max_length=8),
        cache_key(TEXTS, tokenizer(), encoding="a", max_length=9),
        cache_key(TEXTS[1:], tokenizer(), encoding="a", max_length=8),
        cache_key([("ab", "c")], tokenizer(), encoding="a", max_length=8),
        cache_key([("a", "bc")], tokenizer(), encoding="a", max_length=8),
    }
    assert len(others | {base}) == 7


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.warns(UserWarning, match="tokens are not cached .* set AUTOPEFT_CACHE"):
        assert len(run(Counted(), blocked)) == len(TEXTS)


def test_a_write_that_fails_half_way_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tokens.os, "replace", fail)
    with pytest.warns(UserWarning, match="disk full"):
        run(Counted(), tmp_path)
    assert not list((tmp_path / "tokens").iterdir())


def test_the_cache_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("AUTOPEFT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "autopeft"


def test_long_data_is_encoded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(Counted(), None)
    monkeypatch.setattr(tokens, "CHUNK", 7)
    encoder = Counted()
    assert same(run(encoder, None), whole)
    assert encoder.calls == 5
