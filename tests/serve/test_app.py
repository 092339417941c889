"""Every route and its errors, and what clients get beside what the pipeline gives."""

import base64
import concurrent.futures
import io
import json
import threading
import time
import urllib.request

import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from nextstep_jax.data.image_output import encode_image
from nextstep_jax.generation.generated_image import GeneratedImage
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.word_attention import contrast, word_attention
from nextstep_jax.serve import worker as worker_module
from nextstep_jax.serve.app import create_app
from nextstep_jax.serve.kept import KeptImages
from nextstep_jax.serve.requests import RequestError, chat_request, draw_request
from nextstep_jax.serve.worker import Job, Worker
from tests.serve.uploads import png_header

GENERATIONS, EDITS, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
ATTENTION = "/v1/nextstep/attention"
PNG = encode_image(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def pixels(b64):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB"))


def stream(text):
    """(name, data) of each event."""
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines.get("data", "[DONE]") != "[DONE]":
            events.append((lines.get("event"), json.loads(lines["data"])))
    return events


def test_images_are_those_of_the_pipeline(client, tiny_pipeline):
    reply = client.post(GENERATIONS, json={"prompt": "a red circle", "n": 2, "seed": 3, "size": "64x32"})
    assert reply.status_code == 200, reply.text
    expected = tiny_pipeline.generate("a red circle", n=2, seed=3, width=64, height=32)
    for entry, image in zip(reply.json()["data"], expected, strict=True):
        np.testing.assert_array_equal(pixels(entry["b64_json"]), image.pixels)
        assert entry["nextstep"] == image.record
    usage = reply.json()["usage"]
    assert usage["output_tokens"] == 2 * 8 and usage["total_tokens"] == usage["input_tokens"] + 16
    assert reply.json()["size"] == "64x32"


def test_settings_reach_the_pipeline(client):
    asked = {"guidance_scale": 3.0, "num_inference_steps": 4, "negative_prompt": "blue", "nextstep": {"schedule": "linear"}}
    record = client.post(GENERATIONS, json={"prompt": "a", "output_format": "webp"} | asked).json()["data"][0]["nextstep"]
    found = record["settings"]
    assert (found["cfg"], found["steps"], found["negative_prompt"], found["schedule"]) == (3.0, 4, "blue", "linear")


def test_a_stream_shows_tokens_partial_images_and_the_image(client, tiny_pipeline, monkeypatch):
    monkeypatch.setattr(worker_module, "WATCH_SECONDS", 0)
    asked = {"prompt": "a red circle", "seed": 1, "stream": True, "partial_images": 2, "nextstep": {"tokens": True}}
    reply = client.post(GENERATIONS, json=asked)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = stream(reply.text)
    names = [name for name, _ in events]
    assert names[:2] == ["nextstep.queued", "nextstep.started"] and names[-1] == "image_generation.completed"
    assert names.count("image_generation.partial_image") == 2
    tokens = [data for name, data in events if name == "nextstep.token"]
    assert [data["first"] for data in tokens] == list(range(16))
    assert all(len(base64.b64decode(data["rgb"])) == 12 for data in tokens)
    (image,) = tiny_pipeline.generate("a red circle", seed=1)
    np.testing.assert_array_equal(pixels(events[-1][1]["b64_json"]), image.pixels)


def test_tokens_come_no_faster_than_the_eye_follows(client, monkeypatch):
    monkeypatch.setattr(worker_module, "WATCH_SECONDS", 1e9)
    asked = {"prompt": "a red circle", "seed": 1, "stream": True, "nextstep": {"tokens": True}}
    tokens = [data for name, data in stream(client.post(GENERATIONS, json=asked).text) if name == "nextstep.token"]
    assert [(data["first"], len(base64.b64decode(data["rgb"])) // 12) for data in tokens] == [(0, 1), (1, 15)]


def test_edits(client, tiny_pipeline):
    files, fields = {"image": ("any.name", PNG)}, {"prompt": "a red square", "seed": "2", "nextstep[image_cfg]": "1.2"}
    reply = client.post(EDITS, files=files, data=fields)
    assert reply.status_code == 200, reply.text
    settings = tiny_pipeline.settings(edit=True, image_cfg=1.2)
    (image,) = tiny_pipeline.edit(PNG, "a red square", seed=2, settings=settings)
    np.testing.assert_array_equal(pixels(reply.json()["data"][0]["b64_json"]), image.pixels)
    assert reply.json()["usage"]["input_tokens_details"]["image_tokens"] == 16
    events = stream(client.post(EDITS, files=files, data=fields | {"stream": "true"}).text)
    assert events[-1][0] == "image_edit.completed"


def test_attention_to_words(client, tiny_pipeline):
    for seed in (4, 5):
        reply = client.post(GENERATIONS, json={"prompt": "a red circle", "seed": seed})
        id = reply.json()["data"][0]["nextstep_id"]
        (image,) = tiny_pipeline.generate("a red circle", seed=seed)
        found = client.post(ATTENTION, json={"image": id}).json()
        expected = word_attention(tiny_pipeline, "a red circle", tiny_pipeline.settings(), image.tokens, 4, 4)
        weights = np.frombuffer(base64.b64decode(found["weights"]), "<f4").reshape(-1, 16)
        shown = np.frombuffer(base64.b64decode(found["shown"]), np.uint8).reshape(-1, 16)
        assert found["words"] == expected.words
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-5)
        assert np.abs(shown - 255 * contrast(expected.weights)).max() <= 0.51
    for body, status in (({"image": "none"}, 404), ({}, 400), ({"image": id, "word": 1}, 400)):
        assert client.post(ATTENTION, json=body).status_code == status


def test_images_are_kept_few_and_not_for_long():
    now = [0.0]
    kept = KeptImages(lambda: now[0])
    images = [GeneratedImage(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1)), {"index": i}) for i in range(40)]
    ids = [kept.add(image) for image in images[:33]]
    assert kept.get(ids[1]) is images[1] and kept.get(ids[32]) is images[32]
    now[0] = 599
    ids.append(kept.add(images[33]))
    now[0] = 601
    assert kept.get(ids[33]) is images[33]
    for id in (ids[0], ids[32], "", "x"):
        with pytest.raises(RequestError, match="no such image"):
            kept.get(id)


def test_chat(client, tiny_pipeline):
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "a red"}]
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "seed": 0}
    expected = tiny_pipeline.generate_text("a red", [PNG], max_tokens=12)
    assert client.post(CHAT, json=asked).json()["choices"][0]["message"]["content"] == expected
    events = stream(client.post(CHAT, json=asked | {"stream": True}).text)
    deltas = [data["choices"][0]["delta"].get("content", "") for _, data in events]
    assert "".join(deltas) == expected and events[-1][1]["choices"][0]["finish_reason"] == "stop"
    content = client.post(CHAT, json=asked | {"modalities": ["text", "image"]}).json()["choices"][0]["message"]["content"]
    assert isinstance(content, list) and all(part["type"] in ("text", "image_url") for part in content)


def test_the_rest_of_the_routes(client, tiny_pipeline):
    assert client.get("/v1/models").json()["data"][0]["id"] == tiny_pipeline.name
    assert client.get("/queue").json() == {"running": 0, "waiting": 0}
    assert client.get("/v1/nextstep/settings").json()["token_pixels"] == 16
    size = 0
    for path in ("/", "/static/page.js", "/static/page.css"):
        reply = client.get(path)
        size += len(reply.content)
        assert reply.status_code == 200 and "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff" and b"https://" not in reply.content
    assert size < 40_000
    assert client.get("/health").status_code in (200, 503)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"prompt": ""}, 400, "must not be empty"),
        ({"prompt": 7}, 400, "must be text"),
        ({"prompt": "\ud800"}, 400, "half a character"),
        ({"prompt": "a " * 5000}, 400, "do not fit"),
        ({"n": 11}, 400, "n must be"),
        ({"size": "64"}, 400, "size must be"),
        ({"size": "65x64"}, 400, "multiple of 16"),
        ({"size": "16000x16000"}, 400, "at most 4096 tokens"),
        ({"model": "dall-e-3"}, 404, "model must be"),
        ({"response_format": "url"}, 400, "b64_json"),
        ({"output_format": "gif"}, 400, "output_format"),
        ({"guidance_scale": 0.5}, 400, "at least 1"),
        ({"num_inference_steps": 201}, 400, "num_inference_steps"),
        ({"seed": -1}, 400, "seed"),
        ({"stepz": 3}, 400, "unknown field"),
        ({"nextstep": {"stepz": 3}}, 400, "did you mean steps"),
        ({"nextstep": {"cfg": 3}}, 400, "guidance_scale"),
        ({"nextstep": []}, 400, "nextstep must be an object"),
        ({"mask": "x"}, 400, "mask is not supported"),
    ],
)
def test_images_that_cannot_be_drawn(client, change, status, message):
    body = json.dumps({"prompt": "a red circle"} | change)
    reply = client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status and message in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "not a PNG"),
        (b"#!/bin/sh", 400, "not a PNG"),
        (b"", 400, "not a PNG"),
        (png_header(60_000, 60_000), 400, "60000x60000"),
        (png_header(6000, 6000), 400, "more than the 24000000"),
        (png_header(64, 64), 400, "damaged"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", 400, "image"),
        (PNG + b"\0" * (16 << 20), 413, "more than the"),
    ],
    ids=["svg", "script", "empty", "huge", "large", "damaged", "gif", "long"],
)
def test_uploads_that_are_refused(client, data, status, message):
    reply = client.post(EDITS, files={"image": ("photo.png", data)}, data={"prompt": "a red circle"})
    assert reply.status_code == status and message in reply.json()["error"]["message"], reply.text


def test_nothing_is_fetched(client):
    for url in ("http://127.0.0.1:1/x.png", "file:///etc/passwd", "//example.org/x.png", 7, None):
        content = [{"type": "image_url", "image_url": {"url": url}}]
        reply = client.post(CHAT, json={"messages": [{"role": "user", "content": content}]})
        assert reply.status_code == 400 and "nothing is fetched" in reply.json()["error"]["message"]


def test_who_may_ask(client, tiny_pipeline):
    assert client.get("/queue", headers={"host": "evil.example"}).status_code == 400
    assert client.post(GENERATIONS, json={"prompt": "a"}, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post(GENERATIONS, content="{}", headers={"content-type": "text/plain"}).status_code == 415
    long = b"x" * ((32 << 20) + 1)
    assert client.post(GENERATIONS, content=long, headers={"content-type": "application/json"}).status_code == 413
    assert client.get("/nowhere").status_code == 404 and client.get(GENERATIONS).status_code == 405
    assert client.get("/static/../app.py").status_code == 404
    assert client.delete("/v1/nextstep/jobs/none").status_code == 404
    guarded = TestClient(create_app(Worker(tiny_pipeline, None), token="secret"), base_url="http://127.0.0.1")
    assert guarded.get("/queue").status_code == 401
    assert guarded.get("/queue", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert guarded.get("/queue", headers={"authorization": "Bearer secret"}).status_code == 200
    assert guarded.get("/").status_code == 200


def test_a_full_queue_says_when_to_come_again(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(worker_module, "MAX_WAITING", 2)
    worker = Worker(tiny_pipeline, None)  # not started: nothing leaves the queue
    events = []
    for _ in range(2):
        worker.submit(Job(None, events.append))
    assert [values["position"] for _, values in events] == [1, 2]
    with pytest.raises(RequestError) as caught:
        worker.submit(Job(None, events.append))
    assert caught.value.status == 429 and int(caught.value.headers["retry-after"]) >= 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    "n",
    "size",
    "seed",
    "stream",
    "nextstep",
    "guidance_scale",
    "num_inference_steps",
    "output_format",
    "mask",
    "messages",
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from([GENERATIONS, CHAT]), fields=st.dictionaries(st.sampled_from(NAMES), JSON, min_size=1))
def test_malformed_fields_are_refused(client, path, fields):
    body = json.dumps(fields)  # without a prompt, and with messages only by accident: nothing can be drawn
    reply = client.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= reply.status_code < 500 and reply.json()["error"]["message"]


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=200), path=st.sampled_from([GENERATIONS, EDITS, CHAT]), form=st.booleans())
def test_malformed_bodies_are_refused(client, body, path, form):
    kind = "multipart/form-data; boundary=x" if form else "application/json"
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + body if form else body
    reply = client.post(path, content=body, headers={"content-type": kind})
    assert 400 <= reply.status_code < 500 and reply.json()["error"]["message"]


# --- over a socket ----------------------------------------------------------------------------------------------------


def test_the_openai_client(live_server, tiny_pipeline):
    sdk = openai.OpenAI(base_url=live_server[0] + "/v1", api_key="none", max_retries=0)
    own = {"seed": 4, "nextstep": {"tokens": True}}
    (image,) = tiny_pipeline.generate("a red circle", seed=4)
    reply = sdk.images.generate(prompt="a red circle", extra_body=own)
    np.testing.assert_array_equal(pixels(reply.data[0].b64_json), image.pixels)
    events = list(sdk.images.generate(prompt="a red circle", stream=True, partial_images=1, extra_body=own))
    assert events[-1].type == "image_generation.completed"
    np.testing.assert_array_equal(pixels(events[-1].b64_json), image.pixels)
    edited = sdk.images.edit(
        image=("a.png", PNG), prompt="a red circle", extra_body={"seed": 1, "nextstep": {"image_cfg": 1.1}}
    )
    assert edited.data[0].b64_json
    messages = [{"role": "user", "content": "a red"}]
    text = sdk.chat.completions.create(model=tiny_pipeline.name, messages=messages, max_tokens=6).choices[0].message.content
    chunks = sdk.chat.completions.create(model=tiny_pipeline.name, messages=messages, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    with pytest.raises(openai.BadRequestError, match="multiple of 16"):
        sdk.images.generate(prompt="a", size="65x64")


def post(address, body):
    data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(address + GENERATIONS, data, headers), timeout=60)


def test_eight_clients_at_once_get_their_own_images(live_server, tiny_pipeline, monkeypatch):
    sizes, generate = [], Pipeline.generate

    def counted(self, prompts, **kwargs):
        sizes.append(len(prompts))
        return generate(self, prompts, **kwargs)

    monkeypatch.setattr(Pipeline, "generate", counted)
    monkeypatch.setattr(worker_module, "GATHER_SECONDS", 0.5)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [{"prompt": "a red circle" if i % 2 else "blue", "seed": i} for i in range(8)]
        replies = list(pool.map(lambda body: json.load(post(live_server[0], body)), asked))
    assert sum(sizes) == 8 and max(sizes) > 1
    for body, reply in zip(asked, replies, strict=True):
        (alone,) = generate(tiny_pipeline, body["prompt"], seed=body["seed"])
        assert np.abs(pixels(reply["data"][0]["b64_json"]).astype(int) - alone.pixels).max() <= 1


def test_what_is_drawn_side_by_side(tiny_pipeline, monkeypatch):
    """The oldest request and those like it, as many as fit; the others wait in their order."""
    monkeypatch.setattr(worker_module, "GATHER_SECONDS", 0)
    worker, small, wide = Worker(tiny_pipeline, None), PNG, encode_image(np.zeros((32, 128, 3), np.uint8))

    def put(uploads=None, **fields):
        worker.submit(Job(draw_request(tiny_pipeline, {"prompt": "a", "seed": 0} | fields, uploads), lambda event: None))

    put(n=6)
    put(n=6, seed=1, prompt="a red circle")
    put(n=1)
    put(n=6, guidance_scale=4.0)
    put(n=6)  # the third of its kind does not fit into 16
    put([small])
    put([wide])
    put([small], prompt="blue", seed=2)
    worker.submit(Job(chat_request(tiny_pipeline, {"messages": [{"role": "user", "content": "a"}]}), lambda event: None))
    put(n=6, size="64x32")
    order = list(worker._waiting)
    taken = [[order.index(job) for job in worker._take()] for _ in range(8)]
    assert taken == [[0, 1], [2], [3], [4], [5, 7], [6], [8], [9]] and not worker._waiting


@pytest.mark.parametrize("thinking", [False, True])
def test_edits_are_drawn_side_by_side(tiny_pipeline, preview, monkeypatch, thinking):
    """Three edits that wait together are one batch; each is the edit it would be alone, with its own thoughts."""
    sizes, edit_batch = [], Pipeline.edit_batch

    def counted(self, images, instructions, **kwargs):
        sizes.append(len(instructions))
        return edit_batch(self, images, instructions, **kwargs)

    generator = np.random.default_rng(1)
    photos = [encode_image(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(3)]
    asked = list(zip(photos, ("a red circle", "blue", "a"), (3, 4, 5), strict=True))
    settings = tiny_pipeline.settings(edit=True, thinking=thinking)
    alone = [tiny_pipeline.edit(photo, text, seed=seed, settings=settings)[0] for photo, text, seed in asked]
    monkeypatch.setattr(Pipeline, "edit_batch", counted)
    worker, events = Worker(tiny_pipeline, preview), [[] for _ in asked]
    for (photo, text, seed), seen in zip(asked, events, strict=True):
        fields = {"prompt": text, "seed": seed, "nextstep": {"thinking": thinking}}
        worker.submit(Job(draw_request(tiny_pipeline, fields, [photo]), seen.append))
    worker._work(worker._take(), time.monotonic() + 60)
    assert sizes == [3]
    for seen, image in zip(events, alone, strict=True):
        name, values = seen[-1]
        assert name == "done" and values["ids"] == [None]
        assert values["results"][0].record == image.record
        np.testing.assert_allclose(values["results"][0].tokens, image.tokens, atol=1e-4)
        thoughts = [values["text"] for name, values in seen if name == "thinking"]
        assert bool(thoughts) == thinking and (not thoughts or thoughts[-1] == image.record["thinking"])


@pytest.mark.parametrize("how", ["leaves", "deletes"])
def test_a_client_that_leaves_frees_the_device(live_server, tiny_pipeline, monkeypatch, how):
    address, worker = live_server
    chunks, step = [], threading.Event()
    sample = Pipeline.sample_tokens

    def slow(self, branches, h, w, keys, settings, has_image, on_chunk=None):
        def chunk(done, total, partial):
            chunks.append(done)
            step.wait(0.3)
            on_chunk(done, total, partial)

        return sample(self, branches, h, w, keys, settings, has_image, chunk)

    monkeypatch.setattr(Pipeline, "sample_tokens", slow)
    reply = post(address, {"prompt": "a red circle", "stream": True, "nextstep": {"tokens": True}})
    while not (line := reply.readline()).startswith(b"event: nextstep.token"):
        if line.startswith(b"data: ") and b"nextstep.queued" in line:
            id = json.loads(line[6:])["id"]
    if how == "leaves":
        reply.close()
    else:
        request = urllib.request.Request(f"{address}/v1/nextstep/jobs/{id}", method="DELETE")
        assert json.load(urllib.request.urlopen(request))["stopped"]
        assert b"stopped" in reply.read()
    deadline = time.monotonic() + 20
    while worker.counts()["running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.counts() == {"running": 0, "waiting": 0} and chunks[-1] < 16
