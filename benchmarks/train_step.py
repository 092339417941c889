"""What a training step costs: tokens per second, MFU, memory, and the shares of its parts.

    python -m benchmarks.train_step --preset mid --threads 2 --peer path/to/NextStep-1 --json train.json
    python -m benchmarks.train_step --preset 1.5b --dtype bfloat16 --remat projections --rows 1 --length 16384      # one GPU
    python -m benchmarks.train_step --preset 3b --dtype bfloat16 --remat full --rows 1 --length 16384               # one GPU

Rows are packed with samples of 300 positions, 256 of them one image; parameters are random. The step is the training loop's own
(training/step.py): multitask loss, gradients, clipping, AdamW.

    MFU = useful FLOPs of a step / (seconds of a step * peak FLOP/s)

with the useful FLOPs of training/flops.py (matrix products and visible attention pairs, forward once and backward twice; no
recomputation, padding or optimizer) and, as the peak, the published bfloat16 peak of the device; on CPUs, which have none, the
speed of a large float32 matrix product measured in the same process.

Shares: `transformer` is forward and backward of the hidden states alone, `heads` what the whole loss takes beyond that,
`optimizer` what the step takes beyond the loss. `data` is the time to pack one batch of this shape on one core, which the loop
spends in another thread. The peer's time is its own forward and backward, so it stands beside `loss_and_gradients`.

`largest_float32` is the largest float32 array of the compiled step that is no parameter or optimizer state: below tokens *
vocabulary, no logits of all positions are ever held.
"""

import argparse
import re

from benchmarks import measure

SAMPLE, IMAGE = 300, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mid", help="tiny, mid, 0.5b, 1.5b or 3b")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the computation")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=SAMPLE, help=f"positions of a row, filled with samples of {SAMPLE}")
    parser.add_argument("--remat", default="none", help="see config.REMAT_POLICIES")
    parser.add_argument("--scan", action="store_true", help="loop over stacked layers, as large models are trained")
    parser.add_argument("--peer", help="checkout of the PyTorch release to time as well (float32, CPU)")
    parser.add_argument("--peer-compile", action="store_true", help="and once more under torch.compile")
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """The figures of one setting."""
    import jax
    import numpy as np

    from nextstep_jax.config import preset
    from nextstep_jax.models.nextstep import NextStep

    config = preset(a.preset).with_transformer(dtype=a.dtype, remat=a.remat, scan_layers=a.scan)
    training = Training(config, a.rows, a.length)
    objective, batch, key, normalizers = training.objective, training.batch, training.key, training.normalizers
    samples = a.length // SAMPLE

    @jax.jit
    def loss_and_gradients(params):
        return jax.grad(lambda params: objective.loss(params, batch, key, normalizers)[0])(params)

    @jax.jit
    def transformer(params):
        return jax.grad(lambda params: NextStep(config).apply({"params": params["model"]}, batch[0]).sum())(params)

    runs = {
        "step": training.run_step,
        "loss_and_gradients": lambda: loss_and_gradients(training.state.params),
        "transformer": lambda: transformer(training.state.params),
        "data": lambda: seconds_of_packing(a.rows, a.length, config.token_channels),
    }
    if a.peer:
        from benchmarks.torch_peer import Peer

        peer = Peer(a.peer, config, a.threads or 1, compiled=a.peer_compile)
        step = peer.train_step(np.asarray(batch[0].text_ids), a.rows * samples)
        runs |= {"peer": peer.uncompiled(step)} | ({"peer_compiled": step} if a.peer_compile else {})
    found = measure.alternate(runs, a.rounds)
    peers = {name: found.pop(name) for name in ("peer", "peer_compiled") if name in found}
    whole_step = found["step"]
    figures = {
        "setting": {k: v for k, v in vars(a).items() if k not in ("json", "peer")},
        "seconds": found,
        **training.figures(whole_step),
        "share_of_step": {
            "transformer": found["transformer"] / whole_step,
            "heads": (found["loss_and_gradients"] - found["transformer"]) / whole_step,
            "optimizer": (whole_step - found["loss_and_gradients"]) / whole_step,
            "data_beside": found["data"] / whole_step,
        },
        "largest_float32": largest_float32(training.step.as_text(), jax.tree.leaves(training.state)),
        "tokens_times_vocabulary": a.rows * a.length * config.transformer.vocab_size,
    }
    for name, seconds in peers.items():
        figures[name] = {"seconds": seconds, "times_faster": seconds / found["loss_and_gradients"]}
    return figures


class Training:
    """A compiled training step of `config` and what it runs on.

    Attributes:
      objective, batch, normalizers, key: arguments of the loss.
      state: of the next step; `run_step` replaces it.
      step: compiled, its state donated.
    """

    def __init__(self, config, rows: int, length: int):
        import jax
        import optax

        from benchmarks.generate import draw_like
        from nextstep_jax.training.optimizer import OptimizerConfig, make_optimizer
        from nextstep_jax.training.state import create_state
        from nextstep_jax.training.step import make_train_step

        self._config, self._shape = config, (rows, length)
        self.objective = make_objective_for(config, length)
        self.key = jax.random.key(0)
        self.batch = jax.device_put(packed_batch(config, rows, length))
        self.normalizers = self.objective.normalizers(self.batch)
        # One program that draws them all would take longer to compile than the step.
        params = draw_like(jax.eval_shape(self.objective.init, self.key))
        schedule = optax.constant_schedule(1e-4)
        optimizer = make_optimizer(params, schedule, OptimizerConfig(weight_decay=0.1))
        self.state = jax.jit(lambda params: create_state(params, optimizer, ema=False), donate_argnums=0)(params)
        step = jax.jit(make_train_step(self.objective, optimizer, schedule), donate_argnums=0)
        began = measure.now()
        self.step = step.lower(self.state, self.batch, self.key).compile()
        self.compile_seconds = measure.now() - began

    def run_step(self) -> dict:
        """One step; its metrics."""
        self.state, metrics = self.step(self.state, self.batch, self.key)
        return metrics

    def figures(self, seconds: float) -> dict:
        """What is reported of a step that takes so long."""
        import jax

        from nextstep_jax.training.flops import multitask_flops, peak_flops, work_of

        rows, length = self._shape
        flops = float(multitask_flops(self._config, work_of(self.batch[0])))
        peak = peak_flops() or measure.matmul_peak()
        return {
            "device": jax.devices()[0].device_kind,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            "tokens_a_second": rows * (length // SAMPLE) * SAMPLE / seconds,
            "useful_flops": flops,
            "peak_flops": peak,
            "mfu": flops / seconds / peak,
            "compile_seconds": self.compile_seconds,
            "compiler_memory": measure.compiled_memory(self.step),
            "peak_bytes": measure.peak_memory(),
        }


def make_objective_for(config, length: int):
    """The multitask objective with room for just the targets that `packed_batch` has."""
    from nextstep_jax.training.multitask import make_objective
    from nextstep_jax.training.settings import MultitaskLossConfig

    images = length // SAMPLE * IMAGE
    return make_objective(config, length - images, images, MultitaskLossConfig())


def packed_batch(config, rows: int, length: int):
    """(Batch, kinds) of rows full of image-text samples; places that no sample fits into are padding."""
    import numpy as np

    from nextstep_jax.batch import Batch

    at = np.arange(length)
    filled = at < length // SAMPLE * SAMPLE
    positions = np.where(filled, at % SAMPLE, 0)
    is_image = filled & (positions >= SAMPLE - IMAGE - 1) & (positions < SAMPLE - 1)
    draw = np.random.default_rng(0)

    def tile(x, dtype):
        return np.tile(x.astype(dtype), (rows, 1))

    text_weight = filled & ~is_image & (positions > 0)
    ids = np.where(is_image, config.image_placeholder_id, draw.integers(0, config.begin_of_image_id - 1, (rows, length)))
    tokens = draw.normal(size=(rows, length, config.token_channels)) * is_image[:, None]
    batch = Batch(
        text_ids=ids.astype(np.int32),
        image_tokens=tokens.astype(np.float32),
        is_image=tile(is_image, bool),
        positions=tile(positions, np.int32),
        segment_ids=tile(np.where(filled, at // SAMPLE + 1, 0), np.int32),
        text_weight=tile(text_weight, np.float32),
        image_weight=tile(is_image, np.float32),
    )
    return batch, np.ones((rows, length), np.int32)


def seconds_of_packing(rows: int, length: int, channels: int) -> float:
    """Time to assemble one batch from prepared samples."""
    import numpy as np

    from nextstep_jax.data.packing import assemble
    from nextstep_jax.data.sequence import KIND_IDS, Segment

    weights = np.ones(SAMPLE, np.float32)
    segment = Segment(
        np.ones(SAMPLE, np.int32), np.arange(SAMPLE) < IMAGE, np.ones((IMAGE, channels), np.float32), weights, weights
    )
    row = [(segment, KIND_IDS["pair"])] * (length // SAMPLE)
    start = measure.now()
    assemble([row] * rows, rows, length, channels, 0, separated=True)
    return measure.now() - start


def largest_float32(text: str, held: list) -> int:
    """Entries of the largest float32 array in a compiled program's text whose shape is not one of those `held` throughout."""
    import math

    known = {tuple(sorted(leaf.shape)) for leaf in held}
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    free = [math.prod(shape) for shape in shapes if tuple(sorted(n for n in shape if n > 1)) not in known]
    return max(free)


if __name__ == "__main__":
    main()
