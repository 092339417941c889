"""NextStep-1 14B, the flow head distilled to one to four evaluations a token (paper section 7.2).

    nextstep-jax train --config nextstep_14b_distill --workdir DIR --config.init.checkpoint=SFT/export --config.data.root=DATA
    nextstep-jax generate "a lighthouse at dusk" --checkpoint DIR/export --sampler map --steps 2

DATA holds the dataset pairs, best with images that the model made itself among them: those are what it meets when it draws.
The transformer and the first head stay as they are, and both heads are in the export. Expected: not run. On a laptop:
`--config nextstep_14b_distill:laptop --config.init.checkpoint=CHECKPOINT`; an untrained teacher's velocities are zero.
"""

from nextstep_jax.config import preset
from nextstep_jax.training.config import base_config, model_fields, source
from nextstep_jax.training.laptop import parse_arg


def base():
    config = base_config("few_step")
    config.name = "nextstep_14b_distill"
    config.model = model_fields(preset("14b").with_transformer(dtype="bfloat16", remat="full", scan_layers=True))
    config.model.latent_size = 64
    config.model.map_head = True
    config.init.reinit = (r"^model/map_head/",)

    config.steps = 20_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.01
    config.ema_decay = 0.9999
    config.loss.draws = 8

    config.data.seq_len = 8_192
    config.data.batch_size = 16
    config.data.data_shards = 16
    config.data.workers = 4
    config.data.sources.pairs = source("pairs")
    config.checkpoint.every = 1_000
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
