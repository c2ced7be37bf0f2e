"""Which fields an `adapter_config.json` may have, and of what kind those are by which its size is told."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from autopeft.errors import ConfigurationError
from autopeft.spaces.suggest import nearest

_NAMES: Final = """
    ab_svd_init act_fn adapter_layers adapter_len adapters alora_invocation_tokens alpha alpha_pattern apply_GS
    arrow_config asa_importance_beta asa_schedule_exponent asa_target_subspaces asa_uncertainty_beta auto_mapping
    auxiliary_loss_weight base_model_name_or_path beta1 beta2 bias block_share block_size block_size_pattern
    boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor cayley_neumann_eps coft config_A_B config_C
    config_D_E corda_config cpt_mask cpt_token_ids cpt_tokens_type_mask d_initial decompose_both decompose_factor
    decomposition_method deft_dropout delora_lambda deltaT depth effective_rank enable_softmax enable_softmax_topk
    encoder_dropout encoder_hidden_size encoder_num_layers encoder_reparameterization_type ensure_weight_tying eps
    eva_config exclude_modules fan_in_fan_out feedforward_modules final_warmup frod_dropout generator_seed
    global_scaling_weight gralora_dropout gralora_k group_size hidden_size hira_dropout hybrid_r inference_mode
    init_ia3_weights init_logits_std init_lora_weights init_r init_scale init_theta_d_bound init_v_bound
    init_vector_bank_bound init_warmup init_weights kasa_config lambda_pattern layer_replication layers_pattern
    layers_to_transform layerwise_scalings loftq_config lora_alpha lora_bias lora_dropout lora_ga_config
    mask_interval mask_type megatron_config megatron_core mini_r miss_dropout module_dropout modules_to_save
    monteclora_config n_frequency n_frequency_pattern n_skills n_splits n_tasks num_B num_attention_heads
    num_cayley_neumann_terms num_frozen_tokens num_layers num_ranks num_subspaces num_tasks
    num_transformer_submodules num_vectors num_virtual_tokens oft_block_size opt_loss_decay_factor
    opt_projection_epsilon opt_projection_format_epsilon opt_weighted_loss_type orth_reg_weight para peft_type
    peft_version poly_type prefix_projection progressbar proj_seed projection_prng_key projection_seed
    prompt_tuning_init prompt_tuning_init_state_dict_path prompt_tuning_init_task prompt_tuning_init_text
    proportional_parameters psoft_alpha psoft_dropout psoft_mag_a psoft_mag_b psoft_orth psoft_svd
    psoft_svd_lowrank_niter pvera_dropout qalora_group_size r randlora_alpha randlora_dropout random_loc_seed
    random_seed rank_dropout rank_dropout_scale rank_pattern regularization_alpha revision runtime_config
    runtime_offload_base_weight sample_at_inference save_indices save_only_topk_weights save_precomputed_indices
    save_projection scaling scaling_pass_value select_top shadow_alpha shadow_dropout shadow_hidden_size
    shadow_intermediate_size shadow_model shadow_num_attention_heads shadow_num_hidden_layers share_embeddings
    softmax_temperature sparse sparse_rate sparsity stride_A subspace_rank svd_threshold target_modules
    target_parameters target_r target_svd_config task_type tfinal theta_d_length tinit tinylora_dropout token_dim
    token_indices tokenizer_kwargs tokenizer_name_or_path top_k_lora topk total_step trainable_token_indices u
    unilora_dropout update_hidden_size use_asa use_bdlora use_cayley_neumann use_dora use_dynamic_rank
    use_effective_conv2d use_idwt use_qalora use_rslora use_trainable_adapters variant vblora_dropout vector_length
    velora_config vera_dropout very_sparse wavelet_family weight_tying xlora_depth xlora_dropout_p xlora_size
"""
KNOWN: Final = frozenset(_NAMES.split())
"""Every field of every configuration class of peft 0.21.2."""

_WORDS: Final = ("exclude_modules", "feedforward_modules", "layers_pattern", "modules_to_save", "target_modules")
_PATTERNS: Final = ("block_size_pattern", "n_frequency_pattern", "rank_pattern")
_INDICES: Final = ("layers_to_transform", "token_indices", "trainable_token_indices")


def check_fields(config: Mapping[str, object]) -> None:
    """Raise ConfigurationError for a field that is not known but says something, or one that is not what peft writes.

    A newer peft may have a field that changes an adapter's size, and a misspelt one would be left out of the count.
    """
    for name, value in config.items():
        if name not in KNOWN and value not in (None, False, "", 0) and value not in ([], {}):
            raise ConfigurationError(
                f"{name}: not a field that is known, so the size of this adapter is not",
                hint=nearest(name, KNOWN) or "leave it out if the number of parameters does not depend on it",
            )
    for name in _WORDS:
        _check_words(name, config.get(name))
    for name in _PATTERNS:
        _check_pattern(name, config.get(name))
    for name in _INDICES:
        _check_indices(name, config.get(name))


def _check_words(name: str, value: object) -> None:
    words = [value] if isinstance(value, str) else value
    if words is None:
        return
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise ConfigurationError(
            f"{name}: {value!r} is no name of modules and no list of names", hint='write e.g. ["q_proj", "v_proj"]'
        )
    _check_expressions(name, words)


def _check_pattern(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{name}: {value!r} is no mapping of modules to numbers", hint='write e.g. {"q_proj": 4}, or {}'
        )
    _check_expressions(name, list(value))


def _check_expressions(name: str, words: Sequence[object]) -> None:
    for word in words:
        try:
            re.compile(str(word))
        except re.error as error:
            raise ConfigurationError(
                f"{name}: {word!r} is no regular expression: {error}", hint="write it as Python's `re` does"
            ) from None


def _check_indices(name: str, value: object) -> None:
    """Lists of whole numbers; `layers_to_transform` may be one number, `trainable_token_indices` a mapping to lists."""
    rows = list(value.values()) if name == "trainable_token_indices" and isinstance(value, Mapping) else [value]
    if name == "layers_to_transform" and isinstance(value, int):
        rows = [[value]]
    if value is not None and not all(_whole_numbers(row) for row in rows):
        raise ConfigurationError(f"{name}: {value!r} is no list of whole numbers", hint="write e.g. [0, 1, 2]")


def _whole_numbers(row: object) -> bool:
    return isinstance(row, Sequence) and not isinstance(row, str) and all(type(number) is int for number in row)
