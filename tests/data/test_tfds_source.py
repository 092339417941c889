"""TensorFlow Datasets as a source."""

import pickle

import numpy as np
import pytest

from nextstep_jax.data import records
from nextstep_jax.data.image_output import encode_image
from nextstep_jax.data.records import TextPart
from nextstep_jax.data.sources import open_source
from nextstep_jax.data.tfds_source import TfdsSource
from nextstep_jax.errors import InputError


def png(level):
    return encode_image(np.full((4, 6, 3), level, np.uint8))


def level(sample):
    return int(sample.images[0].pixels()[0, 0, 0])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS dataset of five images with captions, several captions and a label, written and read without TensorFlow."""
    import tensorflow_datasets as tfds

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # no package on disk to look for checksums in

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "caption": tfds.features.Text(),
                "captions": tfds.features.Sequence(tfds.features.Text()),
                "label": tfds.features.ClassLabel(names=["house_cat", "dog"]),
                "objects": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
                "nested": {"deep": {"text": tfds.features.Text()}, "score": np.float32},
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(5):
                captions = [f"one {i}", f"two {i}"]
                caption = f"caption {i}" if i != 3 else " "
                example = {"image": png(10 * i), "caption": caption, "captions": captions, "label": i % 2}
                example["objects"] = [{"id": i, "text": f"thing {i}"}, {"id": i + 1, "text": f"object {i}"}]
                yield i, example | {"nested": {"deep": {"text": f"deep {i}"}, "score": 0.5}}

    directory = tmp_path_factory.mktemp("tfds")
    TinyPictures(data_dir=directory, file_format="array_record").download_and_prepare()
    return str(directory)


def by_level(source):
    """TFDS shuffles while it writes: sample i has level 10 i."""
    found = {}
    for index in range(len(source)):
        try:
            sample = source[index]
            found[level(sample) // 10] = sample
        except records.CaptionError as error:
            found["bad"] = str(error)
    return found


def test_tfds_captions(prepared):
    source = TfdsSource("tiny_pictures", data_dir=prepared)
    found = by_level(source)
    assert set(found) == {0, 1, 2, 4, "bad"}
    assert found["bad"].startswith("tiny_pictures/train/") and found["bad"].endswith("empty caption")
    assert found[2].parts[0] == TextPart("caption 2")
    assert (found[2].kind, found[2].images[0].data) == ("pair", png(20))
    assert len(open_source("tfds:tiny_pictures:train[:2]", data_dir=prepared)) == 2
    assert len(pickle.loads(pickle.dumps(source))) == 5


def test_tfds_labels_and_lists_of_captions(prepared):
    labels = by_level(TfdsSource("tiny_pictures", data_dir=prepared, caption_feature="label", template="a photo of a {}"))
    assert [labels[i].parts[0].text for i in (0, 1)] == ["a photo of a house cat", "a photo of a dog"]
    several = by_level(TfdsSource("tiny_pictures", data_dir=prepared, caption_feature="captions"))
    assert (several[3].parts[0].text, several[3].caption_variants) == ("one 3", {"caption.1": "two 3"})


def test_features_inside_others(prepared):
    lists = by_level(TfdsSource("tiny_pictures", data_dir=prepared, caption_feature="objects/text"))
    assert (lists[3].parts[0].text, lists[3].caption_variants) == ("thing 3", {"caption.1": "object 3"})
    source = TfdsSource("tiny_pictures", data_dir=prepared, caption_feature="nested/deep/text")
    assert by_level(source)[3].parts[0].text == "deep 3"
    unread = {"caption", "captions", "label", "nested/score", "objects/id", "objects/text"}
    assert set(source.unused.to_json()["feature"]["names"]) == unread


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "no_such_dataset"}, "no_such_dataset: cannot be opened by TFDS"),
        ({"split": "test"}, "tiny_pictures: cannot be opened by TFDS"),
        ({"caption_feature": "words"}, r"tiny_pictures: no feature words \(it has "),
        ({"caption_feature": "objects"}, r"tiny_pictures: no feature objects \(it has .*objects/text"),
        ({"caption_feature": "objects/id"}, "the feature objects/id is neither text nor a class label but Tensor of int64"),
        (
            {"caption_feature": "nested/score"},
            "the feature nested/score is neither text nor a class label but Tensor of float32",
        ),
        ({"caption_feature": "image"}, "the feature image is neither text nor a class label but Image of uint8"),
        ({"image_feature": "caption"}, "the feature caption is not an image but Text of object"),
        ({"template": "no place"}, "template must contain {} once"),
    ],
)
def test_tfds_errors_are_one_line(prepared, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        TfdsSource(**({"name": "tiny_pictures", "data_dir": prepared} | arguments))
    assert "\n" not in str(caught.value)
