"""A headless Chromium for tests; `pytest_plugins = ["browser"]` in a test file brings the fixture `browser`."""

import importlib.util
import json
import shutil
import time

import pytest

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
]


class Browser:
    """A page in Chromium, with the actions that tests need."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path, *, width=1280, height=900, phone=False):
        """Open a file in a viewport of this size; `phone` emulates a touch screen."""
        self.command("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        self.driver.get("about:blank")
        self.errors()
        self.requests()
        self.driver.get(path.resolve().as_uri())

    def command(self, name, **parameters):
        """Send a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def run(self, script, *values):
        """Run JavaScript and return its result; `values` are its `arguments`."""
        return self.driver.execute_script(script, *values)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def until(self, script, *values, seconds=20):
        """Return the result of JavaScript as soon as it is truthy."""
        deadline = time.monotonic() + seconds
        while not (found := self.run(script, *values)):
            assert time.monotonic() < deadline, f"not within {seconds} s: {script}"
            time.sleep(0.02)
        return found

    def point(self, x, y, kind="mouseMoved", **more):
        """Move the mouse to a position of the viewport, or press it there."""
        self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.point(x, y, kind, button="left", buttons=1, clickCount=1)

    def touch(self, kind, *points):
        """Send touchStart, touchMove or touchEnd with fingers at positions of the viewport."""
        self.command("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    def errors(self):
        """Return warnings and errors of the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]

    def requests(self):
        """Return the URLs of all requests since the last call."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A new Chromium, shared by all tests of a file."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    missing = [name for name, path in zip(("chromium", "chromedriver"), programs, strict=True) if not path]
    if importlib.util.find_spec("selenium") is None:
        missing.append("selenium (pip)")
    if missing:
        pytest.skip(f"tests in a browser need {' and '.join(missing)}")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location, driver = programs
    options.page_load_strategy = "normal"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in [*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    chromium = webdriver.Chrome(options=options, service=Service(driver))
    yield Browser(chromium)
    chromium.quit()
