"""The image tokenizer: a VAE of the Flux architecture with channel-wise normalization (paper section 4.2).

`encode` gives the posterior of the latents, `decode` gives pixels; between them stand plain functions, used in this order:

    tokens  = patchify(perturb(scale_latents(sample_posterior(tokenizer.encode(pixels), noise, config), config), alpha, eps))
    pixels  = tokenizer.decode(unscale_latents(unpatchify(tokens, ...), config))

Letters: B batch, h x w latent grid, c latent channels, p patch side. Pixels are [B, height, width, 3] in [-1, 1] with
height = h * downsample; latents are [B, h, w, c].
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.errors import InputError
from nextstep_jax.models.convolution import convolve

Array = jax.Array
Latents = Float[Array, "B h w c"]
Tokens = Float[Array, "B n C"]
Features = Float[Array, "B h w C"]

LOGVAR_RANGE = (-30.0, 20.0)
NORM_EPS = 1e-6
# Above this many latent pixels the middle attention takes its queries row by row, so that memory grows linearly.
FULL_ATTENTION_MAX_PIXELS = 4096


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents: `mean` and `logvar`, both [B, h, w, c] float32.

    With `normalize` set only the mean is normalized; the log variance is the encoder's own (as released).
    """

    mean: Array
    logvar: Array


# --- between encoder and decoder --------------------------------------------------------------------------------------


@jax.named_scope("sample_posterior")
def sample_posterior(posterior: Posterior, noise: Latents, config: ImageTokenizerConfig) -> Latents:
    """Latents [B, h, w, c] from standard normal `noise` of that shape; the mean itself if the tokenizer is deterministic."""
    if config.deterministic:
        return posterior.mean
    return posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise


def scale_latents(latents: Latents, config: ImageTokenizerConfig) -> Latents:
    """From the VAE's latents to the ones the transformer sees."""
    return (latents - config.shift) * config.scaling


def unscale_latents(latents: Latents, config: ImageTokenizerConfig) -> Latents:
    """From the latents the transformer draws to the ones the decoder takes."""
    return latents / config.scaling + config.shift


@jax.named_scope("normalize_latents")
def normalize_latents(mean: Latents, patch: int | None) -> Latents:
    """Zero mean and unit variance (biased, eps 1e-6) over each token's features.

    Args:
      mean: [B, h, w, c].
      patch: a token is a patch x patch square of latent pixels; None: a latent pixel, so over its c channels.

    Raises:
      InputError: h or w is not a multiple of `patch`.
    """
    batch, h, w, c = mean.shape
    p = patch or 1
    _require_multiple(h, w, p)
    tokens = mean.reshape(batch, h // p, p, w // p, p, c).astype(jnp.float32)
    centered = tokens - tokens.mean((2, 4, 5), keepdims=True)
    variance = jnp.square(centered).mean((2, 4, 5), keepdims=True)
    return (centered * jax.lax.rsqrt(variance + NORM_EPS)).reshape(mean.shape)


@jax.named_scope("perturb")
def perturb(latents: Array, alpha: Array, noise: Array) -> Array:
    """latents + alpha * noise, with one strength per image (alpha [B], drawn from U[0, gamma]) or one for all (a scalar)."""
    alpha = jnp.asarray(alpha)
    return latents + alpha.reshape(alpha.shape + (1,) * (latents.ndim - alpha.ndim) if alpha.ndim else ()) * noise


@jax.named_scope("patchify")
def patchify(latents: Latents, patch: int) -> Tokens:
    """Latents [B, h, w, c] -> tokens [B, (h/p)*(w/p), c*p*p] in reading order; inside a token: channel, row, column.

    Raises:
      InputError: h or w is not a multiple of `patch`.
    """
    batch, h, w, c = latents.shape
    _require_multiple(h, w, patch)
    grid = latents.reshape(batch, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 5, 2, 4)
    return grid.reshape(batch, (h // patch) * (w // patch), c * patch**2)


@jax.named_scope("unpatchify")
def unpatchify(tokens: Tokens, h_tokens: int, w_tokens: int, patch: int) -> Latents:
    """Tokens [B, h_tokens*w_tokens, c*p*p] -> latents [B, h_tokens*p, w_tokens*p, c]; the inverse of `patchify`.

    Raises:
      InputError: the number of tokens is not h_tokens * w_tokens, or their width is not a multiple of p*p.
    """
    batch, count, width = tokens.shape
    if count != h_tokens * w_tokens:
        raise InputError(f"a grid of {h_tokens}x{w_tokens} tokens needs {h_tokens * w_tokens} tokens, found {count}")
    if width % patch**2:
        raise InputError(f"a token of {width} numbers does not split into {patch}x{patch} latent pixels")
    grid = tokens.reshape(batch, h_tokens, w_tokens, width // patch**2, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    return grid.reshape(batch, h_tokens * patch, w_tokens * patch, width // patch**2)


def _require_multiple(h: int, w: int, patch: int) -> None:
    if h % patch or w % patch:
        raise InputError(f"a latent grid of {h}x{w} does not split into {patch}x{patch} patches")


# --- layers -----------------------------------------------------------------------------------------------------------


def space_to_depth(x: Array, patch: int) -> Array:
    """[B, H, W, c] -> [B, H/p, W/p, p*p*c], features in the order row, column, channel."""
    batch, height, width, c = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // patch, width // patch, patch**2 * c)


def depth_to_space(x: Array, patch: int) -> Array:
    """The inverse of `space_to_depth`."""
    batch, height, width, c = x.shape
    x = x.reshape(batch, height, width, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * patch, width * patch, c // patch**2)


def cut_tiles(x: Array, side: int) -> Array:
    """[B, H, W, c] -> [B * n, side, side, c]: an image's n squares in reading order."""
    batch, height, width, c = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, c).swapaxes(2, 3)
    return x.reshape(-1, side, side, c)


def join_tiles(x: Array, batch: int, rows: int) -> Array:
    """The inverse of `cut_tiles`, for `batch` images of `rows` rows of squares."""
    _, side, _, c = x.shape
    x = x.reshape(batch, rows, -1, side, side, c).swapaxes(2, 3)
    return x.reshape(batch, rows * side, -1, c)


def upsample(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Nearest neighbour, twice the height and the width."""
    batch, height, width, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, c)).reshape(batch, 2 * height, 2 * width, c)


def pool_statistics(mean: Array, variance: Array, axis: int) -> tuple[Array, Array]:
    """Mean and variance of a whole, from those of its equally large parts along `axis`."""
    whole = mean.mean(axis, keepdims=True)
    return whole.squeeze(axis), (variance + jnp.square(mean - whole)).mean(axis)


def channel_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of each image, [B, C] float32, for x [B, H, W, C]; in two passes."""
    x = x.astype(jnp.float32)
    mean = x.mean((1, 2))
    return mean, jnp.square(x - mean[:, None, None]).mean((1, 2))


@jax.named_scope("group_normalize")
def group_normalize(x: Array, statistics: tuple[Array, Array], groups: int, scale: Array, bias: Array) -> Array:
    """GroupNorm of x [B, H, W, C] in float32, with the channel statistics [B, C] of the whole image."""
    batch, *_, c = x.shape
    mean, variance = (s.reshape(batch, groups, c // groups) for s in statistics)
    mean, variance = pool_statistics(mean, variance, axis=2)
    gain = jnp.repeat(jax.lax.rsqrt(variance + NORM_EPS), c // groups, axis=1) * scale
    offset = bias - jnp.repeat(mean, c // groups, axis=1) * gain
    return x.astype(jnp.float32) * gain[:, None, None] + offset[:, None, None]


@jax.named_scope("attend")
def attend(q: Features, k: Features, v: Features) -> Features:
    """Single-head attention of every latent pixel to all: q, k, v [B, h, w, C] -> [B, h, w, C]; softmax in float32."""
    _, h, w, c = q.shape

    def rows(q: Array) -> Array:
        logits = jnp.einsum("bqwc,bhxc->bqwhx", q, k, preferred_element_type=jnp.float32) * c**-0.5
        weights = jax.nn.softmax(logits.reshape(*logits.shape[:3], -1)).reshape(logits.shape)
        return jnp.einsum("bqwhx,bhxc->bqwc", weights.astype(v.dtype), v)

    if h * w <= FULL_ATTENTION_MAX_PIXELS:
        return rows(q)
    return jax.lax.map(lambda row: rows(row[:, None])[:, 0], q.swapaxes(0, 1)).swapaxes(0, 1)


class Conv(nn.Module):
    """3x3 convolution; with stride 2 it pads the right and bottom edges only, as released."""

    config: ImageTokenizerConfig
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        dtype = self.config.dtype
        return convolve(x.astype(dtype), kernel.astype(dtype), self.stride) + bias.astype(dtype)


class GroupNormSwish(nn.Module):
    """GroupNorm, then swish unless it is off. A part of an image comes with the whole image's channel statistics."""

    config: ImageTokenizerConfig
    swish: bool = True

    @nn.compact
    def __call__(self, x: Array, statistics: tuple[Array, Array] | None = None) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y = group_normalize(x, statistics or channel_statistics(x), self.config.norm_groups, scale, bias)
        return (nn.swish(y) if self.swish else y).astype(self.config.dtype)


class ResBlock(nn.Module):
    config: ImageTokenizerConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Conv(self.config, self.features, name="conv1")(GroupNormSwish(self.config, name="norm1")(x))
        y = Conv(self.config, self.features, name="conv2")(GroupNormSwish(self.config, name="norm2")(y))
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.config.dtype, name="shortcut")(x)
        return x + y


class Attention(nn.Module):
    config: ImageTokenizerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = GroupNormSwish(self.config, swish=False, name="norm")(x)
        q, k, v = (nn.Dense(x.shape[-1], dtype=self.config.dtype, name=name)(y) for name in "qkv")
        return x + nn.Dense(x.shape[-1], dtype=self.config.dtype, name="out")(attend(q, k, v))


class MidBlock(nn.Module):
    """Block, attention, block at the lowest resolution."""

    config: ImageTokenizerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResBlock(self.config, x.shape[-1], name="block_1")(x)
        x = Attention(self.config, name="attention")(x)
        return ResBlock(self.config, x.shape[-1], name="block_2")(x)


class DownLevel(nn.Module):
    config: ImageTokenizerConfig
    features: int
    last: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for b in range(self.config.blocks_per_level):
            x = ResBlock(self.config, self.features, name=f"block_{b}")(x)
        return x if self.last else Conv(self.config, self.features, stride=2, name="downsample")(x)


class UpLevel(nn.Module):
    config: ImageTokenizerConfig
    features: int
    last: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for b in range(self.config.blocks_per_level + 1):
            x = ResBlock(self.config, self.features, name=f"block_{b}")(x)
        return x if self.last else Conv(self.config, self.features, name="upsample")(upsample(x))


class Encoder(nn.Module):
    """Pixels [B, height, width, 3] -> moments [B, h, w, 2c]."""

    config: ImageTokenizerConfig

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        config, multipliers = self.config, self.config.channel_multipliers
        x = Conv(config, config.channels, name="conv_in")(space_to_depth(pixels, config.stem_patch))
        for level, multiplier in enumerate(multipliers):
            x = DownLevel(config, config.channels * multiplier, last=level == len(multipliers) - 1, name=f"down_{level}")(x)
        x = MidBlock(config, name="mid")(x)
        return Conv(config, 2 * config.latent_channels, name="conv_out")(GroupNormSwish(config, name="norm_out")(x))


class Decoder(nn.Module):
    """Latents [B, h, w, c] -> pixels [B, height, width, 3]. Level 0 is full resolution, so levels run downwards."""

    config: ImageTokenizerConfig

    def setup(self):
        config, multipliers = self.config, self.config.channel_multipliers
        self.conv_in = Conv(config, config.channels * multipliers[-1])
        self.mid = MidBlock(config)
        self.up = [UpLevel(config, config.channels * m, last=level == 0) for level, m in enumerate(multipliers)]
        self.norm_out = GroupNormSwish(config)
        self.conv_out = Conv(config, config.in_channels * config.stem_patch**2)

    def middle(self, latents: Array) -> Array:
        """The part at the latents' resolution: [B, h, w, c] -> [B, h, w, C]."""
        return self.mid(self.conv_in(latents))

    def __call__(self, latents: Array) -> Array:
        x = self.middle(latents)
        for level in reversed(self.up):
            x = level(x)
        return depth_to_space(self.conv_out(self.norm_out(x)), self.config.stem_patch)


class ImageTokenizer(nn.Module):
    """The VAE. Use `apply(..., method="encode")` and `method="decode"`; calling it reconstructs from the posterior's mean."""

    config: ImageTokenizerConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, pixels: Float[Array, "B height width channels"]) -> Posterior:
        """Pixels [B, height, width, 3] in [-1, 1] -> posterior over latents [B, h, w, c]; its mean normalized if so configured.

        Raises:
          InputError: height or width is not a multiple of the tokenizer's downsampling (times the normalized patch), or of its
            tile.
        """
        batch, height, width, channels = pixels.shape
        tile = self.config.encoder_tile
        step = tile or self.config.downsample
        if height % step or width % step or channels != self.config.in_channels:
            raise InputError(
                f"pixels must be [B, height, width, {self.config.in_channels}] with sides that are multiples of {step}, "
                f"found {pixels.shape}"
            )
        moments = self.encoder(cut_tiles(pixels, tile) if tile else pixels)
        if tile:
            moments = join_tiles(moments, batch, height // tile)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        if self.config.normalize:
            mean = normalize_latents(mean, self.config.normalize_patch)
        return Posterior(mean, jnp.clip(logvar, *LOGVAR_RANGE))

    def decode(self, latents: Array) -> Array:
        """Latents [B, h, w, c], unscaled -> pixels [B, height, width, 3] float32 (near [-1, 1], not clipped)."""
        if latents.shape[-1] != self.config.latent_channels:
            raise InputError(f"latents must have {self.config.latent_channels} channels, found shape {latents.shape}")
        return self.decoder(latents).astype(jnp.float32)

    def decode_middle(self, latents: Array) -> Array:
        """The decoder's part at the latents' resolution, [B, h, w, C]; tiled decoding goes on from here."""
        return self.decoder.middle(latents)

    def __call__(self, pixels: Array) -> Array:
        return self.decode(self.encode(pixels).mean)
