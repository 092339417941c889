"""NextStep-1 14B, GRPO as NextStep-1.1's report describes it: one trained flow step, one update for each rollout.

    nextstep-jax train --config nextstep_14b_grpo --workdir DIR --config.init.checkpoint=SFT/export \
        --config.data.sources.prompts.path=PATH/prompts.txt --config.rewards.pick.reward=http://localhost:8001/score

From the report: rollouts token by token, log-probabilities recomputed in one parallel pass, no guidance, one flow step of all
in the form that keeps coefficients ("cps"), groups that teach nothing dropped, 1,000 steps. It does not give learning rate,
groups, number of steps and noise: those are Flow-GRPO-Fast's (10 steps, noise 0.8, the trained one among the first 5, 24
images), the rate and the frozen flow head MAR-GRPO's. Everything else is configs/nextstep_14b_nft.py's. Expected: not run. A
tiny model on a laptop: `--config nextstep_14b_grpo:laptop`.
"""

from nextstep_jax.configs import nextstep_14b_nft
from nextstep_jax.training.laptop import parse_arg


def base():
    config = nextstep_14b_nft.online("grpo", "nextstep_14b_grpo")
    config.rollouts.steps = 10
    config.rollouts.trained_steps, config.rollouts.window = 1, 5
    config.loss.kl_weight = 1e-3
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
