"""From what steps report to lines a person can read: JSON lines always, TensorBoard and Weights & Biases where installed."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from nextstep_jax import storage
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.training.flops import peak_flops
from nextstep_jax.training.step import StepMetrics

logger = logging.getLogger(__name__)


def mean_values(steps: Sequence[Mapping[str, tuple]]) -> dict[str, float]:
    """Weighted means over several steps' {name: (total, weight)}; names that never had weight are left out."""
    totals: dict[str, list[float]] = {}
    for means in steps:
        for name, (total, weight) in means.items():
            sums = totals.setdefault(name, [0.0, 0.0])
            sums[0] += float(total)
            sums[1] += float(weight)
    return {name: total / weight for name, (total, weight) in totals.items() if weight}


class MetricAccumulator:
    """The steps since the last report: their metrics, still on the device, and how long they took."""

    def __init__(self):
        self._restart()

    def _restart(self) -> None:
        self._steps: list[tuple[int, StepMetrics, bool]] = []
        self._waited = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count the steps' time from now on."""
        self._paused, self._start = 0.0, time.perf_counter()

    def add(self, step: int, metrics: StepMetrics, waited: float, timed: bool = True) -> None:
        """Remember a step's metrics and the seconds that the loop waited for its batch. A step that was also compiled is not
        timed.
        """
        self._steps.append((step, metrics, timed))
        self._waited += waited * timed

    @contextlib.contextmanager
    def paused(self):
        """Time spent inside does not count as the steps'."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def report(self) -> tuple[dict[str, float], list[tuple[int, bool]]]:
        """Fetch everything and start again. Returns the numbers to log, and (step, finite) of each step."""
        fetched: list[StepMetrics] = jax.device_get([metrics for _, metrics, _ in self._steps])
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        timed = [m for m, (_, _, counts) in zip(fetched, self._steps, strict=True) if counts]
        values = mean_values([m.means for m in fetched]) | self._rates(timed, seconds)
        sums = {name: float(sum(m.counts[name] for m in fetched)) for name in fetched[0].counts}
        if "positions" in sums:
            values["packing_waste"] = 1.0 - sums["tokens"] / sums["positions"]
        values["non_finite_steps"] = float(sum(not m.finite for m in fetched))
        finite = [(step, bool(m.finite)) for (step, _, _), m in zip(self._steps, fetched, strict=True)]
        self._restart()
        return values, finite

    def _rates(self, timed: Sequence[StepMetrics], seconds: float) -> dict[str, float]:
        if not timed:
            return {}
        sums = {name: float(sum(m.counts[name] for m in timed)) for name in timed[0].counts}
        rates = {f"{name}_per_second": sums[name] / seconds for name in ("tokens", "images") if name in sums}
        rates["steps_per_second"] = len(timed) / seconds
        rates["seconds_waiting_for_data"] = self._waited / len(timed)
        rates["teraflops_per_second"] = sums["flops"] / seconds / 1e12
        if peak := peak_flops():
            rates["mfu"] = sums["flops"] / (seconds * jax.device_count() * peak)
        return rates


class NonFiniteGuard:
    """Stops a run whose losses or gradients stay non-finite, naming the batches.

    The steps themselves skip such updates on the device; what happened is read when metrics are, so nothing waits for it.

    Args:
      most: steps in a row that stop the run.
      before: steps in a row that were not finite when the run was last stopped; the state counts them.
    """

    def __init__(self, most: int, before: int = 0):
        self._most, self._before = most, before
        self._names: dict[int, Sequence[str]] = {}
        self._bad: list[tuple[int, Sequence[str]]] = []

    def remember(self, step: int, names: Sequence[str]) -> None:
        """Note which samples a step was given."""
        self._names[step] = names

    def check(self, finite: Sequence[tuple[int, bool]]) -> None:
        """Look at (step, finite) of all steps since the last check.

        Raises:
          NextStepError: `most` steps in a row were not finite; the message names the first and the last batch.
        """
        for step, good in finite:
            names = self._names.pop(step, ())
            self._bad = [] if good else [*self._bad, (step, names)]
            if good:
                self._before = 0
            else:
                logger.warning("step %d: loss or gradient is not finite, update skipped; batch: %s", step, _quote(names))
            if self._bad and self._before + len(self._bad) >= self._most:
                (first, first_names), (last, last_names) = self._bad[0], self._bad[-1]
                raise NextStepError(
                    f"loss or gradient not finite in {self._before + len(self._bad)} steps in a row, "
                    f"{first - self._before} to {last}; "
                    f"first batch: {_quote(first_names)}; last batch: {_quote(last_names)}"
                )


def _quote(names: Sequence[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


class Writer:
    """Writes numbers and images of a run; only the first process does, the others' calls do nothing.

    `metrics.jsonl` in the work directory gets one JSON object a line, {"step": n, name: value, ...}. Lines of steps that a
    resumed run does again are removed when it opens the file, so a step is reported once. TensorBoard's files go to
    `tensorboard/` where tensorboardX is installed; Weights & Biases is asked for by naming a project, and a run that continues
    is one run there too.

    Raises:
      InputError: a project is named and wandb is not installed.
    """

    def __init__(self, directory: str | os.PathLike, config: Mapping, resume_step: int = 0, wandb: Mapping | None = None):
        self._file: storage.Appended | None = None
        self._board = self._wandb = None
        self._folders = contextlib.ExitStack()
        if jax.process_index():
            return
        directory = storage.at(directory)
        if (project := (wandb or {}).get("project")) and not importlib.util.find_spec("wandb"):
            raise InputError(f"config.wandb.project is {project!r}, but wandb is not installed: pip install wandb")
        store, path = storage.of(directory), directory / "metrics.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        self._file = store.append(path, _lines_until(path, resume_step))
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            folder = self._folders.enter_context(store.local_folder(directory / "tensorboard"))
            try:
                self._board = SummaryWriter(str(folder), purge_step=resume_step or None)
            except OSError as error:  # its queue needs shared memory, which not every machine lets it have
                logger.warning("no TensorBoard files: %s", error)
        if project:
            import wandb as client

            name = hashlib.blake2b(str(directory).encode(), digest_size=8).hexdigest()
            folder = self._folders.enter_context(store.local_folder(directory))
            self._wandb = client.init(dir=str(folder), config=dict(config), id=name, resume="allow", **(wandb or {}))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._file is None:
            return
        clean = {name: float(value) for name, value in values.items()}
        # JSON has no NaN: a number that is not finite becomes null.
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in clean.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board:
            for name, value in clean.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(clean, step=step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Pixels [height, width, 3] uint8, to TensorBoard and Weights & Biases."""
        if self._board:
            self._board.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb:
            import wandb as client

            self._wandb.log({name: client.Image(pixels)}, step=step)

    def sync(self) -> None:
        """All lines written so far outlive this process when this returns, or the log says why not."""
        if self._file:
            try:
                self._file.sync()
            except OSError as error:
                logger.warning("metrics.jsonl cannot be written now (%s)", error.strerror or error)

    def close(self) -> None:
        with self._folders:
            for sink in (self._board, self._file):
                if sink:
                    sink.close()
            if self._wandb:
                self._wandb.finish()


def _lines_until(path: storage.Place, step: int) -> str:
    """The lines of a metrics file up to `step`; a last line cut short by a crash is left out."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    return "".join(kept)


def summary(values: Mapping[str, float]) -> str:
    """The numbers of a report that go to the terminal, on one line."""
    short = [
        "loss",
        "text_loss",
        "image_loss",
        "psnr",
        "gradient_norm",
        "learning_rate",
        "tokens_per_second",
        "images_per_second",
        "mfu",
    ]
    return "  ".join(f"{name} {values[name]:.4g}" for name in short if name in values)
