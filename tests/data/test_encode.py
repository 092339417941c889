"""Datasets of latents: order, batches, what is passed through, interruption, refusals."""

import numpy as np
import pytest

from nextstep_jax.data import images, records, shards
from nextstep_jax.data.encode import encode
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.errors import DamagedDataError, InputError


def picture(level, height, width, loss=True):
    return ImagePart.from_pixels(np.full((height, width, 3), level, np.uint8), loss)


SAMPLES = [
    Sample((TextPart("0"), picture(10, 32, 32)), "pair", "0", {"v": "other"}, {"m": 1}),
    Sample((TextPart("1"), picture(20, 16, 64)), "pair", "1"),
    Sample((TextPart("2"),), "text", "2"),
    Sample((picture(30, 40, 40, loss=False), TextPart("3", loss=False), picture(40, 64, 16)), "edit", "3"),
    Sample((TextPart("4"), picture(50, 30, 34)), "pair", "4"),
    Sample((TextPart("5"), picture(60, 32, 32)), "pair", "5"),
]


@pytest.fixture
def dataset(tmp_path):
    directory = tmp_path / "pixels"
    directory.mkdir()
    entries = [
        shards.write_shard(directory / shards.shard_name(n), [records.pack(s) for s in SAMPLES[3 * n : 3 * n + 3]])
        for n in range(2)
    ]
    shards.write_index(directory, "tiny", entries, images=6, kinds={"pair": 4, "text": 1, "edit": 1})
    return directory


class Encoder:
    """[B, H, W, 3] -> [B, H/8, W/8, 4]: block averages, and a channel of ones."""

    def __init__(self):
        self.shapes = []

    def __call__(self, pixels):
        self.shapes.append(pixels.shape)
        assert pixels.dtype == np.float32
        b, h, w, _ = pixels.shape
        blocks = pixels.reshape(b, h // 8, 8, w // 8, 8, 3).mean((2, 4))
        return np.concatenate([blocks, np.ones_like(blocks[..., :1])], -1)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_latents_replace_images_in_place(dataset, tmp_path, batch):
    encoder = Encoder()
    counts = encode(dataset, encoder, tmp_path / "out", area=32, batch=batch, dtype="float32", encoder={"weights": "abc"})
    assert counts == {"samples": 6, "images": 6}
    source = ArrayRecordSource(tmp_path / "out")
    assert source.index["latents"] == {"area": 32, "dtype": "float32", "weights": "abc"}
    assert (source.name, source.index["kinds"]) == ("tiny", {"text": 1, "pair": 4, "edit": 1})
    for index, before in enumerate(SAMPLES):
        after = source[index]
        assert (after.key, after.kind, after.texts, after.caption_variants, after.metadata) == (
            before.key,
            before.kind,
            before.texts,
            before.caption_variants,
            before.metadata,
        )
        assert [type(part) for part in after.parts] == [type(part) for part in before.parts]
        for old, new in zip(before.images, after.images, strict=True):
            assert new.is_latents and new.loss == old.loss
            assert (new.height, new.width) == images.bucket_for(width=old.width, height=old.height, area=32)
            latents = new.latents()
            assert latents.shape == (new.height // 8, new.width // 8, 4)
            np.testing.assert_allclose(latents[..., :3], old.pixels()[0, 0, 0] / 127.5 - 1, atol=1e-6)
    assert {shape[0] for shape in encoder.shapes} == {batch}  # one shape per bucket, whatever is left over
    assert {shape[1:3] for shape in encoder.shapes} == {(32, 32), (16, 64), (64, 16)}


def test_latents_are_stored_in_half_the_bytes_by_default(dataset, tmp_path):
    encode(dataset, Encoder(), tmp_path / "out", area=32)
    assert ArrayRecordSource(tmp_path / "out")[0].images[0].format == "bfloat16"


def test_an_interrupted_encoding_goes_on(dataset, tmp_path):
    class Failing(Encoder):
        def __call__(self, pixels):
            if len(self.shapes) == 3:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    with pytest.raises(KeyboardInterrupt):
        encode(dataset, Failing(), tmp_path / "out", area=32, batch=1)
    with pytest.raises(InputError, match="not a dataset"):
        ArrayRecordSource(tmp_path / "out")
    encoder = Encoder()
    encode(dataset, encoder, tmp_path / "out", area=32, batch=1)
    assert len(encoder.shapes) == 4  # only the second shard's images
    encode(dataset, Encoder(), tmp_path / "whole", area=32, batch=1)
    assert ArrayRecordSource(tmp_path / "out").index == ArrayRecordSource(tmp_path / "whole").index
    with pytest.raises(InputError, match="made otherwise"):
        encode(dataset, encoder, tmp_path / "out", area=32, batch=1, encoder={"weights": "others"})


def test_latents_are_not_encoded_again(dataset, tmp_path):
    encode(dataset, Encoder(), tmp_path / "out", area=32)
    with pytest.raises(InputError, match="out: holds latents already"):
        encode(tmp_path / "out", Encoder(), tmp_path / "again", area=32)


@pytest.mark.parametrize(
    ("encode_fn", "dtype", "message"),
    [
        (lambda pixels: Encoder()(pixels) * np.nan, "bfloat16", "not finite numbers in bfloat16, in one of the samples 0"),
        (lambda pixels: Encoder()(pixels) + 1e6, "float16", "not finite numbers in float16"),
        (lambda pixels: Encoder()(pixels)[:1], "bfloat16", r"must return \[2, h, w, c\] latents, found \[1, 4, 4, 4\]"),
        (lambda pixels: pixels[..., 0], "bfloat16", "must return"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_an_encoder_that_fails_leaves_no_dataset(dataset, tmp_path, encode_fn, dtype, message):
    with pytest.raises(InputError, match=message):
        encode(dataset, encode_fn, tmp_path / "out", area=32, batch=2, dtype=dtype)
    assert not (tmp_path / "out" / "index.json").exists()
    assert not list((tmp_path / "out").glob("*.array_record"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"batch": 0}, "at least 1"),
        ({"threads": 0}, "at least 1"),
        ({"area": 100}, "multiple of 16"),
    ],
)
def test_bad_options(dataset, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        encode(dataset, Encoder(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_is_noticed_before_it_is_encoded(dataset, tmp_path):
    path = dataset / shards.shard_name(1)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedDataError, match="shard-00001"):
        encode(dataset, Encoder(), tmp_path / "out", area=32)
