"""Serving: time to the first tile, what a watcher costs, images a second with 1, 4 and 16 clients, and malformed requests.

    python -m benchmarks.serving
    python -m benchmarks.serving --malformed 10000

The server runs in this process, on the loopback interface, with the built-in model or --checkpoint.
"""

import argparse
import concurrent.futures
import json
import pathlib
import random
import resource
import statistics
import threading
import time
import urllib.error
import urllib.request

from benchmarks import measure


def serve(checkpoint):
    """(address, worker) of a server that ends with this process."""
    import uvicorn

    from nextstep_jax.generation.pipeline import Pipeline
    from nextstep_jax.serve.app import create_app
    from nextstep_jax.serve.preview import preview_weights
    from nextstep_jax.serve.worker import Worker

    pipeline = Pipeline.from_checkpoint(checkpoint)
    worker = Worker(pipeline, preview_weights(pipeline))
    server = uvicorn.Server(uvicorn.Config(create_app(worker), port=0, log_level="warning"))
    socket = server.config.bind_socket()
    threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True).start()
    while not (server.started and worker.ready):
        time.sleep(0.05)
    return f"http://127.0.0.1:{socket.getsockname()[1]}", pipeline


def post(address, body: bytes, kind: str = "application/json", path: str = "/v1/images/generations"):
    request = urllib.request.Request(address + path, body, {"content-type": kind})
    return urllib.request.urlopen(request, timeout=300)


def draw(address, seed: int, **fields) -> float:
    """Seconds until an image is complete."""
    start = measure.now()
    body = {"prompt": "a red circle left of a blue square", "seed": seed} | fields
    post(address, json.dumps(body).encode()).read()
    return measure.now() - start


def first_tile(address) -> float:
    """Seconds from the request to the first token's colors."""
    start = time.perf_counter()
    body = {"prompt": "a red circle left of a blue square", "seed": 1, "stream": True, "nextstep": {"tokens": True}}
    with post(address, json.dumps(body).encode()) as reply:
        while not reply.readline().startswith(b"event: nextstep.token"):
            pass
        seconds = time.perf_counter() - start
        reply.read()
    return seconds


def images_per_second(address, clients: int, each: int) -> float:
    """Each client asks for its next image when it has the last one."""

    def run(client: int) -> None:
        for i in range(each):
            draw(address, client * each + i)

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(run, range(clients)))  # compiles the batch sizes that come up
        start = time.perf_counter()
        list(pool.map(run, range(clients)))
    return clients * each / (time.perf_counter() - start)


def malformed(address, count: int) -> dict[int, int]:
    """How often each status came of requests that cannot be served."""
    rng, found = random.Random(0), {}
    values = [None, True, -1, 1e308, "x", "\ud800", [], {}, [[[]]], {"a": 1}, "9" * 5000, 10**30]
    names = ["n", "size", "seed", "stream", "nextstep", "guidance_scale", "num_inference_steps", "mask", "messages", "model"]
    for _ in range(count):
        fields = {rng.choice(names): rng.choice(values) for _ in range(rng.randint(1, 4))}
        body = json.dumps(fields).encode()
        if rng.random() < 0.5:
            body = body[: rng.randrange(len(body))] + rng.randbytes(rng.randrange(20))
        path = rng.choice(["/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"])
        kind = rng.choice(["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain"])
        try:
            status = post(address, body, kind, path).status
        except urllib.error.HTTPError as error:
            status = error.code
        found[status] = found.get(status, 0) + 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measure.options(parser)
    parser.add_argument("--checkpoint", help="default: the built-in model")
    parser.add_argument("--images", type=int, default=20, help="that each client asks for")
    parser.add_argument("--malformed", type=int, metavar="N", help="send N malformed requests instead, and count the replies")
    parser.add_argument("--minutes", type=float, help="draw without pause instead, and print the memory twenty times")
    arguments = parser.parse_args()
    measure.prepare(arguments)
    address, pipeline = serve(arguments.checkpoint)
    if arguments.malformed:
        print(malformed(address, arguments.malformed))
        return
    if arguments.minutes:
        for i in range(20):
            end = time.monotonic() + 3 * arguments.minutes
            while time.monotonic() < end:
                images_per_second(address, 4, 4)
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            print(f"{(i + 1) * arguments.minutes / 20:6.1f} min {pages * resource.getpagesize() / 2**20:8.1f} MiB", flush=True)
        return
    draw(address, 0)
    rounds = range(arguments.rounds * 4)
    print(f"first tile {1000 * statistics.median(first_tile(address) for _ in rounds):.1f} ms")
    watched = {"stream": True, "nextstep": {"tokens": True}}
    runs = {"alone": lambda: draw(address, 1), "watched": lambda: draw(address, 1, **watched)}
    times = measure.alternate(runs, arguments.rounds * 4)
    print(f"an image {1000 * times['alone']:.1f} ms, watched {times['watched'] / times['alone']:.2f} times that")
    for clients in (1, 4, 16):
        print(f"{clients:2} clients: {images_per_second(address, clients, arguments.images):.1f} images/s")


if __name__ == "__main__":
    main()
