"""The arithmetic of peaks, by hand; what is traced is tested in tests/trainers/test_forecast.py."""

from dataclasses import replace

from autopeft.objectives.memory import FrameTrace, LayerTrace, Resident, Setup, live_peak, saved_peak
from autopeft.spaces.model_shape import ModelShape, Role, Site
from tests.configurations import configuration


def bert_shape(*, n_layers: int = 4, hidden: int = 32, heads: int = 4) -> ModelShape:
    roles = (
        ("attention.self.query", hidden, hidden, Role.QUERY),
        ("attention.self.key", hidden, hidden, Role.KEY),
        ("attention.self.value", hidden, hidden, Role.VALUE),
        ("attention.output.dense", hidden, hidden, Role.ATTENTION_OUTPUT),
        ("intermediate.dense", hidden, 4 * hidden, Role.MLP_UP),
        ("output.dense", 4 * hidden, hidden, Role.MLP_DOWN),
    )
    sites = tuple(Site(name=name, d_in=a, d_out=b, bias=True, role=role) for name, a, b, role in roles)
    return ModelShape(
        family="bert",
        layer_path="encoder.layer",
        layers=(sites,) * n_layers,
        hidden_size=hidden,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary_size=100,
        base_parameters=n_layers * 12 * hidden * hidden + 100 * hidden,
        embedding_parameters=100 * hidden,
        causal=False,
        dtype="float32",
        attention="sdpa",
    )


RESIDENT = Resident(weights=1000, adapters=10, gradients=10, optimizer=20)
FRAME = FrameTrace(saved=70, before=5, peak=200, after=30)
LAYER = LayerTrace(
    saved=40,
    penalty=0,
    saved_input=8,
    saved_output=0,
    shared=((1, 3),),
    recomputed=0,
    kept=50,
    forward_peak=90,
    backward_peak=120,
    gradients=4,
    tensors=2,
    frozen=0,
    frozen_once=0,
    output_grad=True,
)


def test_what_is_saved_adds_up_and_shared_tensors_count_once() -> None:
    found = saved_peak(RESIDENT, FRAME, [LAYER, LAYER])
    assert found.activations == 2 * (40 + 8) + 3
    assert found.logits == 70
    assert found.total == 1000 + 10 + 10 + 20 + 99 + 70
    parts = found.to_json()
    assert parts.pop("total") == sum(parts.values()) == found.total


def test_an_output_that_its_layer_and_the_next_one_keep_counts_once() -> None:
    first = replace(LAYER, saved_output=8)
    assert saved_peak(RESIDENT, FRAME, [first, LAYER]).activations == 40 + 8 + 8 + 40 + 3


def test_a_second_pass_counts_while_the_layers_below_are_kept() -> None:
    layer = replace(LAYER, saved=0, recomputed=100)
    found = saved_peak(RESIDENT, FRAME, [layer, layer, layer])
    assert found.activations == 3 + 3 * 8 + 100
    assert found.logits == 0, "the head's part is gone by then"
    short = saved_peak(RESIDENT, replace(FRAME, saved=500), [layer, layer])
    assert (short.activations, short.logits) == (3 + 2 * 8, 500), "or the peak is before the backward pass"


def test_terms_of_the_loss_are_gone_when_a_layer_runs_again() -> None:
    layer = replace(LAYER, penalty=30)
    assert saved_peak(RESIDENT, FRAME, [layer, layer]).activations == 3 + 2 * (40 + 8 + 30)
    again = replace(layer, recomputed=1000)
    assert saved_peak(RESIDENT, FRAME, [again, again]).activations == 3 + 2 * (40 + 8) + 1000


def test_the_peak_of_what_is_alive_is_at_the_head_or_in_a_layer() -> None:
    head = live_peak(RESIDENT, FRAME, [LAYER, LAYER])
    assert head.total == 1000 + 10 + 20 + 2 * 50 + 200
    assert (head.activations, head.logits, head.gradients, head.workspace) == (100, 70, 0, 130)
    small = replace(FRAME, saved=1, peak=2)
    top = live_peak(RESIDENT, small, [LAYER, LAYER])
    assert top.total == 1030 + 30 + 50 + 120, "the last layer's backward pass"
    low = live_peak(RESIDENT, small, [replace(LAYER, backward_peak=500), LAYER])
    assert low.total == 1030 + 30 + 500 + 4, "with the upper layer's gradients"
    assert low.gradients == 4


def test_all_gradients_or_scoring_may_be_the_most() -> None:
    wide = replace(RESIDENT, gradients=5000)
    assert live_peak(wide, FRAME, [LAYER]).gradients == 5000
    scored = live_peak(RESIDENT, FRAME, [LAYER], evaluation=9000, context=7)
    assert scored.total == 1030 + 9000 + 7
    assert scored.measurable == scored.total - 7
    assert scored.workspace == 9000


def test_a_configuration_s_own_settings_go_first() -> None:
    setup = Setup(batch_size=8, length=16, sequences=3)
    own = setup.of(configuration(batch_size=6, optimizer="lora_fa", accumulation=4))
    assert (own.batch_size, own.optimizer, own.accumulation) == (6, "lora_fa", 4)
    assert own.rows == 3 * 2, "micro-batches of two rows, three sequences each"
    assert setup.rows == 24


def test_nothing_is_kept_without_layers() -> None:
    empty = FrameTrace(saved=0, before=0, peak=0, after=0)
    idle = Resident(weights=9, adapters=0, gradients=0, optimizer=0)
    assert saved_peak(idle, empty, []).total == live_peak(idle, empty, []).total == 9
