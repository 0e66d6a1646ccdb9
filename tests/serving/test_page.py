"""The page in a browser: what it shows, every control, uploads, and what it does when something is wrong."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from nrd_trt.data.overlay import CONFIDENCE_PALETTE, blend, colour
from tests.data.pictures import encoded
from tests.serving.hostile import bomb_png, clip
from tests.serving.rig import SIZE_HW, Rig, Street, street
from tests.serving.waiting import until

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install nrd-trt[dev]")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next((path for path in map(Path, ("/usr/bin/chromium", "/usr/bin/google-chrome")) if path.exists()), None)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TOKEN = "a-long-enough-secret"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: no chromium or google-chrome in /usr/bin")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


class Watched:
    """A page whose requests and complaints are kept."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._heard(message.type, message.text))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "willReadFrequently" not in text:  # these tests read the canvas
            self.complaints.append(text)

    def number(self) -> int:
        return int(self.page.evaluate("document.getElementById('picture').dataset.number ?? 0"))

    def pixels(self) -> np.ndarray:
        """The canvas as it is, (H, W, 3)."""
        script = """() => {
            const canvas = document.getElementById("picture");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let text = "";
            for (const byte of data) text += String.fromCharCode(byte);
            return [canvas.height, canvas.width, btoa(text)];
        }"""
        height, width, data = self.page.evaluate(script)
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3]

    def state(self) -> str:
        return str(self.page.inner_text("#state"))

    def view(self, name: str) -> None:
        self.page.click(f"#views >> text={name}")

    def opacity(self, percent: int) -> None:
        self.page.fill("#opacity", str(percent))


@contextmanager
def opened(browser: Browser, url: str, path: str = "/", **options: Any) -> Iterator[Watched]:
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    context.set_default_timeout(10_000)
    watched = Watched(context.new_page())
    watched.page.goto(url + path)
    yield watched
    context.close()
    assert [asked for asked in watched.requests if not asked.startswith((url, "blob:", "data:"))] == []


@pytest.fixture(scope="module")
def window(browser: Browser, shared_rig: Rig) -> Iterator[Watched]:
    with opened(browser, shared_rig.url) as watched:
        yield watched


@pytest.fixture
def page(window: Watched, rig: Rig) -> Iterator[Watched]:
    """The page of the shared run, new and live; at the end nothing may have been complained about."""
    window.page.reload()
    until(lambda: window.number() > 0)
    yield window
    assert window.complaints == []


def pause(page: Watched, rig: Rig, hold: Callable[[], None] | None = None) -> Any:
    """Pause, by the button if not told otherwise, and return the frame that stays, once the page shows it."""
    (hold or partial(page.page.click, "#pause"))()
    until(lambda: page.state() == "Paused")
    shown = rig.paused()
    until(lambda: page.number() == shown.number)
    return shown.frame


def test_frames_change_and_figures_come(page: Watched) -> None:
    first, number = page.pixels(), page.number()
    until(lambda: page.number() > number + 2 and (page.pixels() != first).any())  # the drive comes round each second
    assert page.state() == "Live"
    assert page.page.inner_text("#source") == "street"
    until(lambda: page.page.locator("#tiles div").count() == 8)  # power and temperature too
    assert page.page.locator("#charts figure").count() == 6
    assert "12.5" in page.page.inner_text("#tiles")


def test_views_opacity_and_classes_are_those_of_the_server(page: Watched, rig: Rig) -> None:
    """JPEG loses a little; the colours of the mask are exact."""
    frame = pause(page, rig)
    rgb, mask, palette = frame.frame.rgb, frame.mask, rig.engine.engine.info.palette
    coloured, road = colour(mask, palette), (mask == 3)[..., None]
    for percent in (0, 35, 100):
        page.opacity(percent)
        wanted = blend(rgb, mask, palette, percent / 100)
        assert np.abs(page.pixels().astype(int) - wanted).mean() < 5, percent
        assert page.page.inner_text("#opacity-value") == f"{percent} %"
    assert np.array_equal(page.pixels(), coloured)  # at 100 %
    page.view("Side by side")
    both = page.pixels()
    assert both.shape == (SIZE_HW[0], 2 * SIZE_HW[1], 3)
    assert np.abs(both[:, : SIZE_HW[1]].astype(int) - rgb).mean() < 5
    assert np.array_equal(both[:, SIZE_HW[1] :], coloured)
    page.view("Mask")
    assert page.page.is_disabled("#opacity")
    assert np.array_equal(page.pixels(), coloured)
    assert 0.05 < road.mean() < 0.95
    page.page.click(".class >> text=Road")
    assert np.array_equal(page.pixels(), np.where(road, 0, coloured))
    with page.page.expect_download() as download:
        page.page.click("#snapshot")
    assert np.array_equal(np.asarray(Image.open(download.value.path())), np.where(road, 0, coloured))
    page.page.click("#none")
    assert not page.pixels().any()
    page.page.click(".class >> text=Road")
    assert np.array_equal(page.pixels(), np.where(road, coloured, 0))
    page.page.click("#all")
    assert np.array_equal(page.pixels(), coloured)
    until(lambda: page.page.inner_text(".class:has-text('Road') b") == f"{100 * road.mean():.1f} %")


def test_the_confidence_is_shown_where_the_engine_gives_it(browser: Browser, page: Watched, rig: Rig) -> None:
    frame = pause(page, rig)
    page.opacity(100)
    page.page.keyboard.press("4")
    sure = frame.confidence
    until(lambda: np.array_equal(page.pixels(), np.array(CONFIDENCE_PALETTE)[sure]))
    page.view("Mask")
    assert np.array_equal(page.pixels(), colour(frame.mask, rig.engine.engine.info.palette))
    with Rig(output="mask") as plain, opened(browser, plain.url) as other:
        until(lambda: other.number() > 0)
        assert other.page.is_hidden("#sureness")


def test_buttons_and_keys_pause_step_and_resume_and_tab_reaches_everything(page: Watched, rig: Rig) -> None:
    press, click = page.page.keyboard.press, page.page.click  # a button that was clicked takes the keys

    def check(hold: Callable[[], None], step: Callable[[], None], resume: Callable[[], None]) -> None:
        pause(page, rig, hold)
        number = page.number()
        step()
        until(lambda: page.number() == number + 1)
        page.page.wait_for_timeout(200)
        assert page.number() == number + 1
        resume()
        until(lambda: page.number() > number + 4)
        assert page.state() == "Live"

    check(partial(press, "Space"), partial(press, "."), partial(press, "Space"))
    for key, view in {"2": "mask", "3": "side", "1": "overlay"}.items():
        press(key)
        assert page.page.is_checked(f"[value={view}]")
    with page.page.expect_download() as download:
        press("s")
    assert download.value.suggested_filename.startswith("snapshot-")
    check(partial(click, "#pause"), partial(click, "#step"), partial(click, "text=Resume"))
    reached = set()
    for _ in range(40):
        press("Tab")
        reached.add(page.page.evaluate("document.activeElement.id || document.activeElement.name || ''"))
    assert {"opacity", "snapshot", "pause", "step", "all", "none", "file", "view"} <= reached


def test_two_viewers_share_the_run(browser: Browser, page: Watched, rig: Rig) -> None:
    with opened(browser, rig.url) as other:
        until(lambda: other.number() > 0)
        until(lambda: page.page.inner_text("#tiles div:has-text('Viewers') dd") == "2")
        numbers = page.number(), other.number()
        until(lambda: page.number() > numbers[0] and other.number() > numbers[1])
        other.page.click("#pause")
        until(lambda: page.state() == other.state() == "Paused")
        other.view("Mask")
        assert page.page.is_checked("[value=overlay]")  # the look is each viewer's own
        page.page.click("#pause")
        until(lambda: page.state() == other.state() == "Live")
        assert other.complaints == []


def upload(page: Watched, name: str, kind: str, content: bytes) -> None:
    page.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})


def test_an_uploaded_image_gets_the_mask_of_the_engine(page: Watched, rig: Rig) -> None:
    scene = street()[13]
    mask, palette = rig.engine.segment(scene).mask, rig.engine.engine.info.palette
    upload(page, "street photo.png", "image/png", encoded(scene))
    page.page.wait_for_selector("#banner:not([hidden])")
    assert "street photo.png" in page.page.inner_text("#banner")
    page.view("Overlay")
    page.opacity(50)
    page.page.wait_for_timeout(200)  # live frames stay away
    assert np.abs(page.pixels().astype(int) - blend(scene, mask, palette, 0.5)).mean() < 5
    page.view("Mask")
    page.page.click(".class >> text=Road")
    assert np.array_equal(page.pixels(), np.where((mask == 3)[..., None], 0, colour(mask, palette)))
    with page.page.expect_download() as download:
        page.page.click("#keep-mask")
    assert download.value.suggested_filename == "street photo_mask.png"
    assert np.array_equal(np.asarray(Image.open(download.value.path())), mask)
    page.page.click("#back")
    before = page.pixels()
    until(lambda: (page.pixels() != before).any())


def test_an_uploaded_clip_is_played(page: Watched, tmp_path: Path) -> None:
    upload(page, "drive.mp4", "video/mp4", clip(tmp_path, list(street()[:10]), rate=10))
    page.page.wait_for_selector("#clip:not([hidden])")
    until(lambda: page.page.evaluate("document.getElementById('clip').videoWidth") == SIZE_HW[1])
    assert page.page.evaluate("document.getElementById('clip').duration") == pytest.approx(1, abs=0.05)
    with page.page.expect_download() as download:
        page.page.click("#keep")
    assert download.value.suggested_filename == "drive_overlay.mp4"
    page.page.wait_for_timeout(200)
    page.page.click("#back")
    assert page.page.is_hidden("#clip")


def test_dropped_files_are_taken(page: Watched) -> None:
    script = """(base64) => {
        const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        const send = (kind) => document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true }));
        send("dragenter");
        const shown = !document.getElementById("dropping").hidden;
        send("drop");
        return shown && document.getElementById("dropping").hidden;
    }"""
    assert page.page.evaluate(script, base64.b64encode(encoded(street()[0])).decode())
    page.page.wait_for_selector("#banner:not([hidden])")
    assert "dropped.png" in page.page.inner_text("#banner")


def test_uploads_that_are_refused_are_told(browser: Browser, rig: Rig) -> None:
    with opened(browser, rig.url) as page:
        upload(page, "bomb.png", "application/octet-stream", bomb_png())
        until(lambda: "expected at most 40 million pixels" in page.page.inner_text("#problem"))
        assert page.page.is_hidden("#progress")
        number = page.number()
        until(lambda: page.number() > number)
        assert all("Failed to load resource" in complaint for complaint in page.complaints)  # the refusal itself


def test_an_upload_shows_its_progress_and_can_be_cancelled(
    page: Watched, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rig.engine.segment
    monkeypatch.setattr(rig.engine, "segment", lambda rgb: (time.sleep(0.1), real(rgb))[1])
    upload(page, "drive.mp4", "video/mp4", clip(tmp_path, list(street()) * 5))
    page.page.wait_for_selector("text=/Segmenting frame [1-9][0-9]* of 100/")
    page.page.click("#cancel")
    assert page.page.is_hidden("#progress")
    until(lambda: rig.uploads.current is None)
    assert page.page.is_hidden("#problem")


def test_the_page_asks_for_a_token_and_sends_no_file_that_is_too_large(browser: Browser) -> None:
    with Rig(token=TOKEN, mib=1) as rig, opened(browser, rig.url, "/?token=wrong-token") as page:
        page.page.wait_for_selector("#login:not([hidden])")
        assert page.state() == "Token needed"
        assert "not the token" in page.page.inner_text("#veil")
        assert page.page.url == f"{rig.url}/"
        assert page.number() == 0
        page.page.fill("#token", TOKEN)
        page.page.click("#login button")
        until(lambda: page.number() > 0)
        assert page.page.url == f"{rig.url}/"
        assert page.state() == "Live"
        assert page.page.is_hidden("#veil")
        upload(page, "large.png", "image/png", bytes((1 << 20) + 1))
        page.page.wait_for_selector("#problem:not([hidden])")
        assert "large.png is larger than 1 MiB" in page.page.inner_text("#problem")
        assert not [url for url in page.requests if "/segment" in url]


def test_lost_and_failed_sources_are_told(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    from nrd_trt.serving import hub

    monkeypatch.setattr(hub, "_SILENT_S", 1.0)  # longer than a frame is on its way here
    source = Street(live=True)
    with Rig(source) as rig, opened(browser, rig.url) as page:
        until(lambda: page.number() > 0)
        source.silent.set()
        rig.hub.report("street: lost; opening it again")
        until(lambda: page.state() == "Source lost")
        until(lambda: "opening it again" in page.page.inner_text("#veil"))
        source.silent.clear()
        until(lambda: page.state() == "Live" and page.page.is_hidden("#veil"))
        source.broken.set()
        until(lambda: page.state() == "Failed")
        until(lambda: "roadworks" in page.page.inner_text("#veil"))
        assert page.page.is_disabled("#pause")


def test_an_ended_run_keeps_its_last_frame_and_a_server_that_went_away_is_told(browser: Browser) -> None:
    with ExitStack() as stack:
        with Rig(Street(count=5)) as rig:
            page = stack.enter_context(opened(browser, rig.url))
            until(lambda: page.state() == "Ended" and page.number() == 5)
            assert page.page.is_hidden("#veil")
        until(lambda: page.state() == "Connecting")


def test_nothing_sticks_out_sideways_on_a_dark_phone(browser: Browser, rig: Rig) -> None:
    with opened(browser, rig.url, viewport=PHONE, has_touch=True, color_scheme="dark") as page:
        until(lambda: page.number() > 0 and page.page.locator("#charts figure").count() == 6)
        background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(level) for level in background.removeprefix("rgb(").removesuffix(")").split(",")) < 64
        page.page.tap("#views >> text=Side by side")
        upload(page, "a photo with a very long name that does not fit.png", "image/png", encoded(street()[0]))
        page.page.wait_for_selector("#banner:not([hidden])")
        for width in (360, 390, 768):
            page.page.set_viewport_size({"width": width, "height": PHONE["height"]})
            assert page.page.evaluate("document.documentElement.scrollWidth") <= width
            if width == PHONE["width"]:  # one below the other
                assert page.pixels().shape == (2 * SIZE_HW[0], SIZE_HW[1], 3)
        page.page.click("#back")
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.complaints == []


def test_the_api_page_lists_every_route(browser: Browser, rig: Rig) -> None:
    with opened(browser, rig.url, "/docs") as page:
        page.page.wait_for_selector("h3")
        titles = page.page.locator("h3").all_inner_texts()
        assert {"GET/status", "POST/segment", "POST/control", "GET/stream.mjpg"} <= set(titles)
        assert "opacity" in page.page.inner_text("section:has-text('/snapshot.png')")
        assert page.complaints == []
