"""Drive pages in headless Chromium: width on a phone, requests, errors, accessibility, and times of a comparison.

    pip install playwright
    python benchmarks/pages.py report.html comparison.html --chromium /usr/bin/chromium --shots SHOTS
    python benchmarks/pages.py report.html --axe node_modules/axe-core/axe.min.js
    python benchmarks/pages.py --rows 10000

Playwright and axe-core (npm) are not dependencies of medcap, and no test needs them: tests parse the pages.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS, SCHEMES = (1280, 390), ("light", "dark")


def open_page(browser: Browser, path: Path, width: int, scheme: str) -> tuple[Page, list[str]]:
    """Open a page; return it and a list that gets its errors and requests."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, is_mobile=width < 500)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("console", lambda line: problems.append(f"console: {line.text}") if line.type == "error" else None)
    page.on(
        "request", lambda sent: problems.append(f"request: {sent.url[:80]}") if _is_remote(sent.url, path) else None
    )
    page.goto(path.resolve().as_uri())
    return page, problems


def _is_remote(url: str, path: Path) -> bool:
    return not url.startswith("data:") and url.partition("#")[0] != path.resolve().as_uri()


def check(browser: Browser, path: Path, shots: Path | None, axe: Path | None) -> list[str]:
    """Return the problems of a page at every width and in every colour scheme."""
    found = []
    for width in WIDTHS:
        for scheme in SCHEMES:
            page, problems = open_page(browser, path, width, scheme)
            actual = page.evaluate("document.documentElement.scrollWidth")
            if actual > width:
                problems.append(f"{actual} px wide")
            if axe is not None:
                problems += _violations(browser, path, width, scheme, axe)
            if shots is not None:
                shots.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=shots / f"{path.parent.name}-{path.stem}-{width}-{scheme}.png")
            found += [f"{path} at {width} px, {scheme}: {problem}" for problem in problems]
            page.context.close()
    return found


def _violations(browser: Browser, path: Path, width: int, scheme: str, axe: Path) -> list[str]:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(path.resolve().as_uri())
    page.add_script_tag(path=axe)
    violations = page.evaluate("axe.run().then((result) => result.violations)")
    context.close()
    return [
        f"axe {item['impact']}: {item['id']} x {len(item['nodes'])}, as {item['nodes'][0]['target']}"
        for item in violations
    ]


def drive_comparison(browser: Browser, path: Path) -> dict[str, float]:
    """Use a comparison as a reader does; return times in ms. Assertions check what is shown."""
    started = time.perf_counter()
    page, problems = open_page(browser, path, 1280, "light")
    page.wait_for_selector("article img")
    loaded = (time.perf_counter() - started) * 1e3
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    total = int(page.evaluate("rows.length"))
    clock = "const at = performance.now(); action(); document.body.offsetHeight; return performance.now() - at"
    measured = f"(action) => {{ {clock} }}"
    times = {
        "first paint": paint,
        "loaded with images": loaded,
        "filter by a word": page.evaluate(f"({measured})(() => {{ by('words').value = 'left'; filter(); }})"),
        "filter by an error": page.evaluate(
            f"({measured})(() => {{ by('words').value = ''; by('error').value = 'wrong side'; filter(); }})"
        ),
        "sort by worst change": page.evaluate(
            f"({measured})(() => {{ by('error').value = ''; by('order').value = 'worst'; filter(); }})"
        ),
        "next page": page.evaluate(f"({measured})(() => show(start + size))"),
    }
    page.evaluate("by('filters').reset(); filter()")
    _drive_keys(page, total)
    assert problems == [], problems
    page.context.close()
    return times


def _drive_keys(page: Page, total: int) -> None:
    first = page.locator("article").first.get_attribute("id")
    page.locator("article button").first.click()
    assert page.locator("dialog").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("location.hash") == "#" + str(page.evaluate("encodeURIComponent(found[1].id)"))
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    if total > page.evaluate("size"):
        page.keyboard.press("ArrowRight")
        assert page.locator("article").first.get_attribute("id") != first
        page.keyboard.press("ArrowLeft")
    assert page.locator("article").first.get_attribute("id") == first
    page.evaluate("location.hash = encodeURIComponent(rows[rows.length - 1].id)")
    page.wait_for_selector("article.linked")
    assert page.locator("article.linked").get_attribute("id") == page.evaluate("rows[rows.length - 1].id")


def synthetic_comparison(path: Path, n: int) -> None:
    """Write a comparison page of two systems and `n` images of noise with about 6 kB each."""
    import numpy as np
    from PIL import Image

    from medcap.metrics.clinical.errors import ERROR_KINDS
    from medcap.reporting.comparison_page import PAGE
    from medcap.reporting.pages import render, thumbnail

    rng, words = (
        np.random.default_rng(0),
        ["CT", "MRI", "left", "right", "lung", "mass", "cyst", "small", "large", "of", "the", "in", "with", "upper"],
    )
    noise = [Image.fromarray(rng.integers(90, 165, (60, 60), np.uint8)).resize((320, 320)) for _ in range(50)]
    images = [thumbnail(image, "webp", 60) for image in noise]
    text = lambda: " ".join(rng.choice(words, 25))  # noqa: E731
    cells = lambda: [[text(), float(rng.random() * 3), [1] if rng.random() < 0.1 else []] for _ in range(3)]  # noqa: E731
    rows = [[f"image-{i:05d}", text(), "CT", ["chest"], ["mass"], cells()] for i in range(n)]
    system = {"name": "a", "n": n, "metrics": {}, "intervals": {}}
    systems = [{"name": name, "shown": True} for name in ("base", "ours", "other")]
    data = {"systems": systems, "errors": ERROR_KINDS, "page": PAGE, "rows": rows}
    values = {"comparison": {"systems": [system]}, "titles": {}, "differences": [], "page": PAGE, "data": data}
    html = render("comparison_page.html", "comparison_page.js", images=(images * n)[:n], **values)
    path.write_text(html, encoding="utf-8")


def main() -> None:
    """Check the pages named on the command line, and measure a synthetic comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--axe", type=Path)
    parser.add_argument("--rows", type=int, default=0)
    args = parser.parse_args()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=args.chromium)
        problems = [line for path in args.pages for line in check(browser, path, args.shots, args.axe)]
        for path in args.pages:
            if path.name == "comparison.html":
                print(path, {name: round(value) for name, value in drive_comparison(browser, path).items()})
        if args.rows:
            path = Path(folder) / "comparison.html"
            synthetic_comparison(path, args.rows)
            print(f"{args.rows:,} images, {path.stat().st_size / 1e6:.0f} MB, times in ms:")
            print({name: round(value) for name, value in drive_comparison(browser, path).items()})
        browser.close()
    print("\n".join(problems) or "no problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
