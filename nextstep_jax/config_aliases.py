"""How the releases spell their config.json: key tables, and reading values with their types checked.

Three spellings exist for the model (NextStep-1, NextStep-1.1, the February 2026 training release) and two for the image
tokenizer (the releases' own and diffusers').
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from nextstep_jax.errors import InputError

# Our field -> the spellings of the releases, oldest name first; the first is what `to_released` writes.
MODEL_KEYS = {
    "latent_size": ("latent_size", "image_size"),
    "patch": ("latent_patch_size", "patch_size"),
    "latent_channels": ("latent_channels", "num_channels"),
    "image_loss_weight": ("im_loss_weight", "image_loss_weight"),
    "text_loss_weight": ("lm_loss_weight",),
    "base_grid": ("base_image_grid_size",),
    "use_gen_pos_embed": ("use_gen_pos_embed",),
    "input_noise": ("noise_strength",),
    "bos_id": ("bos_token_id",),
    "eos_id": ("eos_token_id",),
    "pad_id": ("pad_token_id_added",),
    "begin_of_image_id": ("boi",),
    "end_of_image_id": ("eoi",),
    "image_placeholder_id": ("image_placeholder_id",),
}
HEAD_KEYS = {
    "width": ("fm_head_dim", "genloss_width"),
    "layers": ("fm_head_layers", "genloss_depth"),
    "batch_mul": ("fm_head_batch_mul", "genloss_batch_mul"),
    "mlp_ratio": ("fm_head_mlp_ratio",),
}
TRANSFORMER_KEYS = {
    "vocab_size": ("vocab_size",),
    "width": ("hidden_size",),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "mlp_width": ("intermediate_size",),
    "max_positions": ("max_position_embeddings",),
    "rope_theta": ("rope_theta",),
    "rms_norm_eps": ("rms_norm_eps",),
    "qkv_bias": ("attention_bias",),
    "o_bias": ("o_attention_bias",),
    "tie_embeddings": ("tie_word_embeddings",),
}
TOKENIZER_KEYS = {
    "resolution": "resolution",
    "in_channels": "in_channels",
    "channels": "ch",
    "channel_multipliers": "ch_mult",
    "blocks_per_level": "num_res_blocks",
    "latent_channels": "z_channels",
    "scaling": "scaling_factor",
    "shift": "shift_factor",
    "deterministic": "deterministic",
    "normalize": "encoder_norm",
    "normalize_patch": "psz",
    "stem_patch": "stem_patch",
    "encoder_tile": "encoder_tile",
    "norm_groups": "norm_groups",
    "perturbation": "perturbation",
}
# Settings of the released code that this library implements in one way only.
ONLY = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
    "use_sliding_window": (False, None),
    "use_2d_rope": (False, None),
    "use_mlp_before_lm_head": (False, None),
    "attention_use_qk_norm": (False, None),
    "genloss_type": ("transport",),
    "genloss_net_arch": ("mlp",),
    "image_encoder_name": (None,),
}


def require_only(values: Mapping[str, Any], only: Mapping[str, tuple]) -> None:
    for key, allowed in only.items():
        if key in values and values[key] not in allowed:
            raise InputError(f"{key} = {values[key]!r:.200} is not supported (expected {' or '.join(map(repr, allowed))})")


def take(cls, keys: Mapping[str, tuple[str, ...]], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `cls` found in `values`, each coerced to its field's type and given once."""
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    taken = {}
    for field, names in keys.items():
        found = {name: values[name] for name in names if values.get(name) is not None}
        if len({repr(v) for v in found.values()}) > 1:
            raise InputError("contradictory values: " + ", ".join(f"{n} = {v!r}" for n, v in found.items()))
        for name, value in found.items():
            taken[field] = coerce(name, value, types[field])
    return taken


def coerce(name: str, value: Any, kind: type) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind is float and number and math.isfinite(value):
        return float(value)
    if kind == int | None:
        return coerce(name, value, int)
    if kind == tuple[int, ...] and isinstance(value, list | tuple):
        return tuple(coerce(name, item, int) for item in value)
    raise InputError(f"{name} must be of type {getattr(kind, '__name__', kind)}, found {value!r:.200}")


# --- diffusers -----------------------------------------------------------------------------------------------------------

# diffusers' spelling of the same tokenizer -> the releases'.
_DIFFUSERS_KEYS = {
    "in_channels": "in_channels",
    "layers_per_block": "num_res_blocks",
    "latent_channels": "z_channels",
    "norm_num_groups": "norm_groups",
    "sample_size": "resolution",
    "scaling_factor": "scaling_factor",
    "shift_factor": "shift_factor",
    "deterministic": "deterministic",
    "normalize_latents": "encoder_norm",
    "patch_size": "psz",
}
_DIFFUSERS_ONLY = {
    "act_fn": ("silu",),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (False,),
    "use_post_quant_conv": (False,),
}


def from_diffusers(values: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers AutoencoderKL config in the releases' spelling."""
    require_only(values, _DIFFUSERS_ONLY)
    widths = coerce("block_out_channels", values["block_out_channels"], tuple[int, ...])
    if not widths or any(width < 1 or width % widths[0] for width in widths):
        raise InputError(f"block_out_channels must be multiples of the first, found {list(widths)}")
    known = {theirs: values[key] for key, theirs in _DIFFUSERS_KEYS.items() if key in values}
    return known | {"ch": widths[0], "ch_mult": [width // widths[0] for width in widths]}
