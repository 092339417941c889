"""One of two processes that share a run: process, port, workdir, mode. Prints reports, one JSON object a line."""

import json
import sys
import time

import jax

process, port, workdir, mode = int(sys.argv[1]), *sys.argv[2:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, process)

import numpy as np  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from nextstep_jax import storage  # noqa: E402
from nextstep_jax.checkpoints import training  # noqa: E402
from nextstep_jax.checkpoints.training import TrainCheckpointer  # noqa: E402
from nextstep_jax.errors import InputError  # noqa: E402

mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
values = {"w": np.arange(96, dtype=np.float32).reshape(16, 6), "b": np.linspace(0, 1, 6, dtype=np.float32), "n": np.int32(3)}
specs = {"w": PartitionSpec("fsdp"), "b": PartitionSpec(), "n": PartitionSpec()}
shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
state = {
    name: jax.make_array_from_callback(value.shape, shardings[name], lambda index, value=value: value[index])
    for name, value in values.items()
}
target = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in values.items()}


def report(**entries):
    print(json.dumps(entries), flush=True)


def start():
    return TrainCheckpointer(workdir, config={}, save_timeout=600)


def save(checkpointer, step):
    checkpointer.save(step, state, {"process": process, "step": step})
    checkpointer.wait()


def full(*_):
    raise OSError(28, "No space left on device")


if mode == "save, fail, save":  # a folder that is not shared
    training._VISIBILITY_TIMEOUT_S = 0.2
    try:
        TrainCheckpointer(f"{workdir}/of_process_{process}", config={})
    except InputError as error:
        assert "processes [1] do not see it as process 0 does" in str(error), error
    else:
        raise AssertionError("a folder that is not shared was accepted")
    training._VISIBILITY_TIMEOUT_S = 2

try:
    checkpointer = start()
except InputError as error:
    report(refused=str(error))
    sys.stdin.readline()
    checkpointer = start()

with checkpointer:
    if mode == "save, fail, save":
        save(checkpointer, 1)
        store = type(storage.of(storage.at(workdir)))
        write, store.write = store.write, full if process == 1 else store.write
        save(checkpointer, 2)
        store.write = write
        save(checkpointer, 3)
        report(failed_saves=checkpointer.failed_saves, last_good=checkpointer.last_good)
    else:
        restored = checkpointer.restore(target)
        for name, leaf in restored.state.items():
            assert leaf.sharding == shardings[name]
            for shard in leaf.addressable_shards:
                assert np.asarray(shard.data).tobytes() == np.ascontiguousarray(values[name][shard.index]).tobytes()
        report(restored=restored.step, warnings=restored.warnings)
        step = restored.step
        while not checkpointer.reached_preemption(step):
            step += 1
            time.sleep(0.01)
        save(checkpointer, step)
        report(preempted=step, last_good=checkpointer.last_good)
