"""Programs lowered for a mesh: what lies on its devices, and the useful work of one run. Compiled ones are in tests/launch."""

import jax
import pytest
from jax.sharding import AbstractMesh

from nextstep_jax.config import preset
from nextstep_jax.configs import nextstep_14b_distill, nextstep_14b_dpo, nextstep_14b_nft, nextstep_14b_stage1
from nextstep_jax.errors import InputError
from nextstep_jax.models.nextstep import init_params
from nextstep_jax.sharding.mesh import make_mesh
from nextstep_jax.training import aot, aot_decoding, online
from nextstep_jax.training.config import resolve
from nextstep_jax.training.flops import flow_head_forward


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({}, jax.devices()[:1])


def laptop(module, **changes):
    config = module.get_config("laptop")
    config.model.transformer.layers = 1
    config.update_from_flattened_dict(changes)
    return resolve(config)


def test_a_step_of_preferences_has_its_reference_beside_it(mesh):
    config = laptop(nextstep_14b_dpo)
    lowered = aot.lower_train_step(config, mesh)
    assert lowered.beside == {"reference": lowered.bytes_by_kind["parameters"]}
    assert lowered.tokens == config.data.batch_size * config.data.seq_len
    # Two images for each position of a batch, and no text: more than twice the work of the transformer alone.
    plain = aot.lower_train_step(laptop(nextstep_14b_stage1), mesh)
    assert not plain.beside
    assert lowered.flops / lowered.tokens > 1.5 * plain.flops / plain.tokens


def test_rollouts_run_the_flow_head_at_every_step_of_the_sampler(mesh):
    few, many = (laptop(nextstep_14b_nft, **{"rollouts.steps": steps}) for steps in (3, 7))
    lowered = aot_decoding.lower_rollouts(few, mesh)
    images = few.data.batch_size * few.rollouts.images
    tokens = lowered.tokens - images * aot_decoding.PROMPT
    assert lowered.beside["optimizer and average"] > lowered.bytes_by_kind["parameters"]
    head, width = few.model.flow_head, few.model.transformer.width
    evaluation = flow_head_forward(head, few.model.token_channels, width, tokens) / head.batch_mul
    more = aot_decoding.lower_rollouts(many, mesh).flops - lowered.flops
    assert more == pytest.approx(4 * evaluation, rel=0.2)  # the condition is projected once


def test_rollouts_read_parameters_that_are_whole_along_fsdp(monkeypatch):
    """Every token reads all of them."""
    split = AbstractMesh((2, 4, 2, 1), ("data", "fsdp", "tensor", "sequence"))
    model = preset("tiny").with_transformer(layers=1, scan_layers=True)
    params = {"model": jax.eval_shape(lambda: init_params(model, jax.random.key(0)))}
    seen = []
    monkeypatch.setattr(jax.lax, "with_sharding_constraint", lambda x, place: (seen.append(place.spec), x)[1])
    jax.eval_shape(lambda p: online.decoding_params(model.with_transformer(scan_layers=False), p, split), params)
    axes = {axis for spec in seen for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,))}
    assert axes == {None, "tensor"}


def test_what_has_no_such_program_is_refused(mesh):
    with pytest.raises(InputError, match="must be nft or grpo for rollouts"):
        aot_decoding.lower_rollouts(laptop(nextstep_14b_stage1), mesh)
    with pytest.raises(InputError, match="must be multitask or preference .* found 'few_step'"):
        aot.lower_train_step(laptop(nextstep_14b_distill), mesh)
    with pytest.raises(InputError, match="token loop to be compiled, found 'nft'"):
        aot_decoding.lower_generation(laptop(nextstep_14b_nft), mesh)
