"""Whether an image of the built-in dataset's world is what its prompt asks for: ShapeEval's judgement as a reward."""

from collections import Counter
from collections.abc import Sequence

from nextstep_jax.data import shapes
from nextstep_jax.data.shapes.meaning import Mention
from nextstep_jax.errors import InputError
from nextstep_jax.rewards.protocol import RewardRequest, Score
from nextstep_jax.rewards.scene_edits import edit_failure, edited_fraction
from nextstep_jax.rewards.scene_reader import parse_scene


class ShapesReward:
    """{"reward": 1 for an image that is right, else 0; "parts": which fraction of the things asked for is there}.

    An image with a source is judged as an edit of it. None for a prompt that is not in the dataset's language, for an
    instruction that does not apply to the source, or for an image of another size than the dataset's.
    """

    name = "shapes-1"

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]:
        return [self._score(request) for request in requests]

    def _score(self, request: RewardRequest) -> Score | None:
        try:
            if request.sources:
                return _edit_score(request)
            truth = shapes.parse(request.prompt)
            scene = parse_scene(request.image)
        except InputError:
            return None
        right = float(shapes.contradiction(truth, scene) is None)
        return {"reward": right, "parts": right or matched_fraction(truth, scene)}


def _edit_score(request: RewardRequest) -> Score | None:
    if len(request.sources) > 1:
        return None
    edit, before, after = shapes.parse_edit(request.prompt), parse_scene(request.sources[0]), parse_scene(request.image)
    right = float(edit_failure(edit, before, after) is None)
    return {"reward": right, "parts": right or edited_fraction(edit, before, after)}


def matched_fraction(truth: shapes.Description, scene: shapes.Scene) -> float:
    """The things that a description names and a scene has, of all that either has; sizes and places do not count."""

    def kind(mention: Mention) -> tuple:
        return (mention.text if mention.shape is None else mention.shape, mention.color)

    wanted = Counter({kind(mention): 0 for mention in truth.mentions})
    for mention in truth.mentions:
        wanted[kind(mention)] += mention.count
    things = [(thing.shape, thing.color) for thing in scene.objects]
    things += [(scene.word.text, scene.word.color)] if scene.word is not None else []
    total, matched = max(sum(wanted.values()), len(things)), 0
    for (what, color), count in sorted(wanted.items(), key=lambda entry: entry[0][1] is None):  # the open colors last
        for thing in [thing for thing in things if thing[0] == what and color in (None, thing[1])][:count]:
            things.remove(thing)
            matched += 1
    return matched / total if total else 0.0
