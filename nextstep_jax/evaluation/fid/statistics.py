"""Comparing two sets of features: Fréchet and kernel distance, and the Inception score. float64 throughout.

Letters: n or m images, d features, c classes.
"""

import io
import os
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

from nextstep_jax.data import files
from nextstep_jax.errors import InputError, one_line

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
SCORE_SPLITS = 10
MAX_FILE = 1 << 30  # bytes of a file of statistics

Features = Float[np.ndarray, "n d"]


class Statistics(NamedTuple):
    """Mean and covariance of a set's features, and what made them.

    Attributes:
      mean, covariance: float64 [d] and [d, d]; the covariance divides by n - 1.
      num_images: how many there were.
      mode: how they were resized and what looked at them, see `features.MODES`.
      weights_sha256: of what looked at them.
    """

    mean: np.ndarray
    covariance: np.ndarray
    num_images: int
    mode: str
    weights_sha256: str


def statistics(features: Features, mode: str, weights_sha256: str) -> Statistics:
    """The statistics of features. InputError for fewer than two images."""
    if len(features) < 2:
        raise InputError(f"a covariance needs at least two images, found {len(features)}")
    x = features.astype(np.float64)
    return Statistics(x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]), len(x), mode, weights_sha256)


def save_statistics(path: str | os.PathLike, found: Statistics) -> None:
    """Write an .npz with mu, sigma, n, mode and weights_sha256, whole or not at all."""
    with files.replacing(path) as partial, open(partial, "wb") as file:
        np.savez(
            file,
            mu=found.mean,
            sigma=found.covariance,
            n=found.num_images,
            mode=found.mode,
            weights_sha256=found.weights_sha256,
        )


def load_statistics(path: str | os.PathLike) -> Statistics:
    """What `save_statistics` wrote.

    Raises:
      InputError: not such a file; one of another program does not say how its images were resized.
    """
    data = files.read_bytes(path, MAX_FILE)
    try:
        stored = np.load(io.BytesIO(data), allow_pickle=False)
        names = {"mu", "sigma", "n", "mode", "weights_sha256"}
        if missing := sorted(names - set(stored.files)):
            raise InputError(
                f"{path}: has no {', '.join(missing)}; statistics of other programs do not say how their images were "
                "resized: make them with `nextstep-jax evaluate statistics`"
            )
        values = {name: stored[name] for name in names}
    except InputError:
        raise
    except Exception as error:  # NumPy and zipfile raise anything at all on damaged bytes
        raise InputError(f"{path}: not a file of statistics ({one_line(error, 120)})") from error
    mean, covariance, count = values["mu"], values["sigma"], values["n"]
    sizes = mean.ndim == 1 and covariance.shape == mean.shape * 2 and mean.dtype == covariance.dtype == np.float64
    if not sizes or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        found = f"{mean.dtype} {list(mean.shape)} and {covariance.dtype} {list(covariance.shape)}"
        raise InputError(f"{path}: expected a finite float64 mean [d] and covariance [d, d], found {found}")
    return Statistics(mean, covariance, int(count), str(values["mode"]), str(values["weights_sha256"]))


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """The squared Fréchet distance of two normal distributions, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The trace of the root is the sum of the singular values of S1^(1/2) S2^(1/2), which exists for covariances of any rank.

    Raises:
      InputError: statistics that were made differently.
    """
    for what, name in (("mode", "mode"), ("weights' sha256", "weights_sha256")):
        a, b = getattr(first, name), getattr(second, name)
        if a != b:
            raise InputError(f"the two sets of images do not compare: their {what} is {a!r:.80} and {b!r:.80}")
    if first.mean.shape != second.mean.shape:
        raise InputError(f"expected equally many features, found {len(first.mean)} and {len(second.mean)}")
    roots = (_root(first.covariance), _root(second.covariance))
    shared = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    distance = np.square(first.mean - second.mean).sum() + np.trace(first.covariance) + np.trace(second.covariance)
    return float(distance - 2 * shared)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues below zero are rounding."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def kernel_distance(
    first: Features, second: Float[np.ndarray, "m d"], *, subsets: int = KID_SUBSETS, size: int = KID_SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """KID (Binkowski et al., 2018): the unbiased squared MMD with the kernel (x.y / d + 1)^3, mean and deviation over random
    subsets of `size` images of each set, or of as many as both sets have.

    Raises:
      InputError: fewer than two images in a set.
    """
    size = min(size, len(first), len(second))
    if size < 2:
        raise InputError(f"a kernel distance needs at least two images of each set, found {len(first)} and {len(second)}")
    random = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        x, y = (values[random.choice(len(values), size, replace=False)].astype(np.float64) for values in (first, second))
        within = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in (_kernel(x, x), _kernel(y, y)))
        found.append(within - 2 * _kernel(x, y).mean())
    return float(np.mean(found)), float(np.std(found))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def inception_score(logits: Float[np.ndarray, "n c"], *, splits: int = SCORE_SPLITS, seed: int = 0) -> tuple[float, float]:
    """exp of the mean KL(p(class | image), p(class)) (Salimans et al., 2016): mean and deviation over `splits` parts of the
    images in random order, or over as many as there are images.

    Raises:
      InputError: no images.
    """
    if not len(logits):
        raise InputError("an Inception score needs images, found none")
    shuffled = np.random.default_rng(seed).permutation(logits.astype(np.float64))
    scores = []
    for part in np.array_split(shuffled, min(splits, len(logits))):
        log_p = scipy.special.log_softmax(part, axis=1)
        log_mean = scipy.special.logsumexp(log_p, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
