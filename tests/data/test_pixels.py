"""Image batches for the image tokenizer."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from nextstep_jax.data.pixels import PixelBatches
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.source import Unused
from nextstep_jax.errors import InputError


class Images:
    """Samples with one image each, all of whose pixels hold the sample's number; damaged where told."""

    name = "images"
    unused = Unused()

    def __init__(self, count, damaged=(), size=(8, 8)):
        self._count, self._damaged, self._size = count, damaged, size

    def __len__(self):
        return self._count

    def fingerprint(self, start, stop):
        return f"{start} {stop} {self._damaged} {self._size}"

    def identity(self):
        return self.fingerprint(0, self._count)

    def __getitem__(self, index):
        if index in self._damaged:
            raise InputError(f"images: sample {index}: the file is cut short")
        part = ImagePart.from_pixels(np.full((*self._size, 3), index, np.uint8))
        return Sample((TextPart("a picture"), part), "pair", str(index))


def numbers(batches, count):
    """The samples' numbers in the next batches."""
    return [batch.pixels[:, 0, 0, 0].tolist() for batch in itertools.islice(batches, count)]


def test_every_picture_comes_once_an_epoch_in_a_new_order():
    batches = PixelBatches([Images(8), Images(4)], 4, 8, 8, seed=1)
    first, second = numbers(batches, 3), numbers(batches, 3)
    batches.close()
    assert sorted(sum(first, [])) == sorted([*range(8), *range(4)]) == sorted(sum(second, []))
    assert first != second


def test_names_say_which_pictures_they_are():
    batches = PixelBatches([Images(8)], 4, 8, 8)
    batch = next(batches)
    batches.close()
    assert batch.keys == tuple(f"images:{number}" for number in batch.pixels[:, 0, 0, 0])


def test_a_saved_position_gives_the_very_next_batch():
    batches = PixelBatches([Images(20)], 4, 8, 8)
    numbers(batches, 2)
    state = batches.get_state()
    expected = numbers(batches, 5)
    batches.close()
    again = PixelBatches([Images(20)], 4, 8, 8)
    again.set_state(state)
    assert numbers(again, 5) == expected
    again.close()


def test_hosts_share_the_pictures():
    hosts = [PixelBatches([Images(12)], 2, 8, 8, data_shard=host, data_shards=2) for host in (0, 1)]
    seen = [sum(numbers(host, 3), []) for host in hosts]
    for host in hosts:
        host.close()
    assert sorted(seen[0] + seen[1]) == list(range(12))


def test_pictures_are_brought_to_one_size():
    batches = PixelBatches([Images(4, size=(20, 10)), Images(4, size=(7, 9))], 8, 8, 12)
    assert next(batches).pixels.shape == (8, 8, 12, 3)
    batches.close()


def test_a_few_damaged_pictures_are_left_out():
    batches = PixelBatches([Images(200, damaged=(7,))], 50, 8, 8)
    assert 7 not in sum(numbers(batches, 3), [])
    batches.close()


def test_many_damaged_pictures_stop_the_run_and_one_is_named():
    batches = PixelBatches([Images(200, damaged=range(0, 200, 10))], 50, 8, 8)
    with pytest.raises(
        InputError,
        match=r"\d+ of the \d+ images read cannot be used, at most 1.00% .*max_skipped\): images: sample \d+: the file is cut",
    ):
        numbers(batches, 4)
    batches.close()


def test_latents_are_called_latents():
    class Encoded(Images):
        def __getitem__(self, index):
            part = ImagePart.from_latents(np.zeros((2, 2, 4), np.float32), 16, 16)
            return Sample((TextPart("a picture"), part), "pair", str(index))

    batches = PixelBatches([Encoded(200)], 4, 8, 8)
    with pytest.raises(InputError, match=r"100 of the 100 images .*: images:\d+: stored as latents, not as pixels"):
        next(batches)
    batches.close()


def test_without_sources_there_is_nothing_to_read():
    with pytest.raises(InputError, match="needs a source"):
        PixelBatches([], 4, 8, 8)


def test_random_crops_are_drawn_anew_and_come_again():
    """Columns count up, so that a crop shows where it was taken; the saved position gives the same crops."""

    class Ramps(Images):
        def __getitem__(self, index):
            ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (8, 64, 3))
            return Sample((TextPart("a ramp"), ImagePart.from_pixels(np.ascontiguousarray(ramp))), "pair", str(index))

    batches = PixelBatches([Ramps(4)], 4, 8, 8, crop="random")
    first = sum(numbers(batches, 4), [])
    state = batches.get_state()
    second = sum(numbers(batches, 2), [])
    batches.close()
    assert len(set(first)) > 8 and max(first) - min(first) > 20
    again = PixelBatches([Ramps(4)], 4, 8, 8, crop="random")
    again.set_state(state)
    assert sum(numbers(again, 2), []) == second
    again.close()
    with pytest.raises(InputError, match="crop must be center or random"):
        PixelBatches([Ramps(4)], 4, 8, 8, crop="left")


def test_other_images_at_the_same_place_are_noticed():
    batches = PixelBatches([Images(20)], 4, 8, 8)
    state = batches.get_state()
    with pytest.raises(InputError, match="the sources hold other images than when the position"):
        PixelBatches([Images(20, size=(9, 9))], 4, 8, 8).set_state(state)
    with pytest.raises(InputError, match="not one that this version wrote"):
        batches.set_state({"next_index": 3})


def test_reader_processes_need_no_absl_app():
    """As in a notebook: nothing has parsed absl's flags."""
    code = """
import numpy as np
from nextstep_jax.data.pixels import PixelBatches
from nextstep_jax.data.sources import open_source
for workers in (0, 1):
    batches = PixelBatches([open_source("shapes:pair:train:8")], 4, 16, 16, workers=workers)
    print(next(batches).keys)
    batches.close()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(found) == 2 and found[0] == found[1]


def test_a_seed_of_more_than_32_bits_orders_as_its_own():
    """Grain takes 32 bits; none of the others is dropped."""

    def order(seed):
        batches = PixelBatches([Images(64)], 64, 8, 8, seed=seed)
        found = next(batches).pixels[:, 0, 0, 0].tolist()
        batches.close()
        return found

    assert sorted(order(1 << 40)) == list(range(64))
    assert order(1 << 40) == order(1 << 40) != order(0)
    assert order((1 << 40) + 1) != order(1 << 40)
