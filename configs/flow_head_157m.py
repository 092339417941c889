"""Flow-head ablation: a stage-1 model whose flow head starts over, with 12 x 1536, 157M parameters (paper Tables 6 and 7).

    nextstep-jax train --config flow_head_157m --workdir DIR --config.init.checkpoint=STAGE1/export --config.data.root=DATA

The head alone is randomly initialized and 10K steps are trained; data and loss are those of stage 1. The paper does not give
the learning rate (stage 1's here, after a warm-up of 500 steps), nor whether the rest is trained, too (here it is;
--config.optimizer.frozen="('decoder','embedding','lm_head','projector')" trains the head alone).

Expected: the head's size hardly matters; the paper measures GenEval 0.55 / 0.55 / 0.56 for 40M / 157M / 528M, here 0.55. On a
laptop: `--config flow_head_157m:laptop`.
"""

from nextstep_jax.configs import nextstep_14b_stage1
from nextstep_jax.training.laptop import parse_arg


def base():
    """The ablation with the release's head, for the other sizes."""
    config = nextstep_14b_stage1.base()
    config.name = "flow_head_157m"
    config.init.reinit = (r"^model/flow_head/",)
    config.model.flow_head.update({"layers": 12, "width": 1536})
    config.steps = 10_000
    config.optimizer.warmup_steps = 500
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
