"""The documentation builds without warnings, and its search and layout work in a browser."""

import shutil
import subprocess
import sys

import pytest

from tests import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built pages."""
    for module in ("sphinx", "numpydoc", "myst_parser", "pydata_sphinx_theme", "torch"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    tree = tmp_path_factory.mktemp("docs")  # a copy, because autosummary writes into docs/
    for folder in ("docs", "examples", "bench/results"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("generated"))
    for page in ROOT.glob("*.md"):
        shutil.copy(page, tree)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "html"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return tree / "html"


@pytest.fixture
def page(site):
    """A page in the system's Chromium, 390 pixels wide like a phone."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto((site / "index.html").as_uri())
        yield page
        browser.close()


def test_the_search_of_the_front_page_leads_to_a_function(page):
    page.locator("button.search-button__button:visible").first.click()
    page.keyboard.type("drop_path")
    page.keyboard.press("Enter")
    page.locator(".search-summary", has_text="Search finished").wait_for()  # until then results move
    page.locator("#search-results a", has_text="gpudrop.drop_path").first.click()
    page.wait_for_url("**/gpudrop.drop_path.html*")
    assert "stochastic depth" in page.locator("dl.py.function").first.inner_text().lower()


@pytest.mark.parametrize("name", ["index", "family", "guide/layers", "api/generated/gpudrop.feature_alpha_dropout"])
def test_no_page_is_wider_than_a_phone(page, site, name):
    page.goto((site / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    headings = page.locator("h1, h2").evaluate_all("all => all.map(h => h.scrollWidth - h.clientWidth)")
    assert headings and max(headings) <= 0
