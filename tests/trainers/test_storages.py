"""Storages are followed from the operation that makes them to their end."""

import torch

from autopeft.trainers.fake import faking, new_mode
from autopeft.trainers.storages import StorageWatch

FLOAT = 4


def run(watch: StorageWatch) -> None:
    with watch:
        a = torch.zeros(100)
        b = a + 1  # two hundred numbers
        view = b[:50]
        del a
        assert watch.now == FLOAT * 100, "the view's storage is one with its base"
        del b
        assert watch.now == FLOAT * 100
        del view
        assert watch.now == 0
    assert watch.peak == FLOAT * 200


def test_the_peak_is_what_was_alive_at_one_time() -> None:
    run(StorageWatch())


def test_tensors_without_values_are_followed_alike() -> None:
    watch = StorageWatch()
    with faking(new_mode()):
        run(watch)
    assert [life.n_bytes for life in watch.past] == [FLOAT * 100] * 2


def test_known_storages_are_not_counted() -> None:
    x = torch.zeros(10)
    with StorageWatch({x.untyped_storage()._cdata}) as watch:
        x.add_(1)
        y = x * 2
        assert watch.now == FLOAT * 10
        del y
        watch.restart()
    assert watch.peak == 0


def test_a_backward_pass_is_seen() -> None:
    x = torch.ones(50, requires_grad=True)
    with StorageWatch() as watch:
        x.exp().sum().backward()
    assert watch.now == FLOAT * 50, "the gradient stays"
    assert watch.peak == FLOAT * 102, "exp's output and the gradient; the sum and its gradient are a number each"
