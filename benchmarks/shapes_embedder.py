"""A small two-tower embedder for images of shapes, trained on pairs as they come, and written as ONNX files.

Images [64, 64] through three convolutions, captions as the mean of their words' and word pairs' embeddings, both to unit
vectors of 64 numbers; trained by the symmetric contrastive loss of CLIP. Captions that say the same of different images, and
captions that are wrong, are left to average out.
"""

import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

DIM, SIDE = 64, 64
_CHANNELS = (3, 24, 48, 64)
_UNKNOWN = "[UNK]"


def make_tokenizer(captions: Sequence[str]) -> Tokenizer:
    words = sorted({word for caption in captions for word in _words(caption)})
    vocabulary = {word: number for number, word in enumerate((_UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _words(caption: str) -> list[str]:
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(caption)]


def initial_params(key: jax.Array, words: int) -> dict[str, jax.Array]:
    keys = iter(jax.random.split(key, 16))
    params = {"table": 0.1 * jax.random.normal(next(keys), (words, 128))}
    for n, (before, after) in enumerate(zip(_CHANNELS, _CHANNELS[1:], strict=False)):
        params[f"conv{n}"] = jax.random.normal(next(keys), (after, before, 4, 4)) * (before * 16 / 2) ** -0.5
        params[f"conv{n}_bias"] = jnp.zeros(after)
    flat = _CHANNELS[-1] * (SIDE // 16) ** 2
    for name, before, after in (("i1", flat, 128), ("i2", 128, DIM), ("t1", 256, 128), ("t2", 128, DIM)):
        params[name] = jax.random.normal(next(keys), (before, after)) * (2 / before) ** 0.5
    return params | {"scale": jnp.asarray(2.5)}


def embed_images(params, pixels):
    """[B, 3, 64, 64] in [-1, 1] -> [B, DIM]."""
    x = pixels
    for n, stride in enumerate((4, 2, 2)):
        kernel = params[f"conv{n}"]
        pad = "VALID" if n == 0 else [(1, 1), (1, 1)]
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad) + params[f"conv{n}_bias"][:, None, None]
        x = jax.nn.relu(x)
    return _unit(jax.nn.relu(x.reshape(len(x), -1) @ params["i1"]) @ params["i2"])


def embed_texts(params, ids, mask):
    """Ids and mask [B, S] -> [B, DIM]."""
    words = params["table"][ids] * mask[..., None]
    pairs = jnp.maximum(words[:, :-1] + words[:, 1:], 0) * mask[:, 1:, None]
    features = jnp.concatenate([words.sum(1), pairs.sum(1)], -1) / mask.sum(1, keepdims=True)
    return _unit(jax.nn.relu(features @ params["t1"]) @ params["t2"])


def _unit(x):
    return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)


def train(images: np.ndarray, captions: Sequence[str], tokenizer: Tokenizer, steps: int, batch: int = 256, seed: int = 0):
    """Parameters after `steps` of batches of images [N, 64, 64, 3] uint8 and their captions."""
    encoded = [tokenizer.encode(caption).ids for caption in captions]
    longest = max(map(len, encoded))
    ids = np.asarray([row + [0] * (longest - len(row)) for row in encoded])
    mask = np.asarray([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in encoded], np.float32)
    params = initial_params(jax.random.key(seed), tokenizer.get_vocab_size())
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=0.02)

    def loss(params, pixels, ids, mask):
        logits = jnp.exp(params["scale"]) * embed_images(params, pixels) @ embed_texts(params, ids, mask).T
        return -(jnp.diag(jax.nn.log_softmax(logits)) + jnp.diag(jax.nn.log_softmax(logits.T))).mean() / 2

    @jax.jit
    def step(params, state, pixels, ids, mask):
        value, grads = jax.value_and_grad(loss)(params, pixels.astype(jnp.float32).transpose(0, 3, 1, 2) / 127.5 - 1, ids, mask)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, draw = optimizer.init(params), np.random.default_rng(seed)
    for number in range(steps):
        chosen = draw.choice(len(images), batch, replace=False)
        params, state, value = step(params, state, images[chosen], ids[chosen], mask[chosen])
        if number % 100 == 0:
            print(f"embedder: step {number}, loss {float(value):.3f}", flush=True)
    return jax.tree.map(np.asarray, params)


# --- files ------------------------------------------------------------------------------------------------------------


def write(params, tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """vision_model.onnx, text_model.onnx, tokenizer.json, preprocessor_config.json in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    node, x = helper.make_node, "pixel_values"
    nodes = []
    for n, (stride, pad) in enumerate(((4, 0), (2, 1), (2, 1))):
        weights = [f"conv{n}", f"conv{n}_bias"]
        nodes += [
            node("Conv", [x, *weights], [f"c{n}"], strides=[stride] * 2, pads=[pad] * 4),
            node("Relu", [f"c{n}"], [f"r{n}"]),
        ]
        x = f"r{n}"
    nodes += [node("Flatten", [x], ["flat"]), *_two_layers("flat", "i", "image_embeds")]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])]
    names = [name for name in params if name.startswith(("conv", "i"))]
    _save(folder / "vision_model.onnx", nodes, inputs, "image_embeds", {name: params[name] for name in names})
    nodes = [
        node("Gather", ["table", "input_ids"], ["words"]),
        node("ReduceMean", ["words", "axis"], ["mean_words"], keepdims=0),
        node("Slice", ["words", "zero", "minus", "axis"], ["first"]),
        node("Slice", ["words", "one", "end", "axis"], ["second"]),
        node("Add", ["first", "second"], ["sums"]),
        node("Relu", ["sums"], ["pairs"]),
        node("ReduceSum", ["pairs", "axis"], ["sum_pairs"], keepdims=0),
        node("Shape", ["input_ids"], ["length"], start=1, end=2),
        node("Cast", ["length"], ["length_float"], to=TensorProto.FLOAT),
        node("Div", ["sum_pairs", "length_float"], ["mean_pairs"]),
        node("Concat", ["mean_words", "mean_pairs"], ["features"], axis=-1),
        *_two_layers("features", "t", "text_embeds"),
    ]
    numbers = {"axis": 1, "zero": 0, "one": 1, "minus": -1, "end": 1 << 30}
    weights = {name: params[name] for name in ("table", "t1", "t2")}
    weights |= {name: np.asarray([value], np.int64) for name, value in numbers.items()}
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "s"])]
    _save(folder / "text_model.onnx", nodes, inputs, "text_embeds", weights)


def _two_layers(x: str, prefix: str, output: str) -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("MatMul", [x, f"{prefix}1"], [f"{prefix}h"]),
        node("Relu", [f"{prefix}h"], [f"{prefix}r"]),
        node("MatMul", [f"{prefix}r", f"{prefix}2"], [output]),
    ]


def _save(path: pathlib.Path, nodes, inputs, output: str, weights) -> None:
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", DIM])]
    initializers = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))
