"""AdamW, or Muon for the matrices, with a warm-up/constant/cosine schedule, clipping, and masks, learning-rate multipliers and
freezing by parameter path.

Everything that varies from step to step is inside optax: a learning rate handed to the compiled step as a Python or NumPy
number would compile it again for every new value. Regular expressions are searched in paths like
"model/decoder/layers/attention/q/kernel".
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from nextstep_jax.errors import InputError
from nextstep_jax.schema import NonNegative, Pattern, above, at_least, below
from nextstep_jax.sharding.params import logical_axes, parameter_path

SCHEDULES = ("constant", "cosine")
MUON_RMS = 0.2  # of an update before the learning rate: what AdamW's usually is, so that one learning rate serves both


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon, with the values of the February 2026 release. Expressions are searched in parameter paths.

    Attributes:
      min_learning_rate: where a cosine ends.
      warmup_steps: updates over which the learning rate rises from 0.
      no_decay: parameters without weight decay.
      grad_clip_norm: largest global norm of the gradient; 0: no clipping.
      muon: expressions for the matrices that Muon updates instead of AdamW.
      lr_multipliers: (expression, factor on the learning rate); the first match counts.
      frozen: expressions for the parameters that are not trained.
    """

    learning_rate: Annotated[float, above(0)] = 1e-4
    min_learning_rate: Annotated[float, at_least(0)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: NonNegative = 0
    b1: Annotated[float, below(0, 1)] = 0.9
    b2: Annotated[float, below(0, 1)] = 0.95
    eps: Annotated[float, above(0)] = 1e-8
    weight_decay: Annotated[float, at_least(0)] = 0.1
    no_decay: Pattern = r"(bias|scale)$"
    grad_clip_norm: Annotated[float, at_least(0)] = 1.0
    muon: tuple[Pattern, ...] = ()
    lr_multipliers: tuple[tuple[Pattern, Annotated[float, at_least(0)]], ...] = ()
    frozen: tuple[Pattern, ...] = ()


def learning_rate_schedule(kind: str, peak: float, floor: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Learning rate of the n-th update: linear from 0 over `warmup_steps` updates, then `peak`, or a cosine down to `floor`.

    PAPER.md's Table 1 gives (min, max) and the warm-up of each stage; a schedule counts applied updates, not skipped ones.

    Raises:
      InputError: an unknown kind, or numbers that make no schedule.
    """
    if kind not in SCHEDULES:
        raise InputError(f"optimizer.schedule must be one of {', '.join(SCHEDULES)}, found {kind!r}")
    if not (0 <= floor <= peak and math.isfinite(peak) and peak > 0):
        raise InputError(f"optimizer.min_learning_rate must be in [0, {peak}], the learning rate, found {floor}")
    if not 0 <= warmup_steps < max(steps, 1):
        raise InputError(f"optimizer.warmup_steps must be at least 0 and less than steps ({steps}), found {warmup_steps}")
    if kind == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, steps - warmup_steps, alpha=floor / peak)
    # The first update already moves: update 0 has peak / warmup_steps.
    rise = optax.linear_schedule(peak / max(warmup_steps, 1), peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, after], [warmup_steps])


def make_optimizer(params, schedule: optax.Schedule, settings: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW, or Muon for some matrices, over the trainable parameters.

    Args:
      params: the trainable parameters, or their shapes; only their paths matter.

    Raises:
      InputError: a multiplier that matches no parameter, or Muon for one that is no matrix.
    """
    decay = jax.tree.map(lambda found: not found, matches(params, settings.no_decay, "optimizer.no_decay"))
    factors, taken = jax.tree.map(lambda _: 1.0, params), jax.tree.map(lambda _: False, params)
    for pattern, factor in settings.lr_multipliers:
        found = matches(params, pattern, "optimizer.lr_multipliers", required=True)
        factors = jax.tree.map(lambda f, m, t, new=factor: float(new) if m and not t else f, factors, found, taken)
        taken = jax.tree.map(lambda m, t: m or t, found, taken)
    steps = [
        _direction(params, optax.scale_by_adam(settings.b1, settings.b2, settings.eps), settings.muon),
        optax.add_decayed_weights(settings.weight_decay, mask=decay),
        optax.scale_by_learning_rate(schedule),
    ]
    if settings.grad_clip_norm:
        steps.insert(0, optax.clip_by_global_norm(settings.grad_clip_norm))
    if settings.lr_multipliers:
        steps.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)))
    return optax.chain(*steps)


def _direction(params, adam: optax.GradientTransformation, muon: Sequence[str]) -> optax.GradientTransformation:
    """`adam`, but Muon for the parameters that an expression of `muon` matches."""
    if not muon:
        return adam
    found = [matches(params, pattern, "optimizer.muon", required=True) for pattern in muon]
    labels = jax.tree.map(lambda *hits: "muon" if any(hits) else "adam", *found)

    def dimensions(tree):
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _matrix(parameter_path(path) or "", leaf.shape), tree)

    def rescale(updates, _):
        def one(path, update):
            inputs, outputs = _matrix(parameter_path(path) or "", update.shape)
            sides = (math.prod(update.shape[axis] for axis in axes) for axes in (inputs, outputs))
            return update * (MUON_RMS * math.sqrt(max(sides)))

        return jax.tree_util.tree_map_with_path(one, updates)

    orthogonal = optax.chain(scale_by_muon(weight_dimension_numbers=dimensions), optax.stateless(rescale))
    dimensions(jax.tree.map(lambda p, label: p if label == "muon" else None, params, labels))  # refuses what is no matrix
    return optax.partition({"muon": orthogonal, "adam": adam}, labels)


def _matrix(path: str, shape: Sequence[int]) -> MuonDimensionNumbers:
    """Which axes of a kernel are a matrix's inputs and which its outputs; layers in a stack are matrices of their own."""
    names = logical_axes(path, len(shape))
    first = int(names[0] == "layers")
    if len(shape) - first < 2:
        raise InputError(f"optimizer.muon: {path} of shape {tuple(shape)} is not a matrix")
    # q, k and v map the model's width to heads, o maps heads to the width; every other kernel has one output axis, its last.
    split = first + 1 if names[first] == "embed" else len(shape) - 1
    return MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, len(shape))))


def matches(params, pattern: str, option: str, required: bool = False):
    """A tree of bools: does `pattern` occur in the parameter's path?

    Raises:
      InputError: naming `option`, for an invalid expression, or one that matches nothing although `required`.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{option}: {pattern!r} is not a regular expression ({error})") from error
    found = jax.tree_util.tree_map_with_path(lambda path, _: bool(compiled.search(parameter_path(path) or "")), params)
    if required and not any(jax.tree.leaves(found)):
        raise InputError(f"{option}: {pattern!r} matches no parameter")
    return found


def split_frozen(params, frozen: Sequence[str]):
    """(trainable, rest): each the parameters' tree with None where the other has the leaf. Frozen parameters get neither
    gradients nor moments nor an EMA.

    Raises:
      InputError: an expression that matches no parameter, or nothing left to train.
    """
    is_frozen = jax.tree.map(lambda _: False, params)
    for pattern in frozen:
        found = matches(params, pattern, "optimizer.frozen", required=True)
        is_frozen = jax.tree.map(lambda a, b: a or b, is_frozen, found)
    if all(jax.tree.leaves(is_frozen)):
        raise InputError(f"optimizer.frozen: {', '.join(map(repr, frozen))} leave no parameter to train")
    trainable = jax.tree.map(lambda p, f: None if f else p, params, is_frozen)
    return trainable, jax.tree.map(lambda p, f: p if f else None, params, is_frozen)


def merge(first, second):
    """The inverse of `split_frozen`: leaves of `first`, and of `second` where it has None."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None)
