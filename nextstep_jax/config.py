"""Architecture and execution settings, as frozen dataclasses, and reading and writing a released config.json.

The releases have three sets of keys for the same settings (NextStep-1, NextStep-1.1, the February 2026 training release);
`NextStepConfig.from_released` reads all of them and `to_released` writes the NextStep-1 one. The image tokenizer has a
config of its own.

Letters: V vocabulary, D model width, L layers, N query heads, K key/value heads, H head dim, F MLP width, W flow-head
width, C channels of one image token.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from nextstep_jax.config_aliases import (
    HEAD_KEYS,
    MODEL_KEYS,
    ONLY,
    TOKENIZER_KEYS,
    TRANSFORMER_KEYS,
    from_diffusers,
    from_transformers,
    require_only,
    take,
)
from nextstep_jax.errors import InputError

# What the backward pass keeps of a decoder block besides its input, and where: see TransformerConfig.remat.
REMAT_POLICIES: dict[str, dict[str, str]] = {
    "full": {},
    "attention": {"attention_out": "device"},
    "projections": dict.fromkeys(("q", "kv", "attention_out", "block_middle"), "device"),
    "gate": dict.fromkeys(("q", "kv", "attention_out", "block_middle", "gate"), "device"),
    "mlp": dict.fromkeys(("q", "kv", "attention_out", "block_middle", "gate", "up"), "device"),
    "offload": {"block_in": "host"},
}
REMAT_VALUES = ("block_in", "q", "kv", "attention_out", "block_middle", "gate", "up")  # that can be kept, in their order
ATTENTION_KERNELS = ("auto", "xla", "cudnn", "splash")
DTYPES = ("float32", "bfloat16", "float16")


def _require_positive(config, name: str) -> None:
    value = getattr(config, name)
    if not (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a positive number, found {value!r}")


def _require_choice(config, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, found {getattr(config, name)!r}")


def kept_values(remat: str) -> dict[str, str] | None:
    """Which values of a decoder block the backward pass keeps, and whether on the "device" or on the "host", by
    TransformerConfig.remat. None for "none" and "dots", which do not go by names.

    Raises:
      InputError: neither a policy nor values and places.
    """
    if remat in ("none", "dots"):
        return None
    if remat in REMAT_POLICIES:
        return REMAT_POLICIES[remat]
    kept = {}
    for item in remat.split(","):
        value, _, place = item.strip().partition(":")
        # The attention kernel's own values are named inside a compiled function, where JAX moves nothing to the host.
        places = ("device",) if value == "attention_out" else ("device", "host")
        if value not in REMAT_VALUES or place not in places or value in kept:
            policies, values = ", ".join(("none", *REMAT_POLICIES, "dots")), ", ".join(REMAT_VALUES)
            raise InputError(
                f"remat must be one of {policies}, or VALUE:device or VALUE:host for some of {values} (attention_out: device), "
                f"each once, with commas between, found {remat!r}"
            )
        kept[value] = place
    return kept


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The causal decoder (paper section 4.2; Qwen2.5's architecture).

    The fields below `tie_embeddings` say how it runs, not what it is; they never enter a checkpoint.

    Attributes:
      dtype: compute dtype of the matrix products. Norm statistics, softmax and RoPE angles stay in float32.
      scan_layers: one scanned block over `[L, ...]` parameters (training) or L unrolled blocks (decoding).
      fused_projections: one qkv and one gate-up kernel per block (decoding) instead of three and two.
      remat: what the backward pass keeps, everything else is computed again: "none" keeps all, "full" only each block's input,
        "attention" also the attention's output and normalizers (the kernel does not run again), "projections" also q, k, v and
        the stream between attention and MLP, "gate" also the MLP's gate, "mlp" gate and up (no product runs again), "dots"
        every matrix product; "offload" moves block inputs to host memory. Or value by value, VALUE:device or VALUE:host and
        commas between: "block_in:host,attention_out:device". "attention_out" cannot be on the host.
      attention_kernel: "auto" picks splash on TPU, cuDNN on GPU (half precision) and plain XLA elsewhere.
    """

    vocab_size: int = 152064
    width: int = 5120
    layers: int = 48
    heads: int = 40
    kv_heads: int = 8
    head_dim: int = 128
    mlp_width: int = 13824
    max_positions: int = 131072
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    qkv_bias: bool = True
    o_bias: bool = False
    tie_embeddings: bool = False
    dtype: str = "float32"
    scan_layers: bool = False
    fused_projections: bool = False
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "max_positions"):
            _require_positive(self, name)
        if self.heads % self.kv_heads:
            raise InputError(f"heads ({self.heads}) is not a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise InputError(f"head_dim must be even for rotary embeddings, found {self.head_dim}")
        _require_choice(self, "dtype", DTYPES)
        kept_values(self.remat)
        _require_choice(self, "attention_kernel", ATTENTION_KERNELS)


@dataclasses.dataclass(frozen=True)
class FlowHeadConfig:
    """The AdaLN MLP velocity field. Paper Table 6: small 6x1024, base 12x1536, large 24x2048.

    Attributes:
      batch_mul: in training each image token is seen with this many independent (t, noise) draws.
      mlp_ratio: width of a block's hidden layer over W.
    """

    width: int = 1536
    layers: int = 12
    mlp_ratio: float = 1.0
    batch_mul: int = 4

    def __post_init__(self):
        for name in ("width", "layers", "batch_mul", "mlp_ratio"):
            _require_positive(self, name)

    @property
    def hidden(self) -> int:
        """Width of a block's hidden layer."""
        return int(self.width * self.mlp_ratio)

    @property
    def of_map(self) -> "FlowHeadConfig":
        """The map head beside it: half the width, two thirds of the blocks."""
        return FlowHeadConfig(max(1, self.width // 2), max(1, 2 * self.layers // 3))


@dataclasses.dataclass(frozen=True)
class ImageTokenizerConfig:
    """The VAE (Flux architecture), its normalization and perturbation (paper section 4.2).

    Attributes:
      resolution: side in pixels it was trained at; any multiple of `downsample * patch` works.
      channels, channel_multipliers, blocks_per_level, latent_channels: the convolutional plan.
      stem_patch: space-to-depth before the first convolution (and its inverse after the last), for small models.
      encoder_tile: side in pixels of the squares that the encoder sees one by one, so that a latent tells nothing of what lies
        outside its square; None: the whole image, as released.
      norm_groups: groups of every GroupNorm.
      scaling, shift: latent = (posterior sample - shift) * scaling.
      deterministic: the posterior's sample is its mean.
      normalize: normalize each latent token's features to zero mean and unit variance (`encoder_norm`).
      normalize_patch: side of the patch whose features are normalized together (`psz`); None: each latent pixel's channels.
      perturbation: gamma; in training z + alpha * eps with alpha ~ U[0, gamma].
    """

    resolution: int = 256
    in_channels: int = 3
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2
    latent_channels: int = 16
    stem_patch: int = 1
    encoder_tile: int | None = None
    norm_groups: int = 32
    scaling: float = 0.3611
    shift: float = 0.1159
    deterministic: bool = False
    normalize: bool = False
    normalize_patch: int | None = None
    perturbation: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        for name in (
            "resolution",
            "in_channels",
            "channels",
            "blocks_per_level",
            "latent_channels",
            "stem_patch",
            "norm_groups",
        ):
            _require_positive(self, name)
        for name in ("encoder_tile", "normalize_patch"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        if self.encoder_tile and self.encoder_tile % (self.downsample * (self.normalize_patch or 1)):
            raise InputError(
                f"encoder_tile must be a multiple of the {self.downsample * (self.normalize_patch or 1)} pixels that are "
                f"normalized together, found {self.encoder_tile}"
            )
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise InputError(f"channel_multipliers must be positive, found {self.channel_multipliers}")
        for multiplier in self.channel_multipliers:
            if (self.channels * multiplier) % self.norm_groups:
                raise InputError(
                    f"channels * multiplier {self.channels * multiplier} is not a multiple of norm_groups {self.norm_groups}"
                )
        if not (math.isfinite(self.scaling) and self.scaling != 0 and math.isfinite(self.shift)):
            raise InputError(f"scaling must be finite and not 0, found {self.scaling} (shift {self.shift})")
        _require_choice(self, "dtype", DTYPES)

    @property
    def downsample(self) -> int:
        """Pixels per latent pixel, along one side."""
        return self.stem_patch * 2 ** (len(self.channel_multipliers) - 1)

    @classmethod
    def from_released(cls, values: Mapping[str, Any], source: str = "config.json") -> "ImageTokenizerConfig":
        """Read the tokenizer's config.json, with the releases' keys or with diffusers'.

        Absent keys take the August 2025 release's defaults, which are this class's.

        Raises:
          InputError: naming `source` and the key, for a contradictory or unsupported value.
        """
        try:
            values = from_diffusers(values) if "block_out_channels" in values else values
            return cls(**take(cls, {ours: (theirs,) for ours, theirs in TOKENIZER_KEYS.items()}, values))
        except (InputError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"{source}: {error}") from error

    def to_released(self) -> dict[str, Any]:
        """The tokenizer's config.json with the releases' keys."""
        values = {theirs: getattr(self, ours) for ours, theirs in TOKENIZER_KEYS.items()}
        values["ch_mult"] = list(values["ch_mult"])
        return values | {"out_ch": self.in_channels}


@dataclasses.dataclass(frozen=True)
class NextStepConfig:
    """The whole model. Special ids are those of the released Qwen2 vocabulary.

    Attributes:
      transformer, flow_head: the two networks.
      latent_channels, patch: an image token is a patch x patch square of latent pixels, C = channels * patch^2.
      base_grid: side, in tokens, of the table behind `gen_pos_embed`.
      latent_size: side of a training image in latent pixels (informative; any grid can be generated).
      use_gen_pos_embed: add a 2-D sine table to hidden states while generating (never in training).
      train_out_projector: apply image_out_projector in training. False reproduces the August 2025 training code, which
        skipped it.
      text_loss_weight, image_loss_weight: lambda_text, lambda_visual (paper section 4.2).
      input_noise: strength of the noise added to input latents in training, rising linearly over raster positions.
      map_head: there is a map head, distilled from the flow head, with which one to four evaluations make a token (sampler
        "map"). No release has one.
      release: which release's generation settings fit: "1.0", "1.0-edit", "1.1".
    """

    transformer: TransformerConfig = TransformerConfig()
    flow_head: FlowHeadConfig = FlowHeadConfig()
    latent_channels: int = 16
    patch: int = 2
    latent_size: int = 32
    base_grid: int = 32
    use_gen_pos_embed: bool = False
    train_out_projector: bool = True
    text_loss_weight: float = 0.01
    image_loss_weight: float = 1.0
    input_noise: float = 0.0
    bos_id: int = 151643
    eos_id: int = 151643
    pad_id: int = 151665
    begin_of_image_id: int = 151667
    end_of_image_id: int = 151668
    image_placeholder_id: int = 151669
    map_head: bool = False
    release: str = "1.0"

    def __post_init__(self):
        for name in ("latent_channels", "patch", "latent_size", "base_grid"):
            _require_positive(self, name)
        for name in ("eos_id", "pad_id", "begin_of_image_id", "end_of_image_id", "image_placeholder_id"):
            value = getattr(self, name)
            if not 0 <= value < self.transformer.vocab_size:
                raise InputError(f"{name} must be in [0, {self.transformer.vocab_size}), found {value}")

    @property
    def token_channels(self) -> int:
        """C: numbers in one image token."""
        return self.latent_channels * self.patch**2

    @property
    def image_area_id(self) -> int:
        """Id of <|image_area|>. No released config names it; in every release it precedes <|begin_of_image|>."""
        return self.begin_of_image_id - 1

    def with_transformer(self, **changes) -> "NextStepConfig":
        """A copy with some transformer fields changed, e.g. `with_transformer(dtype="bfloat16")`."""
        return dataclasses.replace(self, transformer=dataclasses.replace(self.transformer, **changes))

    @classmethod
    def from_released(cls, values: Mapping[str, Any], source: str = "config.json") -> "NextStepConfig":
        """Read a released config.json with any of its three sets of keys, or a Qwen2.5 one, as transformers 4 or 5 saves it.

        Raises:
          InputError: naming `source` and the key, for a missing, contradictory or unsupported value.
        """
        try:
            return _from_released(values)
        except (InputError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"{source}: {error}") from error

    def to_released(self) -> dict[str, Any]:
        """config.json with the keys of NextStep-1 (latent_*, fm_head_*)."""
        return _to_released(self)


# --- presets ----------------------------------------------------------------------------------------------------------


def _qwen(width, layers, heads, kv_heads, mlp_width, vocab_size=152064, **changes) -> TransformerConfig:
    head_dim = width // heads
    fields = dict(width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp_width=mlp_width)
    return TransformerConfig(vocab_size=vocab_size, **(fields | changes))


def preset(name: str) -> NextStepConfig:
    """A named architecture: "14b" (the release), Qwen2.5-shaped "0.5b", "1.5b", "3b", "7b", "mid" and "tiny"."""
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, found {name!r}")
    return PRESETS[name]


_SMALL_IDS: dict[str, Any] = dict(
    bos_id=499, eos_id=499, pad_id=500, begin_of_image_id=502, end_of_image_id=503, image_placeholder_id=504
)

PRESETS = {
    "14b": NextStepConfig(),
    "7b": NextStepConfig(_qwen(3584, 28, 28, 4, 18944, rms_norm_eps=1e-6)),
    "3b": NextStepConfig(_qwen(2048, 36, 16, 2, 11008, 151936, rms_norm_eps=1e-6, max_positions=32768, tie_embeddings=True)),
    "1.5b": NextStepConfig(_qwen(1536, 28, 12, 2, 8960, 151936, rms_norm_eps=1e-6, tie_embeddings=True)),
    "0.5b": NextStepConfig(_qwen(896, 24, 14, 2, 4864, 151936, rms_norm_eps=1e-6, max_positions=32768, tie_embeddings=True)),
    "mid": NextStepConfig(
        _qwen(512, 8, 8, 4, 1408, 8192, rms_norm_eps=1e-6, max_positions=4096), FlowHeadConfig(512, 12), **_SMALL_IDS
    ),
    "tiny": NextStepConfig(
        _qwen(64, 3, 4, 2, 160, 512, rms_norm_eps=1e-6, max_positions=4096), FlowHeadConfig(48, 3), **_SMALL_IDS
    ),
}


# --- released config.json ---------------------------------------------------------------------------------------------


def _from_released(values: Mapping[str, Any]) -> NextStepConfig:
    require_only(values, ONLY)
    values = from_transformers(values)
    missing = [names[0] for names in list(TRANSFORMER_KEYS.values())[1:5] if all(values.get(n) is None for n in names)]
    if missing:
        raise InputError(f"not a NextStep or Qwen2.5 config: it has no {', '.join(missing)}")
    transformer = take(TransformerConfig, TRANSFORMER_KEYS, values)
    transformer.setdefault("head_dim", transformer["width"] // transformer["heads"])
    head = take(FlowHeadConfig, HEAD_KEYS, values)
    model = take(NextStepConfig, MODEL_KEYS | {"map_head": ("map_head",)}, values)
    release = "1.1" if any(name in values for name in ("genloss_width", "num_channels")) else "1.0"
    return NextStepConfig(
        TransformerConfig(**transformer), FlowHeadConfig(**head), release=values.get("release", release), **model
    )


def _to_released(config: NextStepConfig) -> dict[str, Any]:
    values = {"architectures": ["LlamaForCausalLM"], "model_type": "nextstep", "hidden_act": "silu", "mlp_bias": False}
    values |= {"attention_dropout": 0.0, "initializer_range": 0.02, "rope_scaling": None, "release": config.release}
    for part, keys in ((config.transformer, TRANSFORMER_KEYS), (config.flow_head, HEAD_KEYS), (config, MODEL_KEYS)):
        values |= {names[0]: getattr(part, field) for field, names in keys.items()}
    if config.map_head:
        values["map_head"] = True
    return dict(sorted(values.items()))
