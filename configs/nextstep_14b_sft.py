"""NextStep-1 14B, supervised fine-tuning on selected pairs, chain-of-thought samples and edits (paper Table 1).

    nextstep-jax train --config nextstep_14b_sft --workdir DIR --config.init.checkpoint=ANNEAL/export \
        --config.data.root=DATA

DATA holds the datasets pairs and edits. Texts of pairs may spell the thinking tokens: the model writes a plan, then the image.

Expected: 10K steps, 5B tokens. On a laptop: `--config nextstep_14b_sft:laptop`.
"""

from nextstep_jax.configs import nextstep_14b_anneal
from nextstep_jax.training.config import source
from nextstep_jax.training.laptop import parse_arg


def base():
    config = nextstep_14b_anneal.base()
    config.name = "nextstep_14b_sft"
    config.data.epochs = 0
    config.steps = 10_000
    config.optimizer.warmup_steps = 500
    config.data.seq_len = 8_192
    config.data.batch_size = 64  # 5B tokens / 10K steps / 8K
    config.data.sources.text.weight = 0.0
    config.data.sources.interleaved.weight = 0.0
    config.data.sources.pairs = source("pairs", weight=0.9, thinking=True)
    config.data.sources.edits.weight = 0.1
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
