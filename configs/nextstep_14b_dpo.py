"""NextStep-1 14B, Diffusion-DPO on images that the SFT model made itself (paper section 6.3.3 and Table 1).

    nextstep-jax data candidates prompts.txt DATA/candidates --checkpoint SFT/export --reward http://localhost:8001/score
    nextstep-jax train --config nextstep_14b_dpo --workdir DIR --config.init.checkpoint=SFT/export --config.data.root=DATA

The paper takes 20K prompts, 16 images each, and ImageReward; the preferred image is one of the best four, the other one of the
remaining twelve. 300 steps of 64 pairs are one pass over 20K pairs. The paper does not give beta and the batch: those here
follow DiffusionDPO (a mean over tokens and channels) and that count. Expected: not run. On a laptop, once candidates of the
tiny model lie in shapes-data: `--config nextstep_14b_dpo:laptop`.
"""

from nextstep_jax.config import preset
from nextstep_jax.training.config import base_config, model_fields, source
from nextstep_jax.training.laptop import parse_arg


def base():
    config = base_config("preference")
    config.name = "nextstep_14b_dpo"
    config.model = model_fields(preset("14b").with_transformer(dtype="bfloat16", remat="full", scan_layers=True))
    config.model.latent_size = 64

    config.steps = 300
    config.optimizer.learning_rate = 2e-6
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 0.1
    config.loss.beta = 2000.0
    config.loss.draws = 4  # as many as the flow head's training takes

    # A pair of 512x512 images with its prompt has some 1,100 positions: 16 rows of 8,192 hold 64 to 112 pairs.
    config.data.seq_len = 8_192
    config.data.batch_size = 16
    config.data.data_shards = 16
    config.data.workers = 4
    config.data.sources.candidates = source("candidates")
    config.checkpoint.every = 50
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
