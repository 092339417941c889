"""NextStep-1 14B, pre-training stage 2: images of 256x256 to 512x512 pixels in aspect-ratio buckets (paper Table 1).

    nextstep-jax train --config nextstep_14b_stage2 --workdir DIR --config.init.checkpoint=STAGE1/export \
        --config.data.root=DATA

DATA as in stage 1, but encoded twice, with `--area 256` and `--area 512`: pairs and interleaved are folders that hold both
datasets, e.g. pairs/256 and pairs/512, and so one source each.

Expected: 100K steps, 0.61T tokens. On a laptop: `--config nextstep_14b_stage2:laptop`.
"""

from nextstep_jax.configs import nextstep_14b_stage1
from nextstep_jax.training.laptop import parse_arg


def base():
    config = nextstep_14b_stage1.base()
    config.name = "nextstep_14b_stage2"
    config.init.reinit = ()
    config.steps = 100_000
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 5_000
    config.model.latent_size = 64
    config.max_target_fraction.update({"text": 1.0, "image": 1.0})  # a row of large images is nearly all image
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
