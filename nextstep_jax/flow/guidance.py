"""Classifier-free guidance over one, two or three branches, and how its strength changes along the tokens of an image.

The branches lie side by side along the rows: [conditional], [conditional; unconditional] or [conditional; image only;
unconditional]. How many there are is decided once, from the strengths as given: a schedule may pass through 1 on the way.
Letters: R rows of one branch, M branches, C channels of one image token.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from nextstep_jax.errors import InputError

Array = jax.Array

MAX_GUIDANCE = 1000.0  # far beyond use; guided velocities stay finite
SCHEDULES = ("constant", "linear", "rising")


def num_branches(cfg: float, image_cfg: float = 1.0, has_image: bool = True) -> int:
    """M for a guidance strength towards the text and, in editing, one towards the input images.

    Two branches guide away from the negative prompt alone; any image strength above 1 takes all three, also when cfg is 1.

    Raises:
      InputError: a strength below 1 or above MAX_GUIDANCE, or an image strength without an input image.
    """
    for name, value in (("guidance (cfg)", cfg), ("image guidance (image_cfg)", image_cfg)):
        if not 1 <= value <= MAX_GUIDANCE:
            raise InputError(f"{name} must be at least 1 and at most {MAX_GUIDANCE:g}, found {value}")
    if image_cfg > 1 and not has_image:
        raise InputError(f"image guidance (image_cfg) {image_cfg} needs an input image, found none")
    if image_cfg > 1:
        return 3
    return 2 if cfg > 1 else 1


def guided_times(times: Float[np.ndarray, " E"], start: float, end: float) -> Bool[np.ndarray, " E"]:
    """Which of a sampler's times t the limited interval start <= t < end guides (Kynkäänniemi et al. 2024); compared in
    float32, as times are given."""
    return (times >= np.float32(start)) & (times < np.float32(end))


def schedule(name: str, cfg: Array | float, k: Array | np.ndarray | int, n: int) -> Array | np.ndarray | float:
    """The strength at token k of n.

    "constant"; "linear" falls from cfg towards 1 (August 2025's linear); "rising" climbs from 1 towards cfg, but never
    below cfg / 2 (February 2026's linear). cfg and k may be traced.

    Raises:
      InputError: unknown name.
    """
    if name == "constant":
        return cfg
    if name == "linear":
        return 1 + (cfg - 1) * (n - k) / n
    if name == "rising":
        return jnp.maximum(cfg / 2, 1 + (cfg - 1) * k / n)
    raise InputError(f"guidance schedule must be one of {', '.join(SCHEDULES)}, found {name!r}")


@jax.named_scope("guide")
def guide(
    velocity: Float[Array, "MR C"], cfg: Array | float, image_cfg: Array | float, branches: int, rescale: bool = False
) -> Float[Array, "R C"]:
    """Guided velocity [R, C] from the branches' velocities [M * R, C].

    One branch: c. Two: u + cfg (c - u). Three: u + image_cfg (i - u) + cfg (c - i). Strengths may be traced, scalars or
    [R, 1]; `branches` is static.

    Args:
      rescale: shrink each guided row to at most the norm of its conditional one (February 2026), where all the
        strengths in use are above 1.
    """
    if branches not in (1, 2, 3) or velocity.shape[0] % branches:
        raise InputError(f"{velocity.shape[0]} rows of velocity do not make {branches} guidance branches (1, 2 or 3)")
    if branches == 1:
        return velocity
    conditional, *others = jnp.split(velocity, branches)
    if branches == 2:
        (unconditional,) = others
        guided = unconditional + cfg * (conditional - unconditional)
        active = jnp.asarray(cfg) > 1
    else:
        image, unconditional = others
        guided = unconditional + image_cfg * (image - unconditional) + cfg * (conditional - image)
        active = (jnp.asarray(cfg) > 1) & (jnp.asarray(image_cfg) > 1)
    if not rescale:
        return guided
    ratio = _norm(conditional) / (_norm(guided) + 1e-6)
    return jnp.where(active, jnp.minimum(ratio, 1), 1) * guided


def _norm(x: Array) -> Array:
    return jnp.linalg.norm(x, axis=-1, keepdims=True)
