"""Tiny base models with random weights, by architecture: two or three layers, a width of 32, words or small images."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BaseImageProcessor, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

WORDS = tuple(
    a + b
    for a in ("ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu")
    for b in ("ran", "sel", "tin", "vor", "zum")
)
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
VOCABULARY_SIZE = len(SPECIAL) + len(WORDS)
HIDDEN = 32
N_LAYERS = 3
IMAGE_SIZE, PATCH_SIZE = 12, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """One row of the table."""

    config: Callable[[], PretrainedConfig]
    causal: bool = False
    """Has a language-model class and a causal mask."""
    prefix: bool = True
    """Its attention goes through the interface that prefix tuning needs."""
    query_value: tuple[str, ...] = ()
    """Default LoRA targets: query and value, or the fused projection."""


def _config(name: str, **fields: object) -> Callable[[], PretrainedConfig]:
    common: dict[str, object] = {
        "vocab_size": VOCABULARY_SIZE,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return lambda: getattr(transformers, name)(**(common | fields))


def _plain(name: str, **fields: object) -> Callable[[], PretrainedConfig]:
    """Sizes under the names that most architectures use."""
    sizes: dict[str, object] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    return _config(name, **(sizes | fields))


def _vision(name: str, **fields: object) -> Callable[[], PretrainedConfig]:
    sizes: dict[str, object] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    return lambda: getattr(transformers, name)(**(sizes | fields))


_BERT = ("attention.self.query", "attention.self.value")
_LLAMA = ("self_attn.q_proj", "self_attn.v_proj")
_VIT = ("attention.q_proj", "attention.v_proj")

MODELS: Mapping[str, TinyModel] = {
    "bert": TinyModel(config=_plain("BertConfig"), query_value=_BERT),
    "roberta": TinyModel(config=_plain("RobertaConfig"), query_value=_BERT),
    "electra": TinyModel(config=_plain("ElectraConfig", embedding_size=16), query_value=_BERT),
    "distilbert": TinyModel(
        config=_config(
            "DistilBertConfig", dim=HIDDEN, n_layers=N_LAYERS, n_heads=4, hidden_dim=48, max_position_embeddings=64
        ),
        query_value=("attention.q_lin", "attention.v_lin"),
    ),
    "deberta-v2": TinyModel(
        config=_plain(
            "DebertaV2Config",
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
        ),
        prefix=False,
        query_value=("attention.self.query_proj", "attention.self.value_proj"),
    ),
    "mpnet": TinyModel(
        config=_plain("MPNetConfig"), prefix=False, query_value=("attention.attn.q", "attention.attn.v")
    ),
    "modernbert": TinyModel(
        config=_plain(
            "ModernBertConfig", cls_token_id=1, sep_token_id=2, local_attention=8, global_attn_every_n_layers=2
        ),
        query_value=("attn.Wqkv",),
    ),
    "albert": TinyModel(
        config=_plain("AlbertConfig", embedding_size=16),
        query_value=("albert_layers.0.attention.query", "albert_layers.0.attention.value"),
    ),
    "llama": TinyModel(config=_plain("LlamaConfig", num_key_value_heads=2), causal=True, query_value=_LLAMA),
    "mistral": TinyModel(
        config=_plain("MistralConfig", num_key_value_heads=2, sliding_window=4), causal=True, query_value=_LLAMA
    ),
    "qwen2": TinyModel(config=_plain("Qwen2Config", num_key_value_heads=1), causal=True, query_value=_LLAMA),
    "qwen3": TinyModel(
        config=_plain("Qwen3Config", num_key_value_heads=2, head_dim=16), causal=True, query_value=_LLAMA
    ),
    "gemma": TinyModel(
        config=_plain("GemmaConfig", num_key_value_heads=1, head_dim=16), causal=True, query_value=_LLAMA
    ),
    "gemma2": TinyModel(
        config=_plain("Gemma2Config", num_key_value_heads=2, head_dim=8, sliding_window=4),
        causal=True,
        query_value=_LLAMA,
    ),
    "phi": TinyModel(config=_plain("PhiConfig"), causal=True, query_value=_LLAMA),
    "phi3": TinyModel(
        config=_plain("Phi3Config", num_key_value_heads=2), causal=True, query_value=("self_attn.qkv_proj",)
    ),
    "opt": TinyModel(
        config=_config(
            "OPTConfig",
            hidden_size=HIDDEN,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            ffn_dim=48,
            max_position_embeddings=64,
            word_embed_proj_dim=HIDDEN,
        ),
        causal=True,
        query_value=_LLAMA,
    ),
    "gpt2": TinyModel(
        config=_config("GPT2Config", n_embd=HIDDEN, n_layer=N_LAYERS, n_head=4, n_positions=64, n_inner=48),
        causal=True,
        query_value=("attn.c_attn",),
    ),
    "gpt_neox": TinyModel(config=_plain("GPTNeoXConfig"), causal=True, query_value=("attention.query_key_value",)),
    "gptj": TinyModel(
        config=_config(
            "GPTJConfig", n_embd=HIDDEN, n_layer=N_LAYERS, n_head=4, n_positions=64, n_inner=48, rotary_dim=4
        ),
        causal=True,
        prefix=False,
        query_value=("attn.q_proj", "attn.v_proj"),
    ),
    "falcon": TinyModel(
        config=_plain("FalconConfig", multi_query=True, ffn_hidden_size=48, new_decoder_architecture=False),
        causal=True,
        prefix=False,
        query_value=("self_attention.query_key_value",),
    ),
    "starcoder2": TinyModel(config=_plain("Starcoder2Config", num_key_value_heads=2), causal=True, query_value=_LLAMA),
}
"""Models of text."""

IMAGE_MODELS: Mapping[str, TinyModel] = {
    "vit": TinyModel(config=_vision("ViTConfig"), query_value=_VIT),
    "deit": TinyModel(config=_vision("DeiTConfig"), query_value=_VIT),
    "beit": TinyModel(config=_vision("BeitConfig", use_relative_position_bias=True), query_value=_VIT),
    "dinov2": TinyModel(config=_vision("Dinov2Config"), query_value=_VIT),
}
"""Models of images of `IMAGE_SIZE`."""

EVERY: Mapping[str, TinyModel] = {**MODELS, **IMAGE_MODELS}

SHORT = ("bert", "roberta", "distilbert", "modernbert", "llama", "gpt2")
"""Rows for tests that are too slow for the whole table."""


def tokenizer(*, model_max_length: int = 64) -> PreTrainedTokenizerFast:
    """Whole words of `WORDS`; pairs are framed as a BERT frames them."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=model_max_length,
    )


def image_processor() -> BaseImageProcessor:
    """For the models that read images."""
    return transformers.ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def example(model: PreTrainedModel, *, n: int = 2, length: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs of random words, or of random images where the model reads images."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(n, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator).to(model.dtype)}
    ids = torch.randint(5, 50, (n, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def build_base(name: str, *, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """The bare base model of a row, random weights from `seed`, eval mode, frozen."""
    config = EVERY[name].config()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        options = {} if attention is None else {"attn_implementation": attention}
        model: PreTrainedModel = AutoModel.from_config(config, **options)
        _roughen(model)
    return model.requires_grad_(False).eval()


def save_model(name: str, folder: Path, *, seed: int = 0, language_model: bool = False) -> Path:
    """Write the model of a row and its tokenizer, or image processor, as `save_pretrained` does; returns `folder`.

    Args:
        name: A key of `EVERY`.
        folder: Made when it does not exist.
        seed: Of the weights.
        language_model: With its language-model head, for `causal-lm`.
    """
    auto = transformers.AutoModelForCausalLM if language_model else AutoModel
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = auto.from_config(EVERY[name].config())
        _roughen(model)
    model.save_pretrained(folder)
    (image_processor() if name in IMAGE_MODELS else tokenizer()).save_pretrained(folder)
    return folder


def sentences(n: int, *, seed: int = 0, low: int = 3, high: int = 10) -> list[str]:
    """`n` sentences of `low` to `high` words of the tokenizer's vocabulary."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(low, high))) for _ in range(n)]


@torch.no_grad()
def _roughen(model: PreTrainedModel) -> None:
    """Weights large enough that attention is not uniform and every part matters for the output."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(6.0)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)
