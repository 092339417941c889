"""Flow-head ablation: stage 1 with a head of 6 x 1024, 40M parameters (paper Tables 6 and 7).

    nextstep-jax train --config flow_head_40m --workdir DIR --config.init.checkpoint=QWEN
    --config.data.root=DATA

Everything else as in nextstep_14b_stage1.py. Expected: the head's size hardly matters; the paper measures GenEval 0.55 / 0.55 /
0.56 for 40M / 157M / 528M, here 0.55. On a laptop: `--config flow_head_40m:laptop`.
"""

from nextstep_jax.configs import nextstep_14b_stage1
from nextstep_jax.training.laptop import parse_arg


def base():
    config = nextstep_14b_stage1.base()
    config.name = "flow_head_40m"
    config.model.flow_head.update({"layers": 6, "width": 1024})
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
