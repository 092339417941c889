"""The compiler flags that the launchers set, by generation of accelerator, with a word on each.

TPU flags go into LIBTPU_INIT_ARGS, GPU flags into XLA_FLAGS; both refuse a flag that they do not know, so a renamed one stops a
run at its start. Ahead-of-time compilation passes the same flags as options of the compiler. All of these exist in jaxlib
0.10.2 and in the libtpu of that release. Their effect was estimated by the compiler, never measured on an accelerator.
"""

from nextstep_jax.errors import InputError

_OVERLAP = {
    # Weights split over `fsdp` are gathered layer by layer: run these collectives beside the matrix products, in steps.
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
_SLICES = {
    # Gradients are summed between slices over the data-center network: move those sums to where their results are needed, and
    # let sums of different sizes share one.
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
_VMEM = "xla_tpu_scoped_vmem_limit_kib"
_VMEM_KIB = {
    "v5e": 128 * 1024,
    "v5p": 64 * 1024,
    "v6e": 128 * 1024,
    "tpu7x": 64 * 1024,
}  # of a core (jax's pallas/mosaic/tpu_info.py)
FLAGS: dict[str, dict[str, str]] = {
    "v5e": {
        **_OVERLAP,
        **_SLICES,
        # Of 128 MiB of on-chip memory let one fusion use 96, not 16: products of 16,384 positions need fewer passes over their
        # operands. Of the time of a step a quarter is won, and the compiler takes three times as long. Drawing an image takes a
        # fifth longer (docs/pods.md).
        _VMEM: "98304",
    },
    "v5p": {
        **_OVERLAP,
        **_SLICES,
        # Two cores act as one chip: keep gathers out of the fusions that are split over them, so that they can overlap.
        "xla_tpu_megacore_fusion_allow_ags": "false",
        # Of 64 MiB of on-chip memory a core let one fusion use half: at the compiler's own limit a step of two rows of 8,192
        # is refused.
        _VMEM: "32768",
    },
    "v6e": {
        **_OVERLAP,
        **_SLICES,
        # Sum gradients beside the matrix products of the backward pass, too: of what nothing overlaps half is left.
        "xla_enable_async_all_reduce": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
        # Of 128 MiB of on-chip memory let one fusion use 96: larger tiles for larger matrix units.
        _VMEM: "98304",
    },
    "tpu7x": {
        **_OVERLAP,
        **_SLICES,
        "xla_enable_async_all_reduce": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
        # Of 64 MiB of on-chip memory let one fusion use 48: 7 % less time for a product of the MLP.
        _VMEM: "49152",
    },
    "hopper": {
        # Start collectives early and wait for them late.
        "xla_gpu_enable_latency_hiding_scheduler": "true",
        # In the loop over layers, gather the next layer's weights and scatter the last one's gradients beside this one's work.
        "xla_gpu_enable_pipelined_all_gather": "true",
        "xla_gpu_enable_pipelined_reduce_scatter": "true",
        # The scheduler can only move what is large enough to be worth it: combine up to 1 GiB at a time.
        "xla_gpu_all_gather_combine_threshold_bytes": "1073741824",
        "xla_gpu_reduce_scatter_combine_threshold_bytes": "1073741824",
        # cuBLAS for matrix products; Triton's tuning takes long and wins little on large ones.
        "xla_gpu_enable_triton_gemm": "false",
    },
}


def compiler_options(generation: str, spec: str) -> dict[str, str]:
    """Options for the compiler from a word on the command line.

    Args:
      generation: a key of FLAGS.
      spec: "launch" for what the launchers set, "none", or NAME=VALUE,NAME=VALUE on top of what the launchers set.

    Raises:
      InputError: another spec, or more on-chip memory than there is. Names are the compiler's to refuse.
    """
    if spec == "none":
        return {}
    options = dict(FLAGS[generation])
    for item in spec.split(",") if spec != "launch" else ():
        name, equals, value = item.strip().removeprefix("--").partition("=")
        if not (name and equals and value):
            raise InputError(f"--flags must be launch, none or NAME=VALUE,NAME=VALUE, found {item!r}")
        options[name] = value
    limit = options.get(_VMEM, "0")
    most = _VMEM_KIB[generation]
    if not limit.isdigit() or int(limit) > most:  # the compiler takes any number
        raise InputError(f"--flags: {_VMEM} must be a whole number up to {most} on {generation}, found {limit!r}")
    return options


def environment(generation: str) -> dict[str, str]:
    """The environment variable that carries a generation's flags, and its value."""
    name = "XLA_FLAGS" if generation == "hopper" else "LIBTPU_INIT_ARGS"
    return {name: " ".join(f"--{flag}={value}" for flag, value in FLAGS[generation].items())}
