"""ShapeEval: does a model draw, edit and caption what it is asked to, in the built-in dataset's world?

Like GenEval: prompts by category (single object, two objects, counting, colors, position, attribute binding,
words), each right or wrong; the score of a category is its fraction of right responses, the overall score the mean over these
categories. Edits and captions are scored separately, and so are stories and what newcomers ask for (data/shapes/newcomer.py),
both asked for by name. Responses are judged from their pixels (rewards/scene_reader.py) and words alone.

The image must hold what was asked for and nothing else. What a prompt leaves open may be anything.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nextstep_jax.data import shapes
from nextstep_jax.data.shapes.meaning import inventory
from nextstep_jax.errors import InputError
from nextstep_jax.rewards.scene_edits import edit_failure
from nextstep_jax.rewards.scene_reader import parse_scene

PER_CATEGORY = 40
MAX_FILE = 4 << 20  # bytes of a file of prompts


def default_prompts(
    per_category: int = PER_CATEGORY,
    *,
    categories: Sequence[str] = (),
    seed: int = 0,
    canvas: tuple[int, int] = shapes.SQUARE,
) -> list[shapes.Prompt]:
    """The benchmark: held-out prompts of every category, edits and captions among them.

    Args:
      categories: only these, of which `shapes.EXTRA_CATEGORIES` can be some.
      canvas: (width, height) in pixels of the images asked for; on another than the square there are no edits, captions and
        stories.

    Raises:
      InputError: an unknown category, or one that does not go with the canvas.
    """
    names = categories or (shapes.PROMPT_CATEGORIES if canvas == shapes.SQUARE else shapes.CATEGORIES)
    return [p for name in names for p in shapes.prompts("heldout", name, per_category, seed=seed, canvas=canvas)]


def read_prompts(path: str | pathlib.Path) -> list[shapes.Prompt]:
    """A text file of prompts and instructions in the dataset's language, one per line; blank lines are ignored.

    An instruction gets an image of its own to edit, drawn at random from the line's number.

    Raises:
      InputError: names the file, the line and the word at which a line leaves the language.
    """
    try:
        with pathlib.Path(path).open("rb") as file:
            content = file.read(MAX_FILE + 1)
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered or len(content) > MAX_FILE:
        raise InputError(f"{path}: expected one prompt per line, up to {MAX_FILE} bytes in all, found {len(numbered)} lines")
    prompts = []
    for number, line in numbered:
        try:
            prompts.append(shapes.understand(line, number))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return prompts


def failure(prompt: shapes.Prompt, response: Any) -> str | None:
    """Why a response is wrong, in words, or None if it is right.

    Args:
      response: the image, uint8 [height, width, 3]; for "captions" the text; for "stories" texts and images in order.
    """
    if prompt.category == "stories":
        return story_failure(prompt.truth, response)
    if prompt.category == "captions":
        return caption_failure(prompt.scene, response)
    if prompt.category == "edits":
        return edit_failure(prompt.truth, prompt.scene, parse_scene(response))
    return shapes.contradiction(prompt.truth, parse_scene(response))


def caption_failure(scene: shapes.Scene, text: str) -> str | None:
    """Why a caption is wrong: not in the dataset's language, an object without its color, or not true. None if it is right."""
    try:
        description = shapes.parse(text)
    except InputError as error:
        return str(error)
    for mention in description.mentions:
        if mention.color is None:
            return f"no color is named for the {mention}"
    return shapes.contradiction(description, scene)


def story_failure(beginning: shapes.Description, parts: Sequence[str | np.ndarray]) -> str | None:
    """Why a story is wrong, or None if it is right.

    A right story has two to `shapes.MAX_STORY` images and a sentence after each: what to do for the next image, which shows
    what is asked for and is otherwise as the image before; after the last image what there is. Any other text is wrong, plans
    included.

    Args:
      beginning: what the first image must show; its sentence is no part of the story.
      parts: images, uint8 [64, 64, 3], and texts, in order.
    """
    if not parts or [isinstance(part, str) for part in parts] != [False, True] * (len(parts) // 2):
        kinds = ", ".join("text" if isinstance(part, str) else "image" for part in parts)
        return f"expected images with a text after each, found {kinds or 'nothing'}"
    scenes = [parse_scene(part) for part in parts if not isinstance(part, str)]
    *steps, end = (part for part in parts if isinstance(part, str))
    if not 2 <= len(scenes) <= shapes.MAX_STORY:
        return f"expected 2 to {shapes.MAX_STORY} images, found {len(scenes)}"
    reason = shapes.contradiction(beginning, scenes[0])
    if reason:
        return f"image 1: {reason}"
    try:
        for number, (text, before, after) in enumerate(zip(steps, scenes, scenes[1:], strict=False), 2):
            edit, last = shapes.parse_step(text)
            reason = edit_failure(edit, before, after)
            if last and number < len(scenes):
                reason = reason or "a step follows the last one"
            if reason:
                return f"image {number}: {reason}"
        reason = shapes.contradiction(shapes.parse_closing(end), scenes[-1])
        return f"the end: {reason}" if reason else None
    except InputError as error:
        return str(error)


def evaluate(prompts: Sequence[shapes.Prompt], responses: Sequence[shapes.Response]) -> dict[str, Any]:
    """Score responses, one per prompt in the same order (several for one prompt: repeat it).

    Returns:
      {"overall": mean over the categories of images from prompts, None without any; "n", "correct": over everything;
       "categories": {name: {"n", "correct", "score"}}; "edits": {operation: {"n", "correct", "score"}};
       "failures": [{"index", "category", "prompt", "reason"}]}, all plain numbers and text.
    """
    if len(prompts) != len(responses):
        raise InputError(f"expected one response per prompt, found {len(responses)} for {len(prompts)}")
    judged = [(prompt, failure(prompt, response)) for prompt, response in zip(prompts, responses, strict=True)]
    categories = _tally((prompt.category, reason) for prompt, reason in judged)
    drawn = [entry["score"] for name, entry in categories.items() if name in shapes.CATEGORIES]
    return {
        "overall": sum(drawn) / len(drawn) if drawn else None,
        "n": len(prompts),
        "correct": sum(reason is None for _, reason in judged),
        "categories": categories,
        "edits": _tally((prompt.truth.operation, reason) for prompt, reason in judged if prompt.category == "edits"),
        "failures": [
            {"index": i, "category": prompt.category, "prompt": prompt.text or inventory(prompt.scene), "reason": reason}
            for i, (prompt, reason) in enumerate(judged)
            if reason is not None
        ],
    }


def format_report(report: Mapping[str, Any]) -> str:
    """The scores as a small table."""
    rows = [(name, entry["correct"], entry["n"], entry["score"]) for name, entry in report["categories"].items()]
    lines = [f"{name:<18} {correct:>5} / {n:<5} {score:6.3f}" for name, correct, n, score in rows]
    if report["overall"] is not None:
        lines.append(f"{'overall':<33} {report['overall']:.3f}")
    return "\n".join(lines)


def _tally(outcomes: Iterable[tuple[str, str | None]]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for name, reason in outcomes:
        entry = table.setdefault(name, {"n": 0, "correct": 0})
        entry["n"] += 1
        entry["correct"] += reason is None
    return {name: entry | {"score": entry["correct"] / entry["n"]} for name, entry in table.items()}
