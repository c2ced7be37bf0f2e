import pytest
import torch

from autopeft.errors import SpecError
from autopeft.trainers import precision
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.precision import base_dtype, fit_model

CPU = torch.device("cpu")
SPEC = ModelSpec(name="m")


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: fast)
    assert base_dtype("auto", CPU) is dtype
    assert base_dtype("float32", CPU) is torch.float32
    assert base_dtype("bfloat16", CPU) is torch.bfloat16


def test_the_processor_is_asked_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, fast in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert precision.has_fast_bfloat16(CPU) is fast
    assert not precision.has_fast_bfloat16(torch.device("meta"))


def test_on_an_intel_processor_only_tiles_make_bfloat16_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"avx512_bf16": True, "cpu_name": "Intel Xeon"}
    for more, fast in (({}, False), ({"amx_bf16": True}, True), ({"cpu_name": "AMD EPYC"}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda more=more: found | more, raising=False)
        assert precision.has_fast_bfloat16(CPU) is fast


def test_short_rows_in_bfloat16_take_eager_attention_on_a_cpu() -> None:
    def attention(length: int, **given: str) -> str | None:
        return fit_model(ModelSpec(name="m", **given), "bfloat16", device=CPU, max_length=length).attention

    assert attention(128) == "eager"
    assert attention(512) is None
    assert attention(128, attention="sdpa") == "sdpa"
    assert fit_model(SPEC, "float32", device=CPU, max_length=128).attention is None
    assert fit_model(SPEC, "bfloat16", device=torch.device("cuda"), max_length=128).attention is None


def test_the_model_s_own_dtype_stands() -> None:
    named = ModelSpec(name="m", dtype="float32")
    assert fit_model(named, "auto", device=CPU, max_length=512) == named
    assert fit_model(SPEC, "float32", device=CPU, max_length=512).dtype == "float32"
    with pytest.raises(SpecError, match=r"training\.precision: got 'bfloat16', but model\.dtype is 'float32'"):
        fit_model(named, "bfloat16", device=CPU, max_length=512)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SpecError, match=r"training\.precision: got 'fp8'; allowed are auto, float32, bfloat16"):
        base_dtype("fp8", CPU)
