"""Is every damage to a checkpoint found? Flips, cuts, growth and loss of random bytes and files, and what restoring does then.

    python -m benchmarks.damage --trials 1000 [--bucket gs]

Half of the trials damage a parameter checkpoint, which must then be refused. The other half damage the newest of two training
checkpoints (saved from eight devices), which must be named and set aside and the older one restored, bit for bit. Prints how
many were found, and exits with 1 if one was not. With --bucket both lie in a bucket, in a stand-in on this machine.
"""

import argparse
import collections
import contextlib
import logging
import os
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import stand_in_buckets
from nextstep_jax import checkpoints, storage
from nextstep_jax.checkpoints.training import TrainCheckpointer
from nextstep_jax.errors import DamagedDataError, InputError

KINDS = ("flipped bit", "flipped byte", "zeroed 512 bytes", "cut", "grown", "missing file", "swapped halves")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--bucket", choices=("gs", "s3"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable()  # every trial is meant to warn
    rng = np.random.default_rng(arguments.seed)
    counts, missed = collections.Counter(), []
    begin = time.monotonic()
    buckets = {"gs": stand_in_buckets.google_bucket, "s3": stand_in_buckets.s3_bucket}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = storage.at(stack.enter_context(buckets[arguments.bucket]()) if arguments.bucket else temporary)
        for subject, trial in (("parameters", Parameters(folder)), ("training", Training(folder))):
            for _ in range(arguments.trials // 2):
                name, kind = damage(trial.victim, rng)
                verdict = trial.verdict()
                counts[subject, kind, not verdict] += 1
                if verdict:
                    missed.append(f"{subject}: {kind} in {name}: {verdict}")
                trial.repair()
    print(f"{'':12}{'damage':20}{'trials':>8}{'found':>8}")
    for subject in ("parameters", "training"):
        for kind in KINDS:
            found, silent = counts[subject, kind, True], counts[subject, kind, False]
            print(f"{subject:12}{kind:20}{found + silent:8}{found:8}")
    total = sum(counts.values())
    print(f"{total - len(missed)} of {total} found in {time.monotonic() - begin:.0f} s")
    print(*missed, sep="\n")
    return 1 if missed else 0


def damage(folder: storage.Place, rng: np.random.Generator) -> tuple[str, str]:
    """Damage one file in one way, both drawn at random, so that its bytes are no longer the same."""
    contents = {name: (folder / name).read_bytes() for name in storage.of(folder).list_files(folder)}
    name = str(rng.choice([name for name, data in contents.items() if data]))  # a marker is empty: nothing to damage
    path, before = folder / name, contents[name]
    while True:
        kind, data, at = str(rng.choice(KINDS)), bytearray(before), int(rng.integers(len(before)))
        if kind == "flipped bit":
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == "flipped byte":
            data[at] ^= int(rng.integers(1, 256))
        elif kind == "zeroed 512 bytes":
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        elif kind == "cut":
            del data[at:]
        elif kind == "grown":
            data[at:at] = rng.bytes(int(rng.integers(1, 100)))
        elif kind == "swapped halves":
            data = data[at:] + data[:at]
        else:
            path.unlink()
            return name, kind
        if data != before:
            path.write_bytes(data)
            return name, kind


def copy(source: storage.Place, destination: storage.Place) -> None:
    """Make a folder the copy of another."""
    store = storage.of(destination)
    store.remove_folder(destination)
    for name in store.list_files(source):
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        (destination / name).write_bytes((source / name).read_bytes())


class Parameters:
    """A parameter checkpoint that must be refused."""

    def __init__(self, folder: storage.Place):
        self.victim, self._whole = folder / "victim", folder / "whole"
        rng = np.random.default_rng(0)
        layers = {f"layers_{i}": {"kernel": rng.standard_normal((64, 96)).astype("bfloat16")} for i in range(12)}
        checkpoints.save_params(self._whole, {"model": layers}, {"model": {}}, {"tokenizer.json": rng.bytes(3000)})
        self.repair()

    def verdict(self) -> str:
        """What is wrong with how the damage was taken; "" if nothing."""
        try:
            checkpoints.load_params(self.victim)
            checkpoints.load_config(self.victim)
        except DamagedDataError:
            return ""
        except InputError as error:
            return "" if not (self.victim / "manifest.json").exists() else str(error)
        return "loaded silently"

    def repair(self) -> None:
        copy(self._whole, self.victim)


class Training:
    """A run with two steps, of which the newer must be set aside and the older restored."""

    def __init__(self, folder: storage.Place):
        self._run, self._whole = folder / "run", folder / "whole_run"
        self.victim = self._run / "checkpoints" / "2"
        mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
        sharding, rng = NamedSharding(mesh, PartitionSpec("fsdp")), np.random.default_rng(0)
        self._values = {f"leaf_{i}": rng.standard_normal((64, 32)).astype(("float32", "bfloat16")[i % 2]) for i in range(10)}
        self._target = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding) for k, v in self._values.items()}
        with TrainCheckpointer(self._whole, config={"seed": 0}) as checkpointer:
            checkpointer.save(1, jax.device_put(self._values, sharding), {"position": 1})
            checkpointer.save(2, jax.tree.map(lambda x: x + 1, jax.device_put(self._values, sharding)), {"position": 2})
        self.repair()

    def verdict(self) -> str:
        """What is wrong with how the damage was taken; "" if nothing."""
        with TrainCheckpointer(self._run, config={}) as checkpointer:
            restored = checkpointer.restore(self._target)
        if restored.step != 1 or restored.data_states != ({"position": 1},) or len(restored.warnings) != 1:
            return f"restored step {restored.step}, warnings {restored.warnings}"
        if any(np.asarray(restored.state[name]).tobytes() != value.tobytes() for name, value in self._values.items()):
            return "other bits came back"
        left = storage.of(self._run).list_files(self._run / "checkpoints")
        return "" if any("damaged" in name.lower() for name in left) else "it was not set aside"

    def repair(self) -> None:
        copy(self._whole, self._run)


if __name__ == "__main__":
    sys.exit(main())
