"""What an H100's compiler makes of the token loop and the training step, on a machine that has no GPU.

    python -m benchmarks.gpu.ahead --dtype bfloat16 --batch 1 --tokens 256 [--layers 4] [--options xla_gpu_...=...,...]
    python -m benchmarks.gpu.ahead --train 1.5b --remat projections

Needs the packages of `jax[cuda13]` and no driver: the program is compiled for a described card and never run. Nothing is
tuned, so kernels may differ from a run's. What it tells: whether it compiles, its memory, what a loop writes at every token.

  compile_seconds   of the one program
  compiler_memory   what it takes of the card's memory
  written_in_loop   arrays of a megabyte and more that a turn of its loops writes, and their sum
"""

import argparse
import os

from benchmarks import measure

# What the compiler asks of the card: NVIDIA's published figures of an H100 SXM.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
platform_name: "CUDA"
runtime_version { major: 13 } dnn_version_info { major: 9 minor: 19 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="14b")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "int8"])
    parser.add_argument("--layers", type=int, help="fewer than the preset has, to compile sooner")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--sampler", default="ab2")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--train", help="a preset's training step instead")
    parser.add_argument("--remat", default="projections")
    parser.add_argument("--length", type=int, default=16384, help="positions of the training row")
    parser.add_argument("--kernel", default="cudnn", help="attention kernel of the training step")
    parser.add_argument("--options", default="", help="compiler options: name=value,name=value")
    parser.add_argument("--json", help="write the figures to this file")
    a = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # what runs here; the program is for another device
    measure.report(run(a), a.json)


def run(a: argparse.Namespace) -> dict:
    """The compiler's figures of one program."""
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from benchmarks.gpu.hlo import written_in_loops

    device = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1").devices[0]
    lowered = lower_train_step(a, SingleDeviceSharding(device)) if a.train else lower_loop(a, SingleDeviceSharding(device))
    options = dict(option.split("=", 1) for option in a.options.split(",") if option)
    began = measure.now()
    compiled = lowered.compile(options)
    seconds = measure.now() - began
    written = written_in_loops(compiled.as_text(), at_least=2**20)
    return {
        "setting": {name: value for name, value in vars(a).items() if name != "json"},
        "compile_seconds": seconds,
        "compiler_memory": measure.compiled_memory(compiled),
        "written_in_loop": {"bytes": sum(array["bytes"] for array in written), "largest": written[:10]},
    }


def on(sharding, tree):
    """The shapes and dtypes of a tree, as arrays of another device."""
    import jax

    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def lower_loop(a: argparse.Namespace, sharding):
    """The token loop with guidance."""
    import functools

    import jax
    import jax.numpy as jnp

    from benchmarks.generate import param_shapes
    from nextstep_jax.config import preset
    from nextstep_jax.generation import token_loop

    layers = a.layers or preset(a.preset).transformer.layers
    config = preset(a.preset).with_transformer(dtype="bfloat16", fused_projections=True, layers=layers)
    settings = token_loop.SamplerConfig(branches=2, sampler=a.sampler, steps=a.steps, normalize_tokens=True)
    array, rows, channels = jax.ShapeDtypeStruct, 2 * a.batch, config.token_channels
    params = param_shapes(config, a.dtype)
    text, image = array((rows, a.prompt), jnp.int32), array((rows, a.prompt, channels), jnp.float32)
    prompt = token_loop.Prompt(text, image, array(text.shape, bool), array((rows,), jnp.int32))
    state = jax.eval_shape(functools.partial(token_loop.prefill, config, branches=2, tokens=a.tokens), params, prompt)
    noise = array((a.tokens, settings.num_noise_draws, a.batch, channels), jnp.float32)
    arguments = (params, state, noise, array((a.tokens, 2), jnp.float32), array((), jnp.int32))
    return token_loop.decode_tokens.lower(config, settings, *on(sharding, arguments))


def lower_train_step(a: argparse.Namespace, sharding):
    """The step of benchmarks/train_step.py on one packed row."""
    import jax
    import optax

    from benchmarks.train_step import make_objective_for, packed_batch
    from nextstep_jax.config import preset
    from nextstep_jax.training.optimizer import OptimizerConfig, make_optimizer
    from nextstep_jax.training.state import create_state
    from nextstep_jax.training.step import make_train_step

    how = dict(dtype="bfloat16", remat=a.remat, scan_layers=True, attention_kernel=a.kernel)
    config = preset(a.train).with_transformer(**how)
    objective, key = make_objective_for(config, a.length), jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(objective.init, key)
    schedule = optax.constant_schedule(1e-4)
    optimizer = make_optimizer(params, schedule, OptimizerConfig(weight_decay=0.1))
    state = jax.eval_shape(lambda params: create_state(params, optimizer, ema=False), params)
    step = jax.jit(make_train_step(objective, optimizer, schedule), donate_argnums=0)
    return step.lower(*on(sharding, (state, packed_batch(config, 1, a.length), key)))


if __name__ == "__main__":
    main()
