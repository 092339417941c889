"""TensorFlow Datasets as a source."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from nextstep_jax.data import captions, records
from nextstep_jax.data.source import Unused
from nextstep_jax.errors import InputError, one_line


class TfdsSource:
    """A prepared TFDS dataset in ArrayRecord format, as a `tfds.data_source`. Needs no TensorFlow; downloads nothing.

    Samples are pairs. Images keep their encoded bytes.

    Attributes:
      unused: the features that are not read.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | None = None,
        image_feature: str = "image",
        caption_feature: str = "caption",
        template: str = "{}",
    ):
        """Open it.

        Args:
          image_feature, caption_feature: names, such as "captions/text" for the feature text inside the feature captions. A
            caption may be a text, several texts (the rest become variants) or a class label.
          template: what the caption is put into, e.g. "a photo of a {}".

        Raises:
          InputError: naming the dataset: not installed, not prepared, or without these features.
        """
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise InputError("tfds: sources need the train extra: pip install 'nextstep_jax[train]'") from error
        self._arguments = (name, split, data_dir, image_feature, caption_feature, template)
        self.name = f"{name}/{split}"
        self._image, self._caption, self._template = image_feature, caption_feature, template
        if template.count("{}") != 1:
            raise InputError(f"template must contain {{}} once, found {template!r}")
        try:
            builder = tfds.builder(name, data_dir=data_dir)
            features = dict(_leaves(builder.info.features))
            missing = [feature for feature in (image_feature, caption_feature) if feature not in features]
            if missing:
                raise InputError(f"{name}: no feature {', '.join(missing)} (it has {', '.join(features)})")
            self._label = _label_names(features[caption_feature], f"{name}: the feature {caption_feature}")
            if not isinstance(image := features[image_feature], tfds.features.Image):
                raise InputError(f"{name}: the feature {image_feature} is not an image but {_describe(image)}")
            decoders: Any = tfds.decode.SkipDecoding()
            for part in reversed(image_feature.split("/")):
                decoders = {part: decoders}
            self._data = builder.as_data_source(split=split, decoders=decoders)
            self._version = str(builder.info.full_name)
        except InputError:
            raise
        except Exception as error:  # TFDS has no base class of its own for these
            raise InputError(f"{name}: cannot be opened by TFDS ({one_line(error, 300)})") from error
        self.unused = Unused()
        for feature in features:
            if feature not in (image_feature, caption_feature):
                self.unused.add("feature", feature)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> records.Sample:
        """Raises InputError naming the sample if it cannot be used (an ImageError or CaptionError where that is why)."""
        key = f"{self.name}/{index}"
        try:
            example = self._data[index]
        except Exception as error:
            raise InputError(f"{key}: cannot be read ({one_line(error)})") from error
        texts = [self._to_text(value, key) for value in np.ravel(np.asarray(_get(example, self._caption), object))]
        if not texts or not texts[0].strip():
            raise records.CaptionError(f"{key}: empty caption")
        texts = [self._template.replace("{}", text) for text in texts if text.strip()]
        text = captions.Text(texts[0], {f"caption.{i}": other for i, other in enumerate(texts) if i}, {})
        image = _get(example, self._image)
        if not isinstance(image, bytes):
            raise InputError(f"{key}: the feature {self._image} is not an image file")
        return captions.make_sample(key, "pair", text, [records.ImagePart.from_bytes(image, key)], key)

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes with the dataset's version and the reading of its features."""
        return f"{self._version} {self._image} {self._caption} {self._template}"

    def identity(self) -> str:
        """Changes with the dataset's version and size, and with the reading of its features."""
        return f"{self.fingerprint(0, len(self))} {len(self)}"

    def __getstate__(self) -> tuple:
        return self._arguments

    def __setstate__(self, arguments: tuple) -> None:
        type(self).__init__(self, *arguments)

    def _to_text(self, value: Any, key: str) -> str:
        if self._label is not None:
            return self._label(int(value)).replace("_", " ")
        try:
            value = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise records.CaptionError(f"{key}: the caption is not UTF-8") from error
        if not isinstance(value, str):
            raise InputError(f"{key}: the feature {self._caption} must be text, found {type(value).__name__}")
        return value


def _leaves(features: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All features by name, those inside others as "outer/inner"."""
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)  # of a sequence, what it is a sequence of
        if hasattr(inner, "items"):
            yield from _leaves(inner, f"{prefix}{name}/")
        else:
            yield prefix + name, feature


def _label_names(feature: Any, what: str) -> Callable[[int], str] | None:
    """From a class label's number to its name; None for a text. InputError for anything else, called `what`."""
    inner = getattr(feature, "feature", feature)
    if hasattr(inner, "int2str"):
        return inner.int2str
    if inner.np_dtype != np.dtype(object):
        raise InputError(f"{what} is neither text nor a class label but {_describe(feature)}")
    return None


def _describe(feature: Any) -> str:
    return f"{type(feature).__name__} of {np.dtype(getattr(feature, 'feature', feature).np_dtype).name}"


def _get(example: Any, name: str) -> Any:
    for part in name.split("/"):
        example = example[part]
    return example
