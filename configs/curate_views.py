"""Multi-view data: camera moves between views of one object (paper section 5.1.4).

    nextstep-jax data curate views:FOLDER OUT --config curate_views

FOLDER has a folder for each object, with images, a transforms.json as renderers for NeRF write it, and perhaps a caption.txt.
OUT/pretrain holds sequences of four views; the text between two states the move. `:laptop` takes small images.
"""

from ml_collections import ConfigDict

from nextstep_jax.data.curation.recipe import require_form


def get_config(argument=None):
    require_form(argument, "laptop")
    config = ConfigDict({"name": "views", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}})
    config.sample_kinds = ("interleaved",)
    config.signals.size = {}
    config.cuts.pretrain = (f"size.min_side >= {32 if argument == 'laptop' else 256}",)
    config.transforms.moves = {}
    return config
