"""Parity of training rows: seeds, sequences, packing and the mixing of batches of the February 2026 release, exactly.

What this library makes is written down as the release wrote its own, and then compared value by value. An image's tokens
are one number each, the image's own, so that rows show which image went where.
"""

import dataclasses
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nextstep_jax.batch import Batch
from nextstep_jax.conversion.parity.goldens import Goldens
from nextstep_jax.conversion.parity.reference import Reference
from nextstep_jax.conversion.parity.report import Report
from nextstep_jax.conversion.parity.training import IGNORED
from nextstep_jax.data.augment import AS_STORED, Augmentation, arrange, draws, make_seed
from nextstep_jax.data.packing import PackedBatch, SampleCounts
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.release_packing import MIXED, ReleasePacking
from nextstep_jax.data.sequence import ImageTokens, Segment, TextIds, TokenizedSample, training_segment
from nextstep_jax.data.streams import PackingConfig
from nextstep_jax.data.vocabulary import SpecialIds
from nextstep_jax.errors import InputError

FILE = "sequences_feb.json"
PAIR, TEXT = "image_text_pair", "nlp"
KINDS = {PAIR: "pair", TEXT: "text", "image_editing": "edit", "interleave": "interleaved"}
# What an example says about how it was made, or in words.
_GIVEN = {"name", "kind", "how", "note", "messages", "max_len", "grids_known", "image_first_probability"}
_GIVEN |= {"datasets", "batch_size", "seed", "rank", "worker"}
_SAMPLE_GIVEN = {"index", "dataset", "pieces", "image_numbers"}


def compare(goldens: Goldens, reference: Reference, report: Report) -> None:
    """One row for the seeds, for each example and for each run of the mixing loop."""
    file = goldens.json(FILE)
    special, name = _special_ids(file["ids"]), FILE.removesuffix(".json")
    seeds = [_seed(row["args"]) for row in file["make_seed"]]
    report.compare_values(f"{name}.make_seed", seeds, file["make_seed"])
    for example in file["examples"]:
        ours = _example(example, file["seed"], special)
        report.compare_values(f"{name}.examples.{example['name']}", ours, _answers(example))
    for example in file["batches"]:
        ours = _batches(example, special)
        report.compare_values(f"{name}.batches.{example['name']}", ours, _answers(example))


def _special_ids(ids: dict) -> SpecialIds:
    return SpecialIds(
        eos=ids["eos"],
        pad=ids["pad"],
        image_area=ids["image_area"],
        begin_of_image=ids["begin_of_image"],
        end_of_image=ids["end_of_image"],
        image_placeholder=ids["placeholder"],
        digits=tuple(range(ids["digit0"], ids["digit0"] + 10)),
        times=ids["star"],
    )


def _seed(args: list) -> dict:
    seed = make_seed(*args)
    return {"args": args, "seed": seed, "first_random": random.Random(seed).random()}


def _answers(example: dict) -> dict:
    """An example without what was given."""
    answers = {key: value for key, value in example.items() if key not in _GIVEN}
    samples = [{key: value for key, value in sample.items() if key not in _SAMPLE_GIVEN} for sample in example["samples"]]
    return answers | {"samples": samples}


# --- the samples as a source ------------------------------------------------------------------------------------------


class _Samples:
    """Samples of one kind in their order: a `Stream` without readers or a text tokenizer."""

    def __init__(self, samples: list[dict], kind: str, weight: float, image_first: float, seed: int):
        if kind not in KINDS:
            raise InputError(f"{FILE}: samples of kind {kind!r} are not known, only {', '.join(KINDS)}")
        augmentation = dataclasses.replace(AS_STORED, image_first=image_first if kind == PAIR else 0)
        self.name, self.weight, self.position, self.counts = kind, weight, 0, SampleCounts()
        self.tokenized = [_prepare(sample, KINDS[kind], augmentation, seed) for sample in samples]

    def __next__(self) -> TokenizedSample:
        if self.position == len(self.tokenized):
            raise InputError(f"{FILE}: {self.position} samples of kind {self.name!r} do not fill the rows that it lists")
        self.position += 1
        return self.tokenized[self.position - 1]

    def state(self) -> dict:
        return {"position": self.position}

    def count(self, sample: TokenizedSample, pieces: int) -> None:
        self.counts.oversized += not pieces


def _prepare(sample: dict, kind: str, augmentation: Augmentation, seed: int) -> TokenizedSample:
    """A sample in the order that the augmentation gives it."""
    texts: dict[str, Any] = {}
    parts: list[Any] = []
    part: TextPart | ImagePart
    numbers = iter(sample["image_numbers"])
    for piece in sample["pieces"]:
        if "text" in piece:
            part = TextPart(str(len(parts)))  # stands for its ids
            texts[part.text] = TextIds(np.asarray(piece["text"], np.int32))
        else:
            h, w = piece["image"]
            part = ImagePart.from_latents(np.full((h, w, 1), next(numbers), np.float32), h, w)
        parts.append(part)
    # An edit that has lost its source in an augmentation is, to everything after it, a pair.
    kind = "pair" if kind == "edit" and len(sample["image_numbers"]) == 1 else kind
    arranged = arrange(Sample(tuple(parts), kind, str(sample["index"])), augmentation, seed, sample["index"])
    return TokenizedSample(sample["index"], str(sample["index"]), kind, [_encode(part, texts) for part in arranged])


def _encode(part: TextPart | ImagePart, texts: dict[str, TextIds]) -> TextIds | ImageTokens:
    if isinstance(part, TextPart):
        return texts[part.text]
    latents = part.latents()
    return ImageTokens(latents.reshape(-1, 1), latents.shape[0], latents.shape[1], part.loss)


# --- one kind of data -------------------------------------------------------------------------------------------------


def _example(example: dict, seed: int, special: SpecialIds) -> dict:
    """What packing one kind of data gives: the samples' own sequences, the rows, and what is left over."""
    layout = PackingConfig(
        1, example["max_len"], channels=1, patch=1, seed=seed, shuffle=False, grids=_grids(example["grids_known"])
    )
    image_first = example.get("image_first_probability", 0)
    samples: Any = _Samples(example["samples"], example["kind"], 1.0, image_first, seed)
    packing = ReleasePacking([samples], special, layout)
    is_text, packs = example["kind"] == TEXT, []
    kept: dict[int, Any] = {}  # (grid, start, stop) of each sample in a queue, by position
    for _ in example["packs"]:
        row = packing.next_row(0)
        segments = [item.segment for item in row.items]
        pack = _row(_joined(segments), layout.seq_len, special) | {"attention_mask": [1] * layout.seq_len}
        if is_text:
            pack = {key: pack[key] for key in ("input_ids", "labels", "attention_mask")}
        else:
            kept |= {origin[0]: (row.grid, *origin[1:]) for item in row.items if (origin := item.origin) is not None}
            pack["sample_indices"] = [int(item.key) for item in row.items]
        packs.append(pack | {"samples_read_so_far": samples.position})
    state = packing.state()
    queues = {grid: queue for grid, queue in state["queues"][0].items() if queue}
    kept |= {origin[0]: (grid, *origin[1:]) for grid, queue in queues.items() for origin in queue}
    left: dict[str, Any] = {"queues": {grid: _queue(queue, samples, special) for grid, queue in queues.items()}}
    if is_text:
        left = {"stream": state["text"][0][0]}

    described: list[dict] = []
    cuts: list[Any] = []
    for position, tokenized in enumerate(samples.tokenized):
        if position >= samples.position:
            described.append({})
            continue
        grid, start, stop = kept.get(position, (None, 0, len(tokenized.parts)))
        segment = training_segment(tokenized.parts[start:stop], special, 1)
        if is_text:
            described.append({"stream": segment.text_ids.tolist()})
            continue
        written = _row(segment, len(segment), special)
        description = {key: written[key] for key in ("input_ids", "labels", "image_filtered_idx")}
        description |= {"queue": grid, "kept_image_numbers": written["image_numbers"]}
        if grid is None:
            description["dropped"] = "longer than max_len"
        if example["kind"] == PAIR:
            description["draw"] = draws(seed, tokenized.index).random()
        described.append(description)
        if stop - start < len(tokenized.parts):
            images = [isinstance(part, ImageTokens) for part in tokenized.parts]
            cuts.append({"start": sum(images[:start]), "images_kept": sum(images[start:stop])})
    return {"packs": packs, "left_in_buffer": left, "samples": described} | ({"cuts": cuts} if cuts else {})


def _queue(origins: list, samples: _Samples, special: SpecialIds) -> dict:
    lengths = [len(training_segment(samples.tokenized[at].parts[start:stop], special, 1)) for at, start, stop in origins]
    return {"length": sum(lengths), "sample_ends": [0, *np.cumsum(lengths).tolist()]}


# --- the mixing loop --------------------------------------------------------------------------------------------------


def _batches(example: dict, special: SpecialIds) -> dict:
    """What mixing all kinds of data gives: batches, and how far each source was read."""
    if example["worker"] != 0:
        raise InputError(f"{FILE}: batches of worker {example['worker']} are not known, this library has one worker a host")
    layout = PackingConfig(
        example["batch_size"],
        example["max_len"],
        channels=1,
        patch=1,
        seed=example["seed"],
        shuffle=False,
        data_shard=example["rank"],
        data_shards=example["rank"] + 1,
        grids=_grids(example["grids_known"]),
    )
    image_first = example.get("image_first_probability", Augmentation().image_first)
    sources: list[Any] = []
    for number, dataset in enumerate(example["datasets"]):
        of_dataset = [sample for sample in example["samples"] if sample["dataset"] == number]
        sources.append(_Samples(of_dataset, dataset["kind"], dataset["weight"], image_first, example["seed"]))
    packing, names = ReleasePacking(sources, special, layout), [source.name for source in sources]
    batches = [_batch(packing.next_batch(), names, special) for _ in example["batches"]]
    return {
        "batches": batches,
        "samples_read": [source.position for source in sources],
        "samples": [{} for _ in example["samples"]],
    }


def _batch(packed: PackedBatch, names: list[str], special: SpecialIds) -> dict:
    batch, rows = packed.batch, []
    assert isinstance(batch, Batch)
    for b in range(batch.shape[0]):
        used = int((batch.segment_ids[b] > 0).sum())
        ids, is_image, tokens, text_weight, image_weight = (
            array[b, :used]
            for array in (batch.text_ids, batch.is_image, batch.image_tokens, batch.text_weight, batch.image_weight)
        )
        # A Batch has no weight at its first position, which nothing precedes. The release labels it, without any effect.
        text_weight = np.append(1.0, text_weight[1:])
        segment = Segment(ids, is_image, tokens[is_image], text_weight, image_weight)
        rows.append(_row(segment, batch.shape[1], special))
    grids = {tuple(grid) for row in rows for grid in row["image_grids"]}
    return {
        "dataset_of_row": [names.index(keys[0].split(":")[0]) for keys in packed.keys],
        "input_ids": [row["input_ids"] for row in rows],
        "labels": [row["labels"] for row in rows],
        "attention_mask_all_ones": True,  # `assemble` sets no sample of a row apart: each row is one segment
        "latents_are_a_list": len(grids) > 1,
        "image_numbers": [number for row in rows for number in row["image_numbers"]],
        "image_filtered_idx": [kept for row in rows for kept in row["image_filtered_idx"]],
        "pad_total": sum(row["pad_len"] for row in rows),
    }


# --- our segments as the release writes its rows ----------------------------------------------------------------------


def _joined(segments: Iterable[Segment]) -> Segment:
    """Segments one after another."""
    fields = [[getattr(segment, field.name) for segment in segments] for field in dataclasses.fields(Segment)]
    return Segment(*map(np.concatenate, fields))


def _row(segment: Segment, length: int, special: SpecialIds) -> dict:
    """A row of `length` ids with its labels and images.

    A text target's label is its id. So is that of the last placeholder of an image: the release starts to blank an image's
    labels one position early.
    """
    ids, pads = segment.text_ids, length - len(segment)
    last = segment.is_image & ~np.append(segment.is_image[1:], False)
    labels = np.where((segment.text_weight > 0) | last, ids, IGNORED)
    numbers: list[Any] = []
    kept: list[Any] = []
    grids: list[Any] = []
    weights = segment.image_weight[segment.is_image]
    for h, w in _areas(ids.tolist(), special):
        taken = sum(a * b for a, b in grids)
        grids.append([h, w])
        numbers.append(int(segment.image_tokens[taken, 0]))
        kept.append(int(weights[taken]))
    return {
        "input_ids": ids.tolist() + [special.pad] * pads,
        "labels": labels.tolist() + [IGNORED] * pads,
        "image_numbers": numbers,
        "image_grids": grids,
        "image_filtered_idx": kept,
        "pad_len": pads,
    }


def _areas(ids: list[int], special: SpecialIds) -> Iterator[tuple[int, int]]:
    """(h, w) of each image, as its area spells it."""
    for start in (i for i, token in enumerate(ids) if token == special.image_area):
        area = special.parse_area(ids[start + 1 : ids.index(special.begin_of_image, start)])
        if area is not None:
            yield area


def _grids(names: list[str]) -> tuple[tuple[int, int], ...]:
    sizes = (map(int, name.split("*")) for name in names if name != MIXED)
    return tuple((h, w) for h, w in sizes)
