"""Parity of the samplers of all releases, and of guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.conversion.parity.reference import Reference, run
from nextstep_jax.conversion.parity.report import SINGLE_PASS, GoldenFile, Goldens, Report
from nextstep_jax.flow.guidance import guide
from nextstep_jax.flow.samplers import LAST_STEP, evaluation_times, sample
from nextstep_jax.models.nextstep import NextStep

_LATER = "cases_later.json"


def compare(goldens: Goldens, reference: Reference, report: Report) -> None:
    """sampler, sampler_hf11 and sampler_feb."""
    later = goldens.json(_LATER)
    for case, settings in reference.cases["sampler"].items():
        _run(goldens.arrays("sampler"), case, "august2025", settings, settings["cfg2"], reference, report)
    for case, settings in later["sampler_hf11"].items():
        _run(goldens.arrays("sampler_hf11"), case, "1.1", settings, settings["cfg_img"], reference, report)
    golden = goldens.arrays("sampler_feb")
    for case, settings in later["sampler_feb"].items():
        if case.startswith("rescale."):
            _rescale(golden, case, settings, report)
        elif case.startswith("forward_head."):
            _forward_head(golden, case, settings, reference, report)
        else:
            _run(golden, case, settings["sde_type"], settings, settings["cfg_img"], reference, report)


def _run(golden: GoldenFile, case: str, sampler: str, settings: dict, image_cfg: float, reference: Reference, report: Report):
    steps, shift, branches = settings["num_sampling_steps"], settings["timesteps_shift"], settings["cfg_mult"]
    last_step = settings.get("last_step_size", LAST_STEP)
    if f"{case}.t" in golden:
        times = evaluation_times(sampler, steps, shift, last_step)
        report.compare(f"{golden.name}.{case}.t", times, golden[f"{case}.t"], SINGLE_PASS)
    condition, noise = golden[settings["c"]], golden[f"{case}.noise"]
    repeats = np.arange(condition.shape[0] // branches) % noise.shape[1]  # the releases tile noise over the batch
    strengths = (settings["cfg"], image_cfg)
    how = (sampler, steps, shift, last_step, settings.get("noise_level", 0.8), branches, settings.get("rescale", False))
    out = _sample(reference.config, how, reference.params, condition, noise[:, repeats], strengths)
    report.compare(f"{golden.name}.{case}.out", out, golden[f"{case}.out"], SINGLE_PASS)


@functools.partial(jax.jit, static_argnames=("config", "how"))
def _sample(config, how: tuple, params: dict, condition, noise, strengths):
    sampler, steps, shift, last_step, noise_level, branches, rescale = how
    model, variables = NextStep(config), {"params": params}
    embedded = model.apply(variables, evaluation_times(sampler, steps, shift, last_step), method="embed_times")
    modulations = model.apply(variables, embedded, condition, method="modulations")

    def velocity(x, i):
        now = jax.tree.map(lambda table: table[i], modulations)
        v = model.apply(variables, jnp.tile(x, (branches, 1)), now, method="velocity_at")
        return guide(v, *strengths, branches, rescale)

    options = dict(steps=steps, shift=shift, noise_level=noise_level, last_step=last_step)
    return sample(velocity, noise, sampler=sampler, **options)


def _rescale(golden: GoldenFile, case: str, settings: dict, report: Report) -> None:
    v, branches = golden[f"{case}.v"], settings["cfg_mult"]
    plain = guide(v, settings["cfg"], settings["cfg_img"], branches)
    rescaled = guide(v, settings["cfg"], settings["cfg_img"], branches, rescale=True)
    report.compare(f"{golden.name}.{case}.plain", plain, golden[f"{case}.plain"], SINGLE_PASS)
    report.compare(f"{golden.name}.{case}.rescaled", rescaled, golden[f"{case}.rescaled"], SINGLE_PASS)
    factor = np.linalg.norm(rescaled, axis=-1) / np.linalg.norm(plain, axis=-1)
    report.compare(f"{golden.name}.{case}.factor", factor, np.asarray(settings["factor"]), SINGLE_PASS)
    if f"{case}.img1" in golden:
        unchanged = guide(v, settings["cfg"], 1.0, branches, rescale=True)
        report.compare(f"{golden.name}.{case}.img1", unchanged, golden[f"{case}.img1"], SINGLE_PASS)


def _forward_head(golden: GoldenFile, case: str, settings: dict, reference: Reference, report: Report) -> None:
    model, params = NextStep(reference.config), reference.params
    x, t, hidden = (golden[f"{case}.{name}"] for name in ("x", "t", "c"))
    condition = run(model, params, hidden[:, 0], method="project_out")
    v = run(model, params, x, t, condition, method="velocity")
    for name, rescale in (("velocity", False), ("velocity_rescaled", True)):
        guided = guide(v, settings["cfg"], settings["cfg_img"], settings["cfg_mult"], rescale)
        report.compare(f"{golden.name}.{case}.{name}", guided, golden[f"{case}.{name}"], SINGLE_PASS)
