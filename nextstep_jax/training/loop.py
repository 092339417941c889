"""The training loop of every stage: the stage is a config, the objective one of its values.

    state = train(config, workdir)

The work directory gets `config.json` (the settings), `metrics.jsonl`, checkpoints (a run that was stopped continues from there
without being asked), `samples/`, `profile/`, and at the end `export/`: the trained parameters (their EMA, if there is one) as a
checkpoint folder, those of the best step where an evaluation is watched.
"""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from nextstep_jax import storage
from nextstep_jax.checkpoints import MANIFEST
from nextstep_jax.checkpoints.training import TrainCheckpointer
from nextstep_jax.data.image_output import save_image
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.schema import flatten, plain
from nextstep_jax.seeds import seed_key
from nextstep_jax.sharding.mesh import global_batch, make_mesh, replicated
from nextstep_jax.sharding.params import sharding_table, with_shardings
from nextstep_jax.training import few_step, metrics, multitask, online, preference, reconstruction, run_record
from nextstep_jax.training.config import resolve
from nextstep_jax.training.evals import Evaluation, EvaluatorFactory, open_evaluators, open_watch, run_evaluators
from nextstep_jax.training.goodput import Goodput
from nextstep_jax.training.init import initial_params
from nextstep_jax.training.program import make_program
from nextstep_jax.training.settings import RunConfig
from nextstep_jax.training.stage import Collect, Stage, export_run
from nextstep_jax.training.state import TrainState
from nextstep_jax.training.step import make_validation_step
from nextstep_jax.training.webhook import open_webhook

logger = logging.getLogger(__name__)

STAGES: dict[str, Callable[[Any], Stage]] = {
    "few_step": few_step.make_stage,
    "grpo": online.make_stage,
    "multitask": multitask.make_stage,
    "nft": online.make_stage,
    "preference": preference.make_stage,
    "reconstruction": reconstruction.make_stage,
}


def train(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | os.PathLike,
    evaluators: Mapping[str, EvaluatorFactory] | None = None,
) -> TrainState:
    """Run the stage that `config` describes to its last step; from the newest checkpoint in `workdir`, if there is one.

    Returns early, with everything saved, when asked to stop (SIGTERM), as before a machine is taken away.

    Args:
      evaluators: what `config.evals` can call by name.

    Raises:
      InputError: the config, its files or its mesh cannot make a run, or do not continue the one in `workdir`.
      DamagedDataError: a checkpoint or a data shard is not what was written.
      NextStepError: `max_nonfinite_steps` steps in a row had a non-finite loss or gradient (the message names the batches), or
        the last step could not be saved or exported.
    """
    with contextlib.ExitStack() as stack:
        # --- The settings ---------------------------------------------------------------------------------------------
        goodput = Goodput()
        run = resolve(config)
        workdir = storage.at(workdir)
        require_possible(run)
        hook = stack.enter_context(open_webhook(run.webhook, run.name, str(workdir)))
        evals = open_evaluators(run.evals, evaluators or {})
        changes = run_record.changes_since_start(workdir, run)

        # --- The stage: parameters, loss and data ---------------------------------------------------------------------
        mesh = make_mesh(dataclasses.asdict(run.mesh))
        stack.enter_context(jax.set_mesh(mesh))
        stage = make_stage(run)
        objective = stage.objective
        data = stack.enter_context(contextlib.closing(stage.training_data()))

        # --- The state, restored or made in its place on the mesh -----------------------------------------------------
        key = jax.device_put(seed_key(run.seed), replicated(mesh))
        program = make_program(run, objective, mesh)
        counts = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (program.params, program.trainable))
        logger.info("%s: %.1fM parameters, %.1fM of them trained", run.name, *(count / 1e6 for count in counts))
        if mesh.size > 1:
            logger.info("Parameters on the mesh %s:\n%s", dict(mesh.shape), sharding_table(program.params, mesh))
        checkpointer = stack.enter_context(
            TrainCheckpointer(
                workdir,
                config=plain(run),
                checkpoint_config=stage.export().config,
                keep_last=run.checkpoint.keep_last,
                keep_every=run.checkpoint.keep_every or None,
            )
        )
        if restored := checkpointer.restore(with_shardings(program.state, program.state_shardings)):
            state = restored.state
            data.set_state(restored.data_states)
            logger.info("Continuing after step %d", restored.step)
            for change in changes:
                logger.warning("Changed since the run was last started: %s", change)
        else:
            params = initial_params(run.init, objective.init, key, mesh)
            state = jax.jit(program.create, out_shardings=program.state_shardings, donate_argnums=0)(params)
        hook.step = first = int(state.step)
        if first > run.steps:
            raise InputError(f"config.steps is {run.steps}, but this run has done {first} steps already")
        if jax.process_index() == 0:
            run_record.write(workdir, run)
        settings = "\n".join(f"  {name} = {json.dumps(value)}" for name, value in flatten(plain(run), "config"))
        logger.info("Settings:\n%s", settings)

        watch = open_watch(evals, workdir, first)

        # --- The compiled steps ---------------------------------------------------------------------------------------
        train_step = program.jit_step()
        validation_step = jax.jit(make_validation_step(objective))
        collect = stage.collector(key) if stage.collector else None

        # --- The loop -------------------------------------------------------------------------------------------------
        trackers = {**dataclasses.asdict(run.wandb), "name": run.name}
        writer = stack.enter_context(contextlib.closing(metrics.Writer(workdir, plain(run), first, trackers)))
        accumulator = metrics.MetricAccumulator()
        guard = metrics.NonFiniteGuard(run.max_nonfinite_steps, before=int(state.skipped_in_a_row))
        profiling = contextlib.ExitStack()
        stack.callback(profiling.close)
        reached = reported = saved = first
        data_metrics: Mapping[str, float] = {}

        def report() -> None:
            values, finite = accumulator.report()
            values |= {**data_metrics, **goodput.report()}
            writer.scalars(reached, values)
            logger.info("step %d  %s", reached, metrics.summary(values))
            hook.tell_if_not_finite(finite)
            guard.check(finite)

        def evaluate(step: int, evaluations: list[Evaluation]) -> None:
            with goodput.losing("evaluations"):
                values = run_evaluators(evaluations, stage.inference(state.averaged_params))
            writer.scalars(step, values)
            if watch and watch.evaluation in evaluations:
                watch.add(step, values)
                checkpointer.pinned = watch.best

        if watch:
            checkpointer.pinned = watch.best
            if first and _due(first, watch.evaluation.every) and first not in watch.values:
                evaluate(first, [watch.evaluation])  # the run was stopped between saving the step and judging it
        for step in range(first + 1, run.steps + 1):
            if watch and watch.is_over:
                logger.info("Stopped after step %d: %s was highest at step %s", reached, watch.name, watch.best)
                break
            began = time.perf_counter()
            host_batch = next(data, None)
            if host_batch is None:
                logger.info("The data has ended after step %d (config.data.epochs)", reached)
                break
            reached = hook.step = step
            data_metrics = host_batch.metrics
            waited = time.perf_counter() - began
            goodput.lose("data", waited)
            if step == run.profile.start:
                profile = profiling.enter_context(storage.of(workdir).local_folder(workdir / "profile"))
                profiling.enter_context(jax.profiler.trace(profile))
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                batch = global_batch(host_batch.arrays, mesh, objective.batch_axes)
                with jax.transfer_guard("disallow"):  # nothing but the batch is copied between host and device
                    if collect:
                        batch = collect(state, batch, key)
                    state, step_metrics = train_step(state, batch, key)
            accumulator.add(step, step_metrics, waited, timed=step > first + 1)
            guard.remember(step, host_batch.names)
            if step == first + 1:
                jax.block_until_ready(state)
                logger.info("Compiled and ran the first step in %.0f s", time.perf_counter() - began)
                accumulator.restart_clock()
                goodput.started()
            if step == run.profile.stop:
                jax.block_until_ready(state)
                profiling.close()

            last, preempted = step == run.steps, checkpointer.reached_preemption(step)
            judged = watch is not None and _due(step, watch.evaluation.every)
            save = _due(step, run.checkpoint.every) or last or preempted or judged
            validates = stage.validation_data is not None and _due(step, run.validation.every)
            samples = _due(step, run.samples.every)
            evaluates = [evaluation for evaluation in evals if _due(step, evaluation.every)]
            if _due(step, run.log_every) or last or preempted:
                report()
                reported = step
            if not (save or validates or samples or evaluates):
                continue
            jax.block_until_ready(state)  # so that the steps' own time is not taken for a pause
            with accumulator.paused():
                if save:
                    with goodput.losing("checkpoints"):
                        writer.sync()  # whoever continues from this step has the lines up to it
                        checkpointer.save(step, state, data.get_state())
                    saved = step
                if preempted:
                    require_saved(checkpointer, step)
                    logger.warning("Asked to stop (SIGTERM): step %d is saved, the same command continues from it", step)
                    hook.tell("stopped", f"asked to stop (SIGTERM); step {step} is saved")
                    return state
                if validates:
                    with goodput.losing("validation"):
                        values = validate(stage, validation_step, collect, state, key, run.validation.batches)
                    writer.scalars(step, values)
                if samples:
                    with goodput.losing("samples"):
                        log_samples(stage, state, workdir, step, writer)
                if evaluates:
                    evaluate(step, evaluates)

        # --- The result -----------------------------------------------------------------------------------------------
        if reached < run.steps:
            if run.optimizer.schedule != "constant":
                logger.warning("The learning rate was to fall until step %d (config.steps)", run.steps)
            if reported < reached:
                report()
            if saved < reached:
                checkpointer.save(reached, state, data.get_state())
        require_saved(checkpointer, reached)
        export(stage, workdir, watch.best if watch and watch.best else reached, run.export_dtype)
        hook.tell("done", f"done after step {reached}")
        return state


def make_stage(run: RunConfig) -> Stage:
    """The stage that a run's settings describe. InputError names an option that does not fit the others."""
    return STAGES[run.objective](run)


def require_possible(run: RunConfig) -> None:
    """InputError for a run without training data, and for what several processes cannot do."""
    if not run.data.has_sources():
        raise InputError("config.data.sources: name at least one source of training data with a weight")
    for name, every in (("samples", run.samples.every), *((f"evals.{name}", e.every) for name, e in run.evals.items())):
        if every and jax.process_count() > 1:
            raise InputError(
                f"config.{name}.every is {every}, but a run of {jax.process_count()} processes cannot generate; set it to 0 "
                "and generate from an export (nextstep-jax export-run)"
            )


def require_saved(checkpointer: TrainCheckpointer, step: int) -> None:
    """Wait for the save under way. NextStepError unless the newest complete step is `step`."""
    checkpointer.wait()
    if checkpointer.last_good != step:
        kept = "none" if checkpointer.last_good is None else checkpointer.last_good
        raise NextStepError(
            f"step {step} could not be saved (the reason is logged above), the newest complete step is {kept}; "
            "the same command continues from there"
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def validate(
    stage: Stage,
    validation_step: Callable[..., Any],
    collect: Collect | None,
    state: TrainState,
    key: jax.Array,
    batches: int,
) -> dict[str, float]:
    """Means over the first validation batches, always the same ones with the same noise, of the averaged parameters."""
    mesh, means, params = jax.sharding.get_mesh(), [], state.averaged_params
    assert stage.validation_data is not None
    # As at the start of a run: what a collector draws depends on the step.
    state = dataclasses.replace(state, step=jnp.zeros_like(state.step), params=params, ema=None)
    with contextlib.closing(stage.validation_data()) as data:
        for number, host_batch in zip(range(batches), data, strict=False):
            batch = global_batch(host_batch.arrays, mesh, stage.objective.batch_axes)
            batch_key = jax.random.fold_in(key, number)
            if collect:
                batch = collect(state, batch, batch_key)
            means.append(validation_step(params, batch, batch_key))
    return {f"validation/{name}": value for name, value in metrics.mean_values(jax.device_get(means)).items()}


def log_samples(stage: Stage, state: TrainState, workdir: storage.Place, step: int, writer: metrics.Writer) -> None:
    """Write a grid of what the model makes now."""
    pixels = stage.draw_samples(state.averaged_params)
    if jax.process_index() == 0:
        (workdir / "samples").mkdir(exist_ok=True)
        save_image(workdir / "samples" / f"step_{step:08d}.png", pixels)
    writer.image(step, "samples", pixels)


def export(stage: Stage, workdir: storage.Place, step: int, dtype: str) -> None:
    """Write a step as `workdir/export`, in place of an earlier one. All processes call this together.

    Raises:
      NextStepError: it cannot be written.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("saved")
    if jax.process_index() == 0:
        directory = workdir / "export"
        try:
            with storage.of(workdir).replacing_folder(directory, MANIFEST) as fresh:
                export_run(stage, workdir, fresh, step=step, dtype=dtype)
        except OSError as error:
            reason = f"cannot be written ({error.strerror or error})"
            raise NextStepError(f"{directory}: {reason}; step {step} is complete, the same command exports it") from error
        logger.info("Wrote step %d to %s", step, directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("exported")  # a process that ends with exit code 0 leaves the export behind
