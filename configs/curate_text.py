"""Texts: quality by the statistics of Gopher's filters (Rae et al. 2021, appendix A1), language, near-duplicates.

    nextstep-jax data curate SOURCE OUT --config curate_text

The paper samples its 400B tokens of text from another model's corpus and describes no filter; these are the usual ones.
OUT/en and OUT/zh are the
datasets. `:laptop` keeps short texts, too.
"""

from ml_collections import ConfigDict

from nextstep_jax.data.curation.recipe import require_form


def get_config(argument=None):
    require_form(argument, "laptop")
    words = 5 if argument == "laptop" else 50
    config = ConfigDict({"name": "text", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}})
    config.sample_kinds = ("text",)
    config.signals.text_quality = {}
    config.signals.language = {}
    config.signals.minhash = {}
    config.duplicates.minhash = {"min_similarity": 0.8, "keep": "text_quality.words"}
    shape = (f"text_quality.words >= {words}", "text_quality.words <= 100000", "text_quality.symbols <= 0.1")
    repetition = (
        *("text_quality.duplicate_lines <= 0.3", "text_quality.top_2gram <= 0.2", "text_quality.top_3gram <= 0.18"),
        *("text_quality.top_4gram <= 0.16", "text_quality.duplicate_5grams <= 0.15", "text_quality.duplicate_6grams <= 0.14"),
        *("text_quality.duplicate_7grams <= 0.13", "text_quality.duplicate_8grams <= 0.12"),
        *("text_quality.duplicate_9grams <= 0.11", "text_quality.duplicate_10grams <= 0.10"),
    )
    lines = ("text_quality.bullet_lines <= 0.9", "text_quality.ellipsis_lines <= 0.3")
    english = ("language.code == en", "text_quality.mean_word_length >= 3", "text_quality.mean_word_length <= 10")
    running = ("text_quality.stop_words >= 2", "text_quality.alphabetic_words >= 0.8")  # more than a line
    config.cuts.en = (*shape, *repetition, *lines, *english, *(() if argument == "laptop" else running))
    config.cuts.zh = (*shape, *repetition, *lines, "language.code == zh")
    return config
