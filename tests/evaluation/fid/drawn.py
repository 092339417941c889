"""Weights and images that any program can draw alike: the goldens of FID's network were made with these.

python -m tests.evaluation.fid.drawn     # writes inception.npz beside this file; needs torch and torch-fidelity 0.4
"""

import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("inception.npz")


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a tensor of the weights' file."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    noise = random.standard_normal(shape, np.float32)
    if name.endswith("bn.weight"):
        return np.float32(1.05) + np.float32(0.1) * noise
    if name.endswith("running_var"):
        return (0.5 + np.abs(noise)).astype(np.float32)
    if len(shape) == 1:
        return np.float32(0.02) * noise
    return noise * np.float32((2 / np.prod(shape[1:])) ** 0.5)


def draw_images() -> list[np.ndarray]:
    """Two images [height, width, 3] uint8: waves, smaller than the network's size, and a larger board with noise."""
    y, x = np.mgrid[:64, :96] / 96
    waves = np.stack([np.sin(9 * x + 5 * y), np.cos(11 * y), np.sin(20 * x * y)], axis=-1)
    random = np.random.default_rng(7)
    board = (np.indices((340, 310)).sum(0) // 17 % 2)[..., None] * np.array([200, 120, 60])
    noisy = board + random.integers(0, 56, (340, 310, 3))
    return [(127.5 * (waves + 1)).astype(np.uint8), noisy.astype(np.uint8)]


def checkerboard() -> np.ndarray:
    """[32, 32, 3] uint8, black and white, fields of one pixel."""
    return np.repeat((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)


def main() -> None:
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as reference
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    class Network(reference.FeatureExtractorInceptionV3):
        """Loads what is drawn instead of a file."""

        def load_state_dict(self, _, **options):
            known = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items() if "num_batches" not in name}
            drawn = {name: torch.from_numpy(draw(name, shape)) for name, shape in known.items()}
            found = super().load_state_dict(drawn, strict=False)
            assert all("num_batches" in name for name in found.missing_keys) and not found.unexpected_keys

    reference.load_state_dict_from_url = lambda *_, **__: {}
    network = Network("inception", ["2048", "logits_unbiased"])

    def tensor(image: np.ndarray):
        return torch.from_numpy(image).permute(2, 0, 1)[None]

    outputs = [network(tensor(image)) for image in draw_images()]
    board = tensor(checkerboard()).float()
    np.savez_compressed(
        GOLDEN,
        features=np.concatenate([output[0].numpy() for output in outputs]),
        logits=np.concatenate([output[1].numpy() for output in outputs]),
        resized=resize(board, size=(299, 299), align_corners=False)[0, 0, ::7].numpy(),
    )


if __name__ == "__main__":
    main()
