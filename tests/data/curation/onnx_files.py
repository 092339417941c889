"""Tiny models in the forms that users bring: what they find is drawn so that it can be found by hand."""

import json
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

FACE = 40  # pixels of a face that the detector finds


def save(path: pathlib.Path, nodes, inputs, outputs, weights) -> str:
    """Inputs and outputs are {name: shape}; integers for inputs called *_ids and attention_mask."""

    def info(name, shape):
        kind = TensorProto.INT64 if name.endswith(("_ids", "_mask")) else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes, "tiny", [info(*entry) for entry in inputs.items()], [info(*entry) for entry in outputs.items()], tensors
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return str(path)


def face(person: int) -> np.ndarray:
    """[40, 40, 3]: red, with blue in the upper or the lower half."""
    pixels = np.zeros((FACE, FACE, 3), np.uint8)
    pixels[..., 0] = 230
    half = slice(0, FACE // 2) if person == 0 else slice(FACE // 2, FACE)
    pixels[half, :, 2] = 200
    return pixels


def write_face_models(folder: pathlib.Path) -> dict[str, str]:
    """A detector with the outputs of YuNet, for squares that are red and not green; a recognizer by blue in a 4x4 grid."""
    node = helper.make_node
    weights = {
        # BGR, as OpenCV gives it: (red - green) / 230
        "pick": np.asarray([0, -1 / 230, 1 / 230], np.float32).reshape(1, 3, 1, 1),
        "low": np.float32(0),
        "high": np.float32(1),
        "flat": np.asarray([1, -1, 1], np.int64),
        "zeros": np.asarray([[[0.0]]], np.float32),
    }
    nodes = [node("Conv", ["input", "pick"], ["difference"]), node("Clip", ["difference", "low", "high"], ["red"])]
    outputs = {}
    # Eyes, nose and mouth where the recognizer's template of 112 pixels has them, from the center in units of the stride.
    points = np.asarray([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]]) - 56
    for stride in (8, 16, 32):
        side = np.log(FACE / stride)
        kernel, pad = (40, [16] * 4) if stride == 8 else (stride, [0] * 4)
        nodes += [
            node("AveragePool", ["red"], [f"pool{stride}"], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pad,
                 count_include_pad=1),
            node("Reshape", [f"pool{stride}", "flat"], [f"score{stride}"]),
            node("Mul", [f"score{stride}", f"use{stride}"], [f"cls_{stride}"]),
            node("Mul", [f"score{stride}", f"use{stride}"], [f"obj_{stride}"]),
            node("Mul", [f"score{stride}", "zeros"], [f"none{stride}"]),
            node("Add", [f"none{stride}", f"box{stride}"], [f"bbox_{stride}"]),
            node("Add", [f"none{stride}", f"points{stride}"], [f"kps_{stride}"]),
        ]  # fmt: skip
        weights[f"use{stride}"] = np.asarray([[[float(stride == 8)]]], np.float32)
        weights[f"box{stride}"] = np.asarray([[[0.5, 0.5, side, side]]], np.float32)
        weights[f"points{stride}"] = (0.5 + points * FACE / 112 / stride).astype(np.float32).reshape(1, 1, 10)
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        outputs |= {f"{kind}_{stride}": [1, "n", width] for stride in (8, 16, 32)}
    detector = save(folder / "detector.onnx", nodes, {"input": [1, 3, "h", "w"]}, outputs, weights)
    nodes = [
        node("Conv", ["data", "pick", "bias"], ["blue"]),
        node("AveragePool", ["blue"], ["grid"], kernel_shape=[28, 28], strides=[28, 28]),
        node("Flatten", ["grid"], ["fc1"]),
    ]
    weights = {"pick": np.asarray([0, 0, 1], np.float32).reshape(1, 3, 1, 1), "bias": np.asarray([-100], np.float32)}
    recognizer = save(folder / "recognizer.onnx", nodes, {"data": [1, 3, 112, 112]}, {"fc1": [1, 16]}, weights)
    return {"detector": detector, "recognizer": recognizer}


COLORS = ("red", "green", "blue")


def write_embedder(folder: pathlib.Path) -> str:
    """An embedder in CLIP's form: of an image its mean color, of a text the sum of the colors that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    node = helper.make_node
    shape = {"pixel_values": ["n", 3, 8, 8]}
    nodes = [node("GlobalAveragePool", ["pixel_values"], ["mean"]), node("Flatten", ["mean"], ["image_embeds"])]
    save(folder / "vision_model.onnx", nodes, shape, {"image_embeds": ["n", 3]}, {})
    table = np.concatenate([np.full((1, 3), 0.01), np.eye(3)]).astype(np.float32)
    nodes = [
        node("Gather", ["table", "input_ids"], ["words"]),
        node("ReduceSum", ["words", "axis"], ["text_embeds"], keepdims=0),
    ]
    weights = {"table": table, "axis": np.asarray([1], np.int64)}
    save(folder / "text_model.onnx", nodes, {"input_ids": ["n", "s"]}, {"text_embeds": ["n", 3]}, weights)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0} | {name: n + 1 for n, name in enumerate(COLORS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"size": {"height": 8, "width": 8}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return f"onnx:{folder}"


def write_head(path: pathlib.Path) -> str:
    """A head that gives how green a unit vector is."""
    nodes = [helper.make_node("MatMul", ["embeds", "green"], ["score"])]
    return save(path, nodes, {"embeds": [1, 3]}, {"score": [1, 1]}, {"green": np.asarray([[0], [1], [0]], np.float32)})


def write_dense_model(folder: pathlib.Path, output: str, channels: int) -> str:
    """A model in the form of depth and pose models, at a quarter of 32x32 pixels: map n is 1 where red is near n / channels."""
    folder.mkdir(parents=True, exist_ok=True)
    node = helper.make_node
    centers = (np.arange(channels) / channels).astype(np.float32).reshape(1, channels, 1, 1)
    pick = np.zeros((1, 3, 1, 1), np.float32)
    pick[0, 0] = 1
    nodes = [
        node("Conv", ["pixel_values", "pick"], ["red"]),
        node("AveragePool", ["red"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    weights = {"pick": pick}
    if channels == 1:
        nodes.append(node("Squeeze", ["small", "axis"], [output]))
        weights["axis"] = np.asarray([1], np.int64)
    else:
        nodes += [
            node("Sub", ["small", "centers"], ["off"]),
            node("Abs", ["off"], ["distance"]),
            node("Mul", ["distance", "steep"], ["steeper"]),
            node("Sub", ["one", "steeper"], ["high"]),
            node("Relu", ["high"], [output]),
        ]
        weights |= {"centers": centers, "steep": np.float32(2 * channels), "one": np.float32(1)}
    shape = ["n", 8, 8] if channels == 1 else ["n", channels, 8, 8]
    save(folder / "model.onnx", nodes, {"pixel_values": ["n", 3, 32, 32]}, {output: shape}, weights)
    config = {"size": {"height": 32, "width": 32}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], "resample": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return f"onnx:{folder}"
