"""Processes that are told by hand where the others are. (tests/training/test_processes.py runs such.)"""

import jax
import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.launch import train as launch_train
from nextstep_jax.launch.rendezvous import Rendezvous, find_rendezvous, join

TOLD = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_flags_come_before_variables():
    assert find_rendezvous({}) is None
    assert find_rendezvous(TOLD) == find_rendezvous(TOLD, (None, None, None)) == ("host:1234", 4, 3)
    assert find_rendezvous(TOLD, ("[::1]:99", "8", "0")) == ("[::1]:99", 8, 0)
    assert find_rendezvous(TOLD, (None, None, "0")) == ("host:1234", 4, 0)


def test_an_address_in_the_environment_leaves_the_rest_to_the_scheduler():
    assert find_rendezvous({"JAX_COORDINATOR_ADDRESS": "host:1234"}) is None


@pytest.mark.parametrize(
    "flags, message",
    [
        (("host:1", None, None), r"--num-processes \(or JAX_NUM_PROCESSES\) is missing"),
        ((None, "2", "0"), r"--coordinator \(or JAX_COORDINATOR_ADDRESS\) is missing"),
        (("host:1", "2", None), r"--process-id \(or JAX_PROCESS_ID\) is missing"),
        (("host", "2", "0"), "must be HOST:PORT, found 'host'"),
        (("http://host:1", "2", "0"), "must be HOST:PORT, found 'http://host:1'"),
        (("host:0", "2", "0"), "must be HOST:PORT, found 'host:0'"),
        (("host:65536", "2", "0"), "must be HOST:PORT, found 'host:65536'"),
        (("host:1", "0", "0"), r"--num-processes .* must be a whole number at least 1, found '0'"),
        (("host:1", "two", "0"), r"--num-processes .* must be a whole number at least 1, found 'two'"),
        (("host:1", "2", "2"), r"--process-id .* must be a whole number in \[0, 2\), found '2'"),
        (("host:1", "2", "-1"), r"--process-id .* must be a whole number in \[0, 2\), found '-1'"),
    ],
)
def test_what_cannot_be_is_refused(flags, message):
    with pytest.raises(InputError, match=message):
        find_rendezvous({}, flags)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"JAX_PROCESS_ID": None},
            "JAX_PROCESS_ID is missing: .* needs JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS",
        ),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS must be HOST:PORT, found 'host'"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be a whole number at least 1, found 'two'"),
        ({"JAX_PROCESS_ID": "4"}, r"JAX_PROCESS_ID must be a whole number in \[0, 4\), found '4'"),
    ],
)
def test_a_command_without_the_flags_names_variables_alone(changes, message):
    told = {name: value for name, value in (TOLD | changes).items() if value is not None}
    with pytest.raises(InputError, match=f"^{message}") as caught:
        find_rendezvous(told)
    assert "--" not in str(caught.value)


def test_without_a_scheduler_that_knows_the_rest_it_says_how_to_tell_it(monkeypatch):
    given = []

    def initialize(**told):
        given.append(told)
        raise ValueError("coordinator_address should be defined")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match="no cluster found .*JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID tell"):
        join(None)
    with pytest.raises(InputError):
        join(Rendezvous("host:1234", 4, 3))
    assert [told.get("process_id") for told in given] == [None, 3] and all(
        "heartbeat_timeout_seconds" in told for told in given
    )


def test_it_is_checked_before_anything_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch_train, "watch", lambda: pytest.fail("it was started"))
    command = ["train", "--config", "shapes_tokenizer:laptop", "--workdir", str(tmp_path), "--coordinator", "host"]
    assert launch_train.main([*command, "--num_processes", "2", "--process_id", "0"]) == 2
    assert capsys.readouterr().err == "error: --coordinator (or JAX_COORDINATOR_ADDRESS) must be HOST:PORT, found 'host'\n"
