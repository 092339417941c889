"""The keys of released config.json files: tables of aliases, and reading values with their types checked.

Three sets of keys exist for the model (NextStep-1, NextStep-1.1, the February 2026 training release), each as transformers 4
or 5 saves it, and two for the image tokenizer (the releases' own and diffusers').
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from nextstep_jax.errors import InputError

# Our field -> its keys in the releases, oldest name first; the first is what `to_released` writes.
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
    "rope_theta": ("rope_theta", "rope_parameters.rope_theta", "rope_scaling.rope_theta"),
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
    "model_type": ("nextstep", "qwen2", "llama", "mistral", None),
    "hidden_act": ("silu", "swish"),  # two names of one function
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
    "use_2d_rope": (False, None),
    "use_mlp_before_lm_head": (False, None),
    "attention_use_qk_norm": (False, None),
    "genloss_type": ("transport",),
    "genloss_net_arch": ("mlp",),
    "image_encoder_name": (None,),
}


def require_only(values: Mapping[str, Any], only: Mapping[str, tuple]) -> None:
    """InputError for the first key whose value is not among the supported ones."""
    for key, allowed in only.items():
        if key in values and values[key] not in allowed:
            raise InputError(f"{key} = {values[key]!r:.200} is not supported (expected {' or '.join(map(repr, allowed))})")


def take(cls, keys: Mapping[str, tuple[str, ...]], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `cls` found in `values`, each coerced to its field's type and given once."""
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    taken = {}
    for field, names in keys.items():
        found = {name: coerce(name, values[name], types[field]) for name in names if values.get(name) is not None}
        if len(set(found.values())) > 1:
            raise InputError("contradictory values: " + ", ".join(f"{name} = {value!r}" for name, value in found.items()))
        if found:
            taken[field] = next(iter(found.values()))
    return taken


def coerce(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, the annotation of a config field; InputError naming the key if it is something else."""
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


# --- transformers --------------------------------------------------------------------------------------------------------


def from_transformers(values: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config as transformers 4 or 5 saves it, with RoPE, biases and key/value heads under plain keys.

    What the two versions write differently: `rope_theta` and `rope_scaling` (4) or `rope_parameters` (5), also one for each
    kind of layer; `use_sliding_window` (4) or `layer_types` (5); `torch_dtype` or `dtype`, which are not needed.

    Raises:
      InputError: RoPE scaling or sliding-window attention, which this library does not have.
    """
    values = dict(values)
    if values.get("model_type") in ("llama", "mistral") and values.get("attention_bias") is None:
        values["attention_bias"] = False  # Qwen2, the default here, has biases whatever its config says
    if values.get("model_type") == "llama" and values.get("o_attention_bias") is None:
        values["o_attention_bias"] = values["attention_bias"]
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    for key in ("rope_parameters", "rope_scaling"):
        values[f"{key}.rope_theta"] = _read_rope(key, values.get(key))
    _require_full_attention(values)
    return values


def _read_rope(key: str, parameters: Any) -> Any:
    """`rope_theta` of a table of RoPE parameters, None if it has none. InputError unless it describes plain RoPE."""
    if parameters is None:
        return None
    if not isinstance(parameters, Mapping):
        raise InputError(f"{key} must be an object or null, found {parameters!r:.100}")
    if parameters and all(isinstance(table, Mapping) for table in parameters.values()):  # one for each kind of layer
        thetas = [_read_rope(f"{key}.{kind:.50}", table) for kind, table in parameters.items()]
        if any(theta != thetas[0] for theta in thetas):
            raise InputError(f"{key}: layers with different rope_theta are not supported, found {thetas!r:.100}")
        return thetas[0]
    for name in ("rope_type", "type"):
        kind = parameters.get(name)
        if kind not in (None, "default") and not (kind == "linear" and parameters.get("factor") == 1):
            raise InputError(
                f"{key}.{name} = {kind!r:.100} is not supported (expected default); convert a checkpoint without RoPE scaling"
            )
    if parameters.get("partial_rotary_factor") not in (None, 1):
        raise InputError(
            f"{key}.partial_rotary_factor = {parameters['partial_rotary_factor']!r:.100} is not supported (expected 1)"
        )
    return parameters.get("rope_theta")


def _require_full_attention(values: Mapping[str, Any]) -> None:
    """InputError if some layer would not see all of the past."""
    kinds, layers = values.get("layer_types"), values.get("num_hidden_layers")
    if kinds is not None:
        other = [kind for kind in kinds if kind != "full_attention"] if isinstance(kinds, list) else [kinds]
        if other:
            raise InputError(
                f"layer_types has {other[0]!r:.100}, which is not supported (expected full_attention for each layer)"
            )
        if len(kinds) != layers:
            raise InputError(f"layer_types describes {len(kinds)} layers, but num_hidden_layers = {layers!r:.100}")
        return
    window, used = values.get("sliding_window"), values.get("use_sliding_window")
    mistral = values.get("model_type") == "mistral"  # has neither the switch nor a first layer with a window
    used = mistral if used is None else used
    if not coerce("use_sliding_window", used, bool) or window is None:
        return
    reach, first = values.get("max_position_embeddings"), values.get("max_window_layers")
    whole = isinstance(window, int) and isinstance(reach, int) and window >= reach
    unused = not mistral and isinstance(first, int) and isinstance(layers, int) and first >= layers
    if not (whole or unused):
        raise InputError(f"sliding_window = {window!r:.100} is not supported (expected null, or use_sliding_window = false)")


# --- diffusers -----------------------------------------------------------------------------------------------------------

# diffusers' key of a setting of the tokenizer -> the releases'.
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
    "latents_mean": (None,),
    "latents_std": (None,),
}
_DIFFUSERS_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
_DIFFUSERS_DEFAULTS = {"scaling_factor": 0.18215, "shift_factor": 0.0}  # of its class, which reads null as absent


def from_diffusers(values: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers AutoencoderKL config under the releases' keys."""
    require_only(values, _DIFFUSERS_ONLY)
    for key, expected in _DIFFUSERS_BLOCKS.items():
        if any(kind != expected for kind in values.get(key) or ()):
            raise InputError(f"{key} = {values[key]!r:.200} is not supported (expected {expected} for each level)")
    if values.get("out_channels", values.get("in_channels")) != values.get("in_channels"):
        raise InputError(f"out_channels = {values['out_channels']!r:.100} is not supported (expected in_channels)")
    widths = coerce("block_out_channels", values["block_out_channels"], tuple[int, ...])
    if not widths or any(width < 1 or width % widths[0] for width in widths):
        raise InputError(f"block_out_channels must be multiples of the first, found {list(widths)}")
    given = _DIFFUSERS_DEFAULTS | {key: values[key] for key in _DIFFUSERS_KEYS if values.get(key) is not None}
    known = {theirs: given[key] for key, theirs in _DIFFUSERS_KEYS.items() if key in given}
    return known | {"ch": widths[0], "ch_mult": [width // widths[0] for width in widths]}
