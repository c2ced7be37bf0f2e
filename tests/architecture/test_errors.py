"""Errors cross process borders: each must survive pickle, and `except ValueError` must work where it says so."""

import pickle

import pytest

from autopeft import errors

CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.AutoPeftError)
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickle_unchanged(kind: type[errors.AutoPeftError]) -> None:
    error = kind("a.yaml: lr: got 0", hint="use 1e-3")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.hint, str(copy)) == (error.message, error.hint, str(error))


def test_a_place_is_put_before_the_message() -> None:
    error = errors.SpecError("lr: got 0", hint="use 1e-3").at("a.yaml:3")
    assert str(error) == "a.yaml:3: lr: got 0 (use 1e-3)"
    assert isinstance(error, ValueError)
