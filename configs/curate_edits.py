"""Edits filtered by a model with vision on the paper's four criteria (section 5.1.3).

    nextstep-jax data curate EDITS OUT --config curate_edits --endpoint openai:http://localhost:8000/v1#MODEL

EDITS is a source of edits. The model sees all images, the result last, and judges image quality, rationality, consistency and
alignment with the instruction; OUT/sft holds what passes all. The paper keeps about 1M of 3.5M and gives no thresholds.
Near-duplicates are found by the result. `:laptop` needs no endpoint, and looks at near-duplicates alone.
"""

from ml_collections import ConfigDict

from nextstep_jax.data.curation.recipe import require_form

_SEEN = "You see the images of an edit, the result last. The instruction: {text}\n"
_CRITERIA = {
    "quality": "Is the result free of artifacts, blur and distortions? 0: ruined, 10: flawless.",
    "rationality": "Does the result make sense, in anatomy, physics, light and perspective? 0: not at all, 10: fully.",
    "consistency": "Is everything unchanged that the instruction does not speak of? 0: nothing, 10: everything.",
    "alignment": "Is done what the instruction asks for, and no less? 0: nothing of it, 10: all of it.",
}


def get_config(argument=None):
    require_form(argument, "laptop")
    config = ConfigDict({"name": "edits", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}})
    config.sample_kinds = ("edit",)
    config.signals.size = {}
    config.signals.perceptual_hash = {}
    config.duplicates.perceptual_hash = {}
    side = 32 if argument == "laptop" else 256
    config.cuts.sft = (f"size.min_side >= {side}",)
    if argument != "laptop":
        for name, question in _CRITERIA.items():
            config.signals[name] = {"kind": "judgement", "question": _SEEN + question, "answer": "scale", "endpoint": ""}
        config.cuts.sft = (*config.cuts.sft, *(f"{name}.score >= 0.7" for name in _CRITERIA))
    return config
