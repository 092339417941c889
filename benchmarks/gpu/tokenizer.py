"""Part "image_tokenizer": the release's image tokenizer with random weights, as benchmarks/image_tokenizer.py times it."""

import argparse

from benchmarks.gpu.record import Record, run_part


def measure(record: Record, _) -> None:
    from benchmarks import image_tokenizer

    settings = (
        [(32, 32, "float32")] if record.tiny else [(128, 512, "bfloat16"), (128, 1024, "bfloat16"), (128, 1024, "float32")]
    )
    for channels, side, dtype in settings:
        a = argparse.Namespace(channels=channels, side=side, batch=1, dtype=dtype, strip=0, rounds=5, json=None)
        record.attempt(f"{side} pixels, {dtype}", lambda a=a: image_tokenizer.run(a), needs=5)


if __name__ == "__main__":
    run_part(measure)
