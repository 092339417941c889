"""The token loop and the rollouts of online stages, lowered for a mesh whose devices need not be present (see aot.py)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.errors import InputError
from nextstep_jax.flow.samplers import timesteps
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.rollouts import PromptRows
from nextstep_jax.generation.sizes import image_grid
from nextstep_jax.generation.token_loop import Prompt, decode_tokens, prefill
from nextstep_jax.models.attention import CACHE_AXES
from nextstep_jax.models.nextstep import init_params
from nextstep_jax.sharding.mesh import batch_shardings, replicated
from nextstep_jax.sharding.params import state_shardings, with_shardings
from nextstep_jax.sharding.rules import shape_spec
from nextstep_jax.training import online
from nextstep_jax.training.aot import Lowered, abstract_key, bytes_per_device
from nextstep_jax.training.flops import Work, flow_head_forward, transformer_forward
from nextstep_jax.training.post_training_settings import OnlineConfig
from nextstep_jax.training.program import make_program
from nextstep_jax.training.settings import MultitaskConfig, RunConfig

PROMPT = 128  # positions


def lower_generation(config: RunConfig, mesh: Mesh, images: int = 1) -> Lowered:
    """The token loop for `images` images of the config's size at guidance 7.5, after prompts of PROMPT positions; its figures
    are those of one token of each image. Parameters are bfloat16 and lie as in training, heads and MLPs split over `tensor`.

    Raises:
      InputError: settings that make no model, or another objective than multitask.
    """
    if not isinstance(config, MultitaskConfig):
        raise InputError(f"config.objective must be multitask for its token loop to be compiled, found {config.objective!r}")
    # Fused projections would have to be cut apart again on every device, in the middle of what it holds.
    changes = dict(dtype="bfloat16", scan_layers=False, fused_projections=False, remat="none")
    model = config.model.with_transformer(**changes)
    settings = GenerationConfig(image_size=256).sampler_config(False)
    tokens, rows = (model.latent_size // model.patch) ** 2, settings.branches * images
    with jax.set_mesh(mesh):
        params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16), params)
        params = with_shardings({"model": params}, state_shardings({"model": params}, mesh))["model"]
        ids = jax.ShapeDtypeStruct((rows, PROMPT), jnp.int32)
        inputs = Prompt(
            ids,
            jax.ShapeDtypeStruct((rows, PROMPT, model.token_channels), jnp.float32),
            jax.ShapeDtypeStruct((rows, PROMPT), jnp.bool_),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
        )
        state = jax.eval_shape(functools.partial(prefill, model, branches=settings.branches, tokens=tokens), params, inputs)
        lies = jax.tree.map(lambda _: replicated(mesh), state)
        layers = jax.tree.map(lambda s: NamedSharding(mesh, shape_spec(CACHE_AXES, s.shape, mesh)), state.cache.layers)
        state = with_shardings(state, lies._replace(cache=lies.cache._replace(layers=layers)))
        noise, guidance = (tokens, settings.num_noise_draws, images, model.token_channels), (tokens, 2)
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated(mesh)) for shape in (noise, guidance)]
        stop = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
        program = decode_tokens.lower(model, settings, params, state, *arrays, stop)
    kinds = {"parameters": params, "cache": state.cache}
    work = Work(rows, rows * (PROMPT + tokens), 0, 0, rows)
    evaluations = len(timesteps(settings.sampler, settings.steps, settings.shift))
    return Lowered(program, {k: bytes_per_device(v) for k, v in kinds.items()}, _forward(model, work, evaluations), images)


def lower_rollouts(config: RunConfig, mesh: Mesh) -> Lowered:
    """What an online stage draws in each step: all images of its prompts, of PROMPT positions each, by the parameters as they
    lie in training. Optimizer, average and reference lie beside it; scoring and learning from the images are no part of it.

    Raises:
      InputError: settings that make no model, an objective without rollouts, or prompts that do not divide over the mesh.
    """
    if not isinstance(config, OnlineConfig):
        raise InputError(f"config.objective must be nft or grpo for rollouts to be compiled, found {config.objective!r}")
    model, prompts, images = config.model, config.data.batch_size, config.rollouts.images
    if prompts % (parts := mesh.shape["data"] * mesh.shape["fsdp"]):
        raise InputError(f"config.data.batch_size must be a multiple of {parts} on this mesh, found {prompts}")
    settings = online.generation_settings(config)
    grid = image_grid(settings, ImageTokenizerConfig().downsample * model.patch)
    with jax.set_mesh(mesh):
        objective = online.make_objective(config)
        made = make_program(config, objective, mesh)
        state = with_shardings(made.state, made.state_shardings)
        ids, numbers = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((prompts, PROMPT), (prompts,)))
        rows = PromptRows(ids, numbers, numbers)
        rows = with_shardings(rows, batch_shardings(rows, mesh, objective.batch_axes))
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
        draw = jax.jit(online.make_draw(config, settings, grid, mesh))
        lowered = draw.lower(state.params, rows, step, abstract_key(mesh))
    total, length = prompts * images, PROMPT + grid[0] * grid[1]
    tokens = total * grid[0] * grid[1]
    work = Work(total * length, total * length * (length + 1) / 2, tokens, 0, tokens)
    beside = {"optimizer and average": bytes_per_device((state.opt_state, state.ema))}
    if config.loss.kl_weight:
        beside["reference"] = bytes_per_device(state.params)
    evaluations = len(timesteps(config.rollouts.sampler, config.rollouts.steps, settings.shift))
    kinds = {"parameters": bytes_per_device(state.params)}
    return Lowered(lowered, kinds, _forward(model, work, evaluations), total * length, beside)


def _forward(model: NextStepConfig, work: Work, evaluations: int) -> float:
    """FLOPs of drawing: the transformer once, the flow head at every step of the sampler."""
    head = dataclasses.replace(model.flow_head, batch_mul=evaluations)
    flops = transformer_forward(model.transformer, work)
    return flops + flow_head_forward(head, model.token_channels, model.transformer.width, work.image_targets)
