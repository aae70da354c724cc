"""A real browser, for the tests of pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from selenium import webdriver

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Browser:
    """A headless Chromium that notes what goes wrong and what is asked of the network."""

    def __init__(self, profile: Path) -> None:
        found = {name: shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chromedriver")}
        program = found["chromium"] or found["chromium-browser"] or found["google-chrome"]
        if not (program and found["chromedriver"]):
            pytest.fail(
                "the page is tested in Chromium, and there is none: install chromium and its chromedriver (make browser does, as root)"
            )
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.binary_location = program
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(found["chromedriver"]))

    def open(self, page: Path | str, *, width: int = 1280, scheme: str = "light") -> webdriver.Chrome:
        """Show a file, or what is at an address."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get_log("performance")
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)
        return self.driver

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses asked for since a page was opened, but for what it holds itself, and the browser's own first page."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [address for address in asked if not address.startswith(("data:", "chrome:", "chrome-untrusted:"))]
