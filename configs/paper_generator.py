"""Paper, Figure 6 and Tables 6 and 7: small models on the latents of different tokenizers, and with flow heads of three sizes.

    nextstep-jax train --config paper_generator --workdir runs/paper/generator --config.data.root=DATA
    --config.image_tokenizer_checkpoint=TOKENIZER --config.model.flow_head.layers=4 --config.model.flow_head.width=96

DATA holds the datasets `pair` and `heldout`, captioned images of one object as latents of TOKENIZER. `python -m
benchmarks.paper_claims` makes them, trains the models of the notebook `paper` and scores them. The heads keep the paper's
proportions, 6 x 1024, 12 x 1536 and 24 x 2048: 2 x 64, 4 x 96 and 8 x 128. Expected: the small head falls behind the others;
notebooks/paper.ipynb holds what was found. Shrunk: `--config paper_generator:laptop`.
"""

from nextstep_jax.configs import shapes_nextstep
from nextstep_jax.training.config import source
from nextstep_jax.training.laptop import parse_arg


def base():
    config = shapes_nextstep.base()
    config.name = "paper_generator"
    config.model.transformer.layers = 4
    config.model.flow_head.update({"layers": 4, "width": 96})
    config.steps = 900
    config.ema_decay = 0.995
    config.export_dtype = "float32"
    # One kind of data, so that a short run gets somewhere: some 35 images a step.
    del config.data.sources.text, config.data.sources.captions, config.data.sources.edits, config.data.sources.interleaved
    config.data.sources.pairs = source("pair", image_first=0.0, caption_dropout=0.1)
    config.data.seq_len = 128
    config.max_target_fraction.image = 0.65
    config.log_every, config.checkpoint.every, config.validation.every, config.samples.every = 50, 200, 500, 0
    config.evals = {}
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
