"""The report as a browser shows it, at the width of a screen and of a telephone."""

import html
import json
import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from run_folders import add_analysis, make_compression, make_run
from test_compress_report import rows_of
from tritune.compression.report import write_compression_report
from tritune.report.page import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine (Debian: apt install chromium)"),
]

WIDTHS = (1280, 400)
# A window cannot be as narrow as a telephone, a frame can. Frames of files may be looked into with the flag below.
FRAMES = """<!doctype html><title>waiting</title>
<body>{frames}<script>
addEventListener("load", () => {{
  const seen = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    return {{
      width: frame.contentWindow.innerWidth,
      scroll_width: root.scrollWidth,
      images: page.images.length,
      broken: [...page.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt),
      dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
      widths: [...page.images].map(image => image.clientWidth),
      switches: [...page.querySelectorAll("input")].map(input => input.click()).length,
      full_widths: [...page.images].map(image => image.clientWidth),
      full_scroll_width: root.scrollWidth,
      paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    }};
  }});
  document.title = JSON.stringify(seen);
}});
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with long names, wide tables, several analyses, and scripts in the pictures that must not run."""
    folder = tmp_path_factory.mktemp("browser")
    runs = [
        make_run(folder / "ti-g"),
        make_run(folder / "ternarybert-block", recipe="ternarybert-block"),
        make_run(folder / ("a-very-long-name-of-a-run-" * 4), recipe="ti-inverted"),
        make_run(folder / "<script>console.error('run')"),
    ]
    numbers = {"students": ["ti-g"], "kl": [[0.25] * 12], "rows": 32, "nested": {f"key_{i}": i for i in range(30)}}
    add_analysis(runs[0], "attention", numbers, ("attention", "heads"))
    wide = add_analysis(runs[1], "norms", {"rows": 1}) / "figure.svg"
    Figure(figsize=(30, 3)).savefig(wide)
    script = "<script>console.error('picture')</script>"
    figure = add_analysis(runs[1], "layers", {"tokens": 3}) / "figure.svg"
    figure.write_text(figure.read_text().replace("</svg>", f"{script}</svg>"))
    write_report(runs, folder / "report.html")
    return folder / "report.html"


def browse(report, *flags: str) -> tuple[list[dict], list[str]]:
    """What the page is like at each width, and what it wrote to the console."""
    frames = "".join(f'<iframe src="{report.name}" width="{width}" height="900"></iframe>' for width in WIDTHS)
    wrapper = report.with_name("frames.html")
    wrapper.write_text(FRAMES.format(frames=frames))
    profile = report.with_name("profile")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *flags]
    command += ["--allow-file-access-from-files", "--enable-logging=stderr", "--v=0", "--window-size=1400,1000"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=20000", "--dump-dom", wrapper.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.DOTALL)[1])
    return json.loads(title), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def seen_and_console(report):
    return browse(report)


def test_the_report_fits_every_width_and_all_of_it_is_shown(seen_and_console):
    seen, console = seen_and_console
    assert console == []
    for page, width in zip(seen, WIDTHS, strict=True):
        assert page["width"] == width and page["scroll_width"] <= width
        assert page["images"] == 8 and page["broken"] == []


@pytest.mark.parametrize("classes", [2, 20, 200])
def test_the_report_of_a_compression_fits_every_width(tmp_path, classes):
    folder = make_compression(tmp_path / "small", rows_of(400, classes))
    write_compression_report(folder, folder / "report.html")
    seen, console = browse(folder / "report.html")
    assert console == []
    for page, width in zip(seen, WIDTHS, strict=True):
        assert page["scroll_width"] <= width and page["images"] == 5 and page["broken"] == []


def test_a_very_wide_figure_has_a_switch_to_its_full_size(seen_and_console):
    for page, width in zip(seen_and_console[0], WIDTHS, strict=True):
        assert page["switches"] == 1 and page["full_scroll_width"] <= width
        both = zip(page["widths"], page["full_widths"], strict=True)
        ((before, after),) = [pair for pair in both if pair[0] != pair[1]]
        assert before <= max(width, 720) and after == pytest.approx(30 * 96, abs=10)


def test_the_report_is_dark_where_the_reader_wants_it(report):
    seen, console = browse(report, "--blink-settings=preferredColorScheme=0")
    assert console == []
    assert all(page["dark"] and page["paper"] == "rgb(20, 25, 34)" for page in seen)


def test_a_fault_would_be_seen(report):
    """The check itself: a page that is too wide, lacks a picture and writes to the console is found out."""
    faulty = report.with_name("faulty.html")
    text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    image = '<img src="data:image/png;base64,AAAA" alt="none">'
    wide = '<div style="width: 2000px">wide</div>'
    faulty.write_text(text.replace("<main>", f"<main>{image}{wide}<script>console.error('seen')</script>"))
    seen, console = browse(faulty)
    assert "seen" in console[0]
    assert all(page["scroll_width"] > page["width"] and page["broken"] == ["none"] for page in seen)
