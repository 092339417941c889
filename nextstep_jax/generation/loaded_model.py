"""A model in decoding form and what it does in one go: images to tokens and back, tokens of a batch, ids, thoughts.

Letters: B images of one device batch, n image tokens, C channels of a token.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.data import images as image_files
from nextstep_jax.data.sequence import ImageTokens, Segment, image_prefix
from nextstep_jax.data.vocabulary import SpecialIds, Vocabulary
from nextstep_jax.errors import InputError
from nextstep_jax.generation import jacobi, text, token_loop
from nextstep_jax.generation.arguments import require_float, require_instance, require_int
from nextstep_jax.generation.config import GenerationConfig, recommended
from nextstep_jax.generation.generated_image import Pixels
from nextstep_jax.generation.load import load_model
from nextstep_jax.generation.profiling import part
from nextstep_jax.generation.prompts import Part, align_rows, frame_prompt
from nextstep_jax.generation.sizes import bucket_area, bucket_pixels
from nextstep_jax.generation.tokenizer import decode_images, encode_images
from nextstep_jax.generation.unfamiliar import unfamiliar
from nextstep_jax.seeds import seed_key
from nextstep_jax.sharding.mesh import to_host

Array = jax.Array
ImageSource = image_files.Source
# Called after each chunk with (tokens done, tokens in all, the partial images of the current batch). Images of one batch count
# as one. What it raises ends the drawing.
OnChunk = Callable[[int, int, "PartialImages"], None]
# Called with the text so far each time it has grown. What it raises ends the writing.
OnText = Callable[[str], None]

MAX_THINKING_TOKENS = 512
CHUNKS, MAX_CHUNK = 16, 16  # of an image and tokens of one, when there is an `on_chunk`
TEXT_CHUNK = 8  # ids, when somebody reads along
_POSTERIOR_FOLD = 2**31 - 1  # fold_in index of encoding noise, out of reach of image indices
_THINKING_FOLD = 2**31 - 2  # of thoughts


@dataclasses.dataclass(frozen=True)
class PartialImages:
    """The images of a batch as far as they are drawn; calling it decodes them.

    Attributes:
      tokens: [B, h * w, C] float32, zeros where a token is yet to come.
      h, w: sides in tokens.
      decode: tokens [B, h * w, C], h and w to B uint8 images.
    """

    tokens: np.ndarray
    h: int
    w: int
    decode: Callable[[np.ndarray, int, int], list[Pixels]]

    def __call__(self) -> list[Pixels]:
        return self.decode(self.tokens, self.h, self.w)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode, with the image tokenizer and the text tokenizer that its checkpoint has.

    Attributes:
      config: in decoding form (unrolled; fused unless devices hold parts of the kernels).
      params: of the model, in that form.
      tokenizer_config, tokenizer_params: of the image tokenizer. Without one (a converted language model) there is text only.
      vocabulary: without one, prompts are ids and so is what `generate_ids` returns.
      overrides: generation settings the checkpoint asks for, see `config.recommended`.
      name: what error messages and records call it.
      mesh: the devices that the parameters lie on, where they are several: each batch is computed by all of them.
    """

    config: NextStepConfig
    params: dict
    tokenizer_config: ImageTokenizerConfig | None
    tokenizer_params: dict | None
    special: SpecialIds
    vocabulary: Vocabulary | None = None
    overrides: dict = dataclasses.field(default_factory=dict)
    name: str = "model"
    mesh: Mesh | None = None

    @classmethod
    def from_checkpoint(
        cls, checkpoint: str | os.PathLike | None = None, dtype: str | None = None, mesh: Mesh | None = None
    ) -> Self:
        """Load a converted or trained checkpoint folder; without one, the small model that ships with the package.

        Args:
          dtype: to cast the parameters to and compute in; None keeps what is stored; "int8" keeps the large kernels in one
            byte a number, each output with a scale of its own, and computes as for None.
          mesh: the devices to spread the model over (`sharding.mesh.make_mesh`), heads and MLPs along its axis `tensor`, the
            rows of a batch along `data`. None: one device.
        """
        with part("load"):
            return cls(**load_model(checkpoint, dtype, mesh))

    def on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        """What runs inside is compiled for the model's mesh."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def image_tokenizer(self) -> tuple[ImageTokenizerConfig, dict]:
        """Config and parameters of the image tokenizer. InputError without one."""
        if self.tokenizer_config is None or self.tokenizer_params is None:
            raise InputError(f"{self.name} has no image tokenizer and writes text only (nextstep-jax convert --vae adds one)")
        return self.tokenizer_config, self.tokenizer_params

    @property
    def token_pixels(self) -> int:
        """Pixels along one side of an image token."""
        return self.image_tokenizer[0].downsample * self.config.patch

    def settings(self, edit: bool = False, **changes) -> GenerationConfig:
        """The checkpoint's recommended settings with some changed; None leaves one as it is.

        Without a text tokenizer the recommended prompt suffix and negative prompt are left out: nothing could read them.
        """
        settings = recommended(self.config.release, self.overrides, edit)
        if self.vocabulary is None:
            settings = settings.replace(prompt_suffix="", negative_prompt="")
        return settings.replace(**changes)

    def with_overrides(self, changes: Mapping[str, Any]) -> Self:
        """The same model with other default settings, for images and edits alike; None leaves one as it is."""
        changes = {name: value for name, value in changes.items() if value is not None}
        overrides = self.overrides | changes
        if "edit" in overrides:
            overrides["edit"] = overrides["edit"] | changes
        pipeline = dataclasses.replace(self, overrides=overrides)
        for edit in (False, True):
            pipeline.require_settings(None, edit)  # refuses what cannot be used
        return pipeline

    def require_settings(self, settings: GenerationConfig | None, edit: bool = False) -> GenerationConfig:
        """The settings, those that the checkpoint recommends for None. InputError for anything but a GenerationConfig."""
        settings = self.settings(edit) if settings is None else require_instance("settings", settings, GenerationConfig)
        settings.require_model(self.config)
        return settings

    def unfamiliar(self, prompts: Sequence[str | Sequence[int]], height: int, width: int) -> list[str]:
        """What of prompts and a size in pixels the model was not trained with, in words."""
        return unfamiliar(self.name, self.vocabulary, self.overrides, prompts, height, width)

    # --- images -------------------------------------------------------------------------------------------------------

    def load_images(self, images: ImageSource | Sequence[ImageSource], settings: GenerationConfig) -> list[Pixels]:
        """Input images as uint8 arrays, resized and cropped to buckets of the settings' area."""
        if not image_files.is_source(images) and not isinstance(images, Sequence):
            raise InputError(f"images must be files, Pillow images or arrays, found {images!r:.100}")
        sources: list[Any] = [images] if image_files.is_source(images) else list(cast(Sequence[ImageSource], images))
        if not sources:
            raise InputError("an edit needs at least one input image")
        area, pixels = bucket_area(settings, self.token_pixels), []
        for source in sources:
            image = image_files.load(source)
            bucket = image_files.bucket_for(width=image.width, height=image.height, area=area)
            pixels.append(np.asarray(image_files.resize_crop(image, *bucket_pixels(bucket, self.token_pixels))))
        return pixels

    def encode_images(self, images: Sequence[Pixels], seed: int = 0) -> list[ImageTokens]:
        """Image tokens of uint8 images, as the transformer reads them."""
        config, params = self.image_tokenizer
        key = jax.random.fold_in(seed_key(seed), _POSTERIOR_FOLD)
        encoded = []
        for i, pixels in enumerate(images):
            values, noise_key = image_files.to_float(pixels)[None], jax.random.fold_in(key, i)
            with self.on_mesh(), part("encode") as done:
                tokens = done(encode_images(config, self.config.patch, params, values, noise_key))
            side = self.token_pixels
            encoded.append(ImageTokens(to_host(tokens[0]), pixels.shape[0] // side, pixels.shape[1] // side))
        return encoded

    def decode_images(self, tokens: np.ndarray | Array, h: int, w: int) -> list[Pixels]:
        """uint8 images of tokens [B, h * w, C]."""
        config, params = self.image_tokenizer
        with self.on_mesh(), part("decode") as done:
            pixels = done(decode_images(config, self.config.patch, h, w, params, jnp.asarray(tokens)))
        return list(image_files.to_uint8(to_host(pixels)))

    def decode_batch(self, tokens: np.ndarray, h: int, w: int) -> list[Pixels]:
        """As `decode_images`, in powers of two: few programs serve every number of images."""
        images: list[Pixels] = []
        while len(images) < len(tokens):
            rest = tokens[len(images) :]
            images += self.decode_images(rest[: _power_of_two(len(rest) + 1) // 2], h, w)
        return images

    def sample_tokens(
        self,
        branches: Sequence[Sequence[Sequence[Part]]],
        h: int,
        w: int,
        keys: Array,
        settings: GenerationConfig,
        has_image: bool,
        on_chunk: OnChunk | None = None,
    ) -> np.ndarray:
        """Image tokens [B, h * w, C] of B prompts.

        Args:
          branches: per prompt [conditional, image-only, unconditional] parts; those guidance does not need are not read.
          keys: [B], one key an image.
        """
        sampler_config = settings.sampler_config(has_image)
        count, tokens = len(branches), h * w
        used = {1: (0,), 2: (0, 2), 3: (0, 1, 2)}[sampler_config.branches]
        padded = list(branches) + [branches[-1]] * (_power_of_two(count) - count)
        prefix = image_prefix(self.special, h, w)
        rows = [self.frame([*row[b], prefix], tokens) for b in used for row in padded]
        keys = keys[np.minimum(np.arange(len(padded)), count - 1)]
        with self.on_mesh(), part("prefill") as done:
            noise = token_loop.draw_noise(keys, tokens, sampler_config.num_noise_draws, self.config.token_channels)
            begin, advance = _decoding(settings.jacobi_config(w), settings.jacobi_tolerance)
            state = done(begin(self.config, self.params, align_rows(rows), sampler_config.branches, tokens))
        chunk = tokens if on_chunk is None else max(1, min(MAX_CHUNK, tokens // CHUNKS))
        stages = settings.steps_along(tokens)
        for stop in sorted({*range(chunk, tokens, chunk), *(stop for stop, _ in stages)}):
            steps = next(steps for last, steps in stages if stop <= last)
            now = dataclasses.replace(sampler_config, steps=steps)
            with self.on_mesh(), part("tokens") as done:
                draws = noise[:, : now.num_noise_draws]
                state = done(advance(self.config, now, self.params, state, draws, settings.guidance(tokens), stop))
            if on_chunk is not None:
                partial = to_host(state.tokens[:count, :tokens])
                on_chunk(stop, tokens, PartialImages(partial, h, w, self.decode_images))
        return to_host(state.tokens[:count, :tokens])

    # --- ids and text -------------------------------------------------------------------------------------------------

    def frame(self, parts: Sequence[Part], new: int) -> Segment:
        """The parts as one sequence. InputError where it and `new` further positions do not fit the model's window."""
        row, window = frame_prompt(parts, self.special, self.config, self.vocabulary), self.config.transformer.max_positions
        if len(row) + new > window:
            raise InputError(f"a prompt of {len(row)} ids and {new} new positions do not fit the model's window of {window}")
        return row

    def generate_ids(
        self,
        parts: Sequence[Part],
        stop_ids: Sequence[int],
        key: Array,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        allowed_special: Sequence[int] = (),
        on_ids: Callable[[list[int]], None] | None = None,
    ) -> tuple[list[int], int | None]:
        """Ids that continue `parts`, without the stop id, and the stop id met (None: the length ran out).

        Markers of images and thinking are written only if they are stop ids or in `allowed_special`, the tokenizer's unknown
        token never. `on_ids` is called with the ids so far, `TEXT_CHUNK` more each time.
        """
        max_tokens, temperature, top_p = require_sampling(max_tokens, temperature, top_p)
        row = self.frame(parts, max_tokens)
        size = self.vocabulary.size if self.vocabulary else self.config.transformer.vocab_size
        allowed = np.arange(self.config.transformer.vocab_size) < size
        markers = {i for i in dataclasses.astuple(self.special) if isinstance(i, int)} - {self.special.times}
        allowed[list(markers - set(stop_ids) - set(allowed_special))] = False
        if self.vocabulary is not None and self.vocabulary.unknown is not None:
            allowed[self.vocabulary.unknown] = False
        prompt = align_rows([row])
        with self.on_mesh(), part("prefill") as done:
            state = done(text.prefill_ids(self.config, self.params, prompt, _power_of_two(max_tokens)))
        stops = np.asarray(stop_ids, np.int32)
        ids: list[int] = []
        met: int | None = None
        for stop in [*(range(TEXT_CHUNK, max_tokens, TEXT_CHUNK) if on_ids else ()), max_tokens]:
            with self.on_mesh(), part("text") as done:
                arguments = (key[None], temperature, top_p, allowed, stops, stop)
                state = done(text.decode_ids(self.config, self.params, state, *arguments))
            ids = to_host(state.ids)[0, : int(to_host(state.lengths)[0])].tolist()
            ids, met = (ids[:-1], ids[-1]) if ids and ids[-1] in set(stop_ids) else (ids, None)
            if on_ids is not None:
                on_ids(ids)
            if met is not None:
                break
        return ids, met

    def think(self, parts: Sequence[Part], on_text: OnText | None = None, temperature: float = 0.0, seed: int = 0) -> list[int]:
        """What the model thinks before it draws (self-CoT, paper section 4.2): ids between the thinking tokens, its most likely
        ones at temperature 0. Thinking that does not end within `MAX_THINKING_TOKENS` is cut there.

        Raises:
          InputError: a checkpoint without thinking tokens.
        """
        begin, end = self.special.begin_of_thinking, self.special.end_of_thinking
        if begin is None or end is None:
            raise InputError(f"{self.name} cannot think before it draws: its text tokenizer has no thinking tokens")
        stops, key = [end, self.special.eos], jax.random.fold_in(seed_key(seed), _THINKING_FOLD)
        sampling, on_ids = (MAX_THINKING_TOKENS, temperature), self.reading_along(on_text)
        ids, _ = self.generate_ids([*parts, [begin]], stops, key, *sampling, on_ids=on_ids)
        return [begin, *ids, end]

    def reading_along(self, on_text: OnText | None) -> Callable[[list[int]], None] | None:
        """`on_text` as `generate_ids` calls it. A character of which only some bytes are there yet is left out."""
        return on_text and (lambda ids: on_text(self.text(ids).removesuffix("\ufffd")))

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids, without special ones and without what stands between the thinking tokens.

        Raises:
          InputError: a checkpoint without a text tokenizer.
        """
        if self.vocabulary is None:
            raise InputError(f"{self.name} has no text tokenizer (tokenizer.json): call generate_ids for ids")
        return self.vocabulary.decode(text.without_thinking(ids, self.special))


def _decoding(window: jacobi.JacobiConfig | None, tolerance: float) -> tuple[Callable, Callable]:
    """The functions that begin and continue a batch of images: one token after another, or windows of them."""
    if window is None:
        return token_loop.prefill, token_loop.decode_tokens
    advance = functools.partial(jacobi.decode_windows, tolerance=tolerance, jacobi=window)
    return functools.partial(jacobi.prefill, jacobi=window), advance


def require_sampling(max_tokens: int, temperature: float, top_p: float) -> tuple[int, float, float]:
    """How ids are sampled, each as its type. InputError for one out of range."""
    max_tokens = require_int("max_tokens", max_tokens, 1)
    temperature, top_p = require_float("temperature", temperature, 0), require_float("top_p", top_p, 0, 1)
    if top_p == 0:
        raise InputError("top_p must be above 0, found 0")
    return max_tokens, temperature, top_p


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
