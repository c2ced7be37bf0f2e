"""A process that only describes models loads less, and says the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autopeft.studies.estimate import Conditions, estimate
from tests.models import MODELS

CODE = """
import json, sys
from pathlib import Path
from autopeft.trainers.lean_imports import import_lean
from autopeft.studies.estimate import Conditions, estimate
import_lean()
import_lean()
conditions = Conditions(batch_size=2, sequence_length=16)
said = [estimate(sys.argv[1], Path(file), conditions).to_json() for file in sys.argv[2:]]
loaded = sorted(sys.modules)
import torch
from torch._dynamo.source import AttrSource, LocalSource
from torch.distributed.tensor import DTensor, Shard
real = [torch._dynamo.optimize.__module__, LocalSource.__module__, AttrSource(LocalSource("x"), "y").name]
real += [Shard.__module__, torch.distributed.tensor.DTensor.__module__]
print(json.dumps({"said": said, "loaded": loaded, "real": real}))
"""
REAL = [
    *("torch._dynamo.eval_frame", "torch._dynamo.source", "L['x'].y"),
    *("torch.distributed.tensor.placement_types", "torch.distributed.tensor"),
]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A model's folder, and an adapter of ours and one of peft."""
    MODELS["llama"].config().save_pretrained(tmp_path / "model")
    ours, theirs = tmp_path / "lora.json", tmp_path / "adapter_config.json"
    ours.write_text(json.dumps({"lora": {"rank": 4}}))
    theirs.write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}))
    return [str(tmp_path / "model"), str(ours), str(theirs)]


def test_what_is_not_needed_is_not_loaded_and_changes_no_answer(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    model, *files = arguments
    conditions = Conditions(batch_size=2, sequence_length=16)
    assert found["said"] == [estimate(model, Path(file), conditions).to_json() for file in files]
    for name in ("torch._dynamo.convert_frame", "torch._inductor", "torch.distributed.fsdp", "scipy.optimize"):
        assert name not in found["loaded"]
    for name in ("torch._dynamo.utils", "torch.distributed.tensor._ops"):
        assert name not in found["loaded"], "peft and a batch of numbers need none of it"
    assert found["real"] == REAL, "what is asked for after all is the real one"
