"""Reading what a compiled program costs, on programs whose cost is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.errors import NextStepError
from nextstep_jax.sharding.topologies import CHIPS
from nextstep_jax.training import hlo_cost

CHIP = CHIPS["v5p"]

# A loop of three, as the TPU compiler writes it: a fusion with its cycles, an attention kernel, a gather that blocks, one that
# does not, and a reduce-scatter.
LOOP = """\
%fused (p: bf16[64,64]) -> f32[64,64] {
  %p = bf16[64,64]{1,0} parameter(0)
  ROOT %product = f32[64,64]{1,0} convolution(%p, %p), dim_labels=bf_io->bf, backend_config={"estimated_cycles":"7"}
}
%scatter (q: f32[64,64]) -> f32[16,64] {
  %q = f32[64,64]{1,0} parameter(0)
  %sum = f32[64,64]{1,0} all-reduce(%q), replica_groups=[1,4]<=[4], to_apply=%add
}
%body (state: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %state = (s32[], /*index=1*/bf16[64,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[64,64]{1,0} get-tuple-element(%state), index=1
  %work = f32[64,64]{1,0} fusion(%x), kind=kOutput, calls=%fused, backend_config={"window":{"estimated_cycles":"1750000"}}
  %k = bf16[2,256,128]{2,1,0} parameter(1)
  %mask = s8[1,2,1]{2,1,0} constant({...})
  %splash_mha_fwd.1 = bf16[2,256,128]{2,1,0} custom-call(%mask, %mask, %k, %k, %k), custom_call_target="tpu_custom_call"
  %gather = bf16[256,64]{1,0} all-gather(%x), replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
  %begin = (bf16[64,64], bf16[256,64]) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %shard = f32[16,64]{1,0} fusion(%work), kind=kCustom, calls=%scatter
}
%condition (state: (s32[], bf16[64,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
ENTRY %main (a: bf16[64,64]) -> bf16[64,64] {
  %loop = (s32[], bf16[64,64]{1,0}) while(%t), condition=%condition, body=%body
}
"""


def test_everything_in_a_loop_counts_as_often_as_it_runs():
    cost = hlo_cost.read_cost(LOOP, CHIP, devices=4)
    kernel = 3 * 4 * (2 * 256 * 128) * 256  # blocks of all keys: both have visible pairs
    assert cost.flops == 3 * 2 * 64**3 + kernel
    assert cost.of(hlo_cost.INSTRUCTION) == pytest.approx(3 * 1e-3)
    assert cost.kernels == 3
    assert cost.of(hlo_cost.KERNEL) == pytest.approx(kernel / (CHIP.kernel_efficiency * CHIP.flops))
    gathered, scattered = 256 * 64 * 2, 64 * 64 * 4
    assert cost.collectives == {"all-gather": (6, 6 * gathered), "reduce-scatter": (3, 3 * scattered)}
    assert cost.of(hlo_cost.BLOCKING) == pytest.approx(3 * (gathered + scattered) * 3 / 4 / CHIP.links)
    assert cost.of(hlo_cost.OVERLAPPED) == pytest.approx(3 * gathered * 3 / 4 / CHIP.links)
    assert cost.seconds == pytest.approx(cost.of(hlo_cost.INSTRUCTION) + cost.of(hlo_cost.KERNEL) + cost.of(hlo_cost.BLOCKING))


@pytest.mark.parametrize(
    "start, runs",
    [("constant(0)", 3), ("constant(1)", 2), ("copy(%zero)", 3), ("copy(%one), backend_config={}", 2), ("add(%one, %one)", 3)],
)
def test_a_loop_whose_first_run_was_taken_out_of_it_runs_once_less(start, runs):
    """The compiler does so where it moves copies to the host, or sums between slices, from one run into the next."""
    counted = LOOP.replace("pred[] {\n", "pred[] {\n  %i = s32[]{:T(128)} get-tuple-element(%state), index=0\n").replace(
        "  %loop",
        f"  %one = s32[]{{:T(128)}} constant(1), metadata={{}}\n  %zero = s32[]{{:T(128)}} constant(0)\n"
        f"  %start = s32[]{{:T(128)}} {start}\n  %t = (s32[], bf16[64,64]{{1,0}}) tuple(%start, %a)\n  %loop",
    )
    assert hlo_cost.read_cost(counted, CHIP, devices=4).kernels == runs


def test_a_kernel_that_is_not_known_is_refused_and_not_left_out():
    with pytest.raises(NextStepError, match="kernel vmap__.1 of the compiled program"):
        hlo_cost.read_cost(LOOP.replace("splash_mha_fwd.1", "vmap__.1"), CHIP, devices=4)
    backward = hlo_cost.read_cost(LOOP.replace("splash_mha_fwd.1", "splash_mha_dkv_segmented.1"), CHIP, devices=4)
    assert backward.of(hlo_cost.KERNEL) == pytest.approx(2.5 * hlo_cost.read_cost(LOOP, CHIP, devices=4).of(hlo_cost.KERNEL))


@pytest.mark.parametrize(
    "queries, keys, blocks, share",
    [
        (16, 16, (4, 4), 10 / 16),  # a triangle of blocks
        (16, 16, (16, 16), 136 / 256),
        (16, 16, (4, 2), 6 / 8),
        (16, 16, (4, 1), 1.0),
        (8, 16, (2, 4), 7 / 8),  # the second half of the queries
    ],
)
def test_blocks_that_the_attention_kernel_visits(queries, keys, blocks, share):
    assert hlo_cost.visited(queries, keys, *blocks) == share
    seen = np.arange(keys - queries, keys)[:, None] >= np.arange(keys)
    by_block = seen.reshape(blocks[0], queries // blocks[0], blocks[1], keys // blocks[1]).any((1, 3))
    assert by_block.mean() == share


# A stack of block inputs that goes to the host's memory and comes back, as the TPU compiler writes it.
OFFLOAD = """\
ENTRY %main (a: bf16[64,64]) -> bf16[64,64] {
  %stack = bf16[6,64,32]{2,1,0:T(8,128)(2,1)S(5)} custom-call(), custom_call_target="AllocateBuffer"
  %out = ((bf16[6,64,32]{2,1,0:S(5)}, bf16[1,64,32]{2,1,0}, s32[]), bf16[6,64,32]{2,1,0:S(5)}, u32[]{:S(2)}) \
dynamic-update-slice-start(%stack, %x, %i), metadata={op_name="jit(step)/block_in"}
  %done = bf16[6,64,32]{2,1,0:S(5)} dynamic-update-slice-done(%out)
  %back = ((bf16[6,64,32]{2,1,0:S(5)}, s32[]), bf16[1,64,32]{2,1,0}, u32[]{:S(2)}) dynamic-slice-start(%done, %i)
  %near = (bf16[64,64]{1,0:S(1)}, bf16[64,64]{1,0}, u32[]{:S(2)}) copy-start(%a)
}
"""


def test_copies_to_and_from_the_host_go_on_beside_computation():
    cost = hlo_cost.read_cost(OFFLOAD, CHIP, devices=1)
    items = cost.costliest(5)
    assert [(item.kind, item.name) for item in items] == [(hlo_cost.HOST, "out"), (hlo_cost.HOST, "back")]
    assert items[0].source == "jit(step)/block_in"
    assert cost.seconds == pytest.approx(2 * 64 * 32 * 2 / CHIP.host)


# A gather that goes on beside two fusions, as the TPU compiler writes it with the launchers' flags: it is begun in one fusion,
# goes on in another and ends in a third, always under its channel. Another one, of channel 6, blocks.
ASYNC = """\
%fused_computation.1 (p: bf16[64,64]) -> bf16[256,64] {
  %p = bf16[64,64]{1,0} parameter(0)
  %g.1 = bf16[256,64]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}
%async_collective_fusion.2 (p2: bf16[64,64]) -> bf16[256,64] {
  %p2 = bf16[64,64]{1,0} parameter(0)
  %g.2 = bf16[256,64]{1,0} all-gather(%p2), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}
%fused_computation.3 (p3: bf16[64,64]) -> bf16[256,64] {
  %p3 = bf16[64,64]{1,0} parameter(0)
  %g.3 = bf16[256,64]{1,0} all-gather(%p3), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}
%body (state: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %x = bf16[64,64]{1,0} get-tuple-element(%state), index=1
  %begun = bf16[256,64]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.1
  %beside = bf16[256,64]{1,0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.2
  %ended = bf16[256,64]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.3
  %g.4 = bf16[256,64]{1,0} all-gather(%x), channel_id=6, replica_groups=[1,4]<=[4], dimensions={0}
}
%condition (state: (s32[], bf16[64,64])) -> pred[] {
  %limit = s32[] constant(3)
}
ENTRY %main (a: bf16[64,64]) -> bf16[64,64] {
  %first = bf16[256,64]{1,0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.0
  %loop = (s32[], bf16[64,64]{1,0}) while(%t), condition=%condition, body=%body
}
%async_collective_fusion.0 (p0: bf16[64,64]) -> bf16[256,64] {
  %p0 = bf16[64,64]{1,0} parameter(0)
  %g.0 = bf16[256,64]{1,0} all-gather(%p0), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}
"""


def test_a_collective_that_is_written_into_several_fusions_counts_once_a_run():
    cost = hlo_cost.read_cost(ASYNC, CHIP, devices=4)
    gathered = 256 * 64 * 2
    assert cost.collectives == {"all-gather": (7, 7 * gathered)}  # channel 5 in the loop and before it, channel 6 in the loop
    assert cost.of(hlo_cost.OVERLAPPED) == pytest.approx(4 * gathered * 3 / 4 / CHIP.links)
    assert cost.of(hlo_cost.BLOCKING) == pytest.approx(3 * gathered * 3 / 4 / CHIP.links)


def test_a_sum_that_goes_on_beside_several_fusions_crosses_the_links_twice():
    """It is in fusions, as the sums are that the compiler makes of reduce-scatters."""
    gather, total = (
        hlo_cost.read_cost(ASYNC, CHIP, devices=4),
        hlo_cost.read_cost(ASYNC.replace("all-gather", "all-reduce"), CHIP, 4),
    )
    assert list(total.collectives) == ["all-reduce"]
    assert total.of(hlo_cost.OVERLAPPED) == 2 * gather.of(hlo_cost.OVERLAPPED) > 0


@pytest.mark.parametrize("cycles, overlaps", [(10**6, True), (1, False)])
def test_a_collective_on_other_cores_is_hidden_by_as_much_work_as_it_takes(cycles, overlaps):
    """As tpu7x has them. What these cores do beside it has no part in the time, and nothing in it is cycles of this core."""
    work = f'fusion(%a), kind=kLoop, calls=%fused, backend_config={{"estimated_cycles":"{cycles}"}}'
    text = f"""\
%fused (p: bf16[64]) -> bf16[64] {{
  ROOT %p = bf16[64]{{0}} parameter(0)
}}
%copies (r: bf16[256]) -> bf16[256] {{
  ROOT %inner = bf16[256]{{0}} copy(%r), backend_config={{"estimated_cycles":"9223372036854775807"}}
}}
%aside (q: bf16[64]) -> bf16[256] {{
  %q = bf16[64]{{0}} parameter(0)
  %inner = ((bf16[256]{{0}}), bf16[256]{{0}}, u32[]) call-start(%q), async_execution_thread="sparsecore", to_apply=%copies
  ROOT %gather = bf16[256]{{0}} all-gather(%q), channel_id=1, replica_groups=[1,4]<=[4], dimensions={{0}}
}}, execution_thread="sparsecore"
ENTRY %main (a: bf16[64]) -> bf16[64] {{
  %a = bf16[64]{{0}} parameter(0)
  %begun = ((bf16[64]{{0}}), bf16[256]{{0}}) call-start(%a), async_execution_thread="sparsecore", to_apply=%aside
  %work = bf16[64]{{0}} {work}
  %done = bf16[256]{{0}} call-done(%begun)
  %later = bf16[64]{{0}} {work}
}}
"""
    cost = hlo_cost.read_cost(text, CHIP, devices=4)
    wire = 256 * 2 * 3 / 4 / CHIP.links
    assert cost.collectives == {"all-gather": (1, 512)}
    assert cost.of(hlo_cost.INSTRUCTION) == pytest.approx(2 * cycles / CHIP.clock)
    assert cost.of(hlo_cost.OVERLAPPED if overlaps else hlo_cost.BLOCKING) == pytest.approx(wire)
    assert cost.of(hlo_cost.BLOCKING if overlaps else hlo_cost.OVERLAPPED) == 0


def test_flops_of_a_scanned_product_and_its_gradient():
    """XLA's own count sees the body of the scan once."""

    def loss(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, weights)[0].sum()

    weights, x = jnp.ones((5, 32, 32)), jnp.ones((16, 32))
    compiled = jax.jit(jax.grad(loss)).lower(weights, x).compile()
    cost = hlo_cost.read_cost(compiled.as_text(), CHIP, devices=1)
    assert cost.flops == 3 * 5 * 2 * 16 * 32 * 32
    assert not cost.collectives and not cost.kernels


@pytest.mark.parametrize(
    "groups, size",
    [
        ("replica_groups=[16,4]<=[64]", 4),
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=2,'axis_2'=4] {'axis_0','axis_2'}", 64),
        ("replica_groups=mesh['axis_0'=32,'axis_1'=4], device_ids=([4,32]T(1,0)) {'axis_0'}, dimensions={1}", 32),
    ],
)
def test_group_sizes(groups, size):
    assert hlo_cost.group_size(f"%x), channel_id=1, {groups}, use_global_device_ids=true") == size
