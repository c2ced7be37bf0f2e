from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.configuration import Configuration, MethodSetting
from tests.search.support import encoder

SHAPE = encoder(3)
LORA = MethodSetting(
    method="lora",
    layers=(0, 2),
    fields=(
        ("alpha", (16.0, 16.0)),
        ("dropout", (0.0, 0.0)),
        ("rank", (2, 4)),
        ("targets", (("attention.self.query", "attention.self.value"), ("attention.self.query",))),
    ),
)
PREFIX = MethodSetting(method="prefix_tuning", layers=(1, 2), fields=(("length", (5, 5)),))


def test_it_counts_by_method_and_layer_and_in_all() -> None:
    count = count_parameters(Configuration(methods=(LORA, PREFIX), training=()), SHAPE)
    assert count.cells == {("lora", 0): 256, ("lora", 2): 256, ("prefix_tuning", 1): 320, ("prefix_tuning", 2): 320}
    assert count.by_method == {"lora": 512, "prefix_tuning": 640}
    assert count.by_layer == {0: 256, 1: 320, 2: 576}
    assert count.total == 1152


def test_nothing_adapted_is_nothing_counted() -> None:
    count = count_parameters(Configuration(methods=(), training=()), SHAPE)
    assert count.total == 0
    assert count.by_method == {}
