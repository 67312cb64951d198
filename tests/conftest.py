"""What all tests share: the seeds in the report's header, Hypothesis without a random one, a
browser."""

import ast
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("fixed")


def pytest_report_header() -> list[str]:
    """Every test file's SEED, so that a log says what was run."""
    seeds = []
    for file in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and "SEED" in node.targets[0].id
            ):
                seeds.append(f"{file.stem}.{node.targets[0].id} = {ast.unparse(node.value)}")
    return [f"seeds: {', '.join(seeds)}; Hypothesis is derandomized"]


@pytest.fixture(name="browser", scope="module")
def _browser():
    """Chromium: the system's, else Playwright's own. Skips where neither is."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with api.sync_playwright() as playwright:
        found = [shutil.which(n) for n in ("chromium", "chromium-browser", "google-chrome")]
        path = next((p for p in found if p), playwright.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("needs Chromium (Debian: chromium; or: playwright install chromium)")
        # No sandbox: it does not exist for root. Nothing but the page may use the network.
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(name="opened")
def _opened(browser, tmp_path):
    """Opens a page; afterwards there must have been no message and no request but for itself."""
    pages, said, asked = [], [], []

    def opened(content, **options):
        path = tmp_path / "report.html"
        path.write_text(content, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert said == []
    assert asked == [(tmp_path / "report.html").as_uri()] * len(pages)
