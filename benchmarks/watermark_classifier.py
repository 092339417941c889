"""Trains the watermark classifier that ships, on marks drawn over photographs, and writes it as an ONNX file.

    python -m benchmarks.watermark_classifier train PHOTOS FONTS WORKDIR [--steps 4400] [--minutes 10]
    python -m benchmarks.watermark_classifier export PHOTOS FONTS WORKDIR nextstep_jax/data/curation/watermark.onnx
    python -m benchmarks.watermark_classifier measure PHOTOS FONTS nextstep_jax/data/curation/watermark.onnx

PHOTOS is a folder of images without watermarks, FONTS one of TrueType and OpenType fonts. Every fifth file of both is kept for
`measure`. The weights that ship were trained on 103 images and 124 fonts of Debian's packages mate-backgrounds,
lomiri-wallpapers-16.04, lomiri-wallpapers-20.04, ukui-wallpapers, gnome-backgrounds, plasma-workspace-wallpapers, fonts-lato,
fonts-roboto-unhinted, fonts-open-sans, fonts-urw-base35, fonts-liberation, fonts-comfortaa, fonts-lobster,
fonts-dancingscript, fonts-cantarell and fonts-quicksand, of Matplotlib (fonts), scikit-learn, scikit-image (textures) and
Gradio (photographs).

Every image of a batch is there twice, without a mark and with one (`benchmarks.watermark_images`): nothing else tells them
apart. Convolutions find marks in cells of 8 pixels, and the image's score is that of its surest neighborhood of 5 x 5 cells.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from benchmarks.watermark_images import PART, Pool
from nextstep_jax.data.curation.watermarks import Watermark
from nextstep_jax.data.records import ImagePart, Sample

CELL = 8
LAYERS = ((12, 24, 2, 1), (24, 24, 1, 1), (24, 40, 2, 1), (40, 40, 1, 1), (40, 40, 1, 2), (40, 40, 1, 4))
"""Channels in and out, stride, dilation; of 3 x 3 pixels each, on blocks of 2 x 2 pixels as channels."""
AROUND = 5
POOL = 1500  # backgrounds and marks at any time
EPSILON = 1e-3
Params = dict[str, jax.Array]


# --- the model --------------------------------------------------------------------------------------------------------


def initial_params(key: jax.Array) -> tuple[Params, Params]:
    """Parameters, and the statistics that activations are normalized by once training is over."""
    params = {"cell": jnp.zeros((1, 1, LAYERS[-1][1], 1)), "cell_bias": jnp.full(1, -2.0)}
    params |= {"scale": jnp.ones(1), "shift": jnp.zeros(1)}
    stats = {}
    for n, (before, after, _, _) in enumerate(LAYERS):
        key, own = jax.random.split(key)
        params[f"conv{n}"] = jax.random.normal(own, (3, 3, before, after)) * (2 / (9 * before)) ** 0.5
        params |= {f"gain{n}": jnp.ones(after), f"bias{n}": jnp.zeros(after)}
        stats |= {f"mean{n}": jnp.zeros(after), f"variance{n}": jnp.ones(after)}
    return params, stats


def cell_logits(params: Params, pixels: jax.Array, stats: Params | None = None) -> tuple[jax.Array, Params]:
    """[B, H, W, 3] uint8 -> [B, H / 8, W / 8], normalized by `stats` or over the batch; and by what."""
    b, h, w, _ = pixels.shape
    x = pixels.astype(jnp.float32) / 64 - 2
    x = x.reshape(b, h // 2, 2, w // 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 12)
    found = {}
    for n, (before, after, stride, dilation) in enumerate(LAYERS):
        y = jax.lax.conv_general_dilated(
            x,
            params[f"conv{n}"],
            (stride, stride),
            [(dilation, dilation)] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        found |= {f"mean{n}": y.mean((0, 1, 2)), f"variance{n}": y.var((0, 1, 2))}
        by = found if stats is None else stats
        gain = params[f"gain{n}"] * jax.lax.rsqrt(by[f"variance{n}"] + EPSILON)
        y = jax.nn.relu(y * gain + (params[f"bias{n}"] - by[f"mean{n}"] * gain))
        x = x + y if before == after else y
    return (x @ params["cell"][0, 0])[..., 0] + params["cell_bias"], found


def image_logits(params: Params, cells: jax.Array) -> jax.Array:
    window, area = (1, AROUND, AROUND), AROUND**2
    sums = jax.lax.reduce_window(cells, 0.0, jax.lax.add, window, (1, 1, 1), "VALID")
    return sums.max((1, 2)) / area * params["scale"] + params["shift"]


def loss(params: Params, pixels: jax.Array, changes: jax.Array) -> tuple[jax.Array, Params]:
    """Cross-entropy of cells and of images. changes [B, H, W]: of each pixel's value, by the mark. Where a mark changes hardly
    anything, neither answer is wrong."""
    logits, stats = cell_logits(params, pixels)
    b, h, w = logits.shape
    cells = changes.reshape(b, h, CELL, w, CELL).mean((2, 4))
    weights = jnp.where(cells > 2, 2.0, jnp.where(cells == 0, 1.0, 0.0))
    of_cells = optax.sigmoid_binary_cross_entropy(logits, (cells > 2).astype(jnp.float32)) * weights
    seen, none = (cells > 2).sum((1, 2)) >= 4, (cells == 0).all((1, 2))
    of_images = optax.sigmoid_binary_cross_entropy(image_logits(params, logits), seen.astype(jnp.float32)) * (seen | none)
    return of_cells.sum() / weights.sum() + 0.3 * of_images.mean(), stats


# --- training ---------------------------------------------------------------------------------------------------------


def opened(photos: pathlib.Path, fonts: pathlib.Path, held_out: bool) -> tuple[list[Image.Image], list[str]]:
    """Every fifth file of both folders, or the others."""
    paths, faces = (
        [path for n, path in enumerate(sorted(folder.iterdir())) if (n % 5 == 2) == held_out] for folder in (photos, fonts)
    )
    images = [Image.open(path).convert("RGB") for path in paths]
    for image in images:
        image.thumbnail((1000, 1000), Image.Resampling.BOX)
    return images, [str(path) for path in faces]


def train(given: argparse.Namespace) -> None:
    """Goes on where WORKDIR stands."""
    pool = Pool(*opened(given.photos, given.fonts, held_out=False), POOL)
    params, stats = initial_params(jax.random.key(0))
    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(0, 3e-3, min(100, given.steps // 10), given.steps), weight_decay=1e-3
    )
    state, number = optimizer.init(params), 0
    path = given.workdir / "state.npz"
    leaves, form = jax.tree.flatten((params, stats, state))
    if path.exists():
        with np.load(path) as kept:
            number = int(kept["number"])
            params, stats, state = jax.tree.unflatten(form, [jnp.asarray(kept[str(n)]) for n in range(len(leaves))])

    @jax.jit
    def step(params, stats, state, pixels, changes):
        (value, found), grads = jax.value_and_grad(loss, has_aux=True)(params, pixels, changes)
        stats = jax.tree.map(lambda old, new: 0.98 * old + 0.02 * new, stats, found)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, value

    began, values = time.monotonic(), []
    while number < given.steps and time.monotonic() - began < 60 * given.minutes:
        rng = np.random.default_rng((1, number))
        pool.renew(rng, given.batch // 8)
        params, stats, state, value = step(params, stats, state, *pool.pairs(rng, given.batch // 2, PART))
        values.append(float(value))
        number += 1
        if number % 50 == 0 or number == given.steps:
            print(f"step {number}, loss {np.mean(values):.4f}, {time.monotonic() - began:.0f} s", flush=True)
            values = []
            given.workdir.mkdir(parents=True, exist_ok=True)
            arrays = {str(n): np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves((params, stats, state)))}
            np.savez(given.workdir / "state.part.npz", number=number, **arrays)
            (given.workdir / "state.part.npz").replace(path)


def kept(workdir: pathlib.Path) -> tuple[Params, Params]:
    with np.load(workdir / "state.npz") as arrays:
        leaves, form = jax.tree.flatten(initial_params(jax.random.key(0)))
        return jax.tree.unflatten(form, [arrays[str(n)] for n in range(len(leaves))])


def calibrated(params: Params, stats: Params, pool: Pool) -> Params:
    """A score of 0.5 is where one in twenty images without a mark is found, of those trained on, whole."""
    score = jax.jit(lambda pixels: image_logits(params, cell_logits(params, pixels, stats)[0]))
    logits = [score(pool.pairs(np.random.default_rng((3, n)), 20).pixels[:20]) for n in range(20)]
    return params | {"shift": params["shift"] - np.quantile(np.concatenate(logits), 0.95)}


def export(given: argparse.Namespace) -> None:
    """An ONNX file from images "pixels" [1, 3, height, width] of 0 to 255 to "score" [1, 1]; weights are in half precision."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    params, stats = kept(given.workdir)
    params = calibrated(params, stats, Pool(*opened(given.photos, given.fonts, held_out=False), POOL // 4))
    node, weights = helper.make_node, {}
    for n in range(len(LAYERS)):
        gain = params[f"gain{n}"] / np.sqrt(stats[f"variance{n}"] + EPSILON)
        weights[f"conv{n}"] = (params[f"conv{n}"] * gain).transpose(3, 2, 0, 1)
        weights[f"conv{n}_bias"] = params[f"bias{n}"] - stats[f"mean{n}"] * gain
    weights |= {"cell": params["cell"].transpose(3, 2, 0, 1), "cell_bias": params["cell_bias"]}
    weights |= {"scale": params["scale"], "shift": params["shift"]}
    nodes = [
        node("Mul", ["pixels", "unit"], ["scaled_pixels"]),
        node("Sub", ["scaled_pixels", "middle"], ["centered"]),
        node("SpaceToDepth", ["centered"], ["x0"], blocksize=2),
        *(node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT) for name in weights),
    ]
    for n, (before, after, stride, dilation) in enumerate(LAYERS):
        given_to, made = [f"x{n}", f"conv{n}", f"conv{n}_bias"], f"x{n + 1}"
        nodes.append(node("Conv", given_to, [f"y{n}"], strides=[stride] * 2, dilations=[dilation] * 2, pads=[dilation] * 4))
        nodes.append(node("Relu", [f"y{n}"], [f"z{n}" if before == after else made]))
        if before == after:
            nodes.append(node("Add", [f"x{n}", f"z{n}"], [made]))
    nodes += [
        node("Conv", [f"x{len(LAYERS)}", "cell", "cell_bias"], ["cells"]),
        node("AveragePool", ["cells"], ["around"], kernel_shape=[AROUND, AROUND]),
        node("GlobalMaxPool", ["around"], ["most"]),
        node("Flatten", ["most"], ["flat"]),
        node("Mul", ["flat", "scale"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["logit"]),
        node("Sigmoid", ["logit"], ["score"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value, np.float16), f"{name}_half") for name, value in weights.items()]
    tensors += [numpy_helper.from_array(np.float32(value), name) for name, value in {"unit": 1 / 64, "middle": 2}.items()]
    taken = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, "height", "width"])]
    returned = [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, 1])]
    graph = helper.make_graph(nodes, "watermark", taken, returned, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(given.out))
    print(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")


def measure(given: argparse.Namespace) -> None:
    """Of photographs and fonts that were kept back: how many marks are found, and how many images without one."""
    pairs = Pool(*opened(given.photos, given.fonts, held_out=True), 200).pairs(np.random.default_rng(2), given.count)
    score = Watermark(str(given.model)).prepare()
    began = time.process_time()
    scores = [score(Sample((ImagePart.from_pixels(pixels),), "pair", "key"))["score"] for pixels in pairs.pixels]
    print(f"{len(scores) / (time.process_time() - began):.0f} images a second of processor time")
    plain, marked = np.split(np.asarray(scores), 2)
    print(f"the better of two, of an image with and one without: {(marked[:, None] > plain[None]).mean():.3f}")
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.9):
        hits, others = (marked >= threshold).sum(), (plain >= threshold).sum()
        print(f"score >= {threshold}: recall {hits / given.count:.3f}, precision {hits / max(1, hits + others):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="what", required=True)
    for name, run in (("train", train), ("export", export), ("measure", measure)):
        verb = verbs.add_parser(name)
        verb.set_defaults(run=run)
        verb.add_argument("photos", type=pathlib.Path)
        verb.add_argument("fonts", type=pathlib.Path)
        if name != "measure":
            verb.add_argument("workdir", type=pathlib.Path)
        if name == "train":
            verb.add_argument("--steps", type=int, default=4400)
            verb.add_argument("--batch", type=int, default=32)
            verb.add_argument(
                "--minutes", type=float, default=float("inf"), help="stop after so many; the same command goes on"
            )
        elif name == "export":
            verb.add_argument("out", type=pathlib.Path)
        else:
            verb.add_argument("model", type=pathlib.Path)
            verb.add_argument("--count", type=int, default=500)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
