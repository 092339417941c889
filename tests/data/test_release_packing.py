"""Rows and batches against those of the February 2026 release, exactly; and the saved position."""

import dataclasses
import json

import numpy as np
import pytest

from nextstep_jax.data.augment import AS_STORED
from nextstep_jax.data.mixture import BatchIterator
from nextstep_jax.data.packing import assemble
from nextstep_jax.data.release_packing import ReleasePacking
from nextstep_jax.data.sequence import KIND_IDS
from nextstep_jax.data.streams import MixtureComponent, PackingConfig, Stream
from nextstep_jax.errors import InputError
from tests.conftest import GOLDENS
from tests.data.made_up import CHANNELS, ListSource, golden_source, vocabulary

SEQUENCES = json.loads((GOLDENS / "sequences_feb.json").read_text())
VOCABULARY = vocabulary()
PAD, PLACEHOLDER = 500, 504
RELEASE = dataclasses.replace(AS_STORED, image_first=0.3)


def grids(names):
    return tuple(tuple(map(int, name.split("*"))) for name in names)


def check_row(batch, b, input_ids, labels, image_numbers, image_filtered_idx):
    """A row of ours says what the release's ids, labels and images say."""
    input_ids, labels = np.asarray(input_ids), np.asarray(labels)
    np.testing.assert_array_equal(batch.text_ids[b], input_ids)
    np.testing.assert_array_equal(batch.is_image[b], input_ids == PLACEHOLDER)
    # The first position of a row has no predecessor; positions before a placeholder belong to the flow head.
    text_target = (labels != -100) & (input_ids != PLACEHOLDER)
    text_target[0] = False
    np.testing.assert_array_equal(batch.text_weight[b], text_target)
    starts = np.flatnonzero((input_ids == PLACEHOLDER) & (np.roll(input_ids, 1) == 502))
    image_of = np.cumsum(np.isin(np.arange(len(input_ids)), starts)) - 1
    expected_image = np.where(input_ids == PLACEHOLDER, np.asarray([*image_numbers, 0])[image_of], 0)
    expected_weight = np.where(input_ids == PLACEHOLDER, np.asarray([*image_filtered_idx, 0])[image_of], 0)
    np.testing.assert_array_equal(batch.image_tokens[b], np.repeat(expected_image[:, None], CHANNELS, 1))
    np.testing.assert_array_equal(batch.image_weight[b], expected_weight)
    used = len(input_ids) - np.argmax(input_ids[::-1] != PAD)
    np.testing.assert_array_equal(batch.segment_ids[b], np.arange(len(input_ids)) < used)
    np.testing.assert_array_equal(batch.positions[b][:used], np.arange(used))


@pytest.mark.parametrize("example", SEQUENCES["examples"], ids=lambda example: example["name"])
def test_rows(example):
    source = golden_source(example["samples"], example["kind"])
    augmentation = dataclasses.replace(AS_STORED, image_first=example.get("image_first_probability", 0))
    config = PackingConfig(1, example["max_len"], shuffle=False, grids=grids(example["grids_known"]), max_oversized=1.0)
    stream = Stream(MixtureComponent(source, 1, augmentation), VOCABULARY, config, 0)
    packing = ReleasePacking([stream], VOCABULARY.special, config)
    for pack in example["packs"]:
        row = packing.next_row(0)
        contents = [[(item.segment, KIND_IDS[item.kind]) for item in row.items]]
        batch, _ = assemble(contents, 1, config.seq_len, CHANNELS, PAD, separated=False)
        images = pack.get("image_numbers", []), pack.get("image_filtered_idx", [])
        check_row(batch, 0, pack["input_ids"], pack["labels"], *images)
        assert stream.position == pack["samples_read_so_far"]
        if "sample_indices" in pack:
            assert [int(item.key) for item in row.items] == pack["sample_indices"]
    left = example["left_in_buffer"]
    lengths = {grid: len(queue) for grid, queue in packing.state()["queues"][0].items() if queue}
    assert lengths == {grid: len(queue["sample_ends"]) - 1 for grid, queue in left.get("queues", {}).items()}
    assert packing.state()["text"][0][0] == left.get("stream", [])
    assert stream.counts.oversized == sum("dropped" in sample for sample in example["samples"])
    stream.close()


def iterator(example, **changes) -> BatchIterator:
    components = []
    for number, dataset in enumerate(example["datasets"]):
        samples = [sample for sample in example["samples"] if sample["dataset"] == number]
        components.append(MixtureComponent(golden_source(samples, dataset["kind"]), dataset["weight"], RELEASE))
    config = PackingConfig(example["batch_size"], example["max_len"], shuffle=False, grids=grids(example["grids_known"]))
    return BatchIterator(components, VOCABULARY, dataclasses.replace(config, **changes))


@pytest.mark.parametrize("example", SEQUENCES["batches"], ids=lambda example: example["name"])
def test_batches(example):
    names = [dataset["kind"] for dataset in example["datasets"]]
    with iterator(example) as batches:
        for expected in example["batches"]:
            packed = next(batches)
            assert [names.index(row[0].split(":")[0]) for row in packed.keys] == expected["dataset_of_row"]
            images = iter(zip(expected["image_numbers"], expected["image_filtered_idx"], strict=True))
            for b, (input_ids, labels) in enumerate(zip(expected["input_ids"], expected["labels"], strict=True)):
                count = input_ids.count(502)
                of_row = [next(images) for _ in range(count)]
                check_row(packed.batch, b, input_ids, labels, [n for n, _ in of_row], [kept for _, kept in of_row])
            assert (packed.batch.segment_ids == 0).sum() == expected["pad_total"]
        read = [stream["position"] for stream in batches.get_state()["position"]["streams"]]
    assert read == example["samples_read"]


def test_continues_from_any_position():
    example = SEQUENCES["batches"][0]
    with iterator(example) as batches:
        run = [(next(batches), json.loads(json.dumps(batches.get_state()))) for _ in range(12)]
    for stop in (0, 3, 7):
        with iterator(example) as batches:
            batches.set_state(run[stop][1])
            for expected, state in run[stop + 1 : stop + 4]:
                found = next(batches)
                assert found.keys == expected.keys
                assert json.loads(json.dumps(batches.get_state())) == state
                for name in ("text_ids", "image_tokens", "text_weight", "image_weight", "positions"):
                    np.testing.assert_array_equal(getattr(found.batch, name), getattr(expected.batch, name))


def test_text_alone_with_one_row_a_batch_is_refused():
    example = SEQUENCES["batches"][1]
    samples = [sample | {"dataset": 0} for sample in example["samples"] if sample["dataset"] == 1]
    with (
        iterator(example | {"datasets": example["datasets"][1:], "samples": samples}) as batches,
        pytest.raises(InputError, match="no batch with images"),
    ):
        next(batches)


def test_an_unlisted_grid_is_refused():
    source = ListSource([golden_source(SEQUENCES["examples"][0]["samples"], "image_text_pair").samples[0]])
    config = PackingConfig(1, 40, shuffle=False, grids=((3, 3),))
    with BatchIterator([MixtureComponent(source)], VOCABULARY, config) as batches, pytest.raises(InputError, match=r"2\*4"):
        next(batches)
