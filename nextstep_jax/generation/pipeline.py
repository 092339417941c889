"""What a user calls: prompts in; images, edits and text out.

pipeline = Pipeline.from_checkpoint()            # the small model inside the package
images = pipeline.generate("a red circle left of a blue square", seed=1)
images[0].save("out.png")
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.data import images as image_files
from nextstep_jax.data.sequence import ImageTokens, Segment, image_prefix
from nextstep_jax.errors import InputError
from nextstep_jax.generation.arguments import require_int
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.generated_image import GeneratedImage, Pixels
from nextstep_jax.generation.loaded_model import ImageSource, LoadedModel, OnChunk, OnText, PartialImages, require_sampling
from nextstep_jax.generation.prompts import Part, as_prompts, describe, place_images, require_prompt
from nextstep_jax.generation.sizes import image_grid
from nextstep_jax.generation.unfamiliar import warn
from nextstep_jax.seeds import require_seed, seed_key

MAX_BATCH = 16


class Pipeline(LoadedModel):
    """A loaded model with what a user asks of it: images of prompts, edits, text."""

    # --- images -------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        height: int | None = None,
        width: int | None = None,
        aspect: str | None = None,
        n: int = 1,
        seed: int | Sequence[int] = 0,
        settings: GenerationConfig | None = None,
        on_chunk: OnChunk | None = None,
        on_thinking: OnText | Sequence[OnText] | None = None,
    ) -> list[GeneratedImage]:
        """Images of prompts: n of each, prompt by prompt.

        Image j of a prompt depends on the prompt, the seed and j alone, not on the other prompts.

        Args:
          prompts: text or ids, one or several.
          seed: of all prompts, or one of each.
          height, width: pixels, multiples of `token_pixels`; or `aspect`; default `settings.image_size` squared.
          on_chunk: called while images are drawn.
          on_thinking: called while the model thinks about the prompts; of all of them, or one of each.

        Raises:
          InputError: an empty prompt, ids out of range, a size or setting that cannot be used, a prompt longer than the window.

        Warns:
          UnfamiliarWarning: words or a size that the model was not trained with.
        """
        settings = self.require_settings(settings)
        h, w = self.grid(settings, height, width, aspect)
        prompts = as_prompts(prompts)
        branches = [self._text_branches(prompt, settings) for prompt in prompts]
        return self._generate_batches(branches, prompts, h, w, n, seed, settings, False, on_chunk, on_thinking)

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
        on_thinking: OnText | None = None,
    ) -> list[GeneratedImage]:
        """Edits of one or several input images.

        Input images are resized to the nearest aspect-ratio bucket; the result has the first one's size unless another is
        given. "<image>" or, counted from 0, "<image_1>" in the instruction says where an input image belongs; without them all
        come first, or last where the settings say so.

        Raises:
          InputError: an image that cannot be read; else as `generate`.

        Warns:
          UnfamiliarWarning: as `generate`.
        """
        return self.edit_batch(
            [images],
            [instruction],
            height=height,
            width=width,
            aspect=aspect,
            n=n,
            seed=seed,
            settings=settings,
            on_chunk=on_chunk,
            on_thinking=on_thinking,
        )

    def edit_batch(
        self,
        images: Sequence[ImageSource | Sequence[ImageSource]],
        instructions: Sequence[str | Sequence[int]],
        *,
        height: int | None = None,
        width: int | None = None,
        aspect: str | None = None,
        n: int = 1,
        seed: int | Sequence[int] = 0,
        settings: GenerationConfig | None = None,
        on_chunk: OnChunk | None = None,
        on_thinking: OnText | Sequence[OnText] | None = None,
    ) -> list[GeneratedImage]:
        """Several edits side by side, each the one that `edit` gives: n of each, edit by edit, all of one size.

        Args:
          images: what each edit changes.
          instructions: one an edit.
          seed, on_thinking: of all edits, or one of each.

        Raises:
          InputError: as `edit`; no edits, or another number of instructions than of images.

        Warns:
          UnfamiliarWarning: as `generate`.
        """
        settings = self.require_settings(settings, edit=True)
        if not instructions or len(images) != len(instructions):
            raise InputError(f"expected images and an instruction of each edit, found {len(images)} and {len(instructions)}")
        for instruction in instructions:
            require_prompt(instruction)
        seeds = _seeds(seed, len(instructions))
        sources = [self.load_images(of_edit, settings) for of_edit in images]
        if height is None and width is None and aspect is None:
            height, width = sources[0][0].shape[:2]
        h, w = self.grid(settings, height, width, aspect)
        branches = [
            self._edit_branches(instruction, self.encode_images(of_edit, seed), settings)
            for instruction, of_edit, seed in zip(instructions, sources, seeds, strict=True)
        ]
        return self._generate_batches(branches, instructions, h, w, n, seeds, settings, True, on_chunk, on_thinking)

    def grid(
        self, settings: GenerationConfig, height: int | None = None, width: int | None = None, aspect: str | None = None
    ) -> tuple[int, int]:
        """(h, w) in tokens of a size in pixels, of an aspect ratio such as "16:9" or of the default size; see `image_grid`."""
        return image_grid(settings, self.token_pixels, height, width, aspect)

    def _generate_batches(
        self,
        branches: list[list[list[Part]]],
        prompts: Sequence[str | Sequence[int]],
        h: int,
        w: int,
        n: int,
        seed: int | Sequence[int],
        settings: GenerationConfig,
        has_image: bool,
        on_chunk: OnChunk | None,
        on_thinking: OnText | Sequence[OnText] | None,
    ) -> list[GeneratedImage]:
        """n images of each prompt, in batches of at most MAX_BATCH; `branches` as in `sample_tokens`."""
        n, seeds, count = require_int("n", n, 1), _seeds(seed, len(prompts)), h * w
        height, width = h * self.token_pixels, w * self.token_pixels
        for row in branches:  # an error in the last prompt is raised before the first image is drawn
            for parts in row:
                self.frame([*parts, image_prefix(self.special, h, w)], count)
        warn(self.unfamiliar(prompts, height, width))
        on_each = on_thinking if isinstance(on_thinking, Sequence) else [on_thinking] * len(branches)
        if len(on_each) != len(branches):
            raise InputError(f"expected one on_thinking or one of each of {len(branches)} prompts, found {len(on_each)}")
        thoughts = [
            self.think(row[0], on_text, settings.thinking_temperature, seed) if settings.thinking else []
            for row, on_text, seed in zip(branches, on_each, seeds, strict=True)
        ]
        branches = [[[*row[0], ids], *row[1:]] for row, ids in zip(branches, thoughts, strict=True)]
        wanted = [(p, j) for p in range(len(branches)) for j in range(n)]
        batches = [wanted[first : first + MAX_BATCH] for first in range(0, len(wanted), MAX_BATCH)]
        keys_of, results = jnp.stack([seed_key(seed) for seed in seeds]), []
        shared = {"height": height, "width": width, "model": self.name, "settings": dataclasses.asdict(settings)}
        for b, batch in enumerate(batches):
            of_prompt, indices = np.asarray(batch).T
            keys = jax.vmap(jax.random.fold_in)(keys_of[of_prompt], indices)
            in_all = on_chunk and functools.partial(_count_all, on_chunk, b * count, len(batches) * count)
            tokens = self.sample_tokens([branches[p] for p, _ in batch], h, w, keys, settings, has_image, in_all)
            for (p, j), image_tokens, pixels in zip(batch, tokens, self.decode_batch(tokens, h, w), strict=True):
                record = {"prompt": describe(prompts[p]), "index": j, "seed": seeds[p]} | shared
                record |= {"thinking": self.text(thoughts[p][1:-1])} if thoughts[p] else {}
                results.append(GeneratedImage(pixels, image_tokens, record))
        return results

    # --- prompts ------------------------------------------------------------------------------------------------------

    def require_drawable(
        self, prompt: str | Sequence[int], sources: Sequence[Pixels], h: int, w: int, settings: GenerationConfig
    ) -> Segment:
        """The prompt as `generate` reads it, or `edit` with the loaded images `sources`, whose tokens are zeros here.

        Raises:
          InputError: what these would refuse; nothing runs on the device.
        """
        require_prompt(prompt)
        settings.sampler_config(bool(sources))
        encoded = [self._blank(pixels) for pixels in sources]
        branches = self._edit_branches(prompt, encoded, settings) if encoded else self._text_branches(prompt, settings)
        return [self.frame([*parts, image_prefix(self.special, h, w)], h * w) for parts in branches][0]

    def require_continuable(self, prompt: str | Sequence[int], sources: Sequence[Pixels], max_tokens: int) -> Segment:
        """The prompt after loaded images, whose tokens are zeros here, as `generate_text` reads it.

        Raises:
          InputError: what that would refuse; nothing runs on the device.
        """
        return self.frame([*map(self._blank, sources), prompt], max_tokens)

    def prompt_text(self, prompt: str, settings: GenerationConfig) -> str:
        """The text that the model reads of a prompt: with the settings' suffix."""
        return f"{prompt} {settings.prompt_suffix}" if settings.prompt_suffix else prompt

    def _text_branches(self, prompt: str | Sequence[int], settings: GenerationConfig) -> list[list[Part]]:
        if isinstance(prompt, str):
            conditional: list[Part] = [self.prompt_text(prompt, settings)]
        else:
            conditional = [prompt, *([" " + settings.prompt_suffix] if settings.prompt_suffix else [])]
        return [conditional, [settings.negative_prompt], [settings.negative_prompt]]

    def _edit_branches(
        self, instruction: str | Sequence[int], encoded: Sequence[ImageTokens], settings: GenerationConfig
    ) -> list[list[Part]]:
        parts = place_images(instruction, encoded, settings.sources_last)
        placed = [part for part in parts if isinstance(part, ImageTokens)]
        if settings.prompt_suffix:
            parts.append(" " + settings.prompt_suffix)
        return [parts, [*placed, settings.negative_prompt], [settings.negative_prompt]]

    def _blank(self, pixels: Pixels) -> ImageTokens:
        """The tokens of an image of the same size, all zeros."""
        h, w = pixels.shape[0] // self.token_pixels, pixels.shape[1] // self.token_pixels
        return ImageTokens(np.zeros((h * w, self.config.token_channels), np.float32), h, w)

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
        on_text: OnText | None = None,
    ) -> str:
        """Text that continues a prompt, after input images if there are any (captioning).

        The text ends where the model ends it or would rather draw an image, at the latest after `max_tokens` ids. What the
        model thinks on the way is left out.

        Raises:
          InputError: nothing to continue, a setting out of range, or a prompt longer than the window.
        """
        has_image = image_files.is_source(images) or not (isinstance(images, Sequence) and not images)
        if not (has_image and isinstance(prompt, str) and not prompt):
            require_prompt(prompt)
        sampling = require_sampling(max_tokens, temperature, top_p)
        key, settings = seed_key(seed), self.require_settings(settings)
        encoded = self.encode_images(self.load_images(images, settings), seed) if has_image else []
        stops = [self.special.eos, self.special.image_area]
        on_ids = self.reading_along(on_text)
        ids, _ = self.generate_ids(
            [*encoded, prompt], stops, key, *sampling, allowed_special=self.special.thinking, on_ids=on_ids
        )
        return self.text(ids)


def _count_all(on_chunk: OnChunk, before: int, total: int, done: int, _: int, partial: PartialImages) -> None:
    """Report the progress of one batch as that of all batches."""
    on_chunk(before + done, total, partial)


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """The seed of each of `count` prompts. InputError for another number of them, or for what is no seed."""
    if not isinstance(seed, Sequence):
        return [require_seed(seed)] * count
    if len(seed) != count:
        raise InputError(f"expected one seed or one of each of {count} prompts, found {len(seed)}")
    return [require_seed(value) for value in seed]
