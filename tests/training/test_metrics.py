"""What is reported, and when a run is stopped."""

import contextlib
import json
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.training.metrics import MetricAccumulator, NonFiniteGuard, Writer, mean_values, summary
from nextstep_jax.training.step import StepMetrics, WeightedMean


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def step_metrics(loss, tokens, finite=True):
    counts = {"tokens": jnp.float32(tokens), "positions": jnp.float32(100), "images": jnp.float32(2), "flops": jnp.float32(1e9)}
    weight = 1.0 if finite else 0.0
    return StepMetrics({"loss": WeightedMean(jnp.float32(loss) * weight, jnp.float32(weight))}, counts, jnp.asarray(finite))


def test_means_are_weighted_and_empty_ones_left_out():
    steps = [{"text_loss": (6.0, 2.0), "text_loss/edit": (0.0, 0.0)}, {"text_loss": (4.0, 8.0), "text_loss/edit": (0.0, 0.0)}]
    assert mean_values(steps) == {"text_loss": 1.0}


def test_a_window_reports_means_waste_and_rates_of_its_steps():
    window = MetricAccumulator()
    window.add(1, step_metrics(8.0, 60), waited=5.0, timed=False)
    window.add(2, step_metrics(4.0, 80), waited=0.25)
    window.add(3, step_metrics(0.0, 100, finite=False), waited=0.75)
    values, finite = window.report()
    assert values["loss"] == 6.0
    assert values["packing_waste"] == pytest.approx(1 - 240 / 300)
    assert values["non_finite_steps"] == 1
    assert values["seconds_waiting_for_data"] == 0.5
    assert values["tokens_per_second"] / values["steps_per_second"] == pytest.approx(90)
    assert values["images_per_second"] / values["steps_per_second"] == pytest.approx(2)
    assert finite == [(1, True), (2, True), (3, False)]
    window.add(4, step_metrics(1.0, 50), waited=0.0)
    assert window.report()[0]["loss"] == 1.0


def test_a_pause_is_not_counted_as_the_steps_time(monkeypatch):
    clock = iter([0.0, 10.0, 40.0, 50.0, 50.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    window = MetricAccumulator()  # 0
    with contextlib.ExitStack() as saving:
        saving.enter_context(window.paused())  # 10 to 40
    window.add(1, step_metrics(1.0, 100), waited=0.0)
    assert window.report()[0]["tokens_per_second"] == 100 / 20  # 50


def test_mfu_is_useful_flops_over_peak(monkeypatch):
    monkeypatch.setattr("nextstep_jax.training.metrics.peak_flops", lambda: 1e12)
    clock = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    window = MetricAccumulator()
    window.add(1, step_metrics(1.0, 100), waited=0.0)
    window.add(2, step_metrics(1.0, 100), waited=0.0)
    import jax

    assert window.report()[0]["mfu"] == pytest.approx(2e9 / (2.0 * jax.device_count() * 1e12))


def test_a_run_of_bad_steps_stops_with_the_batches_names():
    guard = NonFiniteGuard(most=3)
    for step in range(1, 7):
        guard.remember(step, [f"pairs:{step}-a", f"pairs:{step}-b"])
    guard.check([(1, True), (2, False), (3, False)])
    with pytest.raises(
        NextStepError, match=r"3 steps in a row, 2 to 4; first batch: pairs:2-a, pairs:2-b; last batch: pairs:4-a"
    ) as error:
        guard.check([(4, False)])
    assert error.value.exit_code == 1


def test_bad_steps_before_a_restart_count():
    guard = NonFiniteGuard(most=3, before=2)
    with pytest.raises(NextStepError, match=r"3 steps in a row, 9 to 11; first batch: c; last batch: c"):
        guard.remember(11, ["c"])
        guard.check([(11, False)])
    guard = NonFiniteGuard(most=3, before=2)
    guard.check([(11, True), (12, False), (13, False)])


def test_a_good_step_forgives_the_bad_ones_before():
    guard = NonFiniteGuard(most=2)
    guard.check([(1, False), (2, True), (3, False), (4, True)])
    guard.check([(5, False), (6, True)])


def test_metrics_are_json_lines_without_nan(tmp_path):
    writer = Writer(tmp_path, {})
    writer.scalars(1, {"loss": 2.5, "gradient_norm": float("inf")})
    writer.scalars(2, {"loss": jnp.float32(1.5)})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5, "gradient_norm": None}, {"step": 2, "loss": 1.5}]


def test_a_resumed_run_reports_each_step_once(tmp_path):
    writer = Writer(tmp_path, {})
    for step in (10, 20, 30):
        writer.scalars(step, {"loss": step})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')  # the crash
    writer = Writer(tmp_path, {}, resume_step=20)
    writer.scalars(30, {"loss": 31})
    writer.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 10), (20, 20), (30, 31)]


def events(path):
    """The records of a TensorBoard file: 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    return found


def test_tensorboard_gets_numbers_and_pictures(tmp_path):
    writer = Writer(tmp_path, {})
    writer.scalars(7, {"loss": 2.5})
    writer.image(7, "samples", np.full((4, 6, 3), 200, np.uint8))
    writer.close()
    (file,) = (tmp_path / "tensorboard").glob("events*")
    values = {value.tag: (event.step, value) for event in events(file) for value in event.summary.value}
    assert values["loss"][0] == 7 and values["loss"][1].simple_value == 2.5
    assert (values["samples"][1].image.height, values["samples"][1].image.width) == (4, 6)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the client that notes what it is told."""
    client = types.ModuleType("wandb")
    client.__spec__ = types.SimpleNamespace(name="wandb")
    client.calls = []
    client.Image = lambda pixels: ("image", pixels.shape)
    client.log = lambda values, step: client.calls.append((step, values))
    client.finish = lambda: client.calls.append("finished")
    client.init = lambda **options: client.calls.append(options) or client
    monkeypatch.setitem(sys.modules, "wandb", client)
    return client


def test_wandb_continues_the_same_run(wandb, tmp_path):
    for step in (1, 2):
        writer = Writer(
            tmp_path, {"steps": 2}, resume_step=step - 1, wandb={"project": "shapes", "mode": "offline", "name": "x"}
        )
        writer.scalars(step, {"loss": 1.0})
        writer.image(step, "samples", np.zeros((2, 2, 3), np.uint8))
        writer.close()
    first, second = wandb.calls[:4], wandb.calls[4:]
    assert first[0] == second[0] and first[0]["project"] == "shapes" and first[0]["resume"] == "allow" and first[0]["id"]
    assert second[1:] == [(2, {"loss": 1.0}), (2, {"samples": ("image", (2, 2, 3))}), "finished"]


def test_a_project_without_wandb_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="'shapes', but wandb is not installed"):
        Writer(tmp_path / "run", {}, wandb={"project": "shapes", "mode": "offline"})
    assert not (tmp_path / "run").exists()


def test_the_terminal_gets_one_short_line():
    assert summary({"loss": 0.123456, "text_loss/pair": 1.0, "learning_rate": 1e-4}) == "loss 0.1235  learning_rate 0.0001"


def test_metrics_that_cannot_be_kept_now_do_not_end_the_run(tmp_path, monkeypatch, caplog):
    writer = Writer(tmp_path, {})
    writer.scalars(1, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(type(writer._file), "sync", lambda self: (_ for _ in ()).throw(OSError(5, "bucket out of reach")))
        writer.sync()
    assert "metrics.jsonl cannot be written now (bucket out of reach)" in caplog.text
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'
