"""Can the hosts of a pod keep up with it? Costs measured here, and a simulation of 64 hosts with four data shards each.

    python -m benchmarks.pod_data [--steps 200] [--step-seconds 5 8] [--shards 100000] [--json FILE]

Measured, in seconds of a processor: reading and tokenizing samples of text, of image-text pairs (latents of 256 x 256) and
interleaved ones from ArrayRecord shards, with a byte-level BPE; putting rows together. Lengths are those of
`benchmarks.packing`, shares of tokens those of the paper's stage 1.

Simulated: steps of 768 rows of 8,192 positions (6.3M tokens). Each data shard draws samples of the mix, packs them with the
library's packing into its three rows, and pays what was measured. Every sample is a request to a bucket too, of 30 ms in the
median (log-normal with sigma 0.7, so that one in a hundred takes 150 ms), which the streams' reader threads wait for. Shards
work up to two batches ahead; a step begins when the slowest host has its rows. `stalled` is the part of the time that the
devices then wait.

Restarting: a dataset's index of --shards shards is written, read and sent to another process; the folder is surveyed, on the
disk (sparse files) and in a stand-in of GCS. A saved position is restored, whose open rows must be
read again, with every read taking 30 ms.
"""

import argparse
import json
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks import measure, packing, stand_in_buckets

HOSTS, DATA_SHARDS, ROWS, LENGTH, SHARES = 64, 4, 3, 8192, packing.STAGES["stage 1"][3]
AHEAD = 2  # batches that a data shard makes before they are asked for
READERS = 4  # threads of a stream, as in training/multitask.py
LATENCY_S, LATENCY_SPREAD = 0.03, 0.7


class Sample(NamedTuple):
    """A sample as the simulation knows it: the sizes of its pieces, and what it costs."""

    pieces: list
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=150, help="of each kind, to measure")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--step-seconds", type=float, nargs="+", default=[5.0, 8.0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--json", help="also write the figures to this file")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        samples, row_seconds, figures = measured(folder, a.samples)
        work = simulated_work(samples, row_seconds, a.steps)
        figures["pod"] = pod(work, a.step_seconds)
        print(json.dumps(figures), file=sys.stderr, flush=True)
        figures["restart"] = {"disk": restart_on_disk(folder / "disk", a.shards)}
        print(json.dumps(figures["restart"]), file=sys.stderr, flush=True)
        figures["restart"]["position"] = _restore(folder)
        figures["restart"]["bucket"] = restart_in_bucket(folder / "disk", a.shards)
    measure.report(figures, a.json)


# --- what a sample costs ----------------------------------------------------------------------------------------------


def measured(folder: pathlib.Path, count: int) -> tuple[dict[str, list[Sample]], float, dict]:
    """Samples of each kind with their costs, the seconds of putting a row together, and the figures."""
    from nextstep_jax.data.augment import Augmentation
    from nextstep_jax.data.mixture import SegmentPacking
    from nextstep_jax.data.sequence import ReadSample, Tokenize
    from nextstep_jax.data.sources import open_source
    from nextstep_jax.data.streams import MixtureComponent, PackingConfig, Stream

    vocabulary, words = _vocabulary()
    figures: dict[str, Any] = {"samples": {}}
    samples, components = {}, []
    limits = (LENGTH, round(0.75 * LENGTH), round(0.75 * LENGTH))
    draw = np.random.default_rng(0)
    config = PackingConfig(ROWS, LENGTH, max_text_targets=limits[1], max_image_targets=limits[2])
    for kind in SHARES:
        _write(folder / kind, kind, count, words, limits, draw)
        source = open_source(folder / kind)
        read = ReadSample(source, Tokenize(kind, vocabulary, Augmentation(), 0, 2, 64))
        components.append(MixtureComponent(source, SHARES[kind]))
        stream = Stream(components[-1], vocabulary, config, 0)
        pack = SegmentPacking([stream], vocabulary.special, config)
        found = []
        for index in range(count):
            read(index, index)  # its file is open, its pages are there
            began = time.thread_time()
            tokenized = read(index, index)
            seconds = time.thread_time() - began
            pieces = [segment.sizes for segment in pack._segments(tokenized)]
            found.append(Sample(pieces, seconds))
        samples[kind] = found
        tokens = sum(size[0] for sample in found for size in sample.pieces)
        seconds = sum(sample.seconds for sample in found)
        figures["samples"][kind] = {
            "tokens": tokens / count,
            "milliseconds": 1000 * seconds / count,
            "tokens_a_core_second": tokens / seconds,
        }
    packed = SegmentPacking([Stream(c, vocabulary, config, n) for n, c in enumerate(components)], vocabulary.special, config)
    row_seconds = _seconds_a_row(packed)
    figures["milliseconds_a_row"] = 1000 * row_seconds
    return samples, row_seconds, figures


def _vocabulary():
    """A byte-level BPE with the special tokens, and the made-up words that it was trained on."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from nextstep_jax.data.vocabulary import Vocabulary, with_special_tokens

    draw = np.random.default_rng(1)
    syllables = [first + second for first in "bcdfglmnprst" for second in "aeiou"]
    words = ["".join(draw.choice(syllables, draw.integers(1, 5))) for _ in range(20_000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator((" ".join(draw.choice(words, 200)) for _ in range(500)), trainer)
    return Vocabulary.from_bytes(with_special_tokens(tokenizer.to_str().encode())), np.asarray(words)


def _write(folder: pathlib.Path, kind: str, count: int, words: np.ndarray, limits, draw: np.random.Generator) -> None:
    """A dataset of that kind, its images as latents of 32 x 32."""
    from nextstep_jax.data import records, shards

    noise = draw.normal(size=(32, 32, 16)).astype(np.float32)

    def text(tokens: int) -> records.TextPart:
        return records.TextPart(" ".join(draw.choice(words, max(1, round(tokens / 1.6)))))

    def image() -> records.ImagePart:
        return records.ImagePart.from_latents((noise + draw.normal()).astype(ml_dtypes.bfloat16), 256, 256)

    def sample(number: int) -> bytes:
        if kind == "text":
            parts = [text(min(100_000, max(30, round(draw.lognormal(np.log(600), 1.2)))))]
        elif kind == "pair":
            parts = [text(round(draw.lognormal(np.log(90), 0.6))), image()]
        else:
            parts = []
            for _ in range(min(int(draw.integers(2, 24)), LENGTH // 512)):
                parts += [text(round(draw.lognormal(np.log(60), 0.8))), image()]
        return records.pack(records.Sample(tuple(parts), kind, str(number)))

    folder.mkdir()
    shard = shards.write_shard(folder / shards.shard_name(0), map(sample, range(count)))
    shards.write_index(folder, kind, [shard], images=0, kinds={kind: count}, latents={"area": 256, "dtype": "bfloat16"})


def _seconds_a_row(packed, batches: int = 5) -> float:
    """Processor seconds of packing and of making arrays, without reading: samples come from memory."""
    from nextstep_jax.data.packing import assemble

    seconds, make = 0.0, assemble

    def timed(*arguments, **more):
        nonlocal seconds
        began = time.thread_time()
        result = make(*arguments, **more)
        seconds += time.thread_time() - began
        return result

    import nextstep_jax.data.mixture as mixture

    mixture.assemble = timed
    for _ in range(batches):
        packed.next_batch()
    mixture.assemble = make
    for stream in packed._streams:
        stream.close()
    return seconds / (batches * ROWS)


# --- the pod ----------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What data shard n does for step s, [steps, shards]: processor seconds, and seconds that its slowest stream waits."""

    processor: np.ndarray
    waiting: np.ndarray


def simulated_work(samples: dict[str, list[Sample]], row_seconds: float, steps: int) -> Work:
    """The work of all data shards."""
    from nextstep_jax.data.packing import BestFit
    from nextstep_jax.data.sequence import fits

    shards, limits = HOSTS * DATA_SHARDS, (LENGTH, round(0.75 * LENGTH), round(0.75 * LENGTH))
    processor, waiting = np.zeros((steps, shards)), np.zeros((steps, shards))
    for shard in range(shards):
        draw = np.random.default_rng(shard)
        rows: BestFit[int] = BestFit(limits, 16)
        tokens, closed = dict.fromkeys(SHARES, 0), 0
        for step in range(steps):
            seconds, waits = ROWS * row_seconds, dict.fromkeys(SHARES, 0.0)
            while closed < ROWS:
                kind = min(SHARES, key=lambda kind: tokens[kind] / SHARES[kind])
                sample = samples[kind][draw.integers(len(samples[kind]))]
                seconds += sample.seconds
                waits[kind] += LATENCY_S * np.exp(LATENCY_SPREAD * draw.normal()) / READERS
                for sizes in sample.pieces:
                    tokens[kind] += sizes[0]
                    if fits(sizes, limits):
                        closed += rows.add(0, sizes) is not None
            closed -= ROWS
            processor[step, shard], waiting[step, shard] = seconds, max(waits.values())
    return Work(processor[1:], waiting[1:])  # the first step also fills the rows held open


def pod(work: Work, step_seconds: list[float]) -> dict:
    """The figures: work of a host and its skew, and how long devices wait for the slowest host."""
    steps = len(work.processor)
    of_hosts = work.processor.reshape(steps, HOSTS, DATA_SHARDS).sum(-1)
    slowest = of_hosts.max(1) / of_hosts.mean(1)
    waiting = work.waiting.reshape(steps, HOSTS, DATA_SHARDS).max((1, 2))
    figures: dict[str, Any] = {
        "tokens_a_step": HOSTS * DATA_SHARDS * ROWS * LENGTH,
        "processor_seconds_a_host_and_step": float(of_hosts.mean()),
        "slowest_host_over_mean": {"median": float(np.median(slowest)), "worst": float(slowest.max())},
        "longest_wait_for_the_bucket_s": {"median": float(np.median(waiting)), "worst": float(waiting.max())},
        "cores_needed": {f"{seconds:g} s": float(of_hosts.mean() / seconds) for seconds in step_seconds},
        "stalled": {},
    }
    for seconds in step_seconds:
        for cores in (0.125, 0.25, 0.5, 1.0):
            figures["stalled"][f"{seconds:g} s, {cores:g} cores"] = stalled(work, seconds, cores)
    return figures


def stalled(work: Work, step_seconds: float, cores: float) -> float:
    """The part of the time that the devices wait, each host giving so many cores to its data shards."""
    steps, shards = work.processor.shape
    made = np.maximum(work.processor * DATA_SHARDS / cores, work.waiting)  # the shards of a host share its cores
    ready, begun = np.zeros(shards), np.zeros(steps)
    done = 0.0
    for step in range(steps):
        room = begun[step - AHEAD - 1] if step > AHEAD else 0.0  # a batch is taken when its step begins
        ready = np.maximum(ready, room) + made[step]
        begun[step] = max(done, ready.max())
        done = begun[step] + step_seconds
    began = begun[AHEAD + 1]  # after the start
    return float(1 - (steps - AHEAD - 1) * step_seconds / (done - began))


# --- restarting -------------------------------------------------------------------------------------------------------


def restart_on_disk(folder: pathlib.Path, count: int) -> dict:
    """Seconds and bytes of opening a dataset of `count` shards, sparse files."""
    _write_many(folder, count)
    figures = {"shards": count, "index_megabytes": (folder / "index.json").stat().st_size / 1e6}
    return figures | _in_a_process(str(folder))


def restart_in_bucket(folder: pathlib.Path, count: int) -> dict:
    """The same in a stand-in of GCS that holds the folder's index, and as many shards, all empty."""
    from nextstep_jax.data.shards import shard_name

    objects = {"many/index.json": (folder / "index.json").read_bytes()}
    objects |= {f"many/{shard_name(number)}": b"" for number in range(count)}
    with stand_in_buckets.read_only_bucket(objects) as address:
        return {"shards": count} | _in_a_process(f"{address}/many")


def _write_many(folder: pathlib.Path, count: int) -> None:
    from nextstep_jax.data.shards import Shard, shard_name, write_index

    folder.mkdir(parents=True)
    listed = [Shard(shard_name(number), 1000, 1 << 26, f"{number:064x}") for number in range(count)]
    for shard in listed:
        with open(folder / shard.file, "wb") as file:
            file.truncate(shard.bytes)
    write_index(folder, "many", listed, images=0, kinds={"pair": 1000 * count})


def _in_a_process(place: str) -> dict:
    """`opened` in a process of its own, whose memory is its own."""
    command = [sys.executable, "-c", f"from benchmarks import pod_data; pod_data.print_opened({place!r})"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{place}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def print_opened(place: str) -> None:
    """What opening a dataset costs: wall-clock and processor seconds, megabytes."""
    from nextstep_jax.data.sources import open_source
    from nextstep_jax.data.streams import MixtureComponent

    before = _resident()
    source, opening = _timed(lambda: open_source(place))
    _, identity = _timed(lambda: MixtureComponent(source).fingerprint)
    memory = _resident() - before
    data, _ = _timed(lambda: pickle.dumps(source))
    _, sent = _timed(lambda: pickle.loads(data))
    figures = {"opening": opening, "fingerprint": identity, "megabytes": memory}
    print(json.dumps(figures | {"to_a_worker": sent, "megabytes_to_a_worker": len(data) / 1e6}))


def _timed(action: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    began, processor = time.perf_counter(), time.process_time()
    result = action()
    return result, {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - processor}


def _resident() -> float:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def _restore(folder: pathlib.Path) -> dict:
    """Seconds until a data shard that was restored gives its next batch, every read taking as long as from a bucket."""
    from nextstep_jax.data.mixture import BatchIterator
    from nextstep_jax.data.shards import ArrayRecordSource
    from nextstep_jax.data.streams import MixtureComponent, PackingConfig

    vocabulary, _ = _vocabulary()
    config = PackingConfig(ROWS, LENGTH, threads=READERS)
    components = [MixtureComponent(ArrayRecordSource(folder / kind), share) for kind, share in SHARES.items()]
    reads, read = [0], ArrayRecordSource.__getitem__

    def slow(self, index):
        reads[0] += 1
        time.sleep(LATENCY_S)
        return read(self, index)

    with BatchIterator(components, vocabulary, config) as batches:
        for _ in range(8):
            next(batches)
        state = batches.get_state()
    ArrayRecordSource.__getitem__ = slow  # type: ignore[method-assign]
    with BatchIterator(components, vocabulary, config) as batches:
        batches.set_state(state)
        _, seconds = _timed(lambda: batches._packing.restore(state["position"]))
    ArrayRecordSource.__getitem__ = read  # type: ignore[method-assign]
    return {"samples_read_again": reads[0], "seconds": seconds["seconds"]}


if __name__ == "__main__":
    main()
