"""The built-in model, online reinforcement learning on its own images, judged by ShapeEval's reader: GRPO on one flow step.

    nextstep-jax train --config shapes_grpo --workdir runs/shapes_grpo
    nextstep-jax evaluate shapes --per-category 140 --seed 2 --checkpoint runs/shapes_grpo/export

Prompts, groups and reward are those of configs/shapes_nft.py. Of each token's 8 flow steps one of the first four is drawn with
noise, the same for all tokens of a step, and trained. Expected: not run to its end. Shrunk: `--config shapes_grpo:laptop`.
"""

from nextstep_jax.configs import shapes_nft
from nextstep_jax.training.laptop import parse_arg


def base():
    config = shapes_nft.online("grpo", "shapes_grpo")
    config.rollouts.steps = 8
    config.rollouts.trained_steps, config.rollouts.window = 1, 4
    config.loss.kl_weight = 1e-3
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
