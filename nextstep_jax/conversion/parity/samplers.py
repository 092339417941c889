"""Parity of the samplers of all releases, and of guidance."""

import functools
import re
from typing import NamedTuple

import jax
import numpy as np

from nextstep_jax.conversion.parity.goldens import GoldenFile, Goldens
from nextstep_jax.conversion.parity.integration import Trajectory, integrate_all, make_trajectories, plan_steps
from nextstep_jax.conversion.parity.reference import Reference, run_on_vectors
from nextstep_jax.conversion.parity.report import ROUNDING, SINGLE_PASS, Report
from nextstep_jax.errors import InputError
from nextstep_jax.flow.guidance import guide, schedule
from nextstep_jax.flow.samplers import LAST_STEP

_LATER = "cases_later.json"


def compare(goldens: Goldens, reference: Reference, report: Report) -> None:
    """sampler, sampler_hf11 and sampler_feb, and February's schedule of guidance."""
    later = goldens.json(_LATER)
    golden = goldens.arrays("sampler")
    runs = [_run(golden, case, "august2025", s, s["cfg2"]) for case, s in reference.cases["sampler"].items()]
    golden = goldens.arrays("sampler_hf11")
    runs += [_run(golden, case, "1.1", s, s["cfg_img"]) for case, s in later["sampler_hf11"].items()]
    golden = goldens.arrays("sampler_feb")
    for case, settings in later["sampler_feb"].items():
        if case.startswith("rescale."):
            _rescale(golden, case, settings, report)
        elif case.startswith("forward_head."):
            _forward_head(golden, case, settings, reference, report)
        else:
            kind = settings["sde_type"] if settings["sde_type"] in ("sde", "cps") else "ode"  # as released
            runs.append(_run(golden, case, kind, settings, settings["cfg_img"]))
    _compare_runs(runs, reference, report)
    for case, stored in later["cfg_per_token_feb_linear"].items():
        match = re.fullmatch(r"cfg([\d.]+)_n(\d+)", case)
        if not match:
            raise InputError(f"{_LATER}: cfg_per_token_feb_linear has {case!r}, expected a name such as cfg3.0_n16")
        cfg, count = float(match[1]), int(match[2])
        ours = schedule("rising", cfg, np.arange(count), count)
        report.compare(f"cases_later.cfg_per_token_feb_linear.{case}", ours, stored, ROUNDING, relative=True)


class _Run(NamedTuple):
    """A stored run of a sampler: one trajectory for each row of a guidance branch."""

    golden: GoldenFile
    case: str
    branches: int
    trajectories: list[Trajectory]


def _run(golden: GoldenFile, case: str, sampler: str, settings: dict, image_cfg: float) -> _Run:
    steps, shift, branches = settings["num_sampling_steps"], settings["timesteps_shift"], settings["cfg_mult"]
    planned = plan_steps(sampler, steps, shift, settings.get("noise_level", 0.8), settings.get("last_step_size", LAST_STEP))
    noise, condition, strengths = golden[f"{case}.noise"], golden[settings["c"]], (settings["cfg"], image_cfg)
    trajectories = make_trajectories(
        planned, noise, condition, branches, strengths, settings.get("rescale", False), f"{golden.name}.{case}"
    )
    return _Run(golden, case, branches, trajectories)


def _compare_runs(runs: list[_Run], reference: Reference, report: Report) -> None:
    for branches in sorted({run.branches for run in runs}):
        of_kind = [run for run in runs if run.branches == branches]
        ends = integrate_all(reference.config, reference.params, branches, [one for run in of_kind for one in run.trajectories])
        stops = np.cumsum([len(run.trajectories) for run in of_kind])
        for run, out in zip(of_kind, np.split(ends, stops[:-1]), strict=True):
            name, golden = f"{run.golden.name}.{run.case}", run.golden
            if f"{run.case}.t" in golden:
                report.compare(f"{name}.t", run.trajectories[0].times, golden[f"{run.case}.t"], ROUNDING)
            report.compare(f"{name}.out", out, golden[f"{run.case}.out"], SINGLE_PASS)


# --- guidance alone ---------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="branches")
def _guided(v, cfg, image_cfg, branches: int) -> tuple[jax.Array, jax.Array]:
    """Guided velocities [R, C], as they are and rescaled."""
    return guide(v, cfg, image_cfg, branches), guide(v, cfg, image_cfg, branches, rescale=True)


def _rescale(golden: GoldenFile, case: str, settings: dict, report: Report) -> None:
    v, branches = golden[f"{case}.v"], settings["cfg_mult"]
    plain, rescaled = _guided(v, settings["cfg"], settings["cfg_img"], branches)
    report.compare(f"{golden.name}.{case}.plain", plain, golden[f"{case}.plain"], SINGLE_PASS)
    report.compare(f"{golden.name}.{case}.rescaled", rescaled, golden[f"{case}.rescaled"], SINGLE_PASS)
    factor = np.linalg.norm(rescaled, axis=-1) / np.linalg.norm(plain, axis=-1)
    report.compare(f"{golden.name}.{case}.factor", factor, settings["factor"], SINGLE_PASS)
    if f"{case}.img1" in golden:
        _, unchanged = _guided(v, settings["cfg"], 1.0, branches)
        report.compare(f"{golden.name}.{case}.img1", unchanged, golden[f"{case}.img1"], SINGLE_PASS)


def _forward_head(golden: GoldenFile, case: str, settings: dict, reference: Reference, report: Report) -> None:
    x, t, hidden = (golden[f"{case}.{name}"] for name in ("x", "t", "c"))
    condition = run_on_vectors(reference, "project_out", hidden[:, 0])
    v = run_on_vectors(reference, "velocity", x, t, condition)
    guided = _guided(v, settings["cfg"], settings["cfg_img"], settings["cfg_mult"])
    for name, ours in zip(("velocity", "velocity_rescaled"), guided, strict=True):
        report.compare(f"{golden.name}.{case}.{name}", ours, golden[f"{case}.{name}"], SINGLE_PASS)
