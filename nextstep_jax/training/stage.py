"""What the loop needs to know of a stage, whatever its objective."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from nextstep_jax.checkpoints.export import export_params
from nextstep_jax.training.state import TrainState
from nextstep_jax.training.step import Objective

Array = jax.Array


class HostBatch(NamedTuple):
    """This process's part of a batch.

    Attributes:
      arrays: a tree of NumPy arrays.
      names: of its samples, for error messages.
      metrics: what there is to say of the data read so far (by this process).
    """

    arrays: Any
    names: tuple[str, ...]
    metrics: Mapping[str, float]


class DataIterator(Protocol):
    """This process's parts of the batches, and its part of a position that can be saved: `set_state`, given the parts of all
    processes that saved, makes the very next batch come again.
    """

    def __iter__(self) -> Iterator[HostBatch]: ...

    def __next__(self) -> HostBatch: ...

    def get_state(self) -> dict: ...

    def set_state(self, saved: Sequence[dict]) -> None: ...

    def close(self) -> None: ...


def image_grid(images: Sequence[np.ndarray], columns: int = 8) -> np.ndarray:
    """Images [height, width, 3] uint8 of one size, side by side in rows of `columns`; missing ones are white."""
    height, width, _ = images[0].shape
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    grid = np.full((rows * columns, height, width, 3), 255, np.uint8)
    grid[: len(images)] = np.stack(images)
    return grid.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


Collect = Callable[[TrainState, Any, Array], Any]


class Export(NamedTuple):
    """What stands beside the trained parameters in a checkpoint folder.

    Attributes:
      base: a checkpoint folder that gives the parts that are not trained; None without.
      config: contents of config.json.
      files: further files by name.
    """

    base: str | None
    config: dict[str, Any]
    files: dict[str, bytes]


class Stage(NamedTuple):
    """A stage of training.

    Attributes:
      objective: parameters and loss.
      training_data: opens the training batches, at their start.
      validation_data: opens the validation batches, at their start; None without.
      inference: parameters -> the model for use: a Pipeline, or for an image tokenizer images [B, height, width, 3] in [-1, 1]
        -> their reconstructions.
      draw_samples: parameters -> an image [height, width, 3] uint8 of what the model makes now.
      export: the rest of the checkpoint folder.
      collector: opens what completes a batch on the device before the step, (state, batch, key) -> batch: it may run other
        models, the current one, or a reward. It depends on its arguments alone, so that a run that was stopped continues
        exactly. None: batches are complete.
    """

    objective: Objective
    training_data: Callable[[], DataIterator]
    validation_data: Callable[[], DataIterator] | None
    inference: Callable[[Any], Any]
    draw_samples: Callable[[Any], np.ndarray]
    export: Callable[[], Export]
    collector: Callable[[Array], Collect] | None = None


def export_run(
    stage: Stage, workdir: str | os.PathLike, out: str | os.PathLike, step: int | None = None, dtype: str = "float32"
) -> int:
    """Write a step of a run, the newest for None, as a checkpoint folder: its averaged parameters, where there are such. All is
    read back from `workdir`, so that memory follows one layer. Returns which step. Raises as `export_params`.
    """
    base, config, files = stage.export()
    collections = ("ema", "params")
    return export_params(workdir, out, collections=collections, step=step, dtype=dtype, base=base, config=config, files=files)
