"""The image tokenizer, 8x down with 16 channels, fine-tuned from the Flux VAE for normalized, noise-proof latents (paper
section 4.2).

    nextstep-jax train --config tokenizer_f8ch16 --workdir DIR --config.init.checkpoint=FLUX \
        --config.data.sources="('IMAGES',)"

FLUX is a VAE folder converted with `nextstep-jax convert`; IMAGES anything data/sources.py opens (a folder, tars, a built
dataset, tfds:).

Expected: 50K steps of 512 images; PSNR 30.60, SSIM 0.89 on ImageNet-1K at 256 pixels. On a laptop:
`--config tokenizer_f8ch16:laptop` trains a small tokenizer on shapes for 30 steps.
"""

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.training.config import base_config, model_fields
from nextstep_jax.training.laptop import parse_arg


def base():
    config = base_config("reconstruction")
    config.name = "tokenizer_f8ch16"
    config.image_tokenizer = model_fields(
        ImageTokenizerConfig(
            deterministic=True,
            normalize=True,
            normalize_patch=2,
            scaling=1.0,
            shift=0.0,
            perturbation=0.5,  # gamma; not given in the paper's text [U]
        )
    )
    config.steps = 50_000
    config.optimizer.learning_rate = 1e-5  # [U]
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95  # [U]
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 1_000
    config.data.batch_size = 512
    config.data.data_shards = 64  # for up to as many hosts
    config.data.height = config.data.width = 256
    config.data.workers = 8
    return config


def get_config(argument=None):
    return parse_arg(base(), argument)
