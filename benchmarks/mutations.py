"""Do the tests see? Breaks the code on purpose, one place at a time, and runs the tests that have to notice.

    python -m benchmarks.mutations [--json FILE] [--only WORD] [--processes 1]

Each mutation is a line of MUTATIONS: a file, what stands there, what is put in its place, and the tests that must fail then. It
is applied to a copy of the working tree, never to the tree itself. A mutation whose text is no longer there, or is there twice,
is an error: the list follows the code. With --json, what is done already is not done again.

Prints one line a mutation and the share that was caught. Exit codes: 0 all were caught, 1 some survived, 2 a line that does not
apply.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "nextstep_jax"
TIMEOUT = 900  # seconds; what does not end is caught, too


class Mutation(NamedTuple):
    """A place below nextstep_jax/, its text, the text in its place, and the tests (below tests/) that must fail."""

    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    # --- data in buckets, signs of life -------------------------------------------------------------------------------
    Mutation("data/partial_copy.py", "self._fetch(start, stop)", "self._fetch(start, stop - 1)", "data/test_shard_files.py"),
    Mutation("data/partial_copy.py", "if any(os.pread(", "if not any(os.pread(", "data/test_shard_files.py"),
    Mutation("data/shard_files.py", "return self._run >= _SERIES", "return False", "data/test_shard_files.py"),
    Mutation("data/shard_files.py", "room = min(most, ", "room = max(most, ", "data/test_shard_files.py"),
    Mutation("data/shard_files.py", "if not total or", "if", "data/test_shard_files.py"),
    Mutation("objectives/cross_entropy.py", "vocab % (n * _LANES)", "vocab % n", "objectives/test_cross_entropy.py"),
    Mutation(
        "storage/objects.py",
        "for first, last in itertools.pairwise(ends)",
        "for first, last in [ends[:2]]",
        "storage/test_objects.py",
    ),
    Mutation("training/webhook.py", "if self._was_finite and not good", "if not good", "training/test_webhook.py"),
    Mutation("checkpoints/training.py", "self._lock.step = step", "pass", "checkpoints/test_training.py"),
    # --- flow ---------------------------------------------------------------------------------------------------------
    Mutation("flow/paths.py", "return t * x + (1 - t) * noise", "return (1 - t) * x + t * noise", "flow/test_paths.py"),
    Mutation("flow/paths.py", "return x - noise", "return noise - x", "flow/test_paths.py"),
    Mutation(
        "flow/paths.py",
        'normal = self.distribution == "logit_normal"',
        "normal = False",
        "flow/test_paths.py training/test_multitask.py",
    ),
    Mutation(
        "flow/paths.py", "return t / (shift - (shift - 1) * t)", "return t / (shift + (shift - 1) * t)", "flow/test_paths.py"
    ),
    Mutation("flow/guidance.py", "guided = unconditional + cfg * (", "guided = conditional + cfg * (", "flow/test_guidance.py"),
    Mutation("flow/guidance.py", "return jnp.maximum(cfg / 2, 1", "return jnp.maximum(0, 1", "flow/test_guidance.py"),
    Mutation("flow/guidance.py", "jnp.minimum(ratio, 1)", "ratio", "flow/test_guidance.py"),
    Mutation("flow/samplers.py", "np.sqrt(2 * (1 - t) * dt)", "np.sqrt((1 - t) * dt)", "flow/test_samplers.py"),
    Mutation(
        "flow/samplers.py",
        "r = np.append(0, dt[1:] / dt[:-1]) / 2",
        "r = np.append(0, dt[1:] / dt[:-1])",
        "flow/test_samplers.py",
    ),
    Mutation("flow/samplers.py", "(1 - s) * np.sin(angle)", "(1 - t) * np.sin(angle)", "flow/test_samplers.py"),
    Mutation(
        "flow/samplers.py",
        "corrector = np.stack([1 + 0 * t, dt / 2, -dt / 2",
        "corrector = np.stack([1 + 0 * t, dt, -dt",
        "flow/test_samplers.py",
    ),
    Mutation(
        "flow/likelihood.py",
        "- 0.5 * jnp.sum(jnp.square(change), axis=-1)",
        "- jnp.sum(jnp.square(change), axis=-1)",
        "flow/test_likelihood.py",
    ),
    Mutation("flow/likelihood.py", "(table[:, 2] == 0) & (table[:, 3] > 0)", "table[:, 3] >= 0", "flow/test_likelihood.py"),
    Mutation(
        "flow/guidance.py",
        "(times < np.float32(end))",
        "(times <= np.float32(end))",
        "generation/test_token_loop.py",
    ),
    Mutation(
        "generation/token_loop.py",
        "counts = np.where(inside, self.branches, 1)",
        "counts = np.where(inside, self.branches, self.branches)",
        "generation/test_token_loop.py",
    ),
    # --- models -------------------------------------------------------------------------------------------------------
    Mutation(
        "models/layers.py",
        "    y = x.astype(jnp.float32)\n    y = y * jax.lax.rsqrt(",
        "    y = x.astype(jnp.bfloat16)\n    y = y * jax.lax.rsqrt(",
        "models/test_layers.py",
    ),
    Mutation(
        "models/attention.py",
        'scores = jnp.einsum("BSKGH,BTKH->BKGST", grouped, k, preferred_element_type=jnp.float32) * h**-0.5',
        'scores = jnp.einsum("BSKGH,BTKH->BKGST", grouped, k) * h**-0.5',
        "models/test_attention.py",
    ),
    Mutation(
        "models/layers.py",
        "first * cos - second * sin, second * cos + first * sin",
        "first * cos + second * sin, second * cos - first * sin",
        "models/test_layers.py models/test_transformer.py",
    ),
    Mutation(
        "models/layers.py",
        "    y = y - _statistic(y)\n",
        "",
        "models/test_layers.py models/test_flow_head.py generation/test_token_loop.py",
    ),
    Mutation(
        "models/nextstep.py",
        "columns, rows = np.tile(line, (grid, 1)), np.repeat(line, grid, axis=0)",
        "rows, columns = np.tile(line, (grid, 1)), np.repeat(line, grid, axis=0)",
        "models conversion/test_parity_parts.py conversion/test_parity.py",
    ),
    Mutation(
        "models/param_layouts.py", 'for name in ("q", "k", "v")]', 'for name in ("k", "q", "v")]', "models/test_transformer.py"
    ),
    Mutation("models/layers.py", "-np.eye(half), np.eye(half)", "np.eye(half), -np.eye(half)", "models/test_layers.py"),
    Mutation("models/layers.py", "gradient, table[0], -table[1]", "gradient, table[0], table[1]", "models/test_layers.py"),
    Mutation("models/layers.py", "constant_values=1)", "constant_values=0)", "models/test_layers.py"),
    Mutation("models/layers.py", "bias.ndim == kernel.ndim - 1 and not scaled", "not scaled", "models/test_layers.py"),
    Mutation("models/layers.py", "kernel.ndim - 1 and not scaled and", "kernel.ndim - 1 and", "models/test_layers.py"),
    Mutation("models/transformer.py", "    on_device.append(NORM_STATISTICS)\n", "", "models/test_layers.py"),
    Mutation("models/transformer.py", "(ATTENTION_OUT, NORM_STATISTICS)", "(ATTENTION_OUT)", "models/test_layers.py"),
    Mutation("training/hlo_cost.py", "(start and _constant(start)) or 0.0", "0.0", "training/test_hlo_cost.py"),
    Mutation("models/attention.py", 'e.params["axes"] == (0,)', "False", "models/test_attention.py"),
    Mutation("sharding/rules.py", " and axis not in taken", "", "sharding/test_params.py"),
    Mutation("training/online.py", 'axis not in (None, "fsdp")', "axis is not None", "training/test_aot.py"),
    Mutation("training/hlo_cost.py", "// query_blocks + keys - queries", "// query_blocks", "training/test_hlo_cost.py"),
    Mutation("training/hlo_cost.py", "return min((bytes_of(part)", "return max((bytes_of(part)", "training/test_hlo_cost.py"),
    Mutation("models/param_layouts.py", "jnp.round(values / scale)", "jnp.floor(values / scale)", "models/test_layers.py"),
    # --- objectives ---------------------------------------------------------------------------------------------------
    Mutation(
        "objectives/multitask.py",
        "noise = constrain(jax.random.normal(noise_key, (*shape, channels))",
        "noise = constrain(jnp.broadcast_to(jax.random.normal(noise_key, (rows, slots, 1, channels)), (*shape, channels))",
        "objectives/test_multitask.py",
    ),
    Mutation(
        "objectives/multitask.py",
        "noise_key, time_key = jax.random.split(key)",
        "noise_key = time_key = key",
        "objectives/test_multitask.py",
    ),
    Mutation(
        "objectives/multitask.py",
        "return _next(batch.text_weight) * inside,",
        "return _next(batch.text_weight),",
        "objectives/test_multitask.py",
    ),
    Mutation("objectives/multitask.py", "return jnp.roll(x, -1, axis=1)", "return x", "objectives/test_multitask.py"),
    Mutation(
        "objectives/multitask.py",
        "loss = text_scale * lm_loss + image_scale * im_loss",
        "loss = lm_loss + image_scale * im_loss",
        "objectives/test_multitask.py",
    ),
    Mutation("objectives/preference.py", "margin = -0.5 * beta", "margin = -beta", "objectives/test_preference.py"),
    Mutation(
        "objectives/preference.py", "    reference = jax.lax.stop_gradient(reference)\n", "", "objectives/test_preference.py"
    ),
    Mutation(
        "objectives/preference.py",
        "return PairErrors(images[0::2], images[1::2], texts",
        "return PairErrors(images[1::2], images[0::2], texts",
        "objectives/test_preference.py",
    ),
    Mutation(
        "objectives/preference.py",
        "texts[0::2], texts[1::2])",
        "texts[1::2], texts[0::2])",
        "objectives/test_preference.py",
    ),
    Mutation(
        "data/sequence.py",
        "channels, area_targets=False) for parts",
        "channels) for parts",
        "data/test_sequence.py",
    ),
    Mutation("objectives/policy_gradient.py", "rest * field - x", "field - x", "objectives/test_policy_gradient.py"),
    Mutation(
        "objectives/policy_gradient.py",
        "return -jnp.minimum(ratio * advantage",
        "return -jnp.maximum(ratio * advantage",
        "objectives/test_policy_gradient.py",
    ),
    Mutation(
        "objectives/policy_gradient.py",
        "(1 + beta) * old_velocity - beta * velocity",
        "(1 - beta) * old_velocity + beta * velocity",
        "objectives/test_policy_gradient.py",
    ),
    Mutation(
        "objectives/policy_gradient.py",
        "return jnp.clip(0.5 + advantage",
        "return jnp.clip(0.5 - advantage",
        "objectives/test_policy_gradient.py",
    ),
    Mutation(
        "objectives/policy_gradient.py",
        "valid & (spread > 0) & (spread",
        "valid & (spread",
        "objectives/test_policy_gradient.py",
    ),
    Mutation(
        "objectives/policy_gradient.py",
        "<= max_mean)",
        "<= 2 * max_mean)",
        "objectives/test_policy_gradient.py",
    ),
    Mutation(
        "objectives/policy_gradient.py",
        '"cps": 2 * one * step.d * step.d',
        '"cps": 2 * one * step.d',
        "objectives/test_policy_gradient.py",
    ),
    Mutation(
        "objectives/policy_gradient.py",
        "places = lengths[:, None] - 1 +",
        "places = lengths[:, None] +",
        "generation/test_rollouts.py",
    ),
    Mutation(
        "objectives/reconstruction.py",
        "return 0.5 * (jnp.square(posterior.mean)",
        "return (jnp.square(posterior.mean)",
        "objectives/test_reconstruction.py",
    ),
    Mutation(
        "objectives/reconstruction.py",
        "alpha_key, (count,), maxval=config.perturbation",
        "alpha_key, (count,), maxval=1.0",
        "objectives/test_reconstruction.py",
    ),
    # --- training -----------------------------------------------------------------------------------------------------
    Mutation(
        "training/optimizer.py",
        "cosine_decay_schedule(peak, steps - warmup_steps,",
        "cosine_decay_schedule(peak, steps,",
        "training/test_optimizer.py",
    ),
    Mutation(
        "training/optimizer.py",
        "optax.linear_schedule(peak / max(warmup_steps, 1),",
        "optax.linear_schedule(0.0,",
        "training/test_optimizer.py",
    ),
    Mutation("training/optimizer.py", "if m and not t else f", "if m else f", "training/test_optimizer.py"),
    Mutation(
        "training/step.py",
        "key = jax.random.fold_in(key, state.step)",
        "key = jax.random.fold_in(key, 0)",
        "training/test_step.py training/test_loop.py",
    ),
    Mutation(
        "training/step.py",
        "params=merge(keep(updated, trainable), rest)",
        "params=merge(updated, rest)",
        "training/test_step.py",
    ),
    Mutation(
        "training/step.py",
        "skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1)",
        "skipped_in_a_row=jnp.where(finite, 0, 1)",
        "training/test_step.py",
    ),
    Mutation(
        "training/step.py",
        "rows, jax.random.fold_in(key, index))",
        "rows, key)",
        "training/test_step.py training/test_multitask.py",
    ),
    Mutation(
        "training/preference.py",
        "key = jax.random.fold_in(jax.random.fold_in(key, _DRAW_FOLD), step)",
        "key = jax.random.fold_in(key, _DRAW_FOLD)",
        "training/test_preference.py",
    ),
    Mutation(
        "training/preference.py",
        "winners, limits = without_text(batch.winners, config.image_area_id), ",
        "winners, limits = batch.winners, ",
        "training/test_preference.py::test_the_unconditional_error_is_that_of_images_without_their_text",
    ),
    Mutation(
        "training/preference.py",
        "errors[step], ahead)",
        "errors[0], ahead)",
        "training/test_preference.py::test_a_run_that_was_stopped_continues_bit_for_bit",
    ),
    Mutation(
        "data/shapes/newcomer.py",
        'if held & _HELD_OUT[category] if split == "heldout" else not held:',
        "if True:",
        "data/test_shapes.py::test_prompts_of_newcomers_are_what_they_are_called_and_held_out",
    ),
    Mutation(
        "data/shapes/newcomer.py",
        "[second] * b, rng",
        "[second], rng",
        "data/test_shapes.py::test_prompts_of_newcomers_are_what_they_are_called_and_held_out",
    ),
    Mutation("training/init.py", "        if is_reinit(path):\n            continue\n", "", "training/test_init.py"),
    Mutation(
        "training/metrics.py", "self._bad = [] if good else", "self._bad = self._bad if good else", "training/test_metrics.py"
    ),
    # --- data ---------------------------------------------------------------------------------------------------------
    Mutation(
        "data/packing.py",
        "row = max(fitting, key=self.used.__getitem__)",
        "row = min(fitting, key=self.used.__getitem__)",
        "data/test_packing.py",
    ),
    Mutation("data/packing.py", "    text_weight[positions == 0] = 0\n", "", "data/test_packing.py"),
    Mutation(
        "data/packing.py",
        "segment_ids[b, start:stop] = number if separated else 1",
        "segment_ids[b, start:stop] = 1",
        "data/test_packing.py",
    ),
    Mutation(
        "data/sequence.py",
        "[area] * (len(prefix) - 1) + [0.0] * (1 + count)",
        "[area] * len(prefix) + [0.0] * count",
        "data/test_sequence.py",
    ),
    Mutation(
        "data/sequence.py", "isinstance(last, TextIds) and last.loss", "isinstance(last, TextIds)", "data/test_sequence.py"
    ),
    Mutation("data/sequence.py", "transpose(0, 2, 4, 1, 3)", "transpose(0, 2, 1, 3, 4)", "data/test_sequence.py"),
    Mutation(
        "data/augment.py",
        "return winner, draw.choice([i for i in order[best:] if scores[i] < scores[winner]])",
        "return winner, draw.choice(order[best:])",
        "data/test_augment.py",
    ),
    Mutation("data/augment.py", "winner, loser = loser, winner", "pass", "data/test_augment.py"),
    Mutation("data/augment.py", "< augmentation.caption_dropout:", "> augmentation.caption_dropout:", "data/test_augment.py"),
    Mutation(
        "data/streams.py",
        "[config.data_shard :: config.data_shards]",
        "[:: config.data_shards]",
        "data/test_mixture.py data/test_data_shards.py",
    ),
    Mutation("data/images.py", "/ 127.5 - 1", "/ 128 - 1", "data/test_images.py data/test_pixels.py"),
    # --- curation -----------------------------------------------------------------------------------------------------
    Mutation(
        "data/curation/duplicates.py",
        "np.bitwise_count(values[i] ^ values[j]) <= max_distance",
        "np.bitwise_count(values[i] ^ values[j]) < max_distance",
        "data/curation/test_duplicates.py",
    ),
    Mutation(
        "data/curation/duplicates.py",
        "key=lambda item: (-scores[item], item)",
        "key=lambda item: (scores[item], item)",
        "data/curation/test_duplicates.py",
    ),
    Mutation(
        "data/curation/image_signals.py",
        "for view in (*views, *(view[:, ::-1] for view in views))",
        "for view in (*views, *views)",
        "data/curation/test_image_signals.py",
    ),
    Mutation("data/curation/job.py", "    if is_duplicate:\n", "    if False:\n", "data/curation/test_job.py"),
    Mutation("data/curation/job.py", "if not reasons[index]", "if True", "data/curation/test_job.py"),
    Mutation(
        "data/curation/scores.py",
        'not isinstance(value, dict) or value.get("digest") != digest',
        "not isinstance(value, dict)",
        "data/curation/test_job.py",
    ),
    Mutation(
        "data/curation/stages.py",
        "[[path.name, _file_digest(path, files.fingerprint(path))] for path in paths]",
        "[path.name for path in paths]",
        "data/curation/test_embeddings.py",
    ),
    Mutation("data/curation/faces.py", "if cosine >= min_cosine and number", "if number", "data/curation/test_characters.py"),
    Mutation(
        "data/curation/faces.py",
        " and person not in matched.values()",
        "",
        "data/curation/test_characters.py",
    ),
    Mutation(
        "data/curation/model_signals.py",
        "if match and float(match[1]) <= 10 else None",
        "if match else None",
        "data/curation/test_transforms.py",
    ),
    Mutation(
        "data/curation/sequences.py",
        "if near or luma.std() < self.min_contrast:",
        "if near:",
        "data/curation/test_sequences.py",
    ),
    Mutation(
        "data/curation/annotators.py",
        "points[number] = (int(x), int(y))",
        "points[number] = (int(y), int(x))",
        "data/curation/test_annotators.py",
    ),
    Mutation(
        "data/curation/annotators.py",
        "if heat[row, column] >= _MIN_CONFIDENCE:",
        "if True:",
        "data/curation/test_annotators.py",
    ),
    Mutation(
        "data/curation/annotators.py",
        "np.rint((near - low) * (255 / (high - low)))",
        "np.rint((high - near) * (255 / (high - low)))",
        "data/curation/test_annotators.py",
    ),
    Mutation(
        "data/curation/controls.py",
        'source, target = (control, pixels) if direction == "generate"',
        'source, target = (control, pixels) if direction != "generate"',
        "data/curation/test_transforms.py",
    ),
    Mutation(
        "data/curation/text_signals.py",
        "repeated += len(line) if line in seen else 0",
        "repeated += len(line) if seen else 0",
        "data/curation/test_text_signals.py",
    ),
    Mutation(
        "data/curation/questions.py",
        "if found.text is not None and path is not None:",
        "if path is not None:",
        "data/curation/test_questions.py",
    ),
    Mutation(
        "data/curation/watermarks.py",
        "worst_of_images(measure, high_is_worse=True)",
        "worst_of_images(measure, high_is_worse=False)",
        "data/curation/test_watermarks.py",
    ),
    Mutation(
        "data/curation/watermarks.py",
        "max(_SIDE, n * scale)",
        "max(_SIDE, n * scale / 4)",
        "benchmarks/test_watermarks.py",
    ),
    Mutation("data/curation/report.py", "max(edges[-1], threshold)", "edges[-1]", "data/curation/test_job.py"),
    Mutation(
        "data/curation/overlays.py",
        "mixed = pixels * (1 - opaque[..., None]) + color",
        "mixed = pixels + color",
        "data/curation/test_overlays.py",
    ),
    Mutation("objectives/few_step.py", "(first + second) / 2))", "second))", "objectives/test_few_step.py"),
    Mutation("objectives/few_step.py", "1.5 * now.guided - 0.5 * before", "now.guided", "objectives/test_few_step.py"),
    Mutation("models/flow_head.py", "share = (1 - 1 / guid", "share = (1 + 0 / guid", "models/test_flow_head.py"),
    Mutation("generation/token_loop.py", "guided + durations[i] *", "guided +", "generation/test_token_loop.py"),
    Mutation(
        "training/few_step.py",
        "found.reshape(tokens, -1, draws, x.shape[-1])",
        "found.reshape(-1, tokens, draws, x.shape[-1])",
        "training/test_few_step.py",
    ),
    Mutation(
        "training/few_step.py",
        "positions=place - first",
        "positions=place",
        "training/test_few_step.py",
    ),
    # --- generation ---------------------------------------------------------------------------------------------------
    Mutation(
        "generation/token_loop.py",
        "return cache, valid, positions[:, -1], x[:, -1]",
        "return cache, valid, positions[:, -1] + 1, x[:, -1]",
        "generation/test_token_loop.py",
    ),
    Mutation(
        "generation/token_loop.py",
        "valid = jnp.arange(slots) >= padding[:, None]",
        "valid = jnp.arange(slots) >= 0 * padding[:, None]",
        "generation/test_token_loop.py",
    ),
    Mutation(
        "generation/token_loop.py",
        "return jnp.moveaxis(each, 0, 2)",
        "return jnp.moveaxis(each[:1].repeat(each.shape[0], 0), 0, 2)",
        "generation/test_token_loop.py generation/test_pipeline.py",
    ),
    Mutation(
        "generation/jacobi.py",
        "jnp.cumprod(settled[:, :-1], axis=1, dtype=jnp.int32)",
        "settled[:, :-1].astype(jnp.int32)",
        "generation/test_jacobi.py",
    ),
    Mutation(
        "generation/jacobi.py",
        "cache=cache._replace(index=now.cache.index + moved)",
        "cache=cache",
        "generation/test_jacobi.py",
    ),
    Mutation(
        "generation/text.py",
        "return jnp.where(temperature > 0, drawn, greedy)",
        "return jnp.where(temperature > 0, greedy, drawn)",
        "generation/test_text.py",
    ),
    Mutation("generation/text.py", "kept = jnp.sum(mass < top_p,", "kept = jnp.sum(mass < 1.0,", "generation/test_text.py"),
    Mutation("seeds.py", "return jax.random.fold_in(key, high) if high else key", "return key", "test_seeds.py"),
    # --- conversion and checkpoints -----------------------------------------------------------------------------------
    Mutation(
        "conversion/names.py",
        'return einops.rearrange(array, f"{right} -> {left}"',
        'return einops.rearrange(array, f"{left} -> {right}"',
        "conversion/test_names.py conversion/test_to_torch.py",
    ),
    Mutation("checkpoints/digests.py", "x = words ^ position", "x = words + 0 * position", "checkpoints/test_digests.py"),
    Mutation(
        "checkpoints/manifest.py",
        "if found != dict(expected):",
        "if False:",
        "checkpoints/test_damage.py checkpoints/test_params.py",
    ),
    Mutation(
        "checkpoints/manifest.py",
        "if not found or tail != digest + _END.encode():",
        "if not found:",
        "checkpoints/test_damage.py checkpoints/test_params.py",
    ),
    Mutation(
        "checkpoints/lock.py", "if self._last_touch() != first:", "if self._last_touch() == first:", "checkpoints/test_lock.py"
    ),
    # --- online stages ------------------------------------------------------------------------------------------------
    Mutation(
        "generation/rollouts.py",
        "    key = jax.random.fold_in(key, step)\n\n    def of_prompt",
        "\n    def of_prompt",
        "generation/test_rollouts.py",
    ),
    Mutation(
        "generation/rollouts.py",
        "quiet.at[trained].set(fresh)",
        "quiet",
        "generation/test_rollouts.py",
    ),
    Mutation(
        "training/online.py",
        "policy = state.averaged_params if isinstance(config.loss, NftLossConfig) else state.params",
        "policy = state.averaged_params",
        "training/test_online.py::test_grpo_draws_with_the_parameters_and_not_with_their_average",
    ),
    Mutation(
        "training/online.py",
        "weight=jnp.repeat(kept.astype(jnp.float32), images)",
        "weight=jnp.tile(kept.astype(jnp.float32), images)",
        "training/test_online.py::test_each_image_keeps_its_groups_advantage_weight_and_prompt",
    ),
    Mutation(
        "training/online.py",
        "advantage, kept = advantage[first], kept[first]",
        "advantage, kept = advantage[:groups], kept[first]",
        "training/test_online.py::test_each_image_keeps_its_groups_advantage_weight_and_prompt",
    ),
    Mutation(
        "training/online.py",
        "losses + settings.kl_weight * distance",
        "losses",
        "training/test_online.py::test_grpo_begins_on_policy_and_reports_what_it_saw",
    ),
    Mutation(
        "training/evals.py",
        "-step), default=None)",
        "step), default=None)",
        "training/test_evals.py",
    ),
    Mutation(
        "checkpoints/training.py",
        " - periodic - {self.pinned}",
        " - periodic",
        "training/test_evals.py",
    ),
    Mutation(
        "training/loop.py",
        "watch.best if watch and watch.best else reached",
        "reached",
        "training/test_evals.py",
    ),
    # --- rewards ------------------------------------------------------------------------------------------------------
    Mutation(
        "rewards/combine.py",
        "valid &= np.isfinite(values).all(axis=1)",
        "valid &= np.isfinite(values).any(axis=1)",
        "rewards/test_combine.py",
    ),
    Mutation("rewards/cache.py", "digest.update(image.tobytes())", "digest.update(b'')", "rewards/test_cache.py"),
    Mutation("rewards/endpoint.py", "if time.monotonic() > end:", "if False:", "rewards/test_endpoint.py"),
    Mutation("rewards/endpoint.py", "if len(reply) > MAX_REPLY:", "if False:", "rewards/test_endpoint.py"),
    Mutation("rewards/endpoint.py", '"allow_redirects": False', '"allow_redirects": True', "rewards/test_endpoint.py"),
    Mutation("chat.py", "self.spent >= self.limit", "self.spent > self.limit", "test_chat.py"),
    Mutation("chat.py", "error.status_code in (408, 409, 429)", "error.status_code in (408, 409)", "test_chat.py"),
    Mutation(
        "evaluation/suites/results.py",
        "results[result.key] = result",
        "results.setdefault(result.key, result)",
        "evaluation/suites/test_results.py",
    ),
    Mutation(
        "evaluation/suites/dpg.py",
        "if any(after.get(parent) == 0",
        "if any(answers.get(parent) == 0",
        "evaluation/suites/test_dpg.py",
    ),
    Mutation(
        "evaluation/suites/oneig.py",
        "(1 - right) * (1 - words) / most",
        "(1 - words) / most",
        "evaluation/suites/test_oneig.py",
    ),
    Mutation("evaluation/suites/gedit.py", "[float(min(numbers))]", "[float(max(numbers))]", "evaluation/suites/test_edits.py"),
    Mutation("evaluation/suites/wise.py", '"time": (567, 0.167)', '"time": (567, 0.133)', "evaluation/suites/test_wise.py"),
    Mutation(
        "evaluation/suites/genai.py",
        'probability if word == "yes" else 1 - probability',
        "probability",
        "evaluation/suites/test_genai.py",
    ),
    Mutation("seeds.py", 'blake2b(f"{seed}/{id}".encode()', 'blake2b(f"{seed}".encode()', "evaluation/test_responses.py"),
    Mutation(
        "evaluation/suites/judging.py",
        "result.score is None and result.raw is None",
        "result.score is None",
        "evaluation/suites/test_judging.py",
    ),
    Mutation(
        "evaluation/suites/judging.py",
        "result.prompt_sha256, result.image_sha256)",
        "result.prompt_sha256, job.image_sha256)",
        "evaluation/suites/test_judging.py",
    ),
    # --- serving and notebooks ----------------------------------------------------------------------------------------
    Mutation(
        "serve/worker.py",
        "if _batch_key(job) == key and rows + _rows(job) <= MAX_BATCH:",
        "if rows + _rows(job) <= MAX_BATCH:",
        "serve/test_app.py",
    ),
    Mutation("serve/worker.py", "images[n * i : n * i + n]", "images[n * i : n * i + n][::-1]", "serve/test_app.py"),
    Mutation("serve/worker.py", "tokens[self.first : done]", "tokens[:done]", "serve/test_app.py"),
    Mutation("serve/worker.py", "now < self._next and done < total and", "now < self._next and", "serve/test_app.py"),
    Mutation("serve/kept.py", "< self._clock()", "> self._clock()", "serve/test_app.py"),
    Mutation("serve/kept.py", "len(self._images) > KEPT_IMAGES", "len(self._images) > 99", "serve/test_app.py"),
    Mutation("generation/word_attention.py", "length - count - 2", "length - count - 1", "generation/test_word_attention.py"),
    Mutation(
        "generation/word_attention.py", "of_row[:, ids].sum(1)", "of_row[:, ids].mean(1)", "generation/test_word_attention.py"
    ),
    Mutation(
        "generation/word_attention.py", "relative - relative.mean(axis=0)", "relative", "generation/test_word_attention.py"
    ),
    Mutation("models/attention.py", ".mean((1, 2))[:, 0]", ".max((1, 2))[:, 0]", "generation/test_word_attention.py"),
    Mutation(
        "models/transformer.py", "return jnp.stack(found).mean(0)", "return found[-1]", "generation/test_word_attention.py"
    ),
    Mutation("notebook.py", "done * self._previews >= total * (self._shown + 1)", "True", "test_notebook.py"),
    Mutation("notebook.py", "<figcaption>{html.escape(caption)}", "<figcaption>{caption}", "test_notebook.py"),
]


def problems() -> list[str]:
    """The mutations that do not apply to the code as it is."""
    found = []
    for mutation in MUTATIONS:
        count = (ROOT / PACKAGE / mutation.file).read_text(encoding="utf-8").count(mutation.old)
        if count != 1:
            found.append(f"{mutation.file}: {mutation.old!r} is there {count} times")
        found += [
            f"no tests/{test}" for test in mutation.tests.split() if not (ROOT / "tests" / test.partition("::")[0]).exists()
        ]
    return found


def copy_tree(target: pathlib.Path) -> None:
    """The working tree but for environments, caches and what was built."""
    built = (".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist", "site")
    left_out = shutil.ignore_patterns(".git", "runs", *built)
    shutil.copytree(ROOT, target, symlinks=True, ignore=left_out, dirs_exist_ok=True)


def is_caught(mutation: Mutation, tree: pathlib.Path) -> bool:
    """Whether a test fails in `tree`, which is as before afterwards."""
    path = tree / PACKAGE / mutation.file
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace(mutation.old, mutation.new), encoding="utf-8")
    tests = [f"tests/{test}" for test in mutation.tests.split()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=TIMEOUT)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{mutation.file}: pytest ended with {done.returncode}\n{done.stdout.decode()[-2000:]}")
        return done.returncode == 1
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(before, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="File with the results; what it holds is not done again.")
    parser.add_argument("--only", default="", help="Mutations with this in their file or text.")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if wrong := problems():
        print("\n".join(wrong), file=sys.stderr)
        return 2
    known: dict[str, bool] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    chosen = {f"{m.file}: {m.old!r} -> {m.new!r}": m for m in MUTATIONS if options.only in f"{m.file} {m.old} {m.new}"}
    with tempfile.TemporaryDirectory() as folder:
        trees: queue.Queue[pathlib.Path] = queue.Queue()
        for number in range(options.processes):
            copy_tree(pathlib.Path(folder) / str(number))
            trees.put(pathlib.Path(folder) / str(number))

        def run(name: str) -> tuple[str, bool, float]:
            tree, start = trees.get(), time.perf_counter()
            try:
                return name, is_caught(chosen[name], tree), time.perf_counter() - start
            finally:
                trees.put(tree)

        with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
            for name, caught, seconds in pool.map(run, [name for name in chosen if name not in known]):
                known[name] = caught
                print(f"{'caught  ' if caught else 'SURVIVED'} {seconds:5.0f} s  {name}", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(known, indent=1) + "\n")
    caught = sum(known[name] for name in chosen)
    print(f"{caught} of {len(chosen)} mutations caught ({caught / len(chosen):.1%})")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
