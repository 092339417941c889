"""Tutorials: keyframes of instructional videos with what is said and what is on the screen (paper section 5.1.4).

    nextstep-jax data curate videos:FOLDER OUT --config curate_tutorials

What is said comes from subtitles, VIDEO.srt or VIDEO.vtt; `nextstep-jax data transcribe FOLDER --model WHISPER` writes them
where there are none. What OCR reads on a frame is added where it was not said.
OUT/pretrain holds sequences of two to eight keyframes, each after its text. `:laptop` takes small videos.
"""

from ml_collections import ConfigDict

from nextstep_jax.data.curation.recipe import require_form


def get_config(argument=None):
    require_form(argument, "laptop")
    config = ConfigDict({"name": "tutorials", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}})
    config.sample_kinds = ("interleaved",)
    config.signals.size = {}
    config.signals.text_quality = {}
    words = 5 if argument == "laptop" else 50
    side = 32 if argument == "laptop" else 256
    config.cuts.pretrain = (f"size.min_side >= {side}", f"text_quality.words >= {words}")
    config.transforms.a_frames = {"kind": "distinct_frames"}
    config.transforms.b_screen = {"kind": "screen_text"}
    return config
