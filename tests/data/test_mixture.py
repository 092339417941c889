"""Mixing, sharding, packing and resuming: what comes, in which order, and that it comes again after a stop."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from nextstep_jax.data.augment import AS_STORED, Augmentation
from nextstep_jax.data.data_shards import EndingDataShards
from nextstep_jax.data.mixture import BatchIterator
from nextstep_jax.data.packing import SampleCounts
from nextstep_jax.data.prefetch import split_evenly
from nextstep_jax.data.records import CaptionError, ImagePart, Sample
from nextstep_jax.data.sequence import KIND_IDS
from nextstep_jax.data.streams import MixtureComponent, PackingConfig
from nextstep_jax.data.vocabulary import Vocabulary
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.objectives.multitask import target_weights
from tests.data.made_up import ListSource, image, text, vocabulary

VOCABULARY = vocabulary()
LENGTH = 64
PACKING = PackingConfig(batch_size=2, seq_len=LENGTH, packing_buffer=4)
AUGMENTATION = Augmentation(capitalize=0)  # the made-up words have no capitals


def documents(count: int) -> ListSource:
    """Texts of 3 to 90 words; the first word is the document's number."""
    lengths = np.random.default_rng(0).integers(3, 90, count)
    samples = [Sample((text([i, *range(100, 99 + n)]),), "text", f"{i}") for i, n in enumerate(lengths)]
    return ListSource(samples, "documents")


def pairs(count: int, grids=((2, 2), (2, 3), (3, 2), (4, 4))) -> ListSource:
    lengths = np.random.default_rng(1).integers(1, 12, count)
    samples = []
    for i, n in enumerate(lengths):
        samples.append(Sample((text([i] * n), image(*grids[i % len(grids)], i)), "pair", f"{i}"))
    return ListSource(samples, "pairs")


def edits(count: int) -> ListSource:
    parts = [(image(2, 2, i, loss=False), text([i]), image(2, 2, i + 0.5)) for i in range(count)]
    return ListSource([Sample(p, "edit", f"{i}") for i, p in enumerate(parts)], "edits")


def stories(count: int) -> ListSource:
    samples = []
    for i in range(count):
        parts = tuple(part for step in range(2 + i % 4) for part in (text([i, step]), image(2, 2, i + step / 8)))
        samples.append(Sample(parts, "interleaved", f"{i}"))
    return ListSource(samples, "stories")


def mixture(augmentation=AUGMENTATION) -> list[MixtureComponent]:
    """The four kinds in the ratios of the paper's annealing stage."""
    sources = ((documents(40), 0.2), (pairs(50), 0.6), (edits(30), 0.1), (stories(30), 0.1))
    return [MixtureComponent(source, weight, augmentation) for source, weight in sources]


def take(batches: BatchIterator, count: int) -> list:
    return [next(batches) for _ in range(count)]


def keys(run) -> list:
    return [packed.keys for packed in run]


def assert_same(found, expected) -> None:
    assert found.keys == expected.keys and found.counts == expected.counts
    np.testing.assert_array_equal(found.kinds, expected.kinds)
    for field in dataclasses.fields(expected.batch):
        np.testing.assert_array_equal(getattr(found.batch, field.name), getattr(expected.batch, field.name))


def stop_and_go_on(config: PackingConfig, stops, ahead: int = 2) -> None:
    """The batches after each stop are those that would have come; the state passes through JSON."""
    with BatchIterator(mixture(), VOCABULARY, config, ahead) as batches:
        states, run = [json.dumps(batches.get_state())], []
        for _ in range(max(stops) + 3):
            run.append(next(batches))
            states.append(json.dumps(batches.get_state()))
    for stop in stops:
        with BatchIterator(mixture(), VOCABULARY, config, ahead) as batches:
            batches.set_state(json.loads(states[stop]))
            for place in range(stop, stop + 3):
                assert_same(next(batches), run[place])
                assert json.dumps(batches.get_state()) == states[place + 1]


def test_continues_from_any_batch():
    """Every stop falls into open rows, and some wait with closed ones."""
    stop_and_go_on(PACKING, stops=(0, 1, 2, 7, 12, 23))


def test_continues_within_a_document_that_spans_rows():
    stop_and_go_on(dataclasses.replace(PACKING, batch_size=1, seq_len=36, packing_buffer=2), stops=(1, 9, 10, 26))


def test_continues_with_another_number_of_readers():
    """Reader processes change neither the batches nor the saved position, and continue from anyone's."""
    components = [MixtureComponent(pairs(50), 1, AUGMENTATION)]
    with BatchIterator(components, VOCABULARY, PACKING) as batches:
        expected = take(batches, 2)
        state = json.loads(json.dumps(batches.get_state()))
        expected += take(batches, 8)
    with BatchIterator(components, VOCABULARY, dataclasses.replace(PACKING, workers=2)) as batches:
        batches.set_state(state)
        for place in range(2, 8):
            assert_same(next(batches), expected[place])
        state = json.loads(json.dumps(batches.get_state()))
    with BatchIterator(components, VOCABULARY, PACKING) as batches:
        batches.set_state(state)
        for place in range(8, 10):
            assert_same(next(batches), expected[place])


def test_closing_does_not_lose_what_was_made_ahead():
    with BatchIterator(mixture(), VOCABULARY, PACKING, ahead=4) as batches:
        expected = take(batches, 6)
    with BatchIterator(mixture(), VOCABULARY, PACKING, ahead=4) as batches:
        found = []
        for _ in range(6):
            found.append(next(batches))
            batches.close()
    assert keys(found) == keys(expected)


def test_a_position_of_another_mixture_is_refused():
    with BatchIterator(mixture(), VOCABULARY, PACKING) as batches:
        state = json.loads(json.dumps(batches.get_state()))
    for changes, message in (({"seed": 1}, "seed 42"), ({"data_shards": 2}, "data_shards 1")):
        config = dataclasses.replace(PACKING, **changes)
        with BatchIterator(mixture(), VOCABULARY, config) as batches, pytest.raises(InputError, match=message):
            batches.set_state(state)
    with BatchIterator(mixture()[1:], VOCABULARY, PACKING) as batches, pytest.raises(InputError, match="sources"):
        batches.set_state(state)
    with BatchIterator(mixture(), VOCABULARY, PACKING) as batches, pytest.raises(InputError, match="version"):
        batches.set_state({"position": {}})


def sample_counts(run) -> Counter:
    return Counter(key for packed in run for row in packed.keys for key in row)


def test_every_sample_once_an_epoch():
    """Over two epochs every sample comes twice, documents once for each of their pieces; the last rows are partly padding."""
    components = mixture(AS_STORED)
    with BatchIterator(components, VOCABULARY, dataclasses.replace(PACKING, epochs=2)) as batches:
        run = list(batches)
        with pytest.raises(StopIteration):
            next(batches)
    expected = Counter()
    for component in components:
        for sample in component.source.samples:
            words = sum(len(part.text.split()) for part in sample.texts)
            pieces = -(-(words + 1) // LENGTH) if sample.kind == "text" else 1
            expected[f"{component.source.name}:{sample.key}"] = 2 * pieces
    assert sample_counts(run) == expected
    assert all(packed.batch.shape == (2, LENGTH) for packed in run)


def test_hosts_divide_each_epoch_between_them():
    for count in (2, 3):
        union = Counter()
        for index in range(count):
            config = dataclasses.replace(PACKING, epochs=1, data_shard=index, data_shards=count)
            with BatchIterator([MixtureComponent(pairs(50), 1, AS_STORED)], VOCABULARY, config) as batches:
                union += sample_counts(batches)
        assert union == Counter({f"pairs:{i}": 1 for i in range(50)})


def orders(config: PackingConfig, count: int) -> list[str]:
    """The first samples in the order of reading, seen through rows that hold one sample each."""
    config = dataclasses.replace(config, batch_size=1, packing_buffer=1, seq_len=34)
    with BatchIterator([MixtureComponent(pairs(50, ((4, 4),)), 1, AS_STORED)], VOCABULARY, config) as batches:
        return [row[0] for packed in take(batches, count) for row in packed.keys]


def test_shuffling():
    stored = [f"pairs:{i}" for i in range(50)]
    assert orders(dataclasses.replace(PACKING, shuffle=False), 120) == [*stored, *stored, *stored[:20]]
    shuffled = orders(PACKING, 100)
    assert shuffled == orders(PACKING, 100)
    first, second = shuffled[:50], shuffled[50:]
    assert sorted(first) == sorted(second) == sorted(stored)
    assert first != second and first != stored
    assert orders(dataclasses.replace(PACKING, seed=43), 50) != first


def test_choices_differ_from_epoch_to_epoch():
    """A pair whose image comes first in one epoch need not in the next."""
    config = dataclasses.replace(PACKING, batch_size=1, packing_buffer=1, seq_len=34, shuffle=False)
    component = MixtureComponent(pairs(50, ((4, 4),)), 1, dataclasses.replace(AS_STORED, image_first=0.5))
    with BatchIterator([component], VOCABULARY, config) as batches:
        first = [packed.batch.text_ids[0, 0] == VOCABULARY.special.image_area for packed in take(batches, 100)]
    assert 10 < sum(first[:50]) < 40
    assert first[:50] != first[50:]


def tokens_by_kind(run) -> dict[str, float]:
    kinds = np.concatenate([packed.kinds.ravel() for packed in run])
    used = np.count_nonzero(kinds)
    return {kind: np.count_nonzero(kinds == id) / used for kind, id in KIND_IDS.items() if id in kinds}


def test_shares_are_shares_of_tokens():
    with BatchIterator(mixture(), VOCABULARY, PACKING) as batches:
        found = tokens_by_kind(take(batches, 120))
    assert found == pytest.approx({"text": 0.2, "pair": 0.6, "edit": 0.1, "interleaved": 0.1}, abs=0.01)


def test_packed_samples_are_separate_segments():
    with BatchIterator(mixture(), VOCABULARY, PACKING) as batches:
        for packed in take(batches, 10):
            for b, row in enumerate(packed.keys):
                segment_ids = packed.batch.segment_ids[b]
                assert segment_ids.max() == len(row)
                for number in range(1, len(row) + 1):
                    here = np.flatnonzero(segment_ids == number)
                    np.testing.assert_array_equal(here, np.arange(here[0], here[0] + len(here)))
                    np.testing.assert_array_equal(packed.batch.positions[b, here], np.arange(len(here)))
                    assert packed.batch.text_weight[b, here[0]] == 0


def test_every_target_of_a_row_has_a_place():
    def most_targets(run) -> list[int]:
        weights = zip(*(target_weights(packed.batch) for packed in run), strict=True)
        return [max(int((np.asarray(w) > 0).sum(axis=1).max()) for w in kind) for kind in weights]

    config = dataclasses.replace(PACKING, max_text_targets=32, max_image_targets=24)
    with BatchIterator(mixture(), VOCABULARY, PACKING) as batches:
        text, image = most_targets(take(batches, 60))
    assert text > 32 and image > 24
    with BatchIterator(mixture(), VOCABULARY, config) as batches:
        run = take(batches, 60)
    text, image = most_targets(run)
    assert 28 <= text <= 32 and 20 <= image <= 24
    assert tokens_by_kind(run) == pytest.approx({"text": 0.2, "pair": 0.6, "edit": 0.1, "interleaved": 0.1}, abs=0.02)
    stop_and_go_on(config, stops=(1, 7))


def test_samples_longer_than_a_row_are_counted():
    source = ListSource([*pairs(6).samples, Sample((text(range(90)), image(2, 2, 0)), "pair", "long")], "pairs")
    config = dataclasses.replace(PACKING, epochs=3, max_oversized=0.2)
    with BatchIterator([MixtureComponent(source, 1, AS_STORED)], VOCABULARY, config) as batches:
        run = list(batches)
    assert run[-1].counts == {"pairs": SampleCounts(read=21, oversized=3)}
    assert "pairs:long" not in sample_counts(run)


def test_a_source_without_any_sample_that_fits_is_refused():
    config = dataclasses.replace(PACKING, seq_len=8)
    with BatchIterator([MixtureComponent(pairs(5))], VOCABULARY, config) as batches:
        for _ in range(2):  # asked again, it says it again
            with pytest.raises(InputError, match="pairs: 2 of the 2 samples read do not fit into a row of 8"):
                next(batches)


class Sometimes(ListSource):
    """Every n-th sample cannot be used."""

    def __init__(self, count, n, error=CaptionError):
        super().__init__(pairs(count).samples, "pairs")
        self.n, self.error = n, error

    def __getitem__(self, index):
        if index % self.n == self.n - 1:
            raise self.error(f"{index}.png: no caption")
        return super().__getitem__(index)


def test_unusable_samples_are_left_out_and_counted_up_to_a_limit(caplog):
    config = dataclasses.replace(PACKING, epochs=2, max_skipped=0.1)
    with BatchIterator([MixtureComponent(Sometimes(60, 15), 1, AS_STORED)], VOCABULARY, config) as batches:
        run = list(batches)
    assert run[-1].counts == {"pairs": SampleCounts(read=120, skipped=8)}
    assert set(sample_counts(run).values()) == {2} and len(sample_counts(run)) == 56
    assert "pairs: left out, because it cannot be used: 14.png: no caption" in caplog.messages
    config = dataclasses.replace(PACKING, max_skipped=0.05)
    with (
        BatchIterator([MixtureComponent(Sometimes(60, 15), 1, AS_STORED)], VOCABULARY, config) as batches,
        pytest.raises(InputError, match=r"pairs: 6 of the \d+ samples read cannot be used, at most 5.00% .*max_skipped"),
    ):
        take(batches, 100)


def test_a_source_of_nothing_usable_stops_whatever_the_limit():
    config = dataclasses.replace(PACKING, max_skipped=1.0)
    with (
        BatchIterator([MixtureComponent(Sometimes(20, 1))], VOCABULARY, config) as batches,
        pytest.raises(InputError, match="20 of the 20 samples"),
    ):
        next(batches)


def test_damaged_shards_are_no_unusable_samples():
    source = Sometimes(60, 15, DamagedDataError)
    with (
        BatchIterator([MixtureComponent(source)], VOCABULARY, dataclasses.replace(PACKING, max_skipped=1.0)) as batches,
        pytest.raises(DamagedDataError),
    ):
        take(batches, 100)


def test_cut_samples_are_counted():
    source = ListSource(
        [*stories(5).samples, Sample(tuple(text([i] * 20) for i in range(10)), "interleaved", "long")], "stories"
    )
    with BatchIterator([MixtureComponent(source, 1, AS_STORED)], VOCABULARY, dataclasses.replace(PACKING, epochs=1)) as batches:
        run = list(batches)
    assert run[-1].counts == {"stories": SampleCounts(read=6, cut=1)}
    assert sample_counts(run)["stories:long"] == 4


def test_other_samples_at_the_same_place_are_noticed():
    """As many samples with the same weights, but others: the saved position is of no use."""
    with BatchIterator([MixtureComponent(pairs(50))], VOCABULARY, PACKING) as batches:
        state = json.loads(json.dumps(batches.get_state()))
    changed = ListSource([*pairs(50).samples[:-1], Sample((text([1]), image(2, 2, 0)), "pair", "other")], "pairs")
    with (
        BatchIterator([MixtureComponent(changed)], VOCABULARY, PACKING) as batches,
        pytest.raises(InputError, match="the source pairs holds other samples than when the position") as caught,
    ):
        batches.set_state(state)
    assert "\n" not in str(caught.value)


def test_an_old_position_is_refused():
    with (
        BatchIterator([MixtureComponent(pairs(50))], VOCABULARY, PACKING) as batches,
        pytest.raises(InputError, match="has version 1, this library reads version 2"),
    ):
        batches.set_state({"version": 1, "made_with": {}, "position": {}})


def test_data_that_ends_is_padded_until_all_shards_have_ended():
    """Three data shards of one epoch: as many batches as the longest has, every sample once, then the end, again and again."""

    def shards(count):
        config = dataclasses.replace(PACKING, epochs=1, data_shards=count)
        component = MixtureComponent(pairs(50), 1, AS_STORED)
        made = {n: BatchIterator([component], VOCABULARY, dataclasses.replace(config, data_shard=n)) for n in range(count)}
        return EndingDataShards(made, count, list, anywhere=lambda found: found)

    data = shards(3)
    items = list(data)
    assert all(len(item) == 3 for item in items)
    assert sample_counts(part for item in items for part in item) == Counter({f"pairs:{i}": 1 for i in range(50)})
    lengths = [max(n for n, item in enumerate(items, 1) if item[shard].keys) for shard in range(3)]
    assert max(lengths) == len(items)
    assert all((item[shard].batch.segment_ids == 0).all() for shard in range(3) for item in items[lengths[shard] :])
    state = data.get_state()
    data.close()
    again = shards(3)
    again.set_state([json.loads(json.dumps(state))])
    assert list(again) == []
    again.close()


def test_thinking_needs_its_tokens():
    tokenizer = json.loads(VOCABULARY.to_bytes())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if "_of_thinking" not in token["content"]]
    small = Vocabulary.from_bytes(json.dumps(tokenizer).encode())
    component = MixtureComponent(pairs(5), thinking=True)
    with pytest.raises(InputError, match=r"pairs: thinking is on, but tokenizer.json has no .*<\|begin_of_thinking\|>"):
        BatchIterator([component], small, PACKING)
    BatchIterator([MixtureComponent(pairs(5))], small, PACKING).close()


def test_a_hosts_workers_are_shared_out():
    assert split_evenly(4, 3) == [2, 1, 1] and split_evenly(2, 3) == [1, 1, 0] and split_evenly(0, 2) == [0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_readers_name_the_sample(workers):
    pixels = ImagePart.from_pixels(np.zeros((16, 16, 3), np.uint8))
    source = ListSource([Sample((text([1]), pixels), "pair", "bad")])
    config = dataclasses.replace(PACKING, workers=workers)
    with (
        BatchIterator([MixtureComponent(source)], VOCABULARY, config) as batches,
        pytest.raises(InputError, match="sample 'bad'"),
    ):
        next(batches)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"data_shard": 2, "data_shards": 2}, "data_shard"),
        ({"epochs": 0}, "epochs"),
        ({"max_text_targets": 0}, "max_text_targets"),
        ({"max_image_targets": LENGTH + 1}, "max_image_targets"),
        ({"grids": ()}, "grids"),
        ({"grids": ((2, 2),), "epochs": 1}, "epochs"),
    ],
)
def test_bad_packing_configs(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PACKING, **changes)


def test_bad_components():
    with pytest.raises(InputError, match="weight of pairs"):
        MixtureComponent(pairs(2), weight=0)
    with pytest.raises(InputError, match="pairs has no samples"):
        MixtureComponent(ListSource([], "pairs"))
    with pytest.raises(InputError, match="at least one source"):
        BatchIterator([], VOCABULARY, PACKING)
