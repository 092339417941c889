"""Controllable generation and perception: control images computed from good pairs (paper section 5.1.3).

    nextstep-jax data curate PAIRS OUT --config curate_control

PAIRS is a dataset of pairs, such as the anneal cut of curate_pairs. OUT/sft holds edits: from a control image and the caption
to the image, and from the image to its control image. `:laptop` takes small images. `:models` also makes depth maps and poses,
with models of yours:

    nextstep-jax data curate PAIRS OUT --config curate_control:models \
        --config.transforms.controls.depth=onnx:DEPTH_ANYTHING --config.transforms.controls.pose=onnx:VITPOSE
"""

from ml_collections import ConfigDict

from nextstep_jax.data.curation.controls import CONTROLS, MODEL_CONTROLS
from nextstep_jax.data.curation.recipe import require_form


def get_config(argument=None):
    require_form(argument, "laptop", "models")
    side, laplacian = (32, 20) if argument == "laptop" else (512, 100)
    config = ConfigDict({"name": "control", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}})
    config.sample_kinds = ("pair",)
    config.signals.size = {}
    config.signals.sharpness = {}
    config.cuts.sft = (f"size.min_side >= {side}", f"sharpness.laplacian >= {laplacian}")
    config.transforms.controls = {"per_image": 2}
    if argument == "models":
        config.transforms.controls.update({"kinds": (*CONTROLS, *MODEL_CONTROLS), "depth": "", "pose": ""})
    return config
