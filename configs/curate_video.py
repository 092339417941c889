"""Interleaved sequences from videos: shots, keyframes, near-equal frames dropped, captions that go on (paper section 5.1.4).

    nextstep-jax data curate videos:FOLDER OUT --config curate_video --endpoint openai:http://localhost:8000/v1#MODEL

OUT/pretrain holds sequences of two to eight keyframes, each after its caption. `:laptop` needs no endpoint: the text is what
subtitles beside the videos say.
"""

from ml_collections import ConfigDict

from nextstep_jax.data.curation.recipe import require_form


def get_config(argument=None):
    require_form(argument, "laptop")
    config = ConfigDict({"name": "video", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}})
    config.sample_kinds = ("interleaved",)
    config.signals.size = {}
    config.signals.nsfw = {}
    config.cuts.pretrain = ("size.min_side >= 32" if argument == "laptop" else "size.min_side >= 256", "nsfw.score < 0.3")
    config.transforms.a_frames = {"kind": "distinct_frames"}
    if argument != "laptop":
        config.transforms.b_captions = {"kind": "storyline", "endpoint": ""}
    return config
