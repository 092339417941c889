"""How fast samples come from a bucket beside the same shards on the disk.

    python -m benchmarks.bucket_shards [--bucket s3] [--samples 2000] [--json FILE]

The same dataset lies on the disk and in a stand-in on this machine (`stand_in_buckets`), so the network costs nothing: what is
measured is the reader. Records are read in one random order, by one thread: from the disk; from the bucket without local
copies, which are then made; again, with the copies. `opening_s` is one listing, however many shards there are.
"""

import argparse
import os
import pathlib
import random
import tempfile
import time

from benchmarks import measure, stand_in_buckets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", choices=("gs", "s3"), default="s3")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--json", help="also write the figures to this file")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure.report(run(pathlib.Path(folder), a.bucket, a.samples), a.json)


def run(folder: pathlib.Path, kind: str, samples: int) -> dict:
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
        figures: dict = {"setting": {"bucket": kind, "samples": samples, "shards": len(shards)}}
        figures["megabytes"] = sum(shard.bytes for shard in shards) / 1e6

        def read(name: str, place) -> None:
            began = time.perf_counter()
            source = ArrayRecordSource(place)
            opened = time.perf_counter()
            for index in order:
                source[index]
            figures[name] = {"opening_s": opened - began, "samples_a_second": samples / (time.perf_counter() - opened)}

        read("disk", local)
        read("bucket, no copies", remote)
        read("bucket, with copies", remote)
        for name in ("bucket, no copies", "bucket, with copies"):
            figures[name]["of_the_disk"] = figures[name]["samples_a_second"] / figures["disk"]["samples_a_second"]
        return figures


if __name__ == "__main__":
    main()
