"""One switch that makes every stage small enough for a laptop."""

from ml_collections import ConfigDict

from nextstep_jax.config import preset
from nextstep_jax.errors import InputError
from nextstep_jax.training.config import prompts, reward
from nextstep_jax.training.vocabulary import SHAPES, shapes_vocabulary, special_ids

# Where each kind of data is found, by the name of its source.
_PATHS = {
    "text": "shapes:text:train:1000",
    "tables": "shapes:table:train:1000",
    "pairs": "pair",
    "captions": "caption",
    "edits": "edit",
    "thinking": "thinking",
    "interleaved": "interleaved",
    "stories": "interleaved",
    "candidates": "candidates",
    "self_cot": "self_cot",
}


def parse_arg(config: ConfigDict, argument: str | None) -> ConfigDict:
    """What a config file returns: the stage as it is, or `shrink` of it for the argument "laptop" (`--config FILE.py:laptop`).

    Raises:
      InputError: another argument.
    """
    if argument not in (None, "", "laptop"):
        raise InputError(f"a config file's argument can be laptop, found {argument!r}")
    return shrink(config) if argument else config


def shrink(config: ConfigDict) -> ConfigDict:
    """The same stage for a laptop: a tiny model, short rows, few steps, and the built-in dataset of shapes.

    Images of shapes must be latents first, `DIR` being what `config.data.root` is set to ("shapes-data" here):

        for kind in pair caption edit thinking interleaved; do
          nextstep-jax data build shapes:$kind:train:1000 shapes-data/pixels/$kind
          nextstep-jax data encode shapes-data/pixels/$kind shapes-data/$kind --checkpoint TOKENIZER --area 64
        done
    """
    config.steps = 30
    config.optimizer.warmup_steps = 2
    config.optimizer.learning_rate = 5e-3  # small models and short runs take large steps
    config.log_every, config.checkpoint.every, config.validation.every, config.samples.every = 5, 10, 0, 0
    for evaluation in config.evals.values():
        evaluation.every = 0
    config.mesh.update({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    config.init.checkpoint = ""
    config.data.update({"data_shards": 1, "workers": 0})
    if config.objective == "reconstruction":
        settings = config.image_tokenizer
        settings.update(
            {"channels": 32, "channel_multipliers": (1, 1), "blocks_per_level": 1, "stem_patch": 4, "resolution": 64}
        )
        config.data.update({"sources": ("shapes:pair:train:1000",), "batch_size": 8, "height": 64, "width": 64})
        return config
    tiny, head = preset("tiny").transformer, config.model.flow_head
    fields = {name: getattr(tiny, name) for name in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")}
    config.model.transformer.update(fields | {"dtype": "float32", "remat": "none", "vocab_size": 512})
    head.update({"width": 32 * head.layers // 6, "layers": max(2, head.layers // 6)})  # the ablations' sizes keep their order
    config.model.update(special_ids(shapes_vocabulary()))
    config.model.update({"latent_size": 8, "base_grid": 4})
    if config.objective == "preference":
        config.optimizer.learning_rate, config.loss.beta = 1e-3, 20.0  # a tiny model's errors move by tenths
    if config.objective in ("nft", "grpo"):
        return _shrink_online(config)
    config.data.update({"root": "shapes-data", "vocabulary": SHAPES, "batch_size": 4, "seq_len": 256, "epochs": 0})
    config.data.validation = ConfigDict()
    for name, settings in config.data.sources.items():
        settings.update({"path": "pair" if name.startswith("pair_") else _PATHS[name], "kind": ""})
    return config


def _shrink_online(config: ConfigDict) -> ConfigDict:
    """The rest of an online stage: few small images of the dataset's prompts, judged by its own reward. What the tiny model
    makes without training deserves none: name a checkpoint and its sizes to see the reward rise.
    """
    config.optimizer.learning_rate = 1e-3
    config.optimizer.frozen = ()  # a flow head that has learned nothing passes no gradient on
    config.data.update({"root": "", "vocabulary": SHAPES, "batch_size": 4, "train_prompts": 0})
    config.data.sources = ConfigDict({"shapes": prompts("shapes:single object:200")})
    config.data.validation = ConfigDict()
    config.rewards = ConfigDict({"shapes": reward("shapes")})
    config.rollouts.update({"images": 4, "image_size": 64, "steps": 4})
    config.rollouts.window = min(config.rollouts.window, 2)
    config.image_tokenizer_checkpoint = "nextstep_jax/builtin/shapes"
    return config
