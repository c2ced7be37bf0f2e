"""Compressed adapters: what they hold, that they load, how small they are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autopeft.errors import ModelError
from autopeft.spaces.configuration import Configuration
from autopeft.trainers.compression import Packed, constant_start, pack_levels, pack_ternary, start_of, unpack
from autopeft.trainers.inject import AdapterSet, build, inject
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import LoadedModel, head_state, load_model
from autopeft.trainers.saved import describe, load_adapter, read_adapter, save_adapter, save_packed
from tests.configurations import configuration, setting
from tests.models import save_model

QUERY, VALUE = "attention.self.query", "attention.self.value"
IDS = torch.tensor([[1, 6, 7, 8, 9, 2], [1, 11, 12, 13, 14, 2]])
LORA = configuration(setting("lora", (0, 2), rank=4, targets=(QUERY, VALUE)))
SCALES = configuration(
    setting("ia3", (0, 1), enabled=1, targets=(QUERY,)), setting("ssf", (1,), enabled=1, targets=(VALUE,))
)
RANDOM = configuration(setting("vera", (0, 2), rank=4, targets=(QUERY,)))
PISSA = configuration(setting("peft_lora", (0, 2), rank=2, targets=(QUERY,), init="pissa"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("bert", tmp_path_factory.mktemp("bert") / "base")


def load(base: Path) -> LoadedModel:
    return load_model(ModelSpec(name=str(base)), kind="text-classification", n_labels=3)


def trained(loaded: LoadedModel, config: Configuration, *, size: float = 0.2) -> AdapterSet:
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return adapters


def write(folder: Path, adapters: AdapterSet, packed: Packed, loaded: LoadedModel) -> Path:
    info = describe(adapters, loaded=loaded, task={})
    return save_packed(folder, adapters, packed, info=info, head=head_state(loaded))


def test_what_moved_most_becomes_one_value_with_its_sign(base: Path) -> None:
    loaded = load(base)
    adapters = trained(loaded, LORA)
    flat = torch.cat([p.detach().flatten() for p in adapters.parameters()]).double().numpy()
    order = sorted(range(len(flat)), key=lambda i: (-abs(flat[i]), i))[: round(0.1 * len(flat))]
    expected = np.zeros_like(flat)
    for i in order:
        expected[i] = 2.0 * flat.std() * np.sign(flat[i])
    packed = pack_ternary(adapters, {}, density=0.1, alpha=2.0)
    fresh = build(loaded.shape, LORA, seed=7)
    unpack(fresh, packed.tensors, packed.facts, start={})
    found = torch.cat([p.detach().flatten() for p in fresh.parameters()]).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("config", [LORA, SCALES, RANDOM, PISSA], ids=["lora", "scales", "vera", "pissa"])
@pytest.mark.parametrize("method", ["compeft", "1bit"])
def test_a_compressed_folder_computes_what_was_packed(
    config: Configuration, method: str, base: Path, tmp_path: Path
) -> None:
    loaded = load(base)
    adapters = trained(loaded, config)
    start = constant_start(loaded.shape, config)
    packed = pack_levels(adapters) if method == "1bit" else pack_ternary(adapters, start, density=0.2, alpha=2.0)
    write(tmp_path / "packed", adapters, packed, loaded)
    unpack(adapters, packed.tensors, packed.facts, start=start)
    expected = loaded.model(IDS).logits
    model, _ = load_adapter(tmp_path / "packed")
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-6, rtol=0)


def test_scales_that_began_at_one_lose_their_change_only(base: Path) -> None:
    loaded = load(base)
    adapters = trained(loaded, SCALES, size=1e-3)
    start = constant_start(loaded.shape, SCALES)
    assert set(start) == {name for name, _ in adapters.named_parameters()}
    expected = loaded.model(IDS).logits
    packed = pack_ternary(adapters, start, density=0.05, alpha=1.0)
    unpack(adapters, packed.tensors, packed.facts, start=start)
    assert (loaded.model(IDS).logits - expected).abs().max() < 1e-2


def test_what_was_drawn_at_random_is_packed_as_it_is(base: Path) -> None:
    loaded = load(base)
    start = constant_start(loaded.shape, LORA)
    assert start
    assert all(name.endswith(".b") for name in start)
    assert start_of(build(loaded.shape, LORA, seed=5), {"from_start": sorted(start)}).keys() == start.keys()


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize(
    "method", [("binary_lora", {"rank": 4, "targets": (QUERY, VALUE)}), ("binary_adapter", {"bottleneck": 8})]
)
def test_binary_methods_lose_nothing_at_their_own_bits(
    method: tuple[str, dict[str, object]], bits: int, base: Path, tmp_path: Path
) -> None:
    loaded = load(base)
    config = configuration(setting(method[0], (0, 2), bits=bits, **method[1]))  # type: ignore[arg-type]  # field values
    adapters = trained(loaded, config)
    expected = loaded.model(IDS).logits
    packed = pack_levels(adapters)
    write(tmp_path / "packed", adapters, packed, loaded)
    model, _ = load_adapter(tmp_path / "packed")
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-6, rtol=0)
    matrices = len(packed.names)
    assert packed.n_bytes == 8 * matrices + packed.n_numbers * bits // 8


def test_sizes_are_those_of_the_paper(base: Path) -> None:
    loaded = load(base)
    adapters = trained(loaded, configuration(setting("lora", (0, 1, 2), rank=32, targets=(QUERY, VALUE))))
    for density, bits in ((0.05, 0.336), (0.1, 0.569), (0.2, 0.922), (0.5, 1.5)):
        packed = pack_ternary(adapters, {}, density=density, alpha=1.0)
        assert 8 * packed.n_bytes / packed.n_numbers == pytest.approx(bits, rel=0.06)


def test_damage_is_noticed(base: Path, tmp_path: Path) -> None:
    loaded = load(base)
    adapters = trained(loaded, LORA)
    folder = write(tmp_path / "packed", adapters, pack_ternary(adapters, {}, density=0.1, alpha=1.0), loaded)
    facts = json.loads((folder / "autopeft.json").read_text())
    assert facts["format_version"] == 2
    facts["compression"]["kept"] += 1
    (folder / "autopeft.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match=r"does not fit autopeft.json: \d+ positions where \d+ were stored"):
        read_adapter(folder)
    facts["format_version"] = 3
    (folder / "autopeft.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="format version 3, this AutoPEFT reads 1 and 2"):
        read_adapter(folder)


def test_a_folder_that_is_not_compressed_is_as_before(base: Path, tmp_path: Path) -> None:
    loaded = load(base)
    save_adapter(tmp_path / "plain", trained(loaded, LORA), loaded=loaded, task={})
    assert json.loads((tmp_path / "plain" / "autopeft.json").read_text())["format_version"] == 1
