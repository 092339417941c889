"""How fast samples come from each kind of source on one core, and what the training loops ask for.

    python -m benchmarks.data --json data.json

Pictures are drawn (photograph-like noise over gradients, JPEG), stored in each form, and read back: `read` decodes the stored
bytes, `resized` also resizes and crops to 256 x 256 (64 x 64 for shapes), `packed` reads latents of the same samples and packs
them into rows. Samples per second, one process without readers beside it. What the loops consume stands in the README: a source
is fast enough if one core gives more than that, since the other core belongs to the step.
"""

import argparse
import io
import pathlib
import tarfile
import tempfile

import numpy as np

from benchmarks import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="of each source")
    parser.add_argument("--side", type=int, default=512, help="of the stored pictures, in pixels")
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """Samples per second by source."""
    from nextstep_jax.data.build import build
    from nextstep_jax.data.encode import encode
    from nextstep_jax.data.sources import open_source

    figures: dict = {"setting": {k: v for k, v in vars(a).items() if k != "json"}, "samples_a_second": {}}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_folder(root / "folder", a.samples, a.side)
        write_tar(root / "folder", root / "web.tar")
        build(open_source(root / "folder"), root / "shards")
        build(open_source(f"shapes:pair:train:{a.samples}"), root / "shapes")
        encode(root / "shards", latents, root / "latents")
        encode(root / "shapes", latents, root / "shape-latents", area=64)
        sources = {
            "folder of images": (root / "folder", 256),
            "WebDataset tar": (root / "web.tar", 256),
            "ArrayRecord": (root / "shards", 256),
            "ArrayRecord of shapes": (root / "shapes", 64),
            "shapes, drawn": (f"shapes:pair:train:{a.samples}", 64),
        }
        for name, (spec, side) in sources.items():
            figures["samples_a_second"][name] = speeds(open_source(spec), side, a.rounds)
        packed = {
            "ArrayRecord of latents": packing_speed(root / "latents", 2048, a.samples),
            "ArrayRecord of shape latents": packing_speed(root / "shape-latents", 160, a.samples),
        }
        for name, speed in packed.items():
            figures["samples_a_second"][name] = {"packed": speed}
    return figures


def write_folder(folder: pathlib.Path, count: int, side: int) -> None:
    """Pictures with captions: gradients under noise of several scales, which compress about as photographs do."""
    from PIL import Image

    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(count):
        picture = np.zeros((side, side, 3))
        for scale in (4, 16, 64, side):
            small = Image.fromarray(draw.integers(0, 256, (side // scale + 1, side // scale + 1, 3), dtype=np.uint8))
            picture += np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)) * (scale / side) ** 0.3
        picture = (picture * 255 / picture.max()).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i:06d}.jpg", quality=90)
        (folder / f"{i:06d}.txt").write_text(f"picture number {i} of gradients under noise")


def write_tar(folder: pathlib.Path, path: pathlib.Path) -> None:
    """The folder's pictures in the training release's layout."""
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            name = file.name.replace(".jpg", "-0.jpg") if file.suffix == ".jpg" else file.name
            data = file.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def latents(pixels: np.ndarray) -> np.ndarray:
    """Stand-in for the image tokenizer: random latents of the right shape."""
    batch, height, width, _ = pixels.shape
    return np.random.default_rng(0).normal(size=(batch, height // 8, width // 8, 16)).astype(np.float32)


def speeds(source, side: int, rounds: int) -> dict[str, float]:
    """Samples per second of reading, and of reading, decoding and resizing."""
    from nextstep_jax.data import images, records

    def pictures(i: int):
        return [part for part in source[i].parts if isinstance(part, records.ImagePart)]

    def read():
        for i in range(len(source)):
            pictures(i)

    def resized():
        for i in range(len(source)):
            for part in pictures(i):
                images.resize_crop(images.load(part.data, source.name), side, side)

    found = measure.alternate({"read": read, "resized": resized}, rounds)
    return {name: len(source) / seconds for name, seconds in found.items()}


def packing_speed(folder: pathlib.Path, length: int, samples: int) -> float:
    """Samples per second out of the mixture, as rows of `length` positions."""
    from nextstep_jax.data.mixture import BatchIterator
    from nextstep_jax.data.sources import open_source
    from nextstep_jax.data.streams import MixtureComponent, PackingConfig
    from nextstep_jax.training.vocabulary import shapes_vocabulary

    with BatchIterator(
        [MixtureComponent(open_source(folder))], shapes_vocabulary(), PackingConfig(batch_size=2, seq_len=length)
    ) as batches:
        next(batches)
        start, seen = measure.now(), 0
        while seen < 8 * samples:
            seen += sum(len(row) for row in next(batches).keys)
        return seen / (measure.now() - start)


if __name__ == "__main__":
    main()
