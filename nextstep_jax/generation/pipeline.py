"""What a user calls: prompts in; images, edits and text out.

    pipeline = Pipeline.from_checkpoint()            # the small model inside the package
    images = pipeline.generate("a red circle left of a blue square", seed=1)
    images[0].save("out.png")

Letters: B images of one device batch, n image tokens, C channels of a token.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.data import images as image_files
from nextstep_jax.data.image_output import save_image
from nextstep_jax.data.sequence import ImageTokens, image_prefix
from nextstep_jax.data.vocabulary import SpecialIds, Vocabulary
from nextstep_jax.errors import InputError
from nextstep_jax.generation import text, token_loop
from nextstep_jax.generation.config import GenerationConfig, recommended
from nextstep_jax.generation.load import load_model
from nextstep_jax.generation.profiling import part
from nextstep_jax.generation.prompts import (
    Part,
    align_rows,
    describe,
    frame_prompt,
    place_images,
    require_prompt,
)
from nextstep_jax.generation.tokenizer import decode_images, encode_images

Array = jax.Array
Pixels = np.ndarray  # [height, width, 3] uint8
ImageSource = image_files.Source
# Called after each chunk with (tokens done, tokens in all, a function that decodes the partial images).
OnChunk = Callable[[int, int, Callable[[], list[Pixels]]], None]

MAX_BATCH = 16
MAX_THINKING_TOKENS = 512  # of a plan at most
CHUNKS = 16  # per image, when somebody watches


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """One image and what made it.

    Attributes:
      pixels: [height, width, 3] uint8.
      tokens: [n, C] float32.
      record: prompt, plan if there was one, seed, index and settings, JSON-able; `save` writes it into the PNG.
    """

    pixels: Pixels
    tokens: np.ndarray
    record: dict

    def save(self, path: str | os.PathLike) -> None:
        """Write a PNG, JPEG or WebP file, by the path's suffix, that carries `record` (`data.image_output.read_record`)."""
        save_image(path, self.pixels, self.record)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A model ready to decode, its image tokenizer and, if the checkpoint has one, its text tokenizer.

    Attributes:
      config: in decoding form (unrolled, fused).
      params: of the model, in that form.
      overrides: generation settings the checkpoint asks for, see `settings.recommended`.
      name: what error messages and records call it.
    """

    config: NextStepConfig
    params: dict
    tokenizer_config: ImageTokenizerConfig
    tokenizer_params: dict
    special: SpecialIds
    vocabulary: Vocabulary | None = None
    overrides: dict = dataclasses.field(default_factory=dict)
    name: str = "model"

    @classmethod
    def from_checkpoint(cls, checkpoint: str | os.PathLike | None = None, dtype: str | None = None) -> "Pipeline":
        """Load a converted or trained checkpoint folder; without one, the small model that ships with the package.

        Args:
          dtype: to cast the parameters to and compute in; None keeps what is stored; "int8" keeps the large kernels in one
            byte a number, each output with a scale of its own, and computes as for None.
        """
        with part("load"):
            return cls(**load_model(checkpoint, dtype))

    # --- sizes --------------------------------------------------------------------------------------------------------

    @property
    def token_pixels(self) -> int:
        """Pixels along one side of an image token."""
        return self.tokenizer_config.downsample * self.config.patch

    def settings(self, edit: bool = False, **changes) -> GenerationConfig:
        """The checkpoint's recommended settings with some changed; None leaves one as it is.

        Without a text tokenizer the recommended positive and negative prompts are left out: nothing could read them.
        """
        settings = recommended(self.config.release, self.overrides, edit)
        if self.vocabulary is None:
            settings = settings.replace(prompt_suffix="", negative_prompt="")
        return settings.replace(**changes)

    def with_overrides(self, changes: Mapping[str, Any]) -> "Pipeline":
        """The same model with other default settings, for images and edits alike; None leaves one as it is."""
        changes = {name: value for name, value in changes.items() if value is not None}
        overrides = self.overrides | changes
        if "edit" in overrides:
            overrides["edit"] = overrides["edit"] | changes
        pipeline = dataclasses.replace(self, overrides=overrides)
        pipeline.settings(), pipeline.settings(edit=True)  # refuses what cannot be used
        return pipeline

    def grid(
        self, settings: GenerationConfig, height: int | None = None, width: int | None = None, aspect: str | None = None
    ) -> tuple[int, int]:
        """(h, w) in tokens of a size in pixels, or of an aspect-ratio bucket such as "16:9", or of the default size."""
        if aspect is not None:
            if height or width:
                raise InputError("give either a height and width or an aspect, not both")
            height, width = self._in_pixels(image_files.bucket_for_aspect(aspect, self.bucket_area(settings)))
        height, width = height or width or settings.image_size, width or height or settings.image_size
        for name, side in (("height", height), ("width", width)):
            if side % self.token_pixels or side <= 0:
                raise InputError(f"{name} must be a positive multiple of {self.token_pixels} pixels, found {side}")
        return height // self.token_pixels, width // self.token_pixels

    def bucket_area(self, settings: GenerationConfig) -> int:
        """Side of the square that `data.images` makes buckets of: they are for 16-pixel tokens, other tokenizers scale them."""
        return settings.image_size // self.token_pixels * image_files.TOKEN

    def _in_pixels(self, size: tuple[int, int]) -> tuple[int, int]:
        return tuple(side // image_files.TOKEN * self.token_pixels for side in size)

    # --- images -------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        height: int | None = None,
        width: int | None = None,
        aspect: str | None = None,
        n: int = 1,
        seed: int = 0,
        settings: GenerationConfig | None = None,
        on_chunk: OnChunk | None = None,
    ) -> list[GeneratedImage]:
        """Images of prompts: n of each, prompt by prompt.

        Image j of a prompt depends on the prompt, the seed and j alone, not on the other prompts.

        Args:
          prompts: text or ids, one or several.
          height, width: pixels, multiples of `token_pixels`; or `aspect`; default `settings.image_size` squared.

        Raises:
          InputError: an empty prompt, a size or setting that cannot be used, a prompt longer than the window.
        """
        settings = settings or self.settings()
        h, w = self.grid(settings, height, width, aspect)
        branches, prompts = [], _as_list(prompts)
        for prompt in prompts:
            require_prompt(prompt)
            branches.append([self._append_suffix(prompt, settings), [settings.negative_prompt], [settings.negative_prompt]])
        return self._generate_batch(branches, [describe(p) for p in prompts], h, w, n, seed, settings, False, on_chunk)

    def edit(
        self,
        images: ImageSource | Sequence[ImageSource],
        instruction: str | Sequence[int],
        *,
        height: int | None = None,
        width: int | None = None,
        aspect: str | None = None,
        n: int = 1,
        seed: int = 0,
        settings: GenerationConfig | None = None,
        on_chunk: OnChunk | None = None,
    ) -> list[GeneratedImage]:
        """Edits of one or several input images.

        Input images are resized to the nearest aspect-ratio bucket; the result has the first one's size unless another is
        given. "<image>" or, counted from 0, "<image_1>" in the instruction says where an input image belongs; without them all
        come first, or last where the settings say so.
        """
        settings = settings or self.settings(edit=True)
        require_prompt(instruction)
        sources = self.load_images(images, settings)
        if height is width is aspect is None:
            height, width = sources[0].shape[:2]
        h, w = self.grid(settings, height, width, aspect)
        encoded = self.encode_images(sources, seed)
        parts = place_images(instruction, encoded, settings.sources_last)
        placed = [part for part in parts if isinstance(part, ImageTokens)]
        if settings.prompt_suffix:
            parts.append(" " + settings.prompt_suffix)
        branches = [[parts, [*placed, settings.negative_prompt], [settings.negative_prompt]]]
        return self._generate_batch(branches, [describe(instruction)], h, w, n, seed, settings, True, on_chunk)

    def load_images(self, images: ImageSource | Sequence[ImageSource], settings: GenerationConfig) -> list[Pixels]:
        """Input images as uint8 arrays, resized and cropped to buckets of the settings' area."""
        sources = [images] if image_files.is_source(images) else list(images)
        if not sources:
            raise InputError("an edit needs at least one input image")
        pixels = []
        for source in sources:
            image = image_files.load(source)
            size = image_files.bucket_for(width=image.width, height=image.height, area=self.bucket_area(settings))
            pixels.append(np.asarray(image_files.resize_crop(image, *self._in_pixels(size))))
        return pixels

    def encode_images(self, images: Sequence[Pixels], seed: int = 0) -> list[ImageTokens]:
        """Image tokens of uint8 images, as the transformer reads them."""
        key = jax.random.fold_in(jax.random.key(seed), _POSTERIOR_FOLD)
        encoded = []
        for i, pixels in enumerate(images):
            with part("encode") as done:
                tokens = done(
                    encode_images(
                        self.tokenizer_config,
                        self.config.patch,
                        self.tokenizer_params,
                        image_files.to_float(pixels)[None],
                        jax.random.fold_in(key, i),
                    )
                )
            side = self.token_pixels
            encoded.append(ImageTokens(np.asarray(tokens[0]), pixels.shape[0] // side, pixels.shape[1] // side))
        return encoded

    def decode_images(self, tokens: np.ndarray | Array, h: int, w: int) -> list[Pixels]:
        """uint8 images of tokens [B, h * w, C]."""
        with part("decode") as done:
            pixels = done(decode_images(self.tokenizer_config, self.config.patch, h, w, self.tokenizer_params, tokens))
        return list(image_files.to_uint8(np.asarray(pixels)))

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
        rows = [frame_prompt([*row[b], prefix], self.special, self.config, self.vocabulary) for b in used for row in padded]
        self._require_window(max(map(len, rows)), tokens)
        keys = keys[np.minimum(np.arange(len(padded)), count - 1)]
        with part("prefill") as done:
            noise = token_loop.draw_noise(keys, tokens, sampler_config.num_noise_draws, self.config.token_channels)
            state = done(token_loop.prefill(self.config, self.params, align_rows(rows), sampler_config.branches, tokens))
        chunk = tokens if on_chunk is None else max(1, tokens // CHUNKS)
        plan = settings.steps_along(tokens)
        for stop in sorted({*range(chunk, tokens, chunk), *(stop for stop, _ in plan)}):
            steps = next(steps for last, steps in plan if stop <= last)
            now = dataclasses.replace(sampler_config, steps=steps)
            draws = noise[:, : now.num_noise_draws]
            with part("tokens") as done:
                state = done(
                    token_loop.decode_tokens(self.config, now, self.params, state, draws, settings.guidance(tokens), stop)
                )
            if on_chunk is not None:
                partial = np.asarray(state.tokens[:count])
                on_chunk(stop, tokens, lambda partial=partial: self.decode_images(partial, h, w))
        return np.asarray(state.tokens[:count])

    def _generate_batch(self, branches, descriptions, h, w, n, seed, settings, has_image, on_chunk) -> list[GeneratedImage]:
        if n < 1:
            raise InputError(f"the number of images must be at least 1, found {n}")
        plans = [self.think(row[0], seed) if settings.thinking else [] for row in branches]
        branches = [[[*row[0], plan], *row[1:]] for row, plan in zip(branches, plans, strict=True)]
        wanted = [(p, j) for p in range(len(branches)) for j in range(n)]
        key, results = jax.random.key(require_seed(seed)), []
        for first in range(0, len(wanted), MAX_BATCH):
            batch = wanted[first : first + MAX_BATCH]
            keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(np.asarray([j for _, j in batch]))
            tokens = self.sample_tokens([branches[p] for p, _ in batch], h, w, keys, settings, has_image, on_chunk)
            pixels = self.decode_images(tokens, h, w)
            for (p, j), image_tokens, image in zip(batch, tokens, pixels, strict=True):
                record = {"prompt": descriptions[p], "seed": seed, "index": j, "height": h * self.token_pixels}
                record |= {"width": w * self.token_pixels, "model": self.name, "settings": dataclasses.asdict(settings)}
                record |= {"thinking": self.text(plans[p])} if plans[p] else {}
                results.append(GeneratedImage(image, image_tokens, record))
        return results

    def _append_suffix(self, prompt, settings: GenerationConfig) -> list[Part]:
        if not settings.prompt_suffix:
            return [prompt]
        return [f"{prompt} {settings.prompt_suffix}"] if isinstance(prompt, str) else [prompt, " " + settings.prompt_suffix]

    # --- text ---------------------------------------------------------------------------------------------------------

    def generate_text(
        self,
        prompt: str | Sequence[int] = "",
        images: ImageSource | Sequence[ImageSource] = (),
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        settings: GenerationConfig | None = None,
    ) -> str:
        """Text that continues a prompt, after input images if there are any (captioning)."""
        if not len(prompt) and (isinstance(images, list | tuple) and not images):
            raise InputError("a prompt must not be empty")
        encoded = []
        if not (isinstance(images, list | tuple) and not images):
            encoded = self.encode_images(self.load_images(images, settings or self.settings()), seed)
        parts = [*encoded, prompt]
        ids, _ = self.generate_ids(parts, [self.special.eos], max_tokens, temperature, top_p, seed)
        return self.text(ids)

    def generate_ids(
        self,
        parts: Sequence[Part],
        stop_ids: Sequence[int],
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        allowed_special: Sequence[int] = (),
    ) -> tuple[list[int], int | None]:
        """Ids that continue `parts`, without the stop id, and the stop id met (None: the length ran out).

        Markers of images and thinking are written only if they are stop ids or in `allowed_special`.
        """
        if max_tokens < 1:
            raise InputError(f"the number of tokens to write must be at least 1, found {max_tokens}")
        if not (temperature >= 0 and 0 < top_p <= 1):
            raise InputError(f"temperature must be >= 0 and top-p in (0, 1], found {temperature} and {top_p}")
        row = frame_prompt(parts, self.special, self.config, self.vocabulary)
        self._require_window(len(row), max_tokens)
        size = self.vocabulary.size if self.vocabulary else self.config.transformer.vocab_size
        allowed = np.arange(self.config.transformer.vocab_size) < size
        markers = {i for i in dataclasses.astuple(self.special) if isinstance(i, int)} - {self.special.times}
        allowed[list(markers - set(stop_ids) - set(allowed_special))] = False
        prompt = align_rows([row])
        with part("prefill") as done:
            state = done(text.prefill_ids(self.config, self.params, prompt, _power_of_two(max_tokens)))
        keys = jax.random.key(require_seed(seed))[None]
        stops = np.asarray(stop_ids, np.int32)
        with part("text") as done:
            arguments = (keys, float(temperature), float(top_p), allowed, stops, max_tokens)
            state = done(text.decode_ids(self.config, self.params, state, *arguments))
        ids = np.asarray(state.ids)[0, : int(state.lengths[0])].tolist()
        return (ids[:-1], ids[-1]) if ids and ids[-1] in set(stop_ids) else (ids, None)

    def think(self, parts: Sequence[Part], seed: int = 0) -> list[int]:
        """What the model thinks before it draws (self-CoT, paper section 4.2): ids, those of the thinking tokens around them.
        A plan that does not end within `MAX_THINKING_TOKENS` is cut there.

        Raises:
          InputError: a checkpoint without thinking tokens.
        """
        begin, end = self.special.begin_of_thinking, self.special.end_of_thinking
        if begin is None or end is None:
            raise InputError(f"{self.name} cannot plan: its text tokenizer has no thinking tokens")
        ids, _ = self.generate_ids([*parts, [begin]], [end, self.special.eos], MAX_THINKING_TOKENS, seed=seed)
        return [begin, *ids, end]

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids, special ones left out. InputError without a text tokenizer."""
        if self.vocabulary is None:
            raise InputError(f"{self.name} has no text tokenizer (tokenizer.json): call generate_ids for ids")
        return self.vocabulary.decode(ids)

    def _require_window(self, length: int, new: int) -> None:
        window = self.config.transformer.max_positions
        if length + new > window:
            raise InputError(f"a prompt of {length} ids and {new} new positions do not fit the model's window of {window}")


_POSTERIOR_FOLD = 2**31 - 1  # fold_in index of encoding noise, out of reach of image indices


def _as_list(prompts) -> list:
    if isinstance(prompts, str):
        return [prompts]
    prompts = list(prompts)
    if not prompts:
        raise InputError("give at least one prompt")
    return [prompts] if not isinstance(prompts[0], str) and not hasattr(prompts[0], "__len__") else prompts


def require_seed(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be in [0, 2**32), found {seed}")
    return seed


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
