"""Readers: folders with captions, TFDS, the built-in dataset, and telling sources apart."""

import json
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from nextstep_jax.data import images, records, shapes, shards, sources
from nextstep_jax.data.image_folder import FolderSource
from nextstep_jax.data.image_output import encode_image
from nextstep_jax.data.records import TextPart
from nextstep_jax.data.sources import ShapesSource, open_source
from nextstep_jax.data.tfds_source import TfdsSource
from nextstep_jax.errors import InputError


def png(level):
    return encode_image(np.full((4, 6, 3), level, np.uint8))


def level(sample):
    return int(sample.images[0].pixels()[0, 0, 0])


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "photos"
    (directory / "sub").mkdir(parents=True)
    (directory / "b.png").write_bytes(png(2))
    (directory / "b.txt").write_text(" a cat \n")
    (directory / "a.PNG").write_bytes(png(1))
    (directory / "a.json").write_text(json.dumps({"caption": "a dog", "caption_short": "dog", "licence": "CC0"}))
    (directory / "sub" / "c.png").write_bytes(png(3))
    (directory / "sub" / "c.txt").write_bytes("\ufeffein Käfer".encode())
    (directory / "notes.md").write_text("no image")
    (directory / ".hidden.png").write_bytes(b"junk")
    return directory


def test_captions_beside_the_images(folder):
    source = pickle.loads(pickle.dumps(FolderSource(folder)))
    assert (source.name, len(source)) == ("photos", 3)
    found = [source[i] for i in range(3)]
    assert [(s.key, s.kind, s.parts[0], level(s)) for s in found] == [
        ("a.PNG", "pair", TextPart("a dog"), 1),
        ("b.png", "pair", TextPart("a cat"), 2),
        ("sub/c.png", "pair", TextPart("ein Käfer"), 3),
    ]
    assert (found[0].caption_variants, found[0].metadata) == ({"caption_short": "dog"}, {"licence": "CC0"})


def test_captions_in_a_table(folder):
    (folder / "captions.csv").write_text(
        'file,caption,caption_zh,author\nb.png,"from, the ""table""",猫,me\nb.png,second,,\nb.png,third,,\n'
        "sub/../a.PNG,odd,,\n./sub/c.png,dotted,,x\n"
    )
    source = FolderSource(folder)
    samples = {source.names[i]: source[i] for i in range(len(source)) if source.names[i] != "sub/../a.PNG"}
    assert samples["b.png"].parts[0] == TextPart('from, the "table"')
    assert samples["b.png"].caption_variants == {"caption_zh": "猫", "caption.2": "second", "caption.3": "third"}
    assert samples["b.png"].metadata == {"author": "me"}
    assert samples["sub/c.png"].parts[0] == TextPart("dotted")
    assert samples["a.PNG"].parts[0] == TextPart("a dog")  # no row of its own: the file beside it


def test_the_columns_of_an_image_folder_are_understood(folder):
    (folder / "captions.csv").write_text("file_name,text\nb.png,from text\n")
    assert FolderSource(folder)[1].parts[0] == TextPart("from text")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "columns file and caption, found nothing"),
        ("a,b\n1,2\n", "columns file and caption, found a, b"),
        ("file,caption\nb.png\n", "line 2 does not have the 2 columns"),
        ("file,caption\nb.png,x,y\n", "line 2 does not have the 2 columns"),
        ('file,caption\nb.png,"open', "after line 1: unexpected end"),
        ("file,caption\nb.png,\udcff\n", "not UTF-8"),
        ("file,caption\nb.png," + "x" * 200_000 + "\n", "after line 1: field larger"),
    ],
)
def test_a_broken_table_is_named_with_its_line(folder, table, message):
    (folder / "captions.csv").write_bytes(table.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=f"captions.csv: .*{message}"):
        FolderSource(folder)


def test_nothing_outside_the_folder_is_read(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(9))
    (tmp_path / "secret.txt").write_text("password")
    rows = ["../secret.png", str(tmp_path / "secret.png"), "sub/../../secret.png"]
    (folder / "captions.csv").write_text("file,caption\n" + "".join(f"{row},x\n" for row in rows))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "caption.png").write_bytes(png(5))
    (folder / "caption.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "door").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder)
    (folder / "link.txt").write_text("x")
    source = FolderSource(folder)
    keys = {name: i for i, name in enumerate(source.names)}
    for row in rows:
        with pytest.raises(images.ImageError, match="listed in captions.csv, but not there"):
            source[keys[row]]
    for name, message in (
        ("link.png", "link.png: a link out of the folder"),
        ("caption.png", "caption.txt: a link out of the folder"),
    ):
        with pytest.raises(InputError, match=message):
            source[keys[name]]
    assert not any(name.startswith(("door", "loop")) for name in keys)


def test_a_link_within_the_folder_is_followed(folder):
    (folder / "again.png").symlink_to(folder / "b.png")
    (folder / "again.txt").write_text("again")
    assert level(FolderSource(folder)[1]) == 2


def test_unusable_files_are_named(folder):
    (folder / "b.txt").write_text(" \n")
    (folder / "sub" / "c.txt").unlink()
    (folder / "a.PNG").write_bytes(b"")
    source = FolderSource(folder)
    for index, error, message in (
        (0, images.ImageError, r"a\.PNG: empty file"),
        (1, records.CaptionError, r"b\.txt: empty caption"),
        (2, records.CaptionError, r"c\.png: no caption \(no .json or .txt"),
    ):
        with pytest.raises(error, match=message):
            source[index]
    (folder / "captions.csv").write_text("file,caption\nb.png,\n")
    with pytest.raises(records.CaptionError, match="b.png: empty caption in captions.csv"):
        FolderSource(folder)[1]
    with pytest.raises(records.CaptionError, match="no row in a table"):
        FolderSource(folder)[2]


def test_the_fingerprint_follows_the_files(folder):
    source = FolderSource(folder)
    before = [source.fingerprint(i, i + 1) for i in range(3)]
    os.utime(folder / "b.png", (1, 1))
    (folder / "sub" / "c.txt").write_text("changed")
    assert [source.fingerprint(i, i + 1) == before[i] for i in range(3)] == [True, False, False]


# --- the built-in dataset ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_shapes_are_a_source(kind):
    source = pickle.loads(pickle.dumps(ShapesSource(kind, "train", 3)))
    assert len(source) == 3
    assert source[2] == shapes.sample(kind, 2)
    assert source[0].kind == {"caption": "pair", "letters": "pair", "thinking": "edit", "table": "text"}.get(kind, kind)
    assert source.fingerprint(0, 2) != ShapesSource(kind, "heldout", 3).fingerprint(0, 2)


# --- TensorFlow Datasets ----------------------------------------------------------------------------------------------


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
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(5):
                captions = [f"one {i}", f"two {i}"]
                caption = f"caption {i}" if i != 3 else " "
                yield i, {"image": png(10 * i), "caption": caption, "captions": captions, "label": i % 2}

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
    labels = by_level(TfdsSource("tiny_pictures", data_dir=prepared, caption="label", template="a photo of a {}"))
    assert [labels[i].parts[0].text for i in (0, 1)] == ["a photo of a house cat", "a photo of a dog"]
    several = by_level(TfdsSource("tiny_pictures", data_dir=prepared, caption="captions"))
    assert (several[3].parts[0].text, several[3].caption_variants) == ("one 3", {"caption.1": "two 3"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "no_such_dataset"}, "no_such_dataset: cannot be opened by TFDS"),
        ({"split": "test"}, "tiny_pictures: cannot be opened by TFDS"),
        ({"caption": "words"}, r"tiny_pictures: no feature words \(it has "),
        ({"template": "no place"}, "template must contain {} once"),
    ],
)
def test_tfds_errors_are_one_line(prepared, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        TfdsSource(**({"name": "tiny_pictures", "data_dir": prepared} | arguments))
    assert "\n" not in str(caught.value)


# --- telling them apart -----------------------------------------------------------------------------------------------


def test_a_source_is_opened_by_what_it_looks_like(folder, tmp_path):
    assert isinstance(open_source(folder), FolderSource)
    text = records.Sample((TextPart("x"),), "text", "k")
    entry = shards.write_shard(tmp_path / "shard-0", [records.pack(text)])
    shards.write_index(tmp_path, "texts", [entry], images=0, kinds={"text": 1})
    assert open_source(str(tmp_path))[0] == text
    (tmp_path / "tars" / "deep").mkdir(parents=True)
    (folder / "k.json").write_text('{"text": "in a tar"}')
    with tarfile.open(tmp_path / "tars" / "deep" / "idx_0000_0000.tar", "w") as tar:
        tar.add(folder / "k.json", "k.json")
    for spec in (tmp_path / "tars", tmp_path / "tars" / "deep" / "idx_0000_0000.tar"):
        assert open_source(spec)[0].parts == (TextPart("in a tar"),)
    assert open_source("shapes:text:heldout:4").name == "shapes-text-heldout"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/no/such/place", "no such file or folder"),
        ("shapes:pair:train", "expected shapes:KIND:SPLIT:N"),
        ("shapes:poem:train:4", "kind of shapes must be one of"),
        ("shapes:plan:train:4", r"found 'plan' \(called 'thinking' now\)"),
        ("shapes:pair:test:4", "split of shapes must be one of"),
        ("shapes:pair:train:0", "at least one sample"),
        (__file__, "not a source"),
    ],
)
def test_what_is_no_source(spec, message):
    with pytest.raises(InputError, match=message):
        open_source(spec)


def test_an_empty_folder_is_no_source(tmp_path):
    with pytest.raises(InputError, match="no images"):
        open_source(tmp_path)
    with pytest.raises(InputError, match="can only be given for a tfds: source"):
        open_source(tmp_path, data_dir="x")


def test_readers_import_no_training_stack():
    """Grain, TFDS, TensorFlow and ArrayRecord are imported by what needs them only."""
    code = "import sys; from nextstep_jax.data import build, encode, inspection, sources; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"grain", "tensorflow_datasets", "tensorflow", "array_record", "torch", "optax"} & set(loaded)
    assert sources.__name__ in loaded
