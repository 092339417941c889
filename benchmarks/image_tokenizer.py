"""How fast the image tokenizer encodes and decodes, at once and strip by strip, and whether strips can be told apart.

    python -m benchmarks.image_tokenizer --channels 32 --side 256 --threads 2 --json tokenizer.json   # a CPU
    python -m benchmarks.image_tokenizer --channels 128 --side 1024 --batch 4 --dtype bfloat16        # the release's, one GPU

Random weights in the release's plan (8 pixels a latent, 16 channels; 128 base channels in the release). `flops_of_peak` is the
share of a large matrix product's speed, measured in the same process, that encoding and decoding reach. `strips` is the
layer-by-layer decoder for large images: the largest difference between its picture and the one decoded at once, overall and on
the rows beside the strips' edges, as a share of the largest value. `compiler_memory` is of decoding at once.
"""

import argparse

from benchmarks import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--strip", type=int, default=8, help="latent rows of a strip; 0: no strips")
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """The figures of one setting."""
    import jax
    import numpy as np

    from nextstep_jax.config import ImageTokenizerConfig
    from nextstep_jax.models.image_tokenizer import ImageTokenizer
    from nextstep_jax.models.tiled_decode import decode_tiled
    from nextstep_jax.training.flops import reconstruction_flops

    config = ImageTokenizerConfig(channels=a.channels, dtype=a.dtype)
    model, grid = ImageTokenizer(config), a.side // config.downsample
    pixels = jax.random.uniform(jax.random.key(2), (a.batch, a.side, a.side, 3), minval=-1)
    latents = jax.random.normal(jax.random.key(1), (a.batch, grid, grid, config.latent_channels))
    params = jax.jit(model.init)(jax.random.key(0), pixels[:1, :64, :64])["params"]
    encode = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode").mean)
    began = measure.now()
    decode = jax.jit(lambda p, z: model.apply({"params": p}, z, method="decode")).lower(params, latents).compile()
    compile_seconds = measure.now() - began
    runs = {"encode": lambda: encode(params, pixels), "decode": lambda: decode(params, latents)}
    if a.strip:
        runs["decode_strips"] = lambda: decode_tiled(config, params, latents, a.strip)
    found = measure.alternate(runs, a.rounds)
    flops = reconstruction_flops(config, a.side, a.side) / 3 * a.batch  # forward: encoding and decoding
    figures = {
        "setting": {k: v for k, v in vars(a).items() if k != "json"},
        "device": jax.devices()[0].device_kind,
        "seconds": found,
        "images_a_second": {name: a.batch / seconds for name, seconds in found.items()},
        "flops_of_peak": flops / (found["encode"] + found["decode"]) / measure.matmul_peak(a.dtype),
        "compile_seconds": compile_seconds,
        "compiler_memory": measure.compiled_memory(decode),
        "peak_bytes": measure.peak_memory(),
    }
    if a.strip:
        whole, strips = np.asarray(decode(params, latents)), decode_tiled(config, params, latents, a.strip)
        off = np.abs(whole - strips).max(axis=(0, 2, 3)) / np.abs(whole).max()
        edges = [row for edge in range(a.strip * 8, a.side, a.strip * 8) for row in (edge - 1, edge)]
        figures["strips"] = {"difference": float(off.max()), "at_edges": float(off[edges].max()) if edges else 0.0}
    return figures


if __name__ == "__main__":
    main()
