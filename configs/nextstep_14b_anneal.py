"""NextStep-1 14B, annealing: 20K steps on the best data, editing included, learning rate down to 0 (paper Table 1).

    nextstep-jax train --config nextstep_14b_anneal --workdir DIR --config.init.checkpoint=STAGE2/export \
        --config.data.root=DATA

DATA also holds the dataset edits. Annealing is one epoch: the run ends when every source has been read once, or after 20K
steps, which the learning rate falls over.

Expected: 20K steps, 40B tokens. The table's 16K positions a rank would make that some 120 rows a step. On a laptop:
`--config nextstep_14b_anneal:laptop`.
"""

from nextstep_jax.configs import nextstep_14b_stage2
from nextstep_jax.training.config import source
from nextstep_jax.training.laptop import parse_arg


def base():
    config = nextstep_14b_stage2.base()
    config.name = "nextstep_14b_anneal"
    config.data.epochs = 1  # the run ends with the data, if that is before the last step
    config.steps = 20_000
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.warmup_steps = 0
    config.data.batch_size = 128  # 40B tokens / 20K steps / 16K
    config.data.sources.edits = source("edits", weight=0.1)
    config.data.sources.interleaved.weight = 0.1
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
