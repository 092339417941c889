"""NextStep-1 14B, pre-training stage 1: images of 256x256 pixels, from Qwen2.5-14B (paper Table 1).

    nextstep-jax train --config nextstep_14b_stage1 --workdir DIR --config.init.checkpoint=QWEN \
        --config.data.root=DATA --config.image_tokenizer_checkpoint=TOKENIZER

QWEN is a Qwen2.5-14B folder converted with `nextstep-jax convert`; the image side of the model is randomly initialized. DATA
holds the datasets text, pairs and interleaved, images resized, randomly cropped and encoded to latents at 256x256 pixels with
`nextstep-jax data encode --area 256 --square --crop random`.

Expected: after 200K steps and 1.23T tokens, the stage-1 model of the paper. On a laptop, `--config
nextstep_14b_stage1:laptop` runs the same stage with a tiny model on shapes (see nextstep_jax/training/laptop.py) in
about a minute.
"""

from nextstep_jax.config import preset
from nextstep_jax.training.config import base_config, model_fields, source
from nextstep_jax.training.laptop import parse_arg

# What a text model lacks.
IMAGE_SIDE = (r"^model/image_(in|out)_projector/", r"^model/flow_head/")


def base():
    """The full-size stage, for the stages derived from it."""
    config = base_config("multitask")
    config.name = "nextstep_14b_stage1"
    config.model = model_fields(preset("14b").with_transformer(dtype="bfloat16", remat="full", scan_layers=True))
    config.init.reinit = IMAGE_SIDE

    config.steps = 200_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 5_000
    config.optimizer.weight_decay = 0.1

    # 1.23T tokens in 200K steps are 6.2M a step: some 380 rows of 16K. 384 divide evenly over most pods.
    config.data.seq_len = 16_384
    config.data.batch_size = 384
    config.data.data_shards = 64  # for up to as many hosts
    config.data.workers = 4
    config.data.sources.text = source("text", weight=0.2)
    config.data.sources.pairs = source("pairs", weight=0.6)
    config.data.sources.interleaved = source("interleaved", weight=0.2)
    # Of a plausible mix 44 % are text targets and 56 % image targets. That no row has more than this saves a quarter of both
    # heads, and with 64 rows open costs 0.13 % of padding instead of 0.08 % (16 rows: 1.4 % instead of 0.15 %;
    # `python -m benchmarks.packing --text 0.75 --image 0.75`).
    config.max_target_fraction.update({"text": 0.75, "image": 0.75})
    config.data.packing_buffer = 64
    config.checkpoint.every = 1_000
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
