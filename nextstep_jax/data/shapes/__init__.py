"""The built-in dataset: images of colored shapes and short words, 64 x 64 pixels, with captions, edits and stories.

    scene.py     the palette, what a scene is, and how it is drawn
    holdout.py   the combinations training never sees
    layout.py    random scenes by category
    meaning.py   what a caption says, and whether a scene agrees
    language.py  captions and their parser
    edits.py     edits, their instructions and parser
    thinking.py  what a model thinks before it draws an edit
    samples.py   training samples and evaluation prompts

Everything is made on the fly by index; nothing is read from disk.
"""

from nextstep_jax.data.shapes.edits import Edit, apply_edit, parse_edit
from nextstep_jax.data.shapes.holdout import CATEGORIES, held_out_in, held_out_relations
from nextstep_jax.data.shapes.language import caption, parse
from nextstep_jax.data.shapes.meaning import Description, Mention, contradiction
from nextstep_jax.data.shapes.samples import (
    KINDS,
    PROMPT_CATEGORIES,
    SPLITS,
    Prompt,
    prompts,
    require_known,
    sample,
    sample_scene,
    understand,
    vocabulary_words,
)
from nextstep_jax.data.shapes.scene import BACKGROUNDS, CANVAS, COLORS, SHAPES, SIZES, WORDS, Object, Scene, Word, render

__all__ = [
    "BACKGROUNDS",
    "CANVAS",
    "CATEGORIES",
    "COLORS",
    "KINDS",
    "PROMPT_CATEGORIES",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "WORDS",
    "Description",
    "Edit",
    "Mention",
    "Object",
    "Prompt",
    "Scene",
    "Word",
    "apply_edit",
    "caption",
    "contradiction",
    "held_out_in",
    "held_out_relations",
    "parse",
    "parse_edit",
    "prompts",
    "render",
    "require_known",
    "sample",
    "sample_scene",
    "understand",
    "vocabulary_words",
]
