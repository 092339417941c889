"""The built-in model, Diffusion-DPO on its own images, judged by ShapeEval's reader.

    for kind in words:900:100 counting:600:100 "attribute binding:600:200" position:110:100; do
      prompts=${kind%:*}
      nextstep-jax data candidates "shapes:$prompts" "runs/shapes_data/candidates/${prompts%:*}" \\
          --reward shapes --seed ${kind##*:}
    done
    nextstep-jax train --config shapes_dpo --workdir runs/shapes_dpo
    python -m benchmarks.post_training before=nextstep_jax/builtin/shapes dpo=runs/shapes_dpo/export --results runs/verdicts

Prompts are training prompts, none of a held-out combination. Expected: candidates in ten minutes on one core, the run in two;
it prefers eight winners in ten, and on held-out prompts words rise by 0.016, counting by 0.01 and attribute binding by 0.023
(docs/post_training.md has intervals, controls and a stronger recipe that costs words). Shrunk: `--config shapes_dpo:laptop`.
"""

from nextstep_jax.configs import shapes_sft
from nextstep_jax.training.config import source
from nextstep_jax.training.laptop import parse_arg


def base():
    config = shapes_sft.continued("preference", "shapes_dpo")

    config.steps = 60
    config.optimizer.learning_rate = 3e-5
    config.optimizer.warmup_steps = 10
    config.loss.beta = 2000.0
    config.loss.winner_weight = 0.1  # next to nothing: at the start the margin weighs the winner's error with beta / 4
    config.loss.draws = 4

    # A pair has some 32 positions: a step has about 28 pairs.
    config.data.root = "runs/shapes_data"
    config.data.seq_len, config.data.batch_size = 256, 4
    config.data.sources.candidates = source("candidates")
    config.max_target_fraction.image = 0.6
    config.checkpoint.every, config.log_every = 50, 5
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
