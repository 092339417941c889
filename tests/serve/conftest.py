"""A server on the tiny model, in this process and over a socket."""

import contextlib
import threading
import time

import pytest
import uvicorn
from starlette.testclient import TestClient

from nextstep_jax.serve.app import create_app
from nextstep_jax.serve.preview import preview_weights
from nextstep_jax.serve.worker import Worker


@pytest.fixture(scope="session")
def preview(tiny_pipeline):
    return preview_weights(tiny_pipeline)


@pytest.fixture(scope="session")
def client(tiny_pipeline, preview):
    """Speaks to the application without a socket."""
    with TestClient(create_app(Worker(tiny_pipeline, preview)), base_url="http://127.0.0.1") as client:
        yield client


@contextlib.contextmanager
def live(pipeline, preview):
    """(address, worker) of a server on the loopback interface."""
    worker = Worker(pipeline, preview)
    server = uvicorn.Server(uvicorn.Config(create_app(worker), port=0, log_level="warning"))
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    while not (server.started and worker.ready):
        time.sleep(0.02)
    yield f"http://127.0.0.1:{socket.getsockname()[1]}", worker
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="session")
def live_server(tiny_pipeline, preview):
    with live(tiny_pipeline, preview) as server:
        yield server
