"""The page in a real browser: Debian's Chromium, driven by Playwright. Without it these tests are skipped."""

import base64
import io
import pathlib
import time

import numpy as np
import pytest
from PIL import Image

from nextstep_jax.data.image_output import encode_image
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.word_attention import contrast, word_attention
from tests.serve.uploads import png_header

CHROMIUM = pathlib.Path("/usr/bin/chromium")
pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is missing, apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, live_server):
    """The page, opened; at the end its console must be empty and no request may have left the host."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    page = context.new_page()
    page.set_default_timeout(60_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(live_server[0])
    page.wait_for_selector("#model:not(:empty)")
    page.check("#lock")
    page.fill("#prompt", "a red circle")
    yield page
    context.close()
    refused = "the server responded with a status of 400"
    assert [text for text in said if refused not in text] == []
    assert all(url.startswith((live_server[0], "data:", "blob:" + live_server[0])) for url in asked)


def finished(page):
    """What the page says when the work has ended."""
    page.wait_for_selector("#draw:enabled")
    return page.inner_text("#status")


def canvas(page):
    """[height, width, 3] uint8 of the first canvas."""
    height, width, data = page.evaluate(
        "() => { const c = document.querySelector('canvas');"
        "return [c.height, c.width, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]; }"
    )
    return np.asarray(data, np.uint8).reshape(height, width, 4)[..., :3]


@pytest.fixture
def slow(monkeypatch):
    """Each chunk waits a little, so that there is time to look and to stop."""
    sample = Pipeline.sample_tokens

    def sample_tokens(self, branches, h, w, keys, settings, has_image, on_chunk=None):
        def chunk(*arguments):
            on_chunk(*arguments)
            time.sleep(0.25)

        return sample(self, branches, h, w, keys, settings, has_image, chunk)

    monkeypatch.setattr(Pipeline, "sample_tokens", sample_tokens)


def test_an_image_appears_token_by_token_and_is_the_pipelines(page, tiny_pipeline, slow):
    page.fill("#seed", "7")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("canvas")
    page.wait_for_timeout(1200)
    shot = np.asarray(Image.open(io.BytesIO(page.locator("canvas").screenshot())).convert("RGB")).astype(int)
    grey = (np.abs(shot - 128).max(-1) <= 1).mean()
    assert 0.05 < grey < 0.95
    assert finished(page) == "done"
    (image,) = tiny_pipeline.generate("a red circle", seed=7, on_chunk=lambda *_: None)
    np.testing.assert_array_equal(canvas(page), image.pixels)


def test_edit_history_and_continue(page):
    page.fill("#seed", "3")
    page.click("#draw")
    assert finished(page) == "done"
    drawn = canvas(page)
    page.fill("#prompt", "a blue square")
    page.click("#edit")
    assert finished(page) == "done" and page.locator("#history button").count() == 2
    page.fill("#seed", "5")
    page.locator("#history button").last.click()
    page.wait_for_selector("canvas[aria-label='Chosen image']")
    assert page.input_value("#prompt") == "a red circle" and page.input_value("#seed") == "3"
    np.testing.assert_array_equal(canvas(page), drawn)
    page.click("#continue")
    assert finished(page) == "done"
    page.reload()
    page.wait_for_selector("#history button >> nth=1")


def test_attention_to_words(page, tiny_pipeline):
    page.fill("#seed", "7")
    page.click("#draw")
    assert finished(page) == "done"
    page.click("text=Attention to words")
    page.hover(".words button:has-text('circle')")
    (image,) = tiny_pipeline.generate("a red circle", seed=7)
    shown = contrast(word_attention(tiny_pipeline, "a red circle", tiny_pipeline.settings(), image.tokens, 4, 4).weights)
    alpha = page.evaluate("() => Array.from(document.querySelector('.heat').getContext('2d').getImageData(0, 0, 4, 4).data)")
    np.testing.assert_allclose(np.asarray(alpha)[3::4] / 255, 0.9 * (1 - shown[2]), atol=0.01)
    assert "of a token's attention" in page.locator(".words button >> nth=2").get_attribute("title")
    page.locator(".stack canvas >> nth=0").hover(position={"x": 5, "y": 5})
    levels = page.evaluate(
        "() => [...document.querySelectorAll('.words button')].map((b) => b.style.getPropertyValue('--level'))"
    )
    np.testing.assert_allclose([float(level.removesuffix("%")) for level in levels], 60 * shown[:, 0], atol=0.5)


def test_stop(page, live_server, slow):
    page.click("#draw")
    page.wait_for_selector("canvas")
    page.keyboard.press("Escape")
    assert finished(page) == "stopped" and page.locator("canvas[data-done]").count() == 0


def test_files(page, tiny_pipeline, tmp_path):
    (image,) = tiny_pipeline.generate("blue", seed=11)
    image.save(tmp_path / "ours.png")
    page.set_input_files("#upload", tmp_path / "ours.png")
    page.wait_for_selector("canvas[aria-label='Chosen image']")
    assert page.input_value("#prompt") == "blue" and page.input_value("#seed") == "11"
    (tmp_path / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page.set_input_files("#upload", tmp_path / "drawing.png")
    page.wait_for_selector("#status.error")
    page.click("#edit")
    assert "not a PNG, JPEG or WebP image" in finished(page)
    photo = np.full((40, 80, 3), 200, np.uint8)
    (tmp_path / "renamed.png").write_bytes(encode_image(photo, "JPEG"))
    page.set_input_files("#upload", tmp_path / "renamed.png")
    page.wait_for_selector("canvas[aria-label='Chosen image']")
    page.click("#edit")
    assert finished(page) == "done"
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    page.set_input_files("#upload", tmp_path / "bomb.png")
    page.wait_for_selector("#status.error")
    page.click("#edit")
    assert "60000x60000" in finished(page)


GIVE = """([data, event]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "ours.png", { type: "image/png" }));
  const given = event === "drop" ? new DragEvent(event, { dataTransfer: transfer, cancelable: true })
    : new ClipboardEvent(event, { clipboardData: transfer });
  dispatchEvent(given);
  return event === "paste" || given.defaultPrevented;
}"""


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_png_given_restores_its_settings(page, tiny_pipeline, event):
    settings = tiny_pipeline.settings(cfg=4.5, steps=7, shift=1.5)
    (image,) = tiny_pipeline.generate("blue", seed=12, settings=settings)
    data = encode_image(image.pixels, "PNG", image.record)
    assert page.evaluate(GIVE, [base64.b64encode(data).decode(), event])  # a drop must not open the file
    page.locator("#status", has_text="settings restored").wait_for()
    values = {id: page.input_value(f"#{id}") for id in ("prompt", "seed", "cfg", "steps", "width")}
    assert values == {"prompt": "blue", "seed": "12", "cfg": "4.5", "steps": "7", "width": "64"}
    np.testing.assert_array_equal(canvas(page), image.pixels)
    page.click("#draw")  # shift has no control of its own, and comes back all the same
    assert finished(page) == "done"
    (again,) = tiny_pipeline.generate("blue", seed=12, settings=settings, on_chunk=lambda *_: None)
    np.testing.assert_array_equal(canvas(page), again.pixels)


def test_dice_and_seed(page):
    page.fill("#seed", "5")
    page.click("#draw")
    assert finished(page) == "done" and page.input_value("#seed") == "5"
    page.click("#dice")
    assert page.input_value("#seed") != "5" and page.locator("#history button").count() == 1
    page.fill("#seed", "5")
    page.uncheck("#lock")
    page.click("#draw")
    assert finished(page) == "done" and page.input_value("#seed") != "5"
    assert f"seed {page.input_value('#seed')}," in page.inner_text("figcaption")


def test_reload_in_mid_drawing(page, live_server, slow):
    page.click("#draw")
    page.wait_for_selector("canvas")
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    deadline = time.monotonic() + 20
    while live_server[1].counts()["running"] and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    assert live_server[1].counts() == {"running": 0, "waiting": 0}
    assert page.is_enabled("#draw") and page.locator("canvas, #history button").count() == 0
    page.fill("#prompt", "blue")
    page.click("#draw")
    assert finished(page) == "done" and page.locator("#history button").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000])
def test_it_fits_and_can_be_read(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.click("#draw")
    assert finished(page) == "done"
    page.click("text=Attention to words >> nth=0")
    page.wait_for_selector(".words")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    rights = (
        "() => [...document.querySelectorAll('canvas, input, button, textarea')].map((e) => e.getBoundingClientRect().right)"
    )
    assert max(page.evaluate(rights)) <= width
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L")).astype(int)
    ground = np.bincount(shot.ravel(), minlength=256).argmax()
    assert (ground > 220) == (scheme == "light") and (ground < 40) == (scheme == "dark")
    words = np.asarray(Image.open(io.BytesIO(page.locator("h1").screenshot())).convert("L")).astype(int)
    assert np.abs(words - ground).max() > 150


def test_keyboard_and_names(page):
    page.focus("#prompt")
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached[:3] == ["draw", "edit", "continue"]
    assert {"cfg", "image_cfg", "steps", "width", "height", "n", "seed", "dice", "lock", "thinking", "upload", "forget"} <= set(
        reached
    )
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('input, textarea, button')]"
        ".filter((e) => !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).map((e) => e.id)"
    )
    assert nameless == []
