"""Methods that Hugging Face PEFT implements: what they refuse, what they share, and the table of types."""

import sys
from pathlib import Path

import peft
import pytest

from autopeft.errors import ConfigurationError
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.spaces.methods.peft_table import OUTSIDE, OWN, known_types, peft_table
from autopeft.spaces.peft_counts import SITE_COUNTS
from tests.spaces.builders import shape

BASE = shape(3, hidden=48)
DOCS = Path(__file__).parents[3] / "docs"
BRIDGED = [method for method in METHODS.values() if isinstance(method, AbstractBridged)]


def values_of(method: str, **fields: FieldValue) -> dict[str, FieldValue]:
    known = METHODS[method]
    defaults = {field.name: field.default for field in known.fields if field.default is not None}
    return defaults | {known.size_field.name: 1, "targets": ("attention.self.query",)} | fields


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("beft", {"enabled": 2}, "beft.enabled: 2 is neither 0 nor 1"),
        (
            "boft",
            {"block_size": 5},
            "boft.block_size: 5 does not divide the width 48 at attention.self.query in layer 0",
        ),
        ("c3a", {"block_size": 5}, "c3a.block_size: 5 does not divide the width 48"),
        ("delora", {"rank": 49}, "delora.rank: 49 is above the width 48"),
        ("gralora", {"rank": 3}, "gralora.blocks: 2 does not divide the rank 3"),
        ("gralora", {"rank": 10, "blocks": 5}, "gralora.blocks: 5 does not divide the width 48"),
        ("hra", {"reflections": 49}, "hra.reflections: 49 is above the width 48"),
        ("lokr", {"rank": 2, "factor": 0}, "lokr.factor: 0 splits nothing"),
        ("miss", {"rank": 5, "mode": "bat"}, "miss.rank: 5 does not divide the width 48"),
        ("miss", {"rank": 4, "mode": "mini", "mini_rank": 5}, "miss.mini_rank: 5 does not divide the width 48"),
        ("oft", {"block_size": 1}, "oft.block_size: 1 turns nothing"),
        ("peft_lora", {"rank": 4, "variant": "dora", "init": "pissa"}, "peft_lora.init: pissa takes its factors out"),
        ("peft_lora", {"rank": 4, "variant": "mica", "init": "gaussian"}, "mica has an initialisation of its own"),
        ("adalora", {"rank": 2, "target_rank": 2}, "adalora.target_rank: 2 leaves nothing of rank 2 to take away"),
        ("peft_lora", {"rank": 25, "init": "lora_ga"}, "peft_lora.rank: twice 25 is above the width 48"),
        (
            "peft_lora",
            {"rank": 4, "variant": "ffa", "init": "corda_ipm"},
            "corda_ipm takes its factors out of the weight",
        ),
        ("peft_lora", {"rank": 3, "init": "orthogonal"}, "peft_lora.rank: 3 is odd, init orthogonal needs an even"),
        ("peft_lora", {"rank": 48, "variant": "kasa"}, "peft_lora.rank: 48 is not below the width 48"),
        ("adamss", {"rank": 4, "subspaces": 49}, "adamss.subspaces: 49 with rank 1 ask for more than 48 outputs"),
        ("adamss", {"rank": 1, "subspace_rank": 2}, "adamss.subspace_rank: 2 is above the rank 1 of the frame"),
        ("osf", {"rank": 48}, "osf.rank: 48 is not below the width 48"),
        ("poly", {"rank": 2, "splits": 5}, "poly.splits: 5 does not divide the width 48"),
        ("psoft", {"rank": 1}, "psoft.rank: 1 has no rotation"),
        ("unilora", {"length": 9, "rank": 49}, "unilora.rank: 49 is above the width 48"),
        ("road", {"group_size": 3}, "road.group_size: 3 is odd"),
        ("road", {"group_size": 10}, "road.group_size: 10 does not divide the width 48"),
        ("shira", {"rank": 25}, "shira.rank: 25 has more entries than the weight"),
        ("supertuning", {"sparsity": 0.9999}, "supertuning.sparsity: 0.9999 leaves no entry to train"),
        ("vblora", {"rank": 2, "top_k": 300}, "vblora.top_k: 300 is above the 256 vectors"),
        ("vblora", {"rank": 2, "vector_length": 5}, "vblora.vector_length: 5 does not divide the width 48"),
    ],
)
def test_settings_that_do_not_fit_a_map_are_refused_with_the_place(
    method: str, fields: dict[str, FieldValue], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        METHODS[method].check(BASE, layer=0, values=values_of(method, **fields))


@pytest.mark.parametrize("method", BRIDGED, ids=lambda method: method.name)
def test_every_setting_reaches_peft(method: AbstractBridged) -> None:
    kinds = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    config = method.peft_config(values_of(method.name), sites=BASE.layers[0])
    config.pop("freeze_a", None)
    known = {row for row in kinds[peft.PeftType(method.peft_type)].__dataclass_fields__}
    assert set(config) | set(method.by_site(BASE.layers[0][0], values_of(method.name))) <= known
    own = {field.name for field in method.fields} - {"targets", "enabled"}
    optional = {"variant", "init", "mode", "bases", "kasa_beta", "kasa_gamma", "warmup_share", "final_share"}
    optional |= set(method.read_site(config, BASE.layers[0][0]))
    assert own - optional <= set(method.columns) <= own
    assert method.peft_type in SITE_COUNTS


def test_layers_with_equal_settings_share_one_bank() -> None:
    bank = 256 * 16
    each = 3 * 2 * 2 * (3 + 3) * 256
    same = configuration({"vblora": {"rank": 2}}, BASE)
    assert count_parameters(same, BASE).total == each + bank
    other = configuration({"vblora": {"rank": 2, "top_k": [2, 2, 3]}}, BASE)
    assert count_parameters(other, BASE).total == each + 2 * bank


def test_the_last_map_of_the_feed_forward_block_is_scaled_at_its_input() -> None:
    built = configuration({"ia3": {"enabled": 1, "targets": ["output.dense", "key"], "layers": [1]}}, BASE)
    assert count_parameters(built, BASE).total == 4 * 48 + 48


def test_the_table_speaks_of_every_type_of_peft_once() -> None:
    assert set(known_types()) == {kind.value for kind in peft.PeftType}
    assert not set(OWN) & set(OUTSIDE)
    assert not {method.peft_type for method in BRIDGED} & {*OWN, *OUTSIDE}
    assert len({method.peft_type for method in BRIDGED}) == len(BRIDGED)


def test_a_row_of_the_table_has_a_cell_for_each_kind() -> None:
    rows = peft_table(("a", "b")).splitlines()
    assert rows[0] == "| PEFT type | method | a | b | note |"
    assert "| OFT | `oft` | yes | yes | The input turned by trained orthogonal blocks (Cayley transform). |" in rows
    assert any(row.startswith("| XLORA |  | no | no | it trains a gate over LoRA adapters") for row in rows)


def test_the_page_of_types_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import generate

    try:
        assert generate.PAGE.read_text(encoding="utf-8") == generate.peft_types_page(), "run python docs/generate.py"
    finally:
        del sys.modules["generate"]
