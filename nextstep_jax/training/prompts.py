"""Prompts of online training: from the sources of a config to each step's arrays.

Letters: P prompts of a step, L their length.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nextstep_jax.config import NextStepConfig
from nextstep_jax.data.sequence import image_prefix
from nextstep_jax.data.vocabulary import Vocabulary
from nextstep_jax.errors import InputError
from nextstep_jax.generation.prompts import Part, frame_prompt
from nextstep_jax.generation.rollouts import PromptRows, prompt_rows
from nextstep_jax.training.candidates import CandidatePrompt, read_prompts
from nextstep_jax.training.data_settings import PromptsConfig
from nextstep_jax.training.stage import HostBatch


def open_prompts(root: str, sources: Mapping[str, PromptsConfig]) -> tuple[list[CandidatePrompt], np.ndarray]:
    """The prompts of all sources that have a weight, in the order of their names, and how likely each is to be chosen.

    Raises:
      InputError: a source that cannot be read.
    """
    prompts: list[CandidatePrompt] = []
    weights: list[float] = []
    for name, source in sorted(sources.items()):
        if source.weight:
            found = read_prompts(source.path if ":" in source.path else pathlib.Path(root) / source.path)
            if any(prompt.canvas for prompt in found):
                raise InputError(f"config.data.sources.{name}.path: the images of a run have one size, found {source.path}")
            prompts += found
            weights += [source.weight / len(found)] * len(found)
    return prompts, np.asarray(weights) / max(sum(weights), 1e-30)


def frame_prompts(
    prompts: Sequence[CandidatePrompt], suffix: str, h: int, w: int, model: NextStepConfig, vocabulary: Vocabulary
) -> PromptRows:
    """All prompts as the model reads them before an image of h*w tokens. What stands under "thinking" in a prompt's metadata
    is what the model has thought about it.

    Raises:
      InputError: a prompt that is longer than the model's window, or thoughts for a model without thinking tokens.
    """
    special, rows = vocabulary.special, []
    for prompt in prompts:
        parts: list[Part] = [f"{prompt.text} {suffix}".strip()]
        if thoughts := prompt.metadata.get("thinking"):
            if special.begin_of_thinking is None or special.end_of_thinking is None:
                raise InputError(f"{prompt.text!r:.100} comes with thoughts, but the model has no thinking tokens")
            parts.append([special.begin_of_thinking, *vocabulary.encode(str(thoughts)), special.end_of_thinking])
        row = frame_prompt([*parts, image_prefix(special, h, w)], special, model, vocabulary)
        if len(row) + h * w > model.transformer.max_positions:
            size = f"{len(row)} ids and {h * w} image tokens"
            raise InputError(f"{prompt.text!r:.100}: {size} do not fit the window of {model.transformer.max_positions}")
        rows.append(row)
    return prompt_rows(rows, model.pad_id)


class PromptData:
    """Endless batches of prompts, all of a step's different; which ones depends on the seed and the step alone.

    Args:
      rows: of all prompts there are.
      chances: of each prompt, 0 for those of another mixture.
      count: P, of a step.
      mine: which of them this process takes.
      names: of all prompts.

    Raises:
      InputError: fewer prompts than a step has.
    """

    def __init__(self, rows: PromptRows, chances: np.ndarray, count: int, mine: Sequence[int], seed: int, names: Sequence[str]):
        if (there := np.count_nonzero(chances)) < count:
            raise InputError(f"config.data.batch_size: a step takes {count} different prompts, found {there}")
        self._rows, self._chances, self._count, self._mine = rows, chances, count, np.asarray(mine)
        self._seed, self._names, self._step = seed, names, 0

    def __iter__(self) -> "PromptData":
        return self

    def __next__(self) -> HostBatch:
        chosen = np.random.default_rng([self._seed, self._step]).choice(
            len(self._chances), self._count, replace=False, p=self._chances
        )[self._mine]
        self._step += 1
        return HostBatch(jax.tree.map(lambda array: array[chosen], self._rows), tuple(self._names[i] for i in chosen), {})

    def get_state(self) -> dict[str, Any]:
        return {"steps": self._step}

    def set_state(self, saved: Sequence[Any]) -> None:
        """Continue after as many steps as were saved. InputError for a state of other data."""
        if not all(isinstance(state, Mapping) and isinstance(state.get("steps"), int) for state in saved):
            raise InputError("the saved position in the data is none of online training")
        self._step = saved[0]["steps"]

    def close(self) -> None:
        """Nothing is open."""
