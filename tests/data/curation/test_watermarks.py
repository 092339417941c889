"""What the classifier of watermarks says of whole images; how many it finds is asked by test_floors."""

import numpy as np
import pytest
from PIL import Image

from nextstep_jax.data.curation import overlays
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.curation.stages import description
from nextstep_jax.data.curation.watermarks import MODEL, Watermark
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.errors import InputError
from tests.data.curation.onnx_files import write_head
from tests.data.curation.scenes import photograph

pytest.importorskip("onnxruntime")


def sample_of(*images) -> Sample:
    parts = [ImagePart.from_pixels(np.asarray(image)) for image in images]
    return Sample((TextPart("a"), *parts), "pair" if len(parts) == 1 else "interleaved", "key")


def marked_photograph() -> Image.Image:
    """Text that can hardly be overlooked, three times."""
    image = np.asarray(photograph(1, 256, 256))
    mark = Image.new("L", (256, 256))
    for y in (20, 100, 180):
        mark.paste(overlays._text(np.random.default_rng(3), 44, ()).crop((0, 0, 240, 60)), (8, y))
    opaque = np.asarray(mark, float)[..., None] / 255 * 0.55
    return Image.fromarray((image * (1 - opaque) + 255 * opaque).astype(np.uint8))


def test_the_worst_of_several_images_counts_at_any_size():
    measure = Watermark().prepare()
    clean, marked = photograph(2, 256, 256), marked_photograph()
    (low,), (high,) = (measure(sample_of(image)).values() for image in (clean, marked))
    assert low < 0.5 < high and measure(sample_of(clean, marked)) == {"score": high}
    assert measure(sample_of(marked.resize((1024, 1024), Image.Resampling.BICUBIC)))["score"] > 0.5
    for image in (clean.resize((32, 32)), clean.resize((2000, 20))):  # smaller and longer than what it was trained on
        assert 0 <= measure(sample_of(image))["score"] <= 1
    assert measure(Sample((TextPart("words"),), "text", "key")) == {}


def test_a_model_of_the_users_takes_its_place(tmp_path):
    with pytest.raises(InputError, match="/nowhere.onnx: no such file"):
        Watermark("/nowhere.onnx").prepare()
    with pytest.raises(InputError, match="head.onnx: cannot be run"):
        Watermark(write_head(tmp_path / "head.onnx")).prepare()
    own = tmp_path / "own.onnx"
    own.write_bytes(MODEL.read_bytes())
    image = sample_of(photograph(3))
    assert Watermark(str(own)).prepare()(image) == Watermark().prepare()(image)
    assert [name for name, _ in description(Watermark())["model_files"]] == ["watermark.onnx"]


def test_the_file_is_small_and_a_recipe_may_have_it_beside_the_question():
    from nextstep_jax.configs import curate_pairs

    assert MODEL.stat().st_size < 150_000
    settings = curate_pairs.get_config().to_dict()
    for name in ("watermark", "aesthetics", "alignment"):
        settings["signals"][name]["endpoint"] = "openai:http://localhost:1/v1#m"
    settings["transforms"]["recaption"]["endpoint"] = "openai:http://localhost:1/v1#m"
    settings["signals"]["marks"] = {"kind": "watermark"}
    settings["cuts"]["sft"] += ("marks.score < 0.5",)
    assert isinstance(read_recipe(settings).signals["marks"], Watermark)
