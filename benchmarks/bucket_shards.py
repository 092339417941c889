"""How fast samples come from a bucket beside the same shards on the disk.

    python -m benchmarks.bucket_shards [--bucket s3] [--samples 2000] [--threads 1] [--delay 0] [--json FILE]

The same dataset lies on the disk and in a stand-in on this machine (`stand_in_buckets`), so the network costs nothing: what is
measured is the reader. Records are read in one random order, by one thread unless --threads says otherwise: from the disk;
singly from the bucket, each the first time that it is read; again, with the copies that hold them; from whole copies. A last
round reads the bucket in order, where shards are copied ahead. `fetched_megabytes` is what came from the bucket, `--delay` the
seconds that every request takes longer, as a real bucket's do (some 0.03). `opening_s` is one listing, however many shards
there are.
"""

import argparse
import concurrent.futures
import os
import pathlib
import random
import shutil
import tempfile
import time

from benchmarks import measure, stand_in_buckets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", choices=("gs", "s3"), default="s3")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--json", help="also write the figures to this file")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure.report(run(pathlib.Path(folder), a.bucket, a.samples, a.threads, a.delay), a.json)


def run(folder: pathlib.Path, kind: str, samples: int, threads: int, delay: float) -> dict:
    """The figures, by name."""
    from nextstep_jax.data import shard_files
    from nextstep_jax.data.records import ImagePart, Sample, TextPart, pack
    from nextstep_jax.data.shards import INDEX, ArrayRecordSource, shard_name, write_index, write_shard

    buckets = {"gs": stand_in_buckets.google_bucket, "s3": stand_in_buckets.s3_bucket}
    with buckets[kind]() as address, stand_in_buckets.environment({shard_files.FOLDER_VARIABLE: str(folder / "copies")}):
        draw = random.Random(0)

        def sample(number: int) -> bytes:
            image = ImagePart(draw.randbytes(40_000), "png", 256, 256)
            return pack(Sample((TextPart("a red circle"), image), "pair", str(number)))

        local, size = folder / "local", max(1, samples // 16)
        local.mkdir()
        shards = [
            write_shard(local / shard_name(at // size), map(sample, range(at, min(at + size, samples))))
            for at in range(0, samples, size)
        ]
        write_index(local, "random", shards, images=samples, kinds={"pair": samples})
        from nextstep_jax import storage

        remote = storage.at(f"{address}/data")
        with storage.of(remote).new_local_folder(remote, INDEX) as staged:
            for file in local.iterdir():
                os.link(file, staged / file.name)
        order = random.Random(1).sample(range(samples), samples)
        figures: dict = {"setting": {"bucket": kind, "samples": samples, "shards": len(shards), "threads": threads}}
        figures["setting"] |= {"delay_s": delay, "megabytes": sum(shard.bytes for shard in shards) / 1e6}
        fetched, fetch = [0], shard_files.BucketShards._fetch

        def counted(self, number: int, start: int, stop: int) -> bytes:
            time.sleep(delay)
            fetched[0] += stop - start
            return fetch(self, number, start, stop)

        shard_files.BucketShards._fetch = counted  # type: ignore[method-assign]

        def read(name: str, place, order) -> None:
            fetched[0], began = 0, time.perf_counter()
            source = ArrayRecordSource(place)
            opened = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(source.__getitem__, order):
                    pass
            figures[name] = {"opening_s": opened - began, "samples_a_second": samples / (time.perf_counter() - opened)}
            figures[name]["fetched_megabytes"] = fetched[0] / 1e6

        read("disk", local, order)
        read("bucket, at random, the first time", remote, order)
        read("bucket, at random, again", remote, order)
        shutil.rmtree(folder / "copies")
        read("bucket, in order", remote, range(samples))
        read("bucket, at random, whole copies", remote, order)
        for name in [name for name in figures if name.startswith("bucket")]:
            figures[name]["of_the_disk"] = figures[name]["samples_a_second"] / figures["disk"]["samples_a_second"]
        return figures


if __name__ == "__main__":
    main()
