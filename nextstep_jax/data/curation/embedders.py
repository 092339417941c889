"""Embeddings of images and texts by a model that the user brings: unit vectors that are compared by their cosine.

    onnx:FOLDER         CLIP or SigLIP as exporters for ONNX Runtime write them: vision_model.onnx, text_model.onnx,
                        tokenizer.json and preprocessor_config.json, in FOLDER or (models) in FOLDER/onnx
    openai:URL#MODEL    an endpoint that speaks OpenAI's embeddings; images go as vLLM takes them, in a chat message

No package ships such weights. Whether all is there is found out at the start, by an image and a text that are embedded then.
"""

import os
import pathlib
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from nextstep_jax.chat import data_url
from nextstep_jax.data import files
from nextstep_jax.data.curation.stages import require_package
from nextstep_jax.data.vocabulary import tokenizers_errors
from nextstep_jax.errors import InputError, one_line

_MAX_SIDE = 4096  # pixels of an embedder's input

Vector = Float[np.ndarray, " D"]


class Embedder(Protocol):
    """Unit vectors [D] of one image or text; None where an endpoint gave no answer."""

    def image(self, pixels: UInt8[np.ndarray, "height width 3"]) -> Vector | None: ...

    def text(self, text: str) -> Vector | None: ...


def open_embedder(spelling: str, texts: bool) -> Embedder:
    """The embedder that `spelling` names; whether it embeds images and, if `texts`, texts to as many dimensions is tried.

    Raises:
      InputError: another spelling, a file or package that is missing, an endpoint that does not answer or refuses, a model
        with other inputs or outputs.
    """
    kind, _, rest = spelling.partition(":")
    if kind == "onnx" and rest:
        embedder: Embedder = OnnxEmbedder(pathlib.Path(rest), texts)
    elif kind == "openai":
        embedder = EmbeddingEndpoint(spelling)
    else:
        raise InputError(f"embedder must be onnx:FOLDER or openai:URL#MODEL, found {spelling!r}")
    image = embedder.image(np.full((64, 64, 3), 127, np.uint8))
    if image is None:
        raise InputError(f"{spelling}: no answer to an image")
    if texts:
        text = embedder.text("a photograph")
        if text is None:
            raise InputError(f"{spelling}: no answer to a text")
        if len(text) != len(image):
            raise InputError(f"{spelling}: an image has {len(image)} dimensions, a text {len(text)}; expected the same space")
    return embedder


def unit(vector: Any, name: str) -> Vector:
    """A vector divided by its length. InputError names what gave anything else than finite numbers that are not all 0."""
    try:
        found = np.asarray(vector, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    length = float(np.linalg.norm(found))
    if found.ndim != 1 or not np.isfinite(length) or not length:
        raise InputError(f"{name}: expected a vector of finite numbers, not all 0, found shape {list(found.shape)}")
    return found / length


# --- files of the user ------------------------------------------------------------------------------------------------


class OnnxModel:
    """An ONNX file, run on one thread. InputError names a file that is missing, broken, or fails on its input."""

    def __init__(self, path: pathlib.Path, what: str):
        runtime = require_package("onnxruntime", "onnxruntime", what)
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what it would log is raised
        self.path = path
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of its native code, of several kinds
            raise InputError(f"{path}: not an ONNX model ({one_line(error)})") from error
        self.inputs = [entry.name for entry in self._session.get_inputs()]
        self.outputs = [entry.name for entry in self._session.get_outputs()]

    def __call__(self, inputs: dict[str, np.ndarray], output: str | None = None) -> np.ndarray:
        """One of the outputs, by default the first."""
        try:
            return np.asarray(self._session.run([output or self.outputs[0]], inputs)[0])
        except Exception as error:
            raise InputError(f"{self.path}: cannot be run ({one_line(error)})") from error

    def output(self, *names: str) -> str:
        """The first of `names` that the model has."""
        found = next((name for name in names if name in self.outputs), None)
        if found is None:
            raise InputError(f"{self.path}: expected an output {' or '.join(names)}, found {', '.join(self.outputs)}")
        return found


class OnnxEmbedder:
    """See the module's first lines. Embeds texts only if `texts`."""

    def __init__(self, folder: pathlib.Path, texts: bool):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder (expected one with vision_model.onnx)")
        self._vision = OnnxModel(model_file(folder, "vision_model.onnx"), "an embedder")
        self._preprocess = Preprocessing(folder / "preprocessor_config.json")
        self._image_output = self._vision.output("image_embeds", "pooler_output")
        if not texts:
            return
        from tokenizers import Tokenizer

        self._text_model = OnnxModel(model_file(folder, "text_model.onnx"), "an embedder")
        self._text_output = self._text_model.output("text_embeds", "pooler_output")
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        with tokenizers_errors(f"{path}: not a tokenizer.json"):
            self._tokenizer = Tokenizer.from_file(str(path))
        settings = files.read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        longest = settings.get("model_max_length") if isinstance(settings, dict) else None
        if isinstance(longest, int) and 0 < longest <= 1 << 16:
            self._tokenizer.enable_truncation(longest)
            if "attention_mask" not in self._text_model.inputs:  # as SigLIP, which always sees texts of one length
                self._tokenizer.enable_padding(length=longest, pad_id=_pad_id(settings, self._tokenizer))

    def image(self, pixels: UInt8[np.ndarray, "height width 3"]) -> Vector:
        found = self._vision({self._vision.inputs[0]: self._preprocess(pixels)}, self._image_output)
        return unit(found[0], str(self._vision.path))

    def text(self, text: str) -> Vector:
        with tokenizers_errors(f"{self._text_model.path}: its tokenizer fails on {text!r:.100}"):
            encoding = self._tokenizer.encode(text)
        given = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        inputs = {name: np.asarray([ids], np.int64) for name, ids in given.items() if name in self._text_model.inputs}
        return unit(self._text_model(inputs, self._text_output)[0], str(self._text_model.path))


def embedder_files(spelling: str) -> list[pathlib.Path]:
    """The files behind `spelling` that decide what it gives."""
    kind, _, rest = spelling.partition(":")
    if kind != "onnx":
        return []
    folder = pathlib.Path(rest)
    names = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
    models = [model_file(folder, name) for name in ("vision_model.onnx", "text_model.onnx")]
    return [path for path in (*models, *(folder / name for name in names)) if path.is_file()]


def model_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where a model is in a folder as exporters write it."""
    inner = folder / "onnx" / name
    return inner if inner.is_file() else folder / name


def _pad_id(settings: dict[str, Any], tokenizer: Any) -> int:
    token = settings.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    return (tokenizer.token_to_id(token) if isinstance(token, str) else None) or 0


class Preprocessing:
    """Pixels as an image model takes them, by its preprocessor_config.json. InputError names the file and the key."""

    def __init__(self, path: pathlib.Path):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        config = files.read_json(path)
        if not isinstance(config, dict):
            raise InputError(f"{path}: expected a map")
        size = config.get("size", 224)
        if isinstance(size, dict):
            size = size.get("shortest_edge") or (size.get("height"), size.get("width"))
        crop = config.get("crop_size") if config.get("do_center_crop", False) else None
        crop = (crop.get("height"), crop.get("width")) if isinstance(crop, dict) else crop and (crop, crop)
        for name, value in (("size", size), ("crop_size", crop)):
            numbers = value if isinstance(value, tuple) else (() if value is None else (value,))
            if not all(isinstance(n, int) and 0 < n <= _MAX_SIDE for n in numbers):
                raise InputError(f"{path}: {name} must be pixels from 1 to {_MAX_SIDE}, found {config.get(name)!r:.100}")
        try:
            self._resample = Image.Resampling(config.get("resample", 3))
            self._mean, self._std = (
                np.asarray(config.get(f"image_{name}", [0.5] * 3), np.float32).reshape(3) for name in ("mean", "std")
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: resample, image_mean or image_std cannot be used ({one_line(error)})") from error
        self._size, self._crop = size, crop

    @property
    def crops(self) -> bool:
        """Whether borders of the image are cut off."""
        return self._crop is not None

    def __call__(self, pixels: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "1 3 h w"]:
        image = Image.fromarray(pixels)
        if isinstance(self._size, tuple):
            height, width = self._size
        else:
            scale = self._size / min(image.size)
            height, width = (max(self._size, round(n * scale)) for n in (image.height, image.width))
        if max(height, width) > 16 * _MAX_SIDE:
            raise InputError(f"an image of {image.width}x{image.height} pixels is too long for an embedder")
        image = image.resize((width, height), self._resample)
        if self._crop:
            rows, columns = self._crop
            top, left = (height - rows) // 2, (width - columns) // 2
            image = image.crop((left, top, left + columns, top + rows))
        values = (np.asarray(image, np.float32) / 255 - self._mean) / self._std
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


# --- endpoints --------------------------------------------------------------------------------------------------------


class EmbeddingEndpoint:
    """A model behind OpenAI's embeddings. The key is taken from OPENAI_API_KEY, and from nowhere else.

    Raises:
      InputError: another spelling; the package `openai` is missing; when asked, the endpoint refuses key, model or request.
    """

    def __init__(self, spelling: str, timeout: float = 60.0):
        url, _, model = spelling.partition(":")[2].rpartition("#")
        if not url.startswith(("http://", "https://")) or not model:
            raise InputError(f"expected openai:URL#MODEL, such as openai:http://localhost:8000/v1#clip, found {spelling!r}")
        self._openai = require_package("openai", "openai", spelling)
        self.name, self._model = spelling, model
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = self._openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=2)

    def image(self, pixels: UInt8[np.ndarray, "height width 3"]) -> Vector | None:
        content = [{"type": "image_url", "image_url": {"url": data_url(pixels)}}]
        return self._ask({"messages": [{"role": "user", "content": content}]})

    def text(self, text: str) -> Vector | None:
        return self._ask({"input": text})

    def _ask(self, asked: dict[str, Any]) -> Vector | None:
        try:
            body = {"model": self._model, "encoding_format": "float", **asked}
            answer = self._client.post("/embeddings", cast_to=object, body=body)
            return unit(answer["data"][0]["embedding"], self.name)
        except self._openai.APIStatusError as error:
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                return None
            raise InputError(f"{self.name}: the endpoint refused the request ({one_line(error)})") from error
        except (self._openai.APIError, InputError, KeyError, IndexError, TypeError, ValueError):
            return None
