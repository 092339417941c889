"""How many floating-point operations a training step needs, and what share of the hardware's peak that is.

MFU = useful FLOPs of a step / (step time * devices * peak FLOP/s of one device). Useful FLOPs are those of the mathematics,
each multiply-add counted as two: matrix products and attention over visible pairs, forward once and backward twice.
Recomputation (remat), padding, masked pairs, norms and optimizer are not counted, so no implementation choice can raise the
figure. All counts are floats: as 32-bit integers those of a large model overflow.

Letters: D width, F MLP width, L layers, N/K query and key/value heads, H head dim, V vocabulary, C channels of an image token,
W flow-head width, M its hidden width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nextstep_jax.batch import Batch
from nextstep_jax.config import FlowHeadConfig, ImageTokenizerConfig, NextStepConfig, TransformerConfig
from nextstep_jax.sharding.topologies import CHIPS

Array = jax.Array

# Dense bfloat16 peak of one device (for TPUs: one JAX device), by how its `device_kind` begins; FLOP/s.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "TPU7x": CHIPS["tpu7x"].flops,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


class Work(NamedTuple):
    """What the packed rows of a step ask for; counts or arrays of counts.

    Attributes:
      tokens: positions that are not padding.
      pairs: visible (query, key) pairs, the positions' own included.
      image_tokens: image positions.
      text_targets, image_targets: positions that the language head and the flow head are run for.
    """

    tokens: Array | float
    pairs: Array | float
    image_tokens: Array | float
    text_targets: Array | float
    image_targets: Array | float


def work_of(batch: Batch) -> Work:
    """The work in a batch: positions restart in every segment, so a position's number + 1 is its count of visible keys."""
    real = batch.segment_ids > 0

    def count(mask: Array) -> Array:
        return mask.sum(dtype=jnp.float32)

    return Work(
        tokens=count(real),
        pairs=((batch.positions + 1.0) * real).sum(),
        image_tokens=count(batch.is_image & real),
        text_targets=count(batch.text_weight > 0),
        image_targets=count(batch.image_weight > 0),
    )


def full_row_work(tokens: int, sample: int, image_tokens: int) -> Work:
    """The work of `tokens` positions packed with samples of `sample` positions, of which `image_tokens` are image tokens."""
    samples = tokens / sample
    images = samples * image_tokens
    return Work(tokens, samples * sample * (sample + 1) / 2, images, tokens - images, images)


def transformer_forward(config: TransformerConfig, work: Work):
    """Forward FLOPs of the decoder blocks."""
    c = config
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    products = c.layers * (attention + 3 * c.width * c.mlp_width)
    return 2.0 * products * work.tokens + 4.0 * c.layers * c.heads * c.head_dim * work.pairs


def flow_head_forward(config: FlowHeadConfig, channels: int, condition_width: int, tokens):
    """Forward FLOPs of the flow head for `tokens` image tokens, each drawn `batch_mul` times, its condition projected once."""
    w, hidden = config.width, round(config.width * config.mlp_ratio)
    block = 2 * w * hidden + 3 * w * w
    drawn = 256 * w + w * w + channels * w + config.layers * block + 2 * w * w + w * channels
    return 2.0 * (condition_width * w + config.batch_mul * drawn) * tokens


def multitask_flops(config: NextStepConfig, work: Work):
    """Forward and backward FLOPs of a multitask step."""
    c, t = config, config.transformer
    forward = transformer_forward(t, work)
    forward += 2 * work.text_targets * t.width * t.vocab_size
    forward += 2 * work.image_tokens * c.token_channels * t.width
    forward += 2 * work.image_targets * t.width * t.width
    forward += flow_head_forward(c.flow_head, c.token_channels, t.width, work.image_targets)
    return 3 * forward


def reconstruction_flops(config: ImageTokenizerConfig, height: int, width: int) -> float:
    """Forward and backward FLOPs of encoding and decoding one image."""
    c, total = config, 0.0

    def conv(pixels, inputs, outputs, taps=9):
        nonlocal total
        total += 2.0 * pixels * taps * inputs * outputs

    def block(pixels, inputs, outputs):
        conv(pixels, inputs, outputs)
        conv(pixels, outputs, outputs)
        if inputs != outputs:
            conv(pixels, inputs, outputs, taps=1)

    def middle(pixels, features):
        block(pixels, features, features)
        block(pixels, features, features)
        conv(pixels, features, 4 * features, taps=1)
        conv(pixels, pixels, 2 * features, taps=1)

    sizes = [height * width // (c.stem_patch * 2**level) ** 2 for level in range(len(c.channel_multipliers))]
    widths = [c.channels * multiplier for multiplier in c.channel_multipliers]
    stem = c.in_channels * c.stem_patch**2

    conv(sizes[0], stem, c.channels)  # encoder
    features = c.channels
    for level, (pixels, wide) in enumerate(zip(sizes, widths, strict=True)):
        for _ in range(c.blocks_per_level):
            block(pixels, features, wide)
            features = wide
        if level + 1 < len(widths):
            conv(sizes[level + 1], wide, wide)
    middle(sizes[-1], features)
    conv(sizes[-1], features, 2 * c.latent_channels)

    conv(sizes[-1], c.latent_channels, features)  # decoder
    middle(sizes[-1], features)
    for level in reversed(range(len(widths))):
        for _ in range(c.blocks_per_level + 1):
            block(sizes[level], features, widths[level])
            features = widths[level]
        if level:
            conv(sizes[level - 1], features, features)
    conv(sizes[0], features, stem)
    return 3 * total


def peak_flops(device: jax.Device | None = None) -> float | None:
    """Dense bfloat16 FLOP/s of a device (default: the first); None for kinds without a published figure, such as CPUs."""
    kind = (device or jax.devices()[0]).device_kind
    found = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(found, key=len)] if found else None
