"""The built-in model's flow head, distilled to one to four evaluations a token (paper section 7.2).

    nextstep-jax data build shapes:pair:train:12000 runs/shapes_data/pixels/pair
    nextstep-jax data encode runs/shapes_data/pixels/pair runs/shapes_data/pair \
        --checkpoint nextstep_jax/builtin/shapes --area 64 --batch 64
    nextstep-jax train --config shapes_distill --workdir runs/shapes_distill
    nextstep-jax evaluate shapes --sampler map --steps 2 --checkpoint runs/shapes_distill/export

The controls: `--config.loss.method=lagrangian` and `--config.loss.method=shortcut`.
Expected: a loss of 0.060 at first, 0.014 after 150 steps and 0.007 at the end; docs/speed.md has what one, two and four
evaluations draw right.
Shrunk: `--config shapes_distill:laptop --config.init.checkpoint=CHECKPOINT`; an untrained teacher's velocities are zero.
"""

from nextstep_jax.configs import shapes_sft
from nextstep_jax.training.config import source
from nextstep_jax.training.laptop import parse_arg


def base():
    config = shapes_sft.continued("few_step", "shapes_distill")
    config.model.map_head = True
    config.init.reinit = (r"^model/map_head/",)

    config.steps = 5_000
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.ema_decay = 0.99

    config.data.root = "runs/shapes_data"
    config.data.seq_len, config.data.batch_size = 160, 2
    config.loss.draws = 2
    config.loss.min_guidance, config.loss.max_guidance = 2.0, 4.0  # the model draws with 3
    config.max_target_fraction.image = 0.5
    config.data.sources.pairs = source("pair", image_first=0.0)
    config.checkpoint.every, config.log_every = 250, 50
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
