"""The built-in dataset: colored shapes and short words in small images, with captions, edits and stories.

    scene.py     the palette, what a scene is, and how it is drawn
    holdout.py   the combinations training never sees
    layout.py    random scenes by category
    meaning.py   what a caption says, and whether a scene agrees
    language.py  captions and their parser
    edits.py     edits, their instructions and parser
    stories.py   stories, and how their sentences are read
    thinking.py  what a model thinks before it draws an edit
    newcomer.py  prompts that somebody new tries first
    samples.py   training samples and evaluation prompts

Everything is made on the fly by index; nothing is read from disk.
"""

from nextstep_jax.data.shapes.edits import Edit, apply_edit, parse_edit
from nextstep_jax.data.shapes.holdout import CATEGORIES, held_out_in, held_out_relations
from nextstep_jax.data.shapes.language import caption, parse
from nextstep_jax.data.shapes.meaning import Description, Mention, contradiction
from nextstep_jax.data.shapes.newcomer import NEWCOMER_CATEGORIES, draw_newcomer_prompt
from nextstep_jax.data.shapes.samples import (
    EXTRA_CATEGORIES,
    KINDS,
    PROMPT_CATEGORIES,
    SPLITS,
    Prompt,
    Response,
    prompts,
    require_known,
    sample,
    sample_scene,
    understand,
    vocabulary_words,
)
from nextstep_jax.data.shapes.scene import (
    BACKGROUNDS,
    CANVAS,
    CANVASES,
    COLORS,
    SHAPES,
    SIZES,
    SQUARE,
    WORDS,
    Object,
    Scene,
    Word,
    render,
)
from nextstep_jax.data.shapes.stories import MAX_STORY, parse_closing, parse_step

__all__ = [
    "BACKGROUNDS",
    "CANVAS",
    "CANVASES",
    "CATEGORIES",
    "COLORS",
    "EXTRA_CATEGORIES",
    "KINDS",
    "MAX_STORY",
    "NEWCOMER_CATEGORIES",
    "PROMPT_CATEGORIES",
    "SHAPES",
    "SIZES",
    "SQUARE",
    "SPLITS",
    "WORDS",
    "Description",
    "Edit",
    "Mention",
    "Object",
    "Prompt",
    "Response",
    "Scene",
    "Word",
    "apply_edit",
    "caption",
    "contradiction",
    "draw_newcomer_prompt",
    "held_out_in",
    "held_out_relations",
    "parse",
    "parse_closing",
    "parse_edit",
    "parse_step",
    "prompts",
    "render",
    "require_known",
    "sample",
    "sample_scene",
    "understand",
    "vocabulary_words",
]
