"""NextStep-1 14B, online reinforcement learning by forward-process learning (DiffusionNFT).

    nextstep-jax train --config nextstep_14b_nft --workdir DIR --config.init.checkpoint=SFT/export \
        --config.data.sources.prompts.path=PATH/prompts.txt --config.rewards.pick.reward=http://localhost:8001/score

DiffusionNFT's values (SD3.5-M): 24 images a prompt, 10 ODE steps without guidance, beta 1, an old policy whose decay rises by
0.001 a step to 0.5, velocity distance to the first model 1e-4; it takes 48 prompts a step, here 64, which divide over the
chips. It trains an adapter at 3e-4, here all parameters but the flow head's move, at 1e-6 as autoregressive models with a flow
head were trained (MAR-GRPO); images are 256x256, since a 512x512 one takes four times the tokens. Rewards as in NextStep-1.1's
report, a preference model and read text, z-scored within a group. Expected: not run. A tiny model on a laptop: `--config
nextstep_14b_nft:laptop`.
"""

from nextstep_jax.config import preset
from nextstep_jax.training.config import base_config, model_fields, prompts, reward
from nextstep_jax.training.laptop import parse_arg


def online(objective: str, name: str):
    """What both online stages of the 14B model share."""
    config = base_config(objective)
    config.name = name
    config.model = model_fields(preset("14b").with_transformer(dtype="bfloat16", remat="full", scan_layers=True))
    config.model.latent_size = 64

    config.steps = 1_000
    config.optimizer.learning_rate = 1e-6
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 20
    config.optimizer.weight_decay = 0.0
    config.optimizer.frozen = (r"^model/flow_head/",)
    config.rollouts.images, config.rollouts.image_size = 24, 256
    config.rewards.pick = reward("http://localhost:8001/score", normalizer="z_score")
    config.rewards.text = reward("ocr", normalizer="z_score")

    config.data.batch_size, config.data.train_prompts = 128, 64  # twice as many as are learned from
    config.data.data_shards = 16
    config.data.sources.prompts = prompts("prompts.jsonl")
    config.checkpoint.every = 50
    return config


def base():
    config = online("nft", "nextstep_14b_nft")
    config.rollouts.steps = 10
    config.loss.draws = 4  # as many as the flow head's training takes
    config.loss.kl_weight = 1e-4
    config.ema_decay, config.ema_ramp = 0.5, 0.001
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
