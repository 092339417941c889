"""Restoration: degraded images and their originals, made from good pairs (paper section 5.1.3).

    nextstep-jax data curate PAIRS OUT --config curate_restoration

PAIRS is a dataset of pairs, such as the anneal cut of curate_pairs. OUT/sft holds edits from the degraded image to the
original, each with an instruction. `:laptop` takes small images.
"""

from ml_collections import ConfigDict

from nextstep_jax.data.curation.recipe import require_form


def get_config(argument=None):
    require_form(argument, "laptop")
    side, laplacian = (32, 20) if argument == "laptop" else (512, 150)
    config = ConfigDict({"name": "restoration", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}})
    config.sample_kinds = ("pair",)
    config.signals.size = {}
    config.signals.sharpness = {}
    config.cuts.sft = (f"size.min_side >= {side}", f"sharpness.laplacian >= {laplacian}")
    config.transforms.degradations = {"per_image": 2}
    return config
