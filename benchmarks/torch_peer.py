"""The PyTorch release (August 2025, github.com/stepfun-ai/NextStep-1) with random weights, to time beside this library.

Its source is not part of this repository: pass a checkout as `--peer DIR`, in an environment that also has torch,
transformers 4.49, diffusers 0.32, loguru and einops, and for torch.compile on a CPU a C++ compiler. Its own decoding loop and
flow-head sampler are called, uncompiled unless asked for.
"""

import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import types
import unittest.mock
from collections.abc import Callable

import numpy as np

from benchmarks import measure
from nextstep_jax.config import NextStepConfig
from nextstep_jax.errors import InputError

# Modules that the release imports for data and logging, which nothing here calls.
_UNUSED = ("torchvision", "torchvision.transforms", "megfile", "webdataset", "omegaconf", "pendulum", "tabulate")


class Peer:
    """The release's model of a given architecture with random weights.

    Args:
      folder: the release's checkout.
      compiled: with those of its functions under torch.compile that it ships so; `uncompiled` then runs it without. The
        prompt's pass is never compiled, as in its pipeline.
      device, dtype: float32 on a CPU by default.
    """

    def __init__(
        self,
        folder: str,
        config: NextStepConfig,
        threads: int,
        device: str = "cpu",
        dtype: str = "float32",
        compiled: bool = False,
    ):
        if not (pathlib.Path(folder) / "nextstep" / "models" / "modeling_nextstep.py").exists():
            raise InputError(f"--peer {folder}: holds no nextstep/models/modeling_nextstep.py")
        os.environ["ENABLE_TORCH_COMPILE"] = str(compiled).lower()
        sys.path.insert(0, folder)
        import diffusers.models
        import torch
        import transformers.modeling_utils  # both look for torchvision, which only the release's image loading needs

        assert diffusers.models and transformers.modeling_utils
        missing = [name for name in _UNUSED if importlib.util.find_spec(name.split(".")[0]) is None]
        sys.modules |= {name: _stand_in(name) for name in missing}
        from nextstep.models.modeling_nextstep import NextStep
        from nextstep.models.pipeline_nextstep import NextStepPipeline
        from nextstep.utils.compile_utils import compile_manager
        from transformers.cache_utils import StaticCache
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.torch, self._decoding, self._cache = torch, NextStepPipeline.decoding, StaticCache
        self._compile_disabled = compile_manager.compile_disabled
        self.config, self._device, self._dtype = config, torch.device(device), getattr(torch, dtype)
        default = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        try:
            with self._device:
                self.model = NextStep(_released(config)).eval()
        finally:
            torch.set_default_dtype(default)
        self.model.to(self._device, dtype=self._dtype)

    def uncompiled(self, run: Callable) -> Callable:
        """`run`, one of the functions below, without torch.compile."""

        def without():
            with self._compile_disabled():
                return run()

        return without

    def decoder(self, images: int, prompt: int, tokens: int, chunk: int, cfg: float, steps: int):
        """A function that decodes `chunk` tokens of each image, as the first of `tokens`."""
        torch, rows = self.torch, (2 if cfg > 1 else 1) * images

        def run():
            cache = self._empty_cache(rows, prompt + tokens)
            with torch.no_grad():
                c = self._prefill(rows, prompt, cache)
                mask = torch.ones((rows, prompt), dtype=torch.long, device=self._device)
                self._wait()
                start = measure.now()
                self._decoding(
                    types.SimpleNamespace(model=self.model),
                    c,
                    mask,
                    cache,
                    chunk,
                    1,
                    use_norm=True,
                    cfg=cfg,
                    num_sampling_steps=steps,
                    progress=False,
                )
                self._wait()
            return measure.now() - start

        return run

    def flow_head(self, images: int, cfg: float, steps: int):
        """A function that samples one token of each image."""
        torch = self.torch
        c = torch.randn((2 if cfg > 1 else 1) * images, self.config.transformer.width, device=self._device, dtype=self._dtype)

        def run():
            with torch.no_grad():
                self.model.image_head.sample(c=c, cfg=cfg, num_sampling_steps=steps)

        return run

    def prefill(self, images: int, branches: int, prompt: int, tokens: int):
        """A function that runs the prompt through the transformer."""
        rows = images * branches
        cache = self._empty_cache(rows, prompt + tokens)

        def run():
            cache.reset()
            with self.torch.no_grad():
                self._prefill(rows, prompt, cache)

        return run

    def train_step(self, ids: np.ndarray, images: int):
        """A function that runs forward and backward over ids [B, S], of which `images` * 256 are image tokens."""
        torch, c = self.torch, self.config
        ids = torch.from_numpy(ids.astype(np.int64))
        latents = torch.randn(images, c.latent_channels, 32, 32)
        labels = torch.where(ids == c.image_placeholder_id, -100, ids)
        self.model.train()

        def run():
            self.model.zero_grad(set_to_none=True)
            out = self.model(input_ids=ids, latents=latents, latents_mask=torch.ones(images), labels=labels, use_cache=False)
            out.loss.backward()

        return run

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self.torch.cuda.synchronize()

    def _empty_cache(self, rows: int, slots: int):
        options = dict(max_batch_size=rows, max_cache_len=slots, device=self._device, dtype=self._dtype)
        return self._cache(config=self.model.config, **options)

    def _prefill(self, rows: int, prompt: int, cache):
        ids = self.torch.full((rows, prompt), 7, dtype=self.torch.long, device=self._device)
        mask = self.torch.ones((rows, prompt), dtype=self.torch.long, device=self._device)
        embeddings = self.model.prepare_inputs_embeds(ids)
        with self._compile_disabled():
            out = self.model.forward_model(inputs_embeds=embeddings, attention_mask=mask, past_key_values=cache, use_cache=True)
        return out.last_hidden_state[:, -1:]


def _stand_in(name: str) -> unittest.mock.MagicMock:
    """A module for imports alone; torch.compile looks for every module's spec."""
    module = unittest.mock.MagicMock(__name__=name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module


def _released(config: NextStepConfig):
    from nextstep.models.configuration_nextstep import NextStepConfig as Released

    t, head = config.transformer, config.flow_head
    return Released(
        vocab_size=t.vocab_size,
        hidden_size=t.width,
        num_hidden_layers=t.layers,
        num_attention_heads=t.heads,
        num_key_value_heads=t.kv_heads,
        head_dim=t.head_dim,
        intermediate_size=t.mlp_width,
        max_position_embeddings=t.max_positions,
        rope_theta=t.rope_theta,
        rms_norm_eps=t.rms_norm_eps,
        attention_bias=t.qkv_bias,
        o_attention_bias=t.o_bias,
        tie_word_embeddings=t.tie_embeddings,
        boi=config.begin_of_image_id,
        eoi=config.end_of_image_id,
        image_placeholder_id=config.image_placeholder_id,
        pad_token_id=config.pad_id,
        bos_token_id=config.bos_id,
        eos_token_id=config.bos_id,
        latent_size=config.latent_size,
        latent_channels=config.latent_channels,
        latent_patch_size=config.patch,
        fm_head_dim=head.width,
        fm_head_layers=head.layers,
        fm_head_batch_mul=head.batch_mul,
        attn_implementation="sdpa",
    )
