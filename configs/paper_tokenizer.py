"""Paper, Figure 6: image tokenizers trained with different noise on their latents (gamma), everything else alike.

    nextstep-jax train --config paper_tokenizer --workdir runs/paper/gamma_0.3
    --config.image_tokenizer.perturbation=0.3

`python -m benchmarks.paper_claims` trains those of the notebook `paper` and scores them. The built-in dataset's tokenizer with
fewer steps. Expected: the more noise in training, the worse the reconstruction of clean latents and the better that of noisy
ones; notebooks/paper.ipynb holds what was found. Shrunk: `--config paper_tokenizer:laptop`.
"""

from nextstep_jax.configs import shapes_tokenizer
from nextstep_jax.training.laptop import parse_arg


def base():
    config = shapes_tokenizer.base()
    config.name = "paper_tokenizer"
    config.steps = 1_200
    config.optimizer.warmup_steps = 100
    config.ema_decay = 0.99
    config.log_every, config.checkpoint.every, config.validation.every, config.samples.every = 50, 200, 400, 0
    config.evals = {}
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
