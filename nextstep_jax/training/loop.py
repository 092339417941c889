"""The training loop of every stage: the stage is a config, the objective one of its values.

    state = train(config, workdir)

The work directory gets `metrics.jsonl`, checkpoints (a run that was stopped continues from there without being asked),
`samples/`, `profile/`, and at the end `export/`: the trained parameters (their EMA, if there is one) as a checkpoint folder.
"""

import contextlib
import logging
import os
import pathlib
import shutil
import time

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from nextstep_jax.checkpoints.training import TrainCheckpointer
from nextstep_jax.data.image_output import save_image
from nextstep_jax.sharding.mesh import global_batch, make_mesh, replicated
from nextstep_jax.sharding.params import sharding_table, with_shardings
from nextstep_jax.training import metrics, multitask, reconstruction
from nextstep_jax.training.config import as_json, require_valid
from nextstep_jax.training.init import initial_params
from nextstep_jax.training.program import make_program
from nextstep_jax.training.stage import Stage, export_run
from nextstep_jax.training.state import TrainState
from nextstep_jax.training.step import make_validation_step

logger = logging.getLogger(__name__)

STAGES = {"multitask": multitask.make_stage, "reconstruction": reconstruction.make_stage}


def train(config: ConfigDict, workdir: str | os.PathLike) -> TrainState:
    """Run the stage that `config` describes to its last step; from the newest checkpoint in `workdir`, if there is one.

    Returns early, with everything saved, when the machine is about to be taken away (SIGTERM).

    Raises:
      InputError: the config, its files or its mesh cannot make a run.
      DamagedDataError: a checkpoint or a data shard is not what was written.
      NextStepError: `max_nonfinite_steps` steps in a row had a non-finite loss or gradient; the message names the batches.
    """
    with contextlib.ExitStack() as stack:
        # --- The stage: parameters, loss and data ---------------------------------------------------------------------
        require_valid(config)
        workdir = pathlib.Path(workdir)
        mesh = make_mesh(config.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        stage = STAGES[config.objective](config)
        objective = stage.objective
        data = stack.enter_context(contextlib.closing(stage.training_data()))

        # --- The state, restored or made in its place on the mesh -----------------------------------------------------
        key = jax.device_put(jax.random.key(config.seed), replicated(mesh))
        program = make_program(config, objective, mesh)
        counts = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (program.params, program.trainable))
        logger.info("%s: %.1fM parameters, %.1fM of them trained", config.name, *(count / 1e6 for count in counts))
        if mesh.size > 1:
            logger.info("Parameters on the mesh %s:\n%s", dict(mesh.shape), sharding_table(program.params, mesh))
        keep = {"keep_last": config.checkpoint.keep_last, "keep_every": config.checkpoint.keep_every or None}
        kept_config = {"config": as_json(config), "checkpoint_config": stage.export().config}
        checkpointer = stack.enter_context(TrainCheckpointer(workdir, **kept_config, **keep))
        if restored := checkpointer.restore(with_shardings(program.state, program.state_shardings)):
            state = restored.state
            data.set_state(restored.data_states)
            logger.info("Continuing after step %d", restored.step)
        else:
            params = initial_params(config.init.checkpoint, config.init.reinit, objective.init, key, mesh)
            state = jax.jit(program.create, out_shardings=program.state_shardings, donate_argnums=0)(params)
        first = int(state.step)

        # --- The compiled steps ---------------------------------------------------------------------------------------
        train_step = program.jit_step()
        validation_step = jax.jit(make_validation_step(objective))

        # --- The loop -------------------------------------------------------------------------------------------------
        writer = stack.enter_context(
            contextlib.closing(metrics.Writer(workdir, as_json(config), first, {**config.wandb, "name": config.name}))
        )
        accumulator, guard = metrics.MetricAccumulator(), metrics.NonFiniteGuard(config.max_nonfinite_steps)
        profiling = contextlib.ExitStack()
        stack.callback(profiling.close)
        for step in range(first + 1, config.steps + 1):
            began = time.perf_counter()
            loaded = next(data)
            waited = time.perf_counter() - began
            if step == config.profile.start:
                profiling.enter_context(jax.profiler.trace(workdir / "profile"))
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, step_metrics = train_step(state, global_batch(loaded.arrays, mesh, objective.batch_axes), key)
            accumulator.add(step, step_metrics, waited, timed=step > first + 1)
            guard.remember(step, loaded.names)
            if step == first + 1:
                jax.block_until_ready(state)
                logger.info("Compiled and ran the first step in %.0f s", time.perf_counter() - began)
                accumulator.restart_clock()
            if step == config.profile.stop:
                jax.block_until_ready(state)
                profiling.close()

            last, preempted = step == config.steps, checkpointer.reached_preemption(step)
            save = _due(step, config.checkpoint.every) or last or preempted
            validates = stage.validation_data is not None and _due(step, config.validation.every)
            samples = _due(step, config.samples.every)
            if _due(step, config.log_every) or last or preempted:
                values, finite = accumulator.report()
                writer.scalars(step, values)
                logger.info("step %d  %s", step, metrics.summary(values))
                guard.check(finite)
            if not (save or validates or samples):
                continue
            jax.block_until_ready(state)  # so that the steps' own time is not taken for a pause
            with accumulator.paused():
                if save:
                    checkpointer.save(step, state, data.get_state())
                if preempted:
                    logger.warning("Told to stop: step %d is saved, the same command continues from it", step)
                    return state
                if validates:
                    writer.scalars(step, validate(stage, validation_step, state, key, config.validation.batches))
                if samples:
                    log_samples(stage, state, workdir, step, writer)

        # --- The result -----------------------------------------------------------------------------------------------
        checkpointer.wait()
        export(stage, workdir, config.export_dtype)
        return state


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def validate(stage: Stage, validation_step, state: TrainState, key: jax.Array, batches: int) -> dict[str, float]:
    """Means over the first validation batches, always the same ones with the same noise, of the averaged parameters."""
    mesh, means = jax.sharding.get_mesh(), []
    with contextlib.closing(stage.validation_data()) as data:
        for number, loaded in zip(range(batches), data, strict=False):
            batch = global_batch(loaded.arrays, mesh, stage.objective.batch_axes)
            means.append(validation_step(state.averaged_params, batch, jax.random.fold_in(key, number)))
    return {f"validation/{name}": value for name, value in metrics.mean_values(jax.device_get(means)).items()}


def log_samples(stage: Stage, state: TrainState, workdir: pathlib.Path, step: int, writer: metrics.Writer) -> None:
    """Let the model draw, and keep the picture."""
    pixels = stage.draw_samples(state.averaged_params)
    if jax.process_index() == 0:
        (workdir / "samples").mkdir(exist_ok=True)
        save_image(workdir / "samples" / f"step_{step:08d}.png", pixels)
    writer.image(step, "samples", pixels)


def export(stage: Stage, workdir: pathlib.Path, dtype: str) -> None:
    """Write the newest step as `workdir/export`, in place of an earlier one. All processes call this together, after `wait`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("saved")
    if jax.process_index() == 0:
        directory, fresh = workdir / "export", workdir / ".export.new"
        shutil.rmtree(fresh, ignore_errors=True)
        step = export_run(stage, workdir, fresh, dtype=dtype)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(fresh, directory)
        logger.info("Wrote step %d to %s", step, directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("exported")  # whoever ends with exit code 0 finds it
