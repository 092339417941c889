"""Between the forms of a parameter tree.

Canonical: one subtree per layer (`layers_0`, `blocks_3`), separate projections; this is what lies on disk and what the
names table speaks of. Stacked: `layers` and `blocks` with a leading [L] axis, for scanned training. Fused: one qkv and
one gate-up kernel per layer, for decoding. Each function returns a new tree of the same nested dicts.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Parent module -> (prefix of its per-layer children, name of the stacked child).
_STACKS = {"decoder": "layers", "flow_head": "blocks"}


def stack_layers(params: dict, stack: Callable = jnp.stack) -> dict:
    """Canonical -> stacked. `stack` joins the L leaves of one parameter (e.g. np.stack on a host)."""
    out = dict(params)
    for parent, child in _STACKS.items():
        numbered = sorted((int(m[1]), name) for name in params[parent] if (m := re.fullmatch(rf"{child}_(\d+)", name)))
        layers = [params[parent][name] for _, name in numbered]
        rest = {k: v for k, v in params[parent].items() if not re.fullmatch(rf"{child}_\d+", k)}
        out[parent] = rest | {child: jax.tree.map(lambda *leaves: stack(leaves), *layers)}
    return out


def unstack_layers(params: dict) -> dict:
    """Stacked -> canonical."""
    out = dict(params)
    for parent, child in _STACKS.items():
        stacked = params[parent][child]
        count = jax.tree.leaves(stacked)[0].shape[0]
        rest = {k: v for k, v in params[parent].items() if k != child}
        out[parent] = rest | {f"{child}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)}
    return out


def fuse_projections(params: dict) -> dict:
    """Canonical -> fused: q, k, v side by side along heads; gate and up along a new axis."""
    out = dict(params)
    out["decoder"] = {
        name: _fuse_layer(layer) if name.startswith("layers_") else layer for name, layer in params["decoder"].items()
    }
    return out


def _fuse_layer(layer: dict) -> dict:
    attention, mlp = layer["attention"], layer["mlp"]
    parts = [attention[name] for name in ("q", "k", "v")]
    qkv = {"kernel": jnp.concatenate([p["kernel"] for p in parts], axis=1)}
    if "bias" in parts[0]:
        qkv["bias"] = jnp.concatenate([p["bias"] for p in parts], axis=0)
    gate_up = {"kernel": jnp.stack([mlp["gate"]["kernel"], mlp["up"]["kernel"]], axis=1)}
    return layer | {"attention": {"qkv": qkv, "o": attention["o"]}, "mlp": {"gate_up": gate_up, "down": mlp["down"]}}
