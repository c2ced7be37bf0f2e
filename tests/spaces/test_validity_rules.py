import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import Scalar
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.factors import FACTORED
from autopeft.spaces.methods import METHODS
from autopeft.spaces.space import SearchSpace
from autopeft.spaces.training import TRAINING_FIELDS
from autopeft.spaces.validity_rules import LOW_RANK, RULES, relevant
from tests.spaces import builders

SHAPE = builders.shape(2, hidden=48, heads=4)
MIXED: dict[str, object] = {
    "lora": {"rank": "choice(0, 4)"},
    "serial_adapter": {"bottleneck": "choice(0, 8)"},
    "optimizer": "choice(adamw, lora_fa, galore)",
    "lora_plus_ratio": "choice(1, 4)",
}


def space(mapping: Mapping[str, object], *constraints: str, **settings: Scalar) -> SearchSpace:
    definition = SpaceDefinition.from_mapping(mapping)
    return SearchSpace.bind(definition, SHAPE, constraints=constraints, settings=settings)


def test_rules_name_methods_and_settings_that_exist() -> None:
    names = {name for rule in RULES for name in rule.concerns}
    assert names <= METHODS.keys() | TRAINING_FIELDS.keys()
    assert set(FACTORED) == {*LOW_RANK, "peft_lora"}
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"serial_adapter": {"bottleneck": 8}, "optimizer": "lora_fa"},
            r"optimizer: lora_fa acts on the factors A and B of low-rank pairs, which serial_adapter does not have "
            r"\(rule lora-fa-needs-factors\) \(use optimizer adamw",
        ),
        (
            {"prefix_tuning": {"length": 2}, "lora_plus_ratio": 4},
            r"lora_plus_ratio: 4\.0 acts on .* prefix_tuning does not have \(rule lora-plus-needs-factors\)",
        ),
        (
            {"serial_adapter": {"bottleneck": 8}, "ggpo_beta": 0.1},
            r"ggpo_beta: 0\.1 puts noise on the targets of lora, .* does not have \(rule ggpo-needs-lora\)",
        ),
        (
            {"lora": {"rank": 2}, "ggpo_sigma": 0.1, "checkpointing": True},
            r"ggpo_sigma 0\.1 looks into their first pass \(rule checkpointing-hides-activations\)",
        ),
        (
            {"peft_lora": {"rank": 4, "variant": "mica"}, "optimizer": "lora_fa"},
            r"freezes the factors A, which are all that .* mica trains \(rule lora-fa-leaves-something\)",
        ),
        (
            {"peft_lora": {"rank": 4, "variant": "kasa"}, "lora": {"rank": 2}},
            r"peft_lora\.variant: kasa cuts the base weights, beside lora \(rule kasa-alone\)",
        ),
        (
            {"peft_lora": {"rank": 4, "variant": ["kasa", "dora"]}},
            r"kasa cuts the base weights, beside dora \(rule kasa-alone\)",
        ),
    ],
)
def test_a_hand_written_configuration_is_refused_with_the_rule(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        configuration(source, SHAPE)


@pytest.mark.parametrize(
    "source",
    [
        {"serial_adapter": {"bottleneck": 8}, "optimizer": "galore", "lora_plus_ratio": 1},
        {"serial_adapter": {"bottleneck": 8}, "lora": {"rank": 2}, "optimizer": "lora_fa", "lora_plus_ratio": 4},
        {"peft_lora": {"rank": 4, "variant": "kasa"}, "serial_adapter": {"bottleneck": 8}},
        {"peft_lora": {"rank": 4, "variant": ["plain", "dora"]}, "lora": {"rank": 2}},
    ],
)
def test_what_keeps_the_rules_is_taken(source: dict[str, object]) -> None:
    assert configuration(source, SHAPE).methods


def test_every_rule_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    for rule in (*RULES, *relevant({"miss"}, SHAPE)):
        assert f"| `{rule.name}` | {rule.meaning} |" in page


def test_only_rules_that_can_say_something_are_asked() -> None:
    assert relevant({"lora", "learning_rate"}, SHAPE) == ()
    assert [rule.name for rule in relevant({"miss", "oft"}, SHAPE)] == ["settings-fit"]
    assert space({"lora": {"rank": "choice(0, 4)"}}).size().rules == ()
    assert space(MIXED).size().rules == ("lora-fa-needs-factors", "lora-plus-needs-factors", "lora-fa-leaves-something")


def test_a_space_lists_and_draws_exactly_what_keeps_the_rules() -> None:
    made = space(MIXED)
    assert made.size().configurations == 3 * 6, "sizes do not know of rules"
    listed = list(made.configurations())
    assert len(listed) == 2 * 6 + 2, "a serial adapter alone has two optimizers and one ratio"
    drawn = made.sample(np.random.default_rng(0), 4000)
    assert set(drawn) == set(listed)
    counts = np.array([drawn.count(one) for one in listed])
    assert np.abs(counts / len(drawn) * len(listed) - 1).max() < 0.3
    assert made.acceptance(np.random.default_rng(1), 2000) == pytest.approx(14 / 18, abs=0.05)
    for one in listed:
        made.check(one)
        assert all(made.contains(other) for other in made.neighbours(one))


def test_rules_see_what_the_study_sets_for_every_configuration() -> None:
    mapping = {"lora": {"rank": "choice(0, 4)"}, "serial_adapter": {"bottleneck": "choice(0, 8)"}}
    assert space(mapping).size().rules == ()
    made = space(mapping, optimizer="lora_fa")
    assert made.size().rules == ("lora-fa-needs-factors", "lora-fa-leaves-something")
    assert all(row.method("lora") for row in made.sample(np.random.default_rng(0), 50))
    assert {len(row.methods) for row in made.configurations()} == {1, 2}
    wrong = made.assemble({"lora.rank": 0, "serial_adapter.bottleneck": 8})
    assert made.excess(wrong) == 1.0
    assert pickle.loads(pickle.dumps(made)).excess(wrong) == 1.0
    with pytest.raises(ConfigurationError, match="rule lora-fa-needs-factors"):
        made.check(wrong)
    with pytest.raises(SpaceError, match=r"keeps the rule lora-fa-needs-factors .* lora_fa acts on"):
        space({"serial_adapter": {"bottleneck": 8}}, optimizer="lora_fa")
    own = space({**mapping, "optimizer": "choice(adamw, galore)"}, optimizer="lora_fa")
    assert any(row.method("lora") is None for row in own.sample(np.random.default_rng(0), 50)), "the space's goes first"


def test_activations_are_looked_into_only_where_they_are_kept() -> None:
    made = space({"lora": {"rank": 4}, "density": "choice(0, 1)", "checkpointing": "bool"})
    assert len(list(made.configurations())) == 3
    assert made.size().rules == ("checkpointing-hides-activations",)
    watched = space({"lora": {"rank": 4}, "checkpointing": "bool"}, density=1.0)
    assert [dict(row.training)["checkpointing"] for row in watched.configurations()] == [False]


def test_a_method_whose_response_cannot_be_scaled_is_not_sampled_by_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: dict[str, object] = {
        "lora": {"rank": "choice(0, 4)"},
        "ssf": {"enabled": "choice(0, 1)"},
        "layer_sampling": "choice(none, random, importance)",
    }
    assert space(sampled).size().rules == ()
    monkeypatch.setattr(type(METHODS["ssf"]), "suppressible", False)
    made = space(sampled)
    assert made.size().rules == ("importance-needs-a-response",)
    pairs = {(dict(row.training)["layer_sampling"], row.method("ssf") is None) for row in made.configurations()}
    assert len(pairs) == 5
    assert ("importance", False) not in pairs
    with pytest.raises(ConfigurationError, match=r"that of ssf cannot be \(rule importance-needs-a-response\)"):
        configuration({"ssf": {"enabled": 1}, "layer_sampling": "importance"}, SHAPE)


def test_a_broken_rule_is_named_by_check() -> None:
    made = space(MIXED)
    wrong = made.assemble(
        {"lora.rank": 0, "serial_adapter.bottleneck": 8, "optimizer": "lora_fa", "lora_plus_ratio": 1.0}
    )
    assert not made.admits(wrong)
    assert made.excess(wrong) == 1.0
    with pytest.raises(ConfigurationError, match="rule lora-fa-needs-factors"):
        made.check(wrong)


def test_rules_and_constraints_hold_together() -> None:
    made = space(MIXED, "parameters <= 5%")
    for one in made.sample(np.random.default_rng(2), 50):
        made.check(one)


def test_a_space_in_which_every_configuration_breaks_a_rule_is_refused() -> None:
    message = r"space: no configuration that keeps the rule lora-fa-needs-factors was found; the closest has optimizer"
    with pytest.raises(SpaceError, match=message):
        space({"serial_adapter": {"bottleneck": "choice(4, 8)"}, "optimizer": "lora_fa"})


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        (
            {"peft_lora": {"rank": "choice(4, 5)", "variant": "choice(plain, dora)", "init": "choice(kaiming, pissa)"}},
            6,
        ),
        ({"peft_lora": {"rank": "choice(4, 5)", "init": "choice(kaiming, orthogonal)"}}, 3),
        ({"miss": {"rank": "choice(4, 5)", "mode": "choice(balance, bat)"}}, 3),
    ],
)
def test_settings_of_one_method_that_do_not_go_together_are_never_drawn(source: dict[str, object], kept: int) -> None:
    made = space(source)
    drawn = {one.id for one in made.sample(np.random.default_rng(0), 200)}
    assert len(drawn) == len(list(made.configurations())) == kept
