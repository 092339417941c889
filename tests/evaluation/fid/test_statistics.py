"""Distances against scipy, closed forms, and programs written from their definitions."""

import numpy as np
import pytest
import scipy.linalg

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.fid.statistics import (
    Statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    load_statistics,
    save_statistics,
    statistics,
)


def normal(mean, covariance, **changes):
    found = Statistics(np.asarray(mean, float), np.asarray(covariance, float), 10, "tf", "ab")
    return found._replace(**changes)


def random_features(n, d, seed, scale=1.0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, d)) @ random.normal(size=(d, d)) * scale + random.normal(size=d)).astype(np.float32)


def test_closed_forms():
    # With diagonal covariances the distance is that of means and deviations.
    a, b = normal([0, 3], np.diag([4.0, 1.0])), normal([1, 1], np.diag([1.0, 9.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (1 - 3) ** 2, abs=1e-12)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])  # both turned together
    c, d = (s._replace(mean=turn @ s.mean, covariance=turn @ s.covariance @ turn.T) for s in (a, b))
    assert frechet_distance(c, d) == pytest.approx(10, abs=1e-12)


@pytest.mark.parametrize("n", [400, 20])  # the second: covariances without full rank
def test_frechet_distance_is_that_of_scipy(n):
    a, b = (statistics(random_features(n, 32, seed), "tf", "ab") for seed in (0, 1))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance + (1e-12 * np.eye(32) if n < 32 else 0)).real
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5 if n < 32 else 1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize("n", [400, 20])
def test_no_distance_to_itself(n):
    found = statistics(random_features(n, 64, 0, scale=3), "tf", "ab")
    assert abs(frechet_distance(found, found)) < 1e-9 * np.trace(found.covariance)


def test_statistics_are_unbiased_and_in_float64():
    features = random_features(50, 5, 3)
    found = statistics(features + np.float32(1000), "clean", "cd")
    wide = (features + np.float32(1000)).astype(np.float64)
    np.testing.assert_allclose(found.covariance, np.cov(wide.T), rtol=1e-10)
    assert found.covariance.dtype == np.float64 and found.num_images == 50
    with pytest.raises(InputError, match="at least two images, found 1"):
        statistics(features[:1], "tf", "ab")


@pytest.mark.parametrize(
    "changes, message", [({"mode": "clean"}, "mode is 'tf' and 'clean'"), ({"weights_sha256": "cd"}, "sha256 is 'ab' and 'cd'")]
)
def test_what_was_made_otherwise_does_not_compare(changes, message):
    with pytest.raises(InputError, match=message):
        frechet_distance(normal([0], [[1]]), normal([0], [[1]], **changes))


def test_statistics_as_a_file(tmp_path):
    found = statistics(random_features(50, 5, 3), "tf", "ab" * 32)
    save_statistics(tmp_path / "x.npz", found)
    again = load_statistics(tmp_path / "x.npz")
    assert again._replace(mean=0, covariance=0) == found._replace(mean=0, covariance=0)
    assert (again.mean == found.mean).all() and (again.covariance == found.covariance).all()


def test_files_that_are_no_statistics(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((3, 3)))
    with pytest.raises(InputError, match=r"x.npz: has no mode, n, weights_sha256; .*evaluate statistics"):
        load_statistics(path)
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((3, 2)), n=3, mode="tf", weights_sha256="ab")
    with pytest.raises(InputError, match=r"expected a finite float64 mean \[d\] and covariance"):
        load_statistics(path)
    np.savez(path, mu=np.array([object()]), sigma=0, n=3, mode="tf", weights_sha256="ab")
    with pytest.raises(InputError, match="not a file of statistics"):
        load_statistics(path)
    for data in (b"", b"PK", b"nothing", b"\x93NUMPY"):
        path.write_bytes(data)
        with pytest.raises(InputError, match="not a file of statistics"):
            load_statistics(path)
    with pytest.raises(InputError, match="absent.npz: cannot be read"):
        load_statistics(tmp_path / "absent.npz")


def test_kernel_distance_is_its_definition():
    x, y = random_features(7, 4, 0), random_features(9, 4, 1)

    def k(a, b):
        return (np.dot(a.astype(float), b.astype(float)) / 4 + 1) ** 3

    y = y[:7]
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    expected = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs) / 42
    expected -= 2 * sum(k(a, b) for a in x for b in y) / 49
    assert kernel_distance(x, y, subsets=3)[0] == pytest.approx(expected, rel=1e-9)
    with pytest.raises(InputError, match="found 1 and 7"):
        kernel_distance(x[:1], y)


def test_kernel_distance_tells_sets_apart():
    same = [random_features(400, 8, 0)[i::2] for i in range(2)]
    mean, deviation = kernel_distance(*same, subsets=20, size=100)
    assert abs(mean) < 4 * deviation
    assert kernel_distance(same[0], same[1] + 3, subsets=20, size=100)[0] > 10 * deviation


def test_inception_score_of_sure_and_unsure_classes():
    sure = 100 * np.eye(10)[np.arange(200) % 10]
    mean, deviation = inception_score(np.tile(sure, (10, 1)), splits=1)
    assert mean == pytest.approx(10, rel=1e-6) and deviation == 0
    assert inception_score(np.zeros((30, 10)))[0] == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    expected = np.exp(np.mean([np.sum(row * np.log(row / p.mean(0))) for row in p]))
    assert inception_score(np.log(p) + 5, splits=1)[0] == pytest.approx(expected)
    with pytest.raises(InputError, match="found none"):
        inception_score(np.zeros((0, 10)))
