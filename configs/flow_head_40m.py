"""Flow-head ablation: a stage-1 model whose flow head starts over, with 6 x 1024, 40M parameters (paper Tables 6 and 7).

    nextstep-jax train --config flow_head_40m --workdir DIR --config.init.checkpoint=STAGE1/export --config.data.root=DATA

Everything else as in flow_head_157m.py. Expected: the head's size hardly matters; the paper measures GenEval 0.55 / 0.55 / 0.56
for 40M / 157M / 528M, here 0.55. On a laptop: `--config flow_head_40m:laptop`.
"""

from nextstep_jax.configs import flow_head_157m
from nextstep_jax.training.laptop import parse_arg


def base():
    config = flow_head_157m.base()
    config.name = "flow_head_40m"
    config.model.flow_head.update({"layers": 6, "width": 1024})
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
