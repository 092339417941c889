"""NextStep-1 14B, Self-CoT DPO: the model thinks once about a prompt, then draws all candidates (paper section 6.3.3).

    nextstep-jax data candidates prompts.txt DATA/self_cot --thinking --checkpoint SFT/export --reward http://localhost:8001/score
    nextstep-jax train --config nextstep_14b_self_cot_dpo --workdir DIR --config.init.checkpoint=SFT/export \
        --config.data.root=DATA

Both images of a pair share the prompt and the thoughts; the loss is on image tokens alone. Candidates made with
`--thinking-temperature 1` come after thoughts of their own, which `--config.loss.beta_text=0.1` prefers as well. Plain
candidates (DATA/candidates, see nextstep_14b_dpo.py) are half of the mixture, a choice of ours. Expected: not run. Shrunk:
`--config nextstep_14b_self_cot_dpo:laptop`.
"""

from nextstep_jax.configs import nextstep_14b_dpo
from nextstep_jax.training.config import source
from nextstep_jax.training.laptop import parse_arg


def base():
    config = nextstep_14b_dpo.base()
    config.name = "nextstep_14b_self_cot_dpo"
    config.data.sources.self_cot = source("self_cot", thinking=True)
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
