"""A trained adapter folded into its base and saved as a model that plain transformers loads."""

from pathlib import Path

from autopeft.trainers.checkpoint import quiet, read_config
from autopeft.trainers.inject import build, check_mergeable, merge
from autopeft.trainers.model import name_labels
from autopeft.trainers.saved import AdapterInfo, read_info
from autopeft.trainers.trainer import Trainer


def check_merge(info: AdapterInfo) -> None:
    """Refuse an adapter that is no change of weights, without loading the base.

    Raises:
        ConfigurationError: With the methods that are none.
    """
    check_mergeable(build(info.shape, info.configuration, seed=0))


def write_merged(trainer: Trainer, source: Path, folder: Path) -> None:
    """Write base, adapter and head as one model, `config.json` and `model.safetensors`, with what reads its rows.

    Sums are taken in fp32 and rounded once to the dtype that the base was trained in. The trainer's own model is
    afterwards what it was.

    Args:
        trainer: Of the adapter's base and task.
        source: The adapter folder.
        folder: Made when absent.

    Raises:
        ConfigurationError: A method that cannot be merged, or not into this model (a map without a bias).
        ModelError: As `Trainer.attached`.
    """
    info = read_info(source)
    with trainer.attached(source) as adapters:
        loaded = trainer.loaded
        merged = merge(adapters, loaded.model, loaded.shape)
        config = loaded.model.config
        caching = config.use_cache if hasattr(config, "use_cache") else None
        try:
            name_labels(config, info.kind, info.task.get("labels"))
            if caching is not None:
                config.use_cache = getattr(read_config(loaded.spec), "use_cache", True)
            with quiet():
                loaded.model.save_pretrained(folder)
                if loaded.tokenizer is not None:
                    loaded.tokenizer.save_pretrained(folder)
                if loaded.reader is not None:
                    loaded.reader.save(folder)
        finally:
            if caching is not None:
                config.use_cache = caching
            merged.unmerge()
