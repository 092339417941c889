"""What the compiler sets aside for the loss: never float32 logits of all positions."""

import jax
import jax.numpy as jnp

from nextstep_jax.objectives.cross_entropy import cross_entropy

POSITIONS, WIDTH, VOCAB = 2048, 8, 65536
LOGITS = 4 * POSITIONS * VOCAB


def temporaries(**how) -> int:
    """Bytes of a program for the loss and its gradients, beside arguments and results."""

    def loss(hidden, kernel, targets):
        return cross_entropy(hidden, kernel, targets, **how).mean()

    shapes = ((POSITIONS, WIDTH), jnp.float32), ((WIDTH, VOCAB), jnp.float32), ((POSITIONS,), jnp.int32)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_logits_are_held_a_slice_at_a_time():
    assert temporaries() < LOGITS / 2


def test_one_slice_would_hold_them_all():
    assert temporaries(slice_size=VOCAB) >= LOGITS
