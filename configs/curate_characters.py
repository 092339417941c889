"""Character-centered sequences: the keyframes of a video that one person is in, told as a story (paper section 5.1.4).

    nextstep-jax data curate videos:FOLDER OUT --config curate_characters --endpoint openai:http://localhost:8000/v1#MODEL \
        --config.transforms.b_characters.detector=face_detection_yunet_2023mar.onnx \
        --config.transforms.b_characters.recognizer=face_recognition_sface_2021dec.onnx

The two files are OpenCV's model zoo's (MIT and Apache 2.0), and come with no package. OUT/pretrain holds sequences of three to
eight keyframes, each after its caption, which passed the check list. `:laptop` needs no endpoint: the text is what subtitles
beside the videos say, and nothing is checked.
"""

from ml_collections import ConfigDict

from nextstep_jax.data.curation.recipe import require_form


def get_config(argument=None):
    require_form(argument, "laptop")
    config = ConfigDict({"name": "characters", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}})
    config.sample_kinds = ("interleaved",)
    config.signals.size = {}
    config.signals.nsfw = {}
    config.cuts.pretrain = ("size.min_side >= 32" if argument == "laptop" else "size.min_side >= 256", "nsfw.score < 0.3")
    config.transforms.a_frames = {"kind": "distinct_frames", "min_images": 3, "max_images": 256}
    config.transforms.b_characters = {"kind": "characters", "detector": "", "recognizer": ""}
    if argument == "laptop":
        config.transforms.b_characters.min_face = 16
        return config
    config.transforms.c_captions = {"kind": "storyline", "endpoint": ""}
    config.transforms.d_check = {"kind": "check_list", "endpoint": ""}
    return config
