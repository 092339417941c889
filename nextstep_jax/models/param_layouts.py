"""Between the forms of a parameter tree.

Canonical: one subtree per layer (`layers_0`, `blocks_3`), separate projections; this is what lies on disk and what the
names table speaks of. Stacked: `layers` and `blocks` with a leading [L] axis, for scanned training. Fused: one qkv and
one gate-up kernel per layer, for decoding. Quantized: the large kernels in int8, each with a scale
beside it. Each function returns a new tree of the same nested dicts.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Parent module -> (prefix of its per-layer children, name of the stacked child).
_STACKS = {"decoder": "layers", "flow_head": "blocks", "map_head": "blocks"}


def stack_layers(params: dict, stack: Callable = jnp.stack) -> dict:
    """Canonical -> stacked. `stack` joins the L leaves of one parameter (e.g. np.stack on a host)."""
    out = dict(params)
    for parent, child in ((p, c) for p, c in _STACKS.items() if p in params):
        numbered = sorted((int(m[1]), name) for name in params[parent] if (m := re.fullmatch(rf"{child}_(\d+)", name)))
        layers = [params[parent][name] for _, name in numbered]
        rest = {k: v for k, v in params[parent].items() if not re.fullmatch(rf"{child}_\d+", k)}
        out[parent] = rest | {child: jax.tree.map(lambda *leaves: stack(leaves), *layers)}
    return out


def unstack_layers(params: dict) -> dict:
    """Stacked -> canonical."""
    out = dict(params)
    for parent, child in ((p, c) for p, c in _STACKS.items() if p in params):
        stacked = params[parent][child]
        count = jax.tree.leaves(stacked)[0].shape[0]
        rest = {k: v for k, v in params[parent].items() if k != child}
        out[parent] = rest | {f"{child}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)}
    return out


def fuse_projections(params: dict) -> dict:
    """Canonical -> fused: q, k, v side by side along heads; gate and up along a new axis."""
    decoder = {name: fuse_layer(layer) if name.startswith("layers_") else layer for name, layer in params["decoder"].items()}
    return params | {"decoder": decoder}


def fuse_layer(layer: dict) -> dict:
    """`fuse_projections` of one layer of the decoder, its kernels in int8 or not."""
    attention, mlp = layer["attention"], layer["mlp"]
    parts, halves = [attention[name] for name in ("q", "k", "v")], [mlp["gate"], mlp["up"]]
    # Kernels have their inputs first, scales and biases have none.
    qkv = {leaf: jnp.concatenate([part[leaf] for part in parts], axis=int(leaf == "kernel")) for leaf in parts[0]}
    gate_up = {leaf: jnp.stack([half[leaf] for half in halves], axis=int(leaf == "kernel")) for leaf in halves[0]}
    return layer | {"attention": {"qkv": qkv, "o": attention["o"]}, "mlp": {"gate_up": gate_up, "down": mlp["down"]}}


# The kernels that make up nearly all of what a token reads, and how many leading axes of each are summed away. Everything else
# stays as it is: embeddings, language head, norms, biases, projectors, and the flow head's ends and time embedding.
_QUANTIZED = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1, "mlp_in": 1, "mlp_out": 1, "modulation": 1}
_QUANTIZED_KERNEL = re.compile(rf"(decoder/layers_\d+|(?:flow|map)_head/blocks_\d+)/(\w+/)*({'|'.join(_QUANTIZED)})/kernel")


def quantize_kernels(params: dict) -> dict:
    """Canonical -> quantized: int8 kernels and float32 `kernel_scale`, one number for each output, kernel ~ int8 * scale.

    Symmetric rounding to nearest with the largest entry at 127, so that zero stays zero.
    """

    def quantize(tree: dict, prefix: str) -> dict:
        out: dict = {}
        for name, child in tree.items():
            path = prefix + name
            out |= {name: quantize(child, path + "/")} if isinstance(child, dict) else quantize_leaf(path, child, prefix)
        return out

    return quantize(params, "")


def quantize_leaf(path: str, leaf: jax.Array, prefix: str = "") -> dict[str, jax.Array]:
    """{path: leaf} of one leaf of canonical parameters, or {path: int8, path + "_scale": float32} if it is among the large
    kernels; `prefix` is left out of the keys.
    """
    found, key = _QUANTIZED_KERNEL.fullmatch(path), path.removeprefix(prefix)
    if not found:
        return {key: leaf}
    small = quantize_kernel(leaf, _QUANTIZED[found[3]])
    return {key: small["kernel"], f"{key}_scale": small["kernel_scale"]}


@functools.partial(jax.jit, static_argnums=1)
def quantize_kernel(kernel: jax.Array, contracted: int) -> dict:
    """{"kernel": int8 of the same shape, "kernel_scale": float32 of its axes after the first `contracted`}."""
    values = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(values), axis=tuple(range(contracted))) / 127, jnp.finfo(jnp.float32).tiny)
    return {"kernel": jnp.round(values / scale).astype(jnp.int8), "kernel_scale": scale}
