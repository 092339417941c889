"""The one table of names: released tensor names and layouts on one side, our parameter paths and layouts on the other.

Every row says both ways at once: `Entry.load` takes a released tensor to our leaf, `Entry.store` takes it back, bit for
bit. The rows are laid out from a config, so their shapes are known before a single tensor is read.

Sources: parameter names of the August 2025 and February 2026 releases (they agree), Qwen2.5 (the same names behind a
`model.` prefix), the Flux VAE's own names ("bfl") and diffusers' names for the same network.

Letters: V vocabulary, D model width, N query heads, K key/value heads, H head dim, F MLP width, C channels of one image
token, W flow-head width, M hidden width of a flow-head block.
"""

import dataclasses
import re
from collections.abc import Iterator

import einops
import numpy as np

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig

TIME_FREQUENCIES = 256  # width of the flow head's sinusoidal time embedding, in every release

_COLUMNS = 16  # 64 bytes of float32: one cache line

# Released layout -> ours, as einops patterns. torch keeps linear kernels [out, in] and convolutions [out, in, y, x].
VECTOR = "a -> a"
TABLE = "a b -> a b"
LINEAR = "o i -> i o"
HEADS_OUT = "(n h) d -> d n h"
HEADS_BIAS = "(n h) -> n h"
HEADS_IN = "d (n h) -> n h d"
CONV = "o i y x -> y x i o"
CONV_1X1 = "o i 1 1 -> i o"

EMBEDDING, LANGUAGE_HEAD = "embed_tokens.weight", "lm_head.weight"
# Buffers that are computed, not learned. The position table is checked against its formula where a config uses it.
POSITION_TABLE = "gen_pos_embed"
_COMPUTED = re.compile(r"gen_pos_embed|(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|original_inv_freq|(cos|sin)_cached)")

# Modules around a module: DataParallel and DistributedDataParallel, torch.compile, FSDP, activation checkpointing, Fabric. They
# may wrap any part of a network.
_WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_OUTER = re.compile(r"^(model\.)+")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One released tensor and the one parameter it becomes.

    Attributes:
      source: the released name, without a `model.` prefix.
      path: our path inside "model" or "image_tokenizer", joined by slashes.
      layout: the einops pattern from the released layout to ours.
      sizes: sizes of the pattern's axes, in the order its left side names them.
    """

    source: str
    path: str
    layout: str
    sizes: tuple[int, ...]

    @property
    def source_shape(self) -> tuple[int, ...]:
        return self._shape(0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape(1)

    def load(self, array: np.ndarray) -> np.ndarray:
        """The released tensor `[*source_shape]` as our leaf `[*shape]`: a view where possible."""
        return einops.rearrange(array, self.layout, **self._axes())

    def store(self, array: np.ndarray) -> np.ndarray:
        """Our leaf `[*shape]` as the released tensor `[*source_shape]`: a view where possible."""
        left, right = self.layout.split(" -> ")
        return einops.rearrange(array, f"{right} -> {left}", **self._axes())

    def _axes(self) -> dict[str, int]:
        names = re.findall(r"[a-z]+", self.layout.split(" -> ")[0])
        return dict(zip(names, self.sizes, strict=True))

    def _shape(self, side: int) -> tuple[int, ...]:
        axes = self._axes()
        shape = []
        for group in re.findall(r"\([^)]*\)|\S+", self.layout.split(" -> ")[side]):
            shape.append(int(np.prod([axes.get(name, 1) for name in group.strip("()").split()], dtype=object)))
        return tuple(shape)


def contiguous(view: np.ndarray) -> np.ndarray:
    """The array laid out row by row; a few columns at a time, which is several times faster for a transposed view."""
    if view.flags.c_contiguous:
        return view
    out = np.empty(view.shape, view.dtype)
    for start in range(0, view.shape[-1], _COLUMNS):
        out[..., start : start + _COLUMNS] = view[..., start : start + _COLUMNS]
    return out


def strip_prefix(name: str) -> str:
    """A tensor name in NextStep's form: without the names of modules that only wrap another, and without Qwen2.5's `model.`.

    `module._orig_mod.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight` is `layers.0.mlp.up_proj.weight`.
    """
    return _OUTER.sub("", _WRAPPERS.sub("", name))


def is_computed(name: str) -> bool:
    """Whether a released tensor is a buffer this library computes instead of loading."""
    return _COMPUTED.fullmatch(name) is not None


# --- the model --------------------------------------------------------------------------------------------------------


def model_entries(config: NextStepConfig) -> list[Entry]:
    """Every parameter of the model, in the order of the network."""
    return [*language_entries(config), *image_entries(config)]


def language_entries(config: NextStepConfig) -> list[Entry]:
    """What a Qwen2.5 checkpoint holds: embedding, decoder, language head."""
    c = config.transformer
    rows = [Entry(EMBEDDING, "embedding/embedding", TABLE, (c.vocab_size, c.width))]
    for i in range(c.layers):
        rows += _decoder_layer(c, f"layers.{i}", f"decoder/layers_{i}")
    rows.append(Entry("norm.weight", "decoder/final_norm/scale", VECTOR, (c.width,)))
    if not c.tie_embeddings:
        rows.append(Entry(LANGUAGE_HEAD, "lm_head/kernel", LINEAR, (c.vocab_size, c.width)))
    return rows


def image_entries(config: NextStepConfig) -> list[Entry]:
    """What NextStep adds to the language model: two projectors and the flow head."""
    channels, width = config.token_channels, config.transformer.width
    return [
        *_linear("image_in_projector", "image_in_projector", width, channels),
        *_linear("image_out_projector", "image_out_projector", width, width),
        *_flow_head(config, "image_head.net", "flow_head"),
    ]


def _decoder_layer(c, source: str, path: str) -> Iterator[Entry]:
    attention, mlp = f"{source}.self_attn", f"{source}.mlp"
    yield Entry(f"{source}.input_layernorm.weight", f"{path}/attention_norm/scale", VECTOR, (c.width,))
    for name, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
        projection, ours = f"{attention}.{name}_proj", f"{path}/attention/{name}"
        yield Entry(f"{projection}.weight", f"{ours}/kernel", HEADS_OUT, (heads, c.head_dim, c.width))
        if c.qkv_bias:
            yield Entry(f"{projection}.bias", f"{ours}/bias", HEADS_BIAS, (heads, c.head_dim))
    yield Entry(f"{attention}.o_proj.weight", f"{path}/attention/o/kernel", HEADS_IN, (c.width, c.heads, c.head_dim))
    if c.o_bias:
        yield Entry(f"{attention}.o_proj.bias", f"{path}/attention/o/bias", VECTOR, (c.width,))
    yield Entry(f"{source}.post_attention_layernorm.weight", f"{path}/mlp_norm/scale", VECTOR, (c.width,))
    yield Entry(f"{mlp}.gate_proj.weight", f"{path}/mlp/gate/kernel", LINEAR, (c.mlp_width, c.width))
    yield Entry(f"{mlp}.up_proj.weight", f"{path}/mlp/up/kernel", LINEAR, (c.mlp_width, c.width))
    yield Entry(f"{mlp}.down_proj.weight", f"{path}/mlp/down/kernel", LINEAR, (c.width, c.mlp_width))


def _flow_head(config: NextStepConfig, source: str, path: str) -> Iterator[Entry]:
    width, channels = config.flow_head.width, config.token_channels
    hidden = config.flow_head.hidden
    yield from _linear(f"{source}.time_embed.mlp.0", f"{path}/time_embed/in", width, TIME_FREQUENCIES)
    yield from _linear(f"{source}.time_embed.mlp.2", f"{path}/time_embed/out", width, width)
    yield from _linear(f"{source}.cond_embed", f"{path}/condition", width, config.transformer.width)
    yield from _linear(f"{source}.input_proj", f"{path}/input", width, channels)
    for k in range(config.flow_head.layers):
        block, ours = f"{source}.res_blocks.{k}", f"{path}/blocks_{k}"
        yield from _norm(f"{block}.in_ln", f"{ours}/norm", width)
        yield from _linear(f"{block}.mlp.0", f"{ours}/mlp_in", hidden, width)
        yield from _linear(f"{block}.mlp.2", f"{ours}/mlp_out", width, hidden)
        yield from _linear(f"{block}.adaLN_modulation.1", f"{ours}/modulation", 3 * width, width)
    yield from _linear(f"{source}.final_layer.adaLN_modulation.1", f"{path}/final/modulation", 2 * width, width)
    yield from _linear(f"{source}.final_layer.linear", f"{path}/final/output", channels, width)


def _linear(source: str, path: str, out_size: int, in_size: int) -> Iterator[Entry]:
    yield Entry(f"{source}.weight", f"{path}/kernel", LINEAR, (out_size, in_size))
    yield Entry(f"{source}.bias", f"{path}/bias", VECTOR, (out_size,))


def _norm(source: str, path: str, size: int) -> Iterator[Entry]:
    yield Entry(f"{source}.weight", f"{path}/scale", VECTOR, (size,))
    yield Entry(f"{source}.bias", f"{path}/bias", VECTOR, (size,))


# --- the image tokenizer ----------------------------------------------------------------------------------------------

# Module names: ours -> bfl, diffusers. {flipped} counts a decoder level from the other end.
_TOKENIZER_MODULES = {
    "{part}/conv_in": ("{part}.conv_in", "{part}.conv_in"),
    "{part}/norm_out": ("{part}.norm_out", "{part}.conv_norm_out"),
    "{part}/conv_out": ("{part}.conv_out", "{part}.conv_out"),
    "{part}/mid/block_1": ("{part}.mid.block_1", "{part}.mid_block.resnets.0"),
    "{part}/mid/block_2": ("{part}.mid.block_2", "{part}.mid_block.resnets.1"),
    "{part}/mid/attention/norm": ("{part}.mid.attn_1.norm", "{part}.mid_block.attentions.0.group_norm"),
    "{part}/mid/attention/q": ("{part}.mid.attn_1.q", "{part}.mid_block.attentions.0.to_q"),
    "{part}/mid/attention/k": ("{part}.mid.attn_1.k", "{part}.mid_block.attentions.0.to_k"),
    "{part}/mid/attention/v": ("{part}.mid.attn_1.v", "{part}.mid_block.attentions.0.to_v"),
    "{part}/mid/attention/out": ("{part}.mid.attn_1.proj_out", "{part}.mid_block.attentions.0.to_out.0"),
    "encoder/down_{level}/block_{block}": ("encoder.down.{level}.block.{block}", "encoder.down_blocks.{level}.resnets.{block}"),
    "encoder/down_{level}/downsample": (
        "encoder.down.{level}.downsample.conv",
        "encoder.down_blocks.{level}.downsamplers.0.conv",
    ),
    "decoder/up_{level}/block_{block}": ("decoder.up.{level}.block.{block}", "decoder.up_blocks.{flipped}.resnets.{block}"),
    "decoder/up_{level}/upsample": ("decoder.up.{level}.upsample.conv", "decoder.up_blocks.{flipped}.upsamplers.0.conv"),
}
NAMINGS = ("bfl", "diffusers")
_SHORTCUT = {"bfl": "nin_shortcut", "diffusers": "conv_shortcut"}


def image_tokenizer_entries(config: ImageTokenizerConfig, naming: str = "bfl") -> list[Entry]:
    """Every parameter of the image tokenizer, with its released name by `naming` ("bfl" or "diffusers").

    diffusers keeps the attention's 1x1 convolutions as linear layers [out, in]; bfl as convolutions [out, in, 1, 1].
    """
    return list(_TokenizerRows(config, naming).rows())


@dataclasses.dataclass(frozen=True)
class _TokenizerRows:
    config: ImageTokenizerConfig
    naming: str

    def rows(self) -> Iterator[Entry]:
        c = self.config
        widths = [c.channels * multiplier for multiplier in c.channel_multipliers]
        pixels = c.in_channels * c.stem_patch**2
        last = len(widths) - 1

        yield from self._conv("{part}/conv_in", pixels, c.channels, part="encoder")
        width = c.channels
        for level, out in enumerate(widths):
            for block in range(c.blocks_per_level):
                yield from self._block("encoder/down_{level}/block_{block}", width, out, level=level, block=block)
                width = out
            if level != last:
                yield from self._conv("encoder/down_{level}/downsample", width, width, level=level)
        yield from self._middle("encoder", width)
        yield from self._out("encoder", width, 2 * c.latent_channels)

        yield from self._conv("{part}/conv_in", c.latent_channels, width, part="decoder")
        yield from self._middle("decoder", width)
        for level in reversed(range(len(widths))):
            for block in range(c.blocks_per_level + 1):
                yield from self._block("decoder/up_{level}/block_{block}", width, widths[level], level=level, block=block)
                width = widths[level]
            if level != 0:
                yield from self._conv("decoder/up_{level}/upsample", width, width, level=level)
        yield from self._out("decoder", width, pixels)

    def _names(self, module: str, **numbers) -> tuple[str, str]:
        """(released module name, our module path)."""
        numbers["flipped"] = len(self.config.channel_multipliers) - 1 - numbers.get("level", 0)
        released = _TOKENIZER_MODULES[module][NAMINGS.index(self.naming)]
        return released.format(**numbers), module.format(**numbers)

    def _conv(self, module: str, in_size: int, out_size: int, **numbers) -> Iterator[Entry]:
        yield from _conv(*self._names(module, **numbers), in_size, out_size)

    def _block(self, module: str, in_size: int, out_size: int, **numbers) -> Iterator[Entry]:
        source, path = self._names(module, **numbers)
        yield from _norm(f"{source}.norm1", f"{path}/norm1", in_size)
        yield from _conv(f"{source}.conv1", f"{path}/conv1", in_size, out_size)
        yield from _norm(f"{source}.norm2", f"{path}/norm2", out_size)
        yield from _conv(f"{source}.conv2", f"{path}/conv2", out_size, out_size)
        if in_size != out_size:
            yield from _conv_1x1(f"{source}.{_SHORTCUT[self.naming]}", f"{path}/shortcut", in_size, out_size)

    def _middle(self, part: str, width: int) -> Iterator[Entry]:
        yield from self._block("{part}/mid/block_1", width, width, part=part)
        yield from _norm(*self._names("{part}/mid/attention/norm", part=part), width)
        projection = _conv_1x1 if self.naming == "bfl" else _linear
        for name in ("q", "k", "v", "out"):
            yield from projection(*self._names(f"{{part}}/mid/attention/{name}", part=part), width, width)
        yield from self._block("{part}/mid/block_2", width, width, part=part)

    def _out(self, part: str, width: int, out_size: int) -> Iterator[Entry]:
        yield from _norm(*self._names("{part}/norm_out", part=part), width)
        yield from self._conv("{part}/conv_out", width, out_size, part=part)


def _conv(source: str, path: str, in_size: int, out_size: int) -> Iterator[Entry]:
    yield Entry(f"{source}.weight", f"{path}/kernel", CONV, (out_size, in_size, 3, 3))
    yield Entry(f"{source}.bias", f"{path}/bias", VECTOR, (out_size,))


def _conv_1x1(source: str, path: str, in_size: int, out_size: int) -> Iterator[Entry]:
    yield Entry(f"{source}.weight", f"{path}/kernel", CONV_1X1, (out_size, in_size))
    yield Entry(f"{source}.bias", f"{path}/bias", VECTOR, (out_size,))
