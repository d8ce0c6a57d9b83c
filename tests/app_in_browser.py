"""Try the page of `python -m infer app` in a headless Chromium, and photograph it.

    python -m tests.app_in_browser --out docs

It needs Chromium (`apt-get install chromium`) and `pip install playwright`, whose own browsers are
not used.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ic_jax.files import atomic_write
from infer import demo

ROOT = Path(__file__).parent.parent
SIZE = {"width": 1280, "height": 920}
PATIENCE = 240_000  # milliseconds until a picture is there; a first one compiles
STEPS = "input[aria-label='number input for Steps']"
DRAWN = "#gallery .grid-container button img"


class Visit:
    """A visit to the page, which asserts what a visitor would see."""

    def __init__(self, page: Any, folder: Path, out: Path):
        self.page, self.folder, self.out = page, folder, out

    def photograph(self, name: str) -> None:
        """Write what the window shows as WebP."""
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=80, method=6)
        atomic_write(self.out / f"app-{name}.webp", file.getvalue())
        print(f"photographed {name}: {len(file.getvalue()) // 1000} kB")

    def press(self, name: str) -> None:
        # The name of an accordion's button ends in its arrow.
        self.page.get_by_role("button", name=re.compile(rf"^\W*{name}\W*$")).click()

    def upload(self, label: str, file: Path) -> None:
        self.page.locator(f"{label} input[type=file]").set_input_files(file)

    @contextmanager
    def redrawn(self, picture: str) -> Iterator[None]:
        """Wait after the `with` block until the picture has changed."""
        before = self.page.locator(picture).get_attribute("src")
        yield
        same = f"document.querySelector({json.dumps(picture)}).getAttribute('src')"
        self.page.wait_for_function(f"{same} != {json.dumps(before)}")

    def wait_for_drawn(self, count: int) -> None:
        """Wait until the gallery holds so many pictures."""
        self.page.wait_for_function(
            f"document.querySelectorAll({json.dumps(DRAWN)}).length == {count}", timeout=PATIENCE
        )

    def chosen(self) -> bytes:
        """Return the file that the download button gives."""
        with self.page.expect_download() as download:
            self.press("Download")
        return Path(download.value.path()).read_bytes()


def cancel(visit: Visit) -> None:
    """Watch a picture while it is drawn, in many steps, and cancel it."""
    visit.upload("#character-1", demo.SUBJECT)
    visit.page.wait_for_selector(".seen img")
    visit.press("Settings")
    visit.page.get_by_label("New seed each time").uncheck()
    visit.page.get_by_label("number input for Steps").fill("100")
    visit.page.get_by_label("number input for Steps").press("Tab")
    visit.press("Draw")
    visit.page.wait_for_selector("#picture img", timeout=PATIENCE)
    visit.page.wait_for_selector("#status progress")
    visit.photograph("drawing")
    visit.press("Cancel")
    visit.page.get_by_text("cancelled").wait_for()
    visit.press("Reset all")
    visit.page.wait_for_function(f"document.querySelector({json.dumps(STEPS)}).value != '100'")
    visit.page.get_by_label("New seed each time").uncheck()
    visit.press("Settings")


def draw(visit: Visit) -> None:
    """Draw a character and read what the download tells."""
    visit.upload("#character-1", demo.SUBJECT)
    visit.page.wait_for_selector(".seen img")
    visit.press("Draw")
    visit.wait_for_drawn(1)
    time.sleep(1)
    told = _told(visit.chosen())
    assert (told["prompt"], told["seed"], told["subject"]) == (demo.PROMPT, 0, "demo.png"), told
    visit.photograph("drawn")


def draw_again(visit: Visit) -> None:
    """Draw the gallery's picture again, then an uploaded one: the same pixels each time."""
    first = visit.chosen()
    visit.page.get_by_label("Prompt", exact=True).fill("something else")
    visit.page.locator(DRAWN).first.click()
    visit.press("Draw again")
    visit.wait_for_drawn(2)
    assert visit.chosen() == first
    file = visit.folder / "earlier.png"
    file.write_bytes(first)
    visit.press("Draw a picture of earlier again")
    visit.upload("#earlier", file)
    visit.page.get_by_label("Prompt", exact=True).fill("something else")
    time.sleep(2)
    visit.press("Draw again")
    visit.wait_for_drawn(3)
    assert visit.chosen() == first
    visit.photograph("again")


def put_two(visit: Visit) -> None:
    """Draw two characters, each in its place."""
    file = visit.folder / "ben.png"
    red, green, blue = ImageOps.mirror(Image.open(demo.SUBJECT).convert("RGB")).split()
    Image.merge("RGB", (green, blue, red)).save(file)
    visit.page.get_by_role("tab", name="Character 2").last.click()
    visit.upload("#character-2", file)
    where = visit.page.locator("#character-1 input:not([type=file])")
    visit.page.get_by_role("tab", name="Character 1").last.click()
    with visit.redrawn("#box-1 img"):
        where.fill("left")
        where.press("Enter")
    visit.page.get_by_role("tab", name="Character 2").last.click()
    canvas = visit.page.locator("#box-2 img")
    size = canvas.bounding_box()
    width, height = size["width"], size["height"]
    for x, y in ((width / 2, 2), (width - 2, height - 2)):
        at = {"x": x, "y": y}
        with visit.redrawn("#box-2 img"):
            canvas.click(position=at)
    visit.page.wait_for_function(
        "document.querySelector('#character-2 input:not([type=file])').value[0] == '0'"
    )
    visit.press("Draw")
    visit.wait_for_drawn(4)
    time.sleep(2)
    assert _told(visit.chosen())["subjects"] == ["demo.png@left", "ben.png@0.5,0,1,1"]
    visit.photograph("two")
    visit.page.get_by_role("tab", name="Character 1").last.click()


def see_a_bad_file(visit: Visit) -> None:
    """Upload what is no picture: one line says so."""
    file = visit.folder / "holiday.png"
    file.write_bytes(b"not a picture")
    visit.page.locator("#character-1 button[aria-label='Clear']").click()
    visit.upload("#character-1", file)
    message = visit.page.locator(".toast-body.error")
    message.wait_for()
    assert "holiday.png" in message.inner_text(), message.inner_text()
    assert str(visit.folder) not in message.inner_text()
    visit.photograph("bad-file")


def _told(png: bytes) -> dict[str, Any]:
    return json.loads(Image.open(io.BytesIO(png)).text["ic_jax"])


def main() -> int:
    """Serve the page of the small model, visit it, and return 0; 2 if there is no Chromium."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the photographs")
    out = parser.parse_args().out
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("error: there is no Chromium; apt-get install chromium", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "infer", "app", "--port", "7869"]
    server = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    elsewhere: list[str] = []
    try:
        address = next(m[0] for line in server.stdout if (m := re.search(r"http://\S+", line)))
        with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE)
            page.on("request", lambda x: elsewhere.append(x.url))
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            page.wait_for_selector("#gallery", timeout=PATIENCE)
            visit = Visit(page, Path(folder), out)
            for act in (cancel, draw, draw_again, put_two, see_a_bad_file):
                act(visit)
                print(f"done: {act.__doc__}")
            browser.close()
    finally:
        server.terminate()
        server.wait()
    foreign = [x for x in elsewhere if not x.startswith((address, "data:", "blob:"))]
    assert not foreign, f"the page asked {foreign}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
