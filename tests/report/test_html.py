"""The page: complete, self-contained, harmless, and at home in a real browser."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from equiscale.errors import RecordError
from equiscale.experiments.records import record_path, write_record
from equiscale.experiments.spec import Suite
from equiscale.report.html import _provenance, duration, protocol_text, write_report

HOSTILE = "<script>alert(1)</script>|&_%\"'"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

# The number of figures on the page, or -1 if one is wider than its box.
FITTING_FIGURES = """
(() => {
  const figures = [...document.querySelectorAll("details[open] svg, .panels svg")];
  const fits = figure => figure.getBoundingClientRect().width <= figure.parentElement.clientWidth + 1;
  return figures.every(fits) ? figures.length : -1;
})()
"""

WITHOUT_TORCH = """
import json, sys
from pathlib import Path
from equiscale.experiments.spec import Suite
from equiscale.report.html import write_report
write_report(Suite.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
print(json.dumps([name for name in ("torch", "matplotlib.pyplot") if name in sys.modules]))
"""


WITHOUT_EXTRA = """
import sys
sys.modules[sys.argv[1]] = None
from equiscale.errors import MissingExtraError
from equiscale.experiments.spec import load_suite
from equiscale.report.aggregate import aggregate
from equiscale.report.tables import FORMATS, render
for fmt in FORMATS:
    render(aggregate(load_suite("mnist-scale"), []), fmt)
try:
    import equiscale.report.html
except MissingExtraError as error:
    print(error)
"""


class Reader(HTMLParser):
    """Collects what a page consists of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href", "xlink:href") if values.get(name)]
        self.ids += [values["id"]] if "id" in values else []
        if tag in ("img", "svg"):
            self.images.append(values)

    def handle_data(self, data):
        self.words.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture(scope="module")
def page(suite, make_folder, tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("page"))
    return write_report(suite, folder, folder / "report.html")


@pytest.fixture(scope="module")
def hostile_page(suite, make_folder, make_record, tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("hostile"))
    data = suite.model_dump()
    data["title"] = data["sources"]["copy"] = HOSTILE
    data["left_open"] = [HOSTILE]
    for method in data["methods"]:
        method["name"] += HOSTILE
    failed = make_record("cnn", "scale", 1, status="failed", failure=HOSTILE, test=None)
    write_record(folder, failed)
    return write_report(Suite.model_validate(data), folder, folder / "hostile.html")


def test_the_page_holds_the_numbers_claims_and_marks(page):
    text = " ".join("".join(read(page).words).split())
    for expected in (
        *("2.50 ± 0.50 (3)", "claim 2.56†", "−0.06 better", "1.60 ± 0.14 (2)‡", "claim 2.50 ± 0.10"),
        *("‡ 2 of 6 epochs", "† claim, unchecked: A. Author: A Paper. 2020", "2.25 (1)"),
        *("SESN, 28×28: 2 of 3 realisations (failed: no. 2).", "The seed is not published; it is 0 here."),
        *("the loss is not finite in epoch 2", "commit 0123456789, clean", "2026-01-01 to 2026-01-03"),
        *("12 min", "python 3.11.9, torch 2.13.0", "5 → 9", "6 finished and 1 failed run records"),
    ):
        assert expected in text


def test_the_page_is_self_contained(page):
    reader, text = read(page), page.read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form" in text
    assert not {"script", "link", "iframe", "object", "form"} & set(reader.tags)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in reader.links)
    assert len(reader.links) > 50


def test_every_figure_has_words_and_every_id_is_unique(page):
    reader = read(page)
    assert all(image.get("alt") or image.get("aria-label") for image in reader.images)
    assert len(reader.ids) == len(set(reader.ids))
    assert [reader.tags.count(tag) for tag in ("h1", "main", "header")] == [1, 1, 1]


def test_colours_of_the_figures_follow_the_page(page):
    text = page.read_text(encoding="utf-8")
    assert "stroke: var(--series-0)" in text
    assert "stroke: #0072b2" not in text


def test_hostile_text_stays_text(hostile_page):
    reader = read(hostile_page)
    assert "script" not in reader.tags
    assert "".join(reader.words).count(HOSTILE) >= 8
    assert any(HOSTILE in (image.get("aria-label") or "") for image in reader.images)


def test_an_empty_results_folder_gives_a_page_that_says_so(suite, tmp_path):
    text = write_report(suite, tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No finished run yet, so there are no curves." in text
    assert "samples, filters and feature maps are left out" in text
    assert "<svg" not in text


def test_missing_pictures_are_left_out_with_a_sentence(suite, folder, tmp_path):
    for path in (folder / "toy").glob("*.npz"):
        path.unlink()
    text = write_report(suite, folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Left out, CNN, 28×28: expected the pictures of a run in" in text
    assert "Learned filters" not in text


def test_pictures_outside_the_folder_are_not_read(suite, make_record, tmp_path):
    write_record(tmp_path, make_record(inspection="../secret.npz"))
    text = write_report(suite, tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "expected the plain name of a file beside the record, got &#39;../secret.npz&#39;" in text


def test_a_damaged_record_is_named(suite, folder, tmp_path, make_record):
    record_path(folder, make_record().settings).write_text("{")
    with pytest.raises(
        RecordError, match=r"expected a valid run record in .*cnn-r0(.|\n)*delete it to run again"
    ):
        write_report(suite, folder, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_differing_provenance_is_counted(suite, folder, tmp_path, make_record):
    record = make_record("ses_p", "scale", 0)
    dirty = record.provenance.model_copy(update={"clean": False})
    write_record(folder, record.model_copy(update={"provenance": dirty}))
    text = write_report(suite, folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "commit 0123456789, clean (6 of 7 runs)" in text
    assert "commit 0123456789, with uncommitted changes (1 of 7 runs)" in text


@pytest.fixture(scope="module")
def sizes_page(sizes_suite, sizes_records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    for record in sizes_records:
        write_record(folder, record)
    return write_report(sizes_suite, folder, folder / "sizes.html")


@pytest.fixture(scope="module")
def natural_page(natural_suite, natural_record, make_arrays, tmp_path_factory):
    """Photographs with colour samples and no layer that can be drawn."""
    folder = tmp_path_factory.mktemp("natural")
    path = record_path(folder, natural_record.settings).with_suffix(".npz")
    path.parent.mkdir(parents=True)
    arrays = {name: array for name, array in make_arrays().items() if "main." not in name}
    arrays["samples"] = np.random.default_rng(0).integers(0, 256, (12, 3, 48, 48), dtype=np.uint8)
    arrays["sample_factors"] = np.ones(12)
    np.savez_compressed(path, **arrays)
    write_record(folder, natural_record.model_copy(update={"inspection": path.name}))
    return write_report(natural_suite, folder, folder / "natural.html")


def test_the_page_of_unseen_sizes(sizes_page):
    text = " ".join("".join(read(sizes_page).words).split())
    for expected in (
        *("Error on sizes that were not trained", "smaller sizes 3.50 ± 0.71", "larger sizes 55.00 ± 7.07"),
        *("2 realisations of size-1, size-2.", "No run has readable pictures"),
    ):
        assert expected in text
    assert "Error against the size of the object" not in text
    alts = [image.get("aria-label") or "" for image in read(sizes_page).images]
    assert sum("trained on" in alt for alt in alts) == 2
    html = sizes_page.read_text(encoding="utf-8")
    assert html.index("Error on sizes that were not trained") < html.index("Learning curves")


def test_the_page_of_photographs_leaves_out_what_there_is_not(natural_page):
    reader = read(natural_page)
    text = " ".join("".join(reader.words).split())
    for absent in (
        *("Error against the size", "Error on sizes", "Validation error after", "Learned filters", "×1.00"),
        *("Feature maps", "None", "scaling factors, and"),
    ):
        assert absent not in text.replace("Failed runs None.", "")
    for present in (
        *("Test error, measured during the training", "1 realisation of photographs."),
        *("1,000 train, 600 test", "5 → 9", "No record has measured the equivariance"),
        "Left out, WRN, 10-2: no equivariance: ShapeError: the layer gives no image.",
    ):
        assert present in text
    samples = [image for image in reader.images if image.get("src")]
    assert len(samples) == 12
    assert {(image["width"], image["height"]) for image in samples} == {("48", "48")}
    assert samples[5]["alt"] == "Class 5, taken for class 9"


def test_the_protocol_in_words(natural_suite):
    assert protocol_text(natural_suite.protocol) == (
        "6 epochs of SGD at learning rate 0.01, Nesterov momentum 0.9, times 0.1 after epochs 2 and 4, "
        "weight decay 0.0005, batches of 128 images, the last epoch is tested"
    )
    update = {"lr_steps": (3,), "nesterov": False, "epochs": 1, "weight_decay": 0.0}
    update["select"] = "best-validation"
    assert protocol_text(natural_suite.protocol.model_copy(update=update)) == (
        "1 epoch of SGD at learning rate 0.01, momentum 0.9, times 0.1 after epoch 3, batches of 128 images"
    )
    update = {"lr_steps": (), "optimizer": "adam", "weight_decay": 0.0}
    update |= {"precision": "bfloat16", "accumulate": 4, "ema_decay": 0.99}
    assert protocol_text(natural_suite.protocol.model_copy(update=update)) == (
        "6 epochs of Adam at learning rate 0.01, batches of 128 images in 4 parts, in bfloat16, "
        "weights averaged with decay 0.99, the last epoch is tested"
    )


def test_networks_of_one_name_and_several_sizes_are_told_apart(make_record):
    records = [
        make_record("cnn", parameters=7, dataset="digits"),
        make_record("cnn", parameters=7, dataset="letters"),
        make_record("wrn", parameters=20, dataset="digits"),
        make_record("wrn", "scale", parameters=20, dataset="digits"),
        make_record("wrn", parameters=30, dataset="digits", overrides={"width": 2}),
    ]
    told = dict(_provenance(records))["parameters"]
    assert told == ["cnn: 7", "wrn on digits: 20", "wrn width=2 on digits: 30"]


def test_durations():
    assert [duration(seconds) for seconds in (5, 125, 7260)] == ["5 s", "2 min", "2 h 1 min"]


def run_python(code, *arguments):
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_no_torch_and_the_same_bytes_in_another_process(suite, page, tmp_path):
    other = tmp_path / "other.html"
    assert json.loads(run_python(WITHOUT_TORCH, suite.model_dump_json(), page.parent, other)) == []
    assert other.read_bytes() == page.read_bytes()


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_the_extra_tables_work_and_the_report_says_what_to_install(missing):
    output = run_python(WITHOUT_EXTRA, missing)
    assert output.startswith(f"expected the package {missing!r}, got none; ")
    assert output.endswith('install it with: pip install "equiscale[report]"\n')


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        message = f"needs one of the browsers {', '.join(BROWSERS)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


def visit(browser, path: Path, width: int, scheme: str):
    """Open the file; returns problems, requests and the page."""
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems, requests = [], []
    view.on("console", lambda message: problems.append((message.type, message.text)))
    view.on("pageerror", lambda error: problems.append(("page error", str(error))))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(path.as_uri())
    return view, problems, [url for url in requests if not url.startswith("data:")]


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
def test_in_a_browser(browser, page, hostile_page, sizes_page, natural_page, width):
    for path, figures in ((page, 11), (hostile_page, 11), (sizes_page, 6), (natural_page, 1)):
        view, problems, requests = visit(browser, path, width, "light")
        assert [problem for problem in problems if problem[0] in ("error", "warning", "page error")] == []
        assert requests == [path.as_uri()]
        assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert view.evaluate(FITTING_FIGURES) >= figures
        view.close()


@pytest.mark.browser
def test_figures_follow_the_colour_scheme(browser, page):
    colours = {}
    for scheme in ("light", "dark"):
        view, *_ = visit(browser, page, 1400, scheme)
        colours[scheme] = view.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('svg text')).fill]"
        )
        view.close()
    assert colours["light"] == ["rgb(255, 255, 255)", "rgb(31, 35, 40)"]
    assert colours["dark"] == ["rgb(20, 23, 26)", "rgb(227, 231, 235)"]


@pytest.mark.browser
def test_the_browser_check_sees_what_it_should(browser, page, tmp_path):
    """The negative control: a script, a picture from elsewhere and a wide block are noticed."""
    bad = tmp_path / "bad.html"
    extra = "<script>1</script><img src='file:///absent.png'><p style='width:3000px'>wide</p></main>"
    bad.write_text(page.read_text(encoding="utf-8").replace("</main>", extra), encoding="utf-8")
    view, problems, _ = visit(browser, bad, 400, "light")
    assert len([kind for kind, _ in problems if kind == "error"]) >= 2
    assert not view.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    view.close()


RUNS_IF_IT_CAN = (
    "<script>window.evil = 1</script>",
    "<img src=x onerror='window.evil = 1'>",
    "</style></title></svg><svg onload='window.evil = 1'>",
    "\"' onmouseover='window.evil = 1' x=\"",
    "<a href='javascript:window.evil = 1'>x</a>",
    "{{ 7 * 7 }}",
)


@pytest.fixture(scope="module")
def attacked_page(suite, make_folder, make_record, tmp_path_factory):
    """Everything that a suite or a record can name is a text that would run as a script."""
    folder, evil = make_folder(tmp_path_factory.mktemp("attacked")), "".join(RUNS_IF_IT_CAN)
    data = suite.model_dump()
    data |= {"title": evil, "left_open": [evil], "sources": dict.fromkeys(data["sources"], evil)}
    data |= {"columns": [name + evil for name in data["columns"]], "realisations": [0, 1, 2, 3]}
    for method in data["methods"]:
        method["name"] += evil
        method["cells"] = {column + evil: cell for column, cell in method["cells"].items()}
    good = make_record("cnn", "none", 3, notes=(evil,), inspection=evil.replace("/", ""))
    where = {"machine": {evil: evil, "device": evil}, "versions": {evil: evil}, "commit": evil}
    where |= {"started": evil, "finished": evil}
    write_record(folder, good.model_copy(update={"provenance": good.provenance.model_copy(update=where)}))
    write_record(folder, make_record("cnn", "scale", 1, status="failed", failure=evil, test=None))
    return write_report(Suite.model_validate(data), folder, folder / "attacked.html")


def test_no_text_becomes_a_tag_or_an_attribute(attacked_page):
    reader = read(attacked_page)
    assert not {"script", "a", "form", "base", "link", "iframe", "object", "embed"} & set(reader.tags)
    assert "".join(reader.words).count("{{ 7 * 7 }}") > 10
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in reader.links)


def test_hidden_and_turning_characters_are_shown(suite, make_record, tmp_path):
    failure = "left\u202etfel \x1b[31m \u200b"
    write_record(tmp_path, make_record("cnn", "none", 1, status="failed", failure=failure, test=None))
    text = write_report(suite, tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert r"left\u202etfel \x1b[31m \u200b" in text
    assert not {"\u202e", "\x1b", "\u200b"} & set(text)


@pytest.mark.browser
def test_no_text_of_a_record_runs_in_a_browser(browser, attacked_page):
    view, problems, requests = visit(browser, attacked_page, 1400, "light")
    view.mouse.move(300, 300)
    assert view.evaluate("window.evil") is None
    assert [problem for problem in problems if problem[0] in ("error", "page error")] == []
    assert requests == [attacked_page.as_uri()]
    assert view.evaluate("document.querySelectorAll('[onerror], [onload], [onmouseover], a').length") == 0
    view.close()


@pytest.mark.browser
@pytest.mark.parametrize("policy", [True, False])
def test_the_policy_stops_what_would_slip_through(browser, page, tmp_path, policy):
    """Scripts, pictures, styles, frames and forms are put into the page, and a server waits for a request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        far = f"http://127.0.0.1:{server.getsockname()[1]}"
        extra = (
            f"<script>window.evil = 1</script><img src={far}/a.png><link rel=stylesheet href={far}/a.css>"
            f"<script src={far}/a.js defer></script><iframe src={far}></iframe><object data={far}></object>"
            f"<style>body {{ background: url({far}/b.png) }}</style><form id=f action={far}></form></main>"
        )
        text = page.read_text(encoding="utf-8").replace("</main>", extra)
        bad = tmp_path / "bad.html"
        bad.write_text(text if policy else text.replace("Content-Security-Policy", "x"), encoding="utf-8")
        view, problems = browser.new_page(), []
        view.on("console", lambda message: problems.append(message.text))
        view.goto(bad.as_uri(), wait_until="commit")
        view.wait_for_timeout(300)
        if policy:
            view.evaluate("document.getElementById('f').submit()")
            assert asked(server) == []
            assert view.evaluate("window.evil") is None
            assert sum("Content Security Policy" in text for text in problems) >= 7
        else:  # the control: without it they arrive
            assert "GET /a.png HTTP/1.1" in asked(server)
        view.close()


def asked(server: socket.socket) -> list[str]:
    """The first lines of all requests; a browser also opens connections on which it asks nothing."""
    lines = []
    with contextlib.suppress(TimeoutError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    lines.append(connection.recv(1000).decode().partition("\r\n")[0])
    return [line for line in lines if line]
