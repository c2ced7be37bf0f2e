"""Public names: sorted, complete, and each can be had."""

import autopeft


def test_every_public_name_can_be_had_and_no_other() -> None:
    assert sorted(autopeft.__all__, key=lambda name: (name.startswith("_"), name)) == [
        *(name for name in sorted(autopeft.__all__) if not name.startswith("_")),
        "__version__",
    ]
    for name in autopeft.__all__:
        assert getattr(autopeft, name) is not None
    assert dir(autopeft) == sorted(autopeft.__all__)


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert version("autopeft") == autopeft.__version__
