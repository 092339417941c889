"""Two processes on one machine (jax.distributed, gloo) and one: the same checkpoints, written and read together."""

import json
import os
import signal
import socket

import jax
import numpy as np

from nextstep_jax.checkpoints import steps
from nextstep_jax.checkpoints.training import TrainCheckpointer

VALUES = {"b": np.linspace(0, 1, 6, dtype=np.float32), "n": np.int32(3), "w": np.arange(96, dtype=np.float32).reshape(16, 6)}


def test_every_file_of_a_step_has_one_writer():
    """A description that another process is just writing is not taken for one's own."""
    names = {"state/ocdbt.process_3/d/0a": 3, "state/array_metadatas/process_1": 1, "state/manifest.ocdbt": 0}
    names |= {"process_2-of-4.json": 2, ".process_1-of-4.json.771.partial": 1}
    assert {name: steps.writer_of(name) for name in names} == names


class Pair:
    """Two processes of one run, started together."""

    def __init__(self, start_program, workdir, mode):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        self.processes = [start_program("two_processes.py", i, port, workdir, mode, devices=2) for i in range(2)]

    def reports(self):
        """The next report of each."""
        return [json.loads(next(line for line in process.stdout if line.startswith("{"))) for process in self.processes]

    def finish(self):
        for process in self.processes:
            _, err = process.communicate(timeout=240)
            assert process.returncode == 0, err


def test_the_life_of_a_run(start_program, tmp_path):
    # The folder is taken: both are refused, and get it once it is free.
    with TrainCheckpointer(tmp_path, config={}):
        pair = Pair(start_program, tmp_path, "save, fail, save")
        assert [f"process {os.getpid()} on" in report["refused"] for report in pair.reports()] == [True, True]
    for process in pair.processes:
        process.stdin.write("\n")
        process.stdin.flush()
    # They save step 1; one cannot write step 2, so nobody has it; step 3 is complete again.
    assert pair.reports() == [{"failed_saves": 1, "last_good": 3}] * 2
    pair.finish()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "3"]
    assert sorted(os.listdir(tmp_path / "checkpoints" / "3")) == ["process_0-of-2.json", "process_1-of-2.json", "state"]

    # One process goes on from what two wrote; what it writes is damaged.
    with TrainCheckpointer(tmp_path, config={}) as checkpointer:
        found = checkpointer.restore(VALUES)
        assert found.step == 3 and found.data_states == ({"process": 0, "step": 3}, {"process": 1, "step": 3})
        assert all(np.asarray(found.state[name]).tobytes() == value.tobytes() for name, value in VALUES.items())
        checkpointer.save(4, jax.device_put(VALUES), {"process": 0, "step": 4})
    largest = max((tmp_path / "checkpoints" / "4").rglob("*/d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-3])

    # Two again: both fall back to step 3. A signal to one stops both at the same step.
    pair = Pair(start_program, tmp_path, "until preempted")
    restored = pair.reports()
    assert [report["restored"] for report in restored] == [3, 3]
    assert all("checkpoint 4 is damaged" in report["warnings"][0] for report in restored)
    pair.processes[1].send_signal(signal.SIGTERM)
    stopped = pair.reports()
    assert stopped[0] == stopped[1] and stopped[0]["last_good"] == stopped[0]["preempted"] > 3
    pair.finish()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == sorted(["1", "3", "damaged-4", str(stopped[0]["preempted"])])
