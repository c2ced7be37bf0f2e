"""Training settings that mean something only beside a value of another one."""

import numpy as np
import pytest

from autopeft.errors import ConfigurationError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.training import ACTIVE_WITH, TRAINING_FIELDS
from tests.spaces.builders import bind
from tests.spaces.twins import every_network

SAMPLED = {
    "lora": {"rank": "choice(0, 2)"},
    "prefix_tuning": {"length": "choice(0, 1)"},
    "layer_sampling": "choice(none, importance, random)",
    "layers_kept": "choice(0.25, 0.5)",
    "sampling_interval": "choice(5, 10, 20)",
    "suppression": "choice(0, 0.25)",
}
ASKING = {
    **SAMPLED,
    "prefix_tuning": {"length": "choice(0, 1)", "when": "layers_kept == 0.5 or layer_sampling == none"},
}


def test_settings_depend_on_settings_that_depend_on_none() -> None:
    for name, (other, values) in ACTIVE_WITH.items():
        assert name in TRAINING_FIELDS
        assert other in TRAINING_FIELDS
        assert other not in ACTIVE_WITH
        assert set(values) <= set(TRAINING_FIELDS[other].choices)


@pytest.mark.parametrize("mapping", [SAMPLED, ASKING, SAMPLED | {"layer_sampling": "choice(none, random)"}])
def test_inactive_settings_are_in_no_configuration_and_counted_once(mapping: dict[str, object]) -> None:
    space = bind(mapping, n_layers=2)
    networks = every_network(space)
    assert space.size().configurations == len(networks)
    assert set(space.configurations()) == networks
    for network in networks:
        training = dict(network.training)
        policy = training.pop("layer_sampling")
        wanted = {"none": set(), "random": {"layers_kept"}}
        assert training.keys() == wanted.get(policy, {"layers_kept", "sampling_interval", "suppression"})  # type: ignore[call-overload]  # a word
        assert configuration(network.to_json(), space.shape) == network
        assert space.assemble(space.spell(network)) == network
        assert space.decode(space.encode(network)) == network
        for other in space.neighbours(network):
            space.check(other)
    drawn = space.sample(np.random.default_rng(0), 40 * len(networks))
    assert set(drawn) == networks


def test_without_the_setting_it_depends_on_one_is_always_active() -> None:
    space = bind({"lora": {"rank": 2}, "layers_kept": "choice(0.25, 0.5)"}, n_layers=2)
    assert space.size().configurations == 2


def test_a_fixed_setting_decides_once_for_all() -> None:
    mapping = {"lora": {"rank": 2}, "layer_sampling": "none", "layers_kept": "real(0.1, 0.5)"}
    network = bind(mapping, n_layers=2).sample(np.random.default_rng(0), 1)[0]
    assert network.training == (("layer_sampling", "none"),)


def test_a_setting_that_means_nothing_is_refused_with_what_it_needs() -> None:
    space = bind(SAMPLED, n_layers=2)
    source = {"lora": {"rank": 2}, "layer_sampling": "random", "layers_kept": 0.5, "suppression": 0.25}
    message = r"suppression: means something only with layer_sampling importance"
    with pytest.raises(ConfigurationError, match=message + r", not random.*leave suppression out"):
        configuration(source, space.shape)
    good = space.assemble({"lora.rank": 2, "prefix_tuning.length": 0, "layer_sampling": "random", "layers_kept": 0.5})
    training = (*good.training, ("suppression", 0.25))
    bad = type(good)(methods=good.methods, training=training)
    with pytest.raises(ConfigurationError, match=message):
        space.check(bad)


def test_a_choice_of_one_value_is_no_dimension() -> None:
    space = bind({"lora": {"rank": 2, "learning_rate": "choice(1e-3)"}, "batch_size": "choice(16)"})
    assert space.dimensions == ()
    (only,) = space.configurations()
    assert dict(only.training) == {"batch_size": 16}
    assert only.methods[0].learning_rate == 1e-3
