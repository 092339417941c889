"""Reading samples ahead of need, in threads of this process or in processes of their own (Grain)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grain


def prefetch(samples: "grain.MapDataset", workers: int, threads: int, buffer: int) -> Iterator[Any]:
    """The elements of a dataset, none left out, in its order whatever the number of readers.

    Args:
      workers: reader processes; 0 reads in this one.
      threads: reader threads of this process, where there are no workers.
      buffer: elements held ready.
    """
    import grain

    if not workers:
        return iter(samples.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)))
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain's processes read absl flags, which a program without absl.app never parses
        flags.FLAGS.mark_as_parsed()
    # Every process takes each n-th element, so the order is that of one reader.
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer // workers + 1)
    return iter(samples.to_iter_dataset(reading).mp_prefetch(processes))


def split_evenly(total: int, parts: int) -> list[int]:
    """`parts` whole numbers that add up to `total` and differ by 1 at most: a host's workers over its readers."""
    return [total // parts + (number < total % parts) for number in range(parts)]
