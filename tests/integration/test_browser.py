"""The example page in headless Chromium, against real exports behind a real server."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey, write_key_pair

pytestmark = pytest.mark.integration

PAGE = "/examples/browser/index.html"
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver  # of the extra `integration`

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in (*QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(str(shutil.which("chromedriver")))
    browser = webdriver.Chrome(options, service)
    yield browser
    browser.quit()


class Page:
    """The page as a visitor uses it."""

    def __init__(self, browser: Any, origin: str) -> None:
        self.browser = browser
        browser.get("about:blank")
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what earlier pages left
        browser.get(origin + PAGE)

    def type(self, name: str, text: str) -> None:
        field = self.browser.find_element("id", name)
        field.clear()
        field.send_keys(text)

    def wait(self, condition: Callable[[], bool]) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, 60).until(lambda _: condition())

    def press(self, form: str) -> None:
        """Press a form's button, and wait until its work is done."""
        button = self.browser.find_element("css selector", f"#{form} button")
        assert button.is_enabled()
        button.click()
        self.wait(button.is_enabled)

    def choose(self, name: str, file: Path) -> None:
        self.browser.find_element("id", name).send_keys(str(file))

    def open(
        self, codebook: Path, bundle: Path, passphrase: str, private_key: Path | None = None
    ) -> None:
        self.choose("codebook", codebook)
        self.choose("bundle", bundle)
        if private_key is not None:
            self.wait(lambda: self.shows("private-key"))
            self.choose("private-key", private_key)
        self.type("passphrase", passphrase)
        self.press("open")

    def ask(self, address: str, request: dict[str, Any]) -> None:
        self.type("address", address)
        # Typing thousands of numbers takes long; pasting them does not.
        self.set("request", json.dumps(request))
        self.press("ask")

    def set(self, name: str, text: str) -> None:
        self.browser.execute_script(
            "document.getElementById(arguments[0]).value = arguments[1]", name, text
        )

    def text(self, name: str) -> str:
        return self.browser.find_element("id", name).text

    def rows(self) -> list[list[str]]:
        return [
            [cell.text for cell in row.find_elements("tag name", "td")]
            for row in self.browser.find_elements("css selector", "#answers tbody tr")
        ]

    def shows(self, name: str) -> bool:
        return self.browser.find_element("id", name).is_displayed()

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def urls(self) -> list[str]:
        """What the page asked the network for."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        ]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def kept(self) -> str:
        """All that the document, its fields, its stores and its address hold."""
        return str(
            self.browser.execute_async_script(
                """
                const done = arguments[arguments.length - 1];
                const fields = [...document.querySelectorAll("input, textarea")];
                indexedDB.databases().then(async (databases) => done(JSON.stringify([
                  document.documentElement.outerHTML, fields.map((field) => field.value),
                  { ...localStorage }, { ...sessionStorage }, document.cookie, databases,
                  await caches.keys(), location.href, history.state, name,
                  Object.entries(window).map(([key, value]) => key + typeof value),
                ])));
                """
            )
        )


@pytest.fixture
def page(chromium: Any, server: Any) -> Page:
    server.requests.clear()
    return Page(chromium, server.url)


def request(digits: Any, count: int) -> dict[str, Any]:
    return {"instances": digits.x_test[:count].tolist()}


@pytest.mark.parametrize("name", ["digits", "hosted"])
def test_the_page_names_the_classes(
    name: str, page: Page, served: Any, server: Any, digits: Any
) -> None:
    assert not page.browser.find_element("css selector", "#ask button").is_enabled()
    page.open(served.codebook(name), served.bundle("alice"), served.passphrase)
    assert page.text("opened") == "Model digits, 10 classes"
    page.ask(f"/v1/models/{name}:predict", request(digits, 40))
    rows = page.rows()
    assert [row[0] for row in rows] == [str(n) for n in range(1, 41)]
    expected = [served.names[label] for label in digits.y_test[:40]]
    assert np.mean([row[1] == true for row, true in zip(rows, expected, strict=True)]) > 0.9
    assert all(row[2].endswith(" %") and float(row[2][:-2]) <= 100.1 for row in rows)
    assert all(row[3].count(" %, ") == 1 for row in rows)
    assert not page.shows("problem")
    assert page.console() == []
    urls = page.urls()
    assert f"{server.url}/v1/models/{name}:predict" in urls
    assert all(url.startswith((f"{server.url}/", "data:")) for url in urls)


def parts_of(key: bytes) -> list[bytes]:
    """z, both points' values, the codeword, and slot keys, of 1,024 slots."""
    slot_keys = key[96 + 128 :]
    assert len(slot_keys) == 1024 * 16
    parts = [key[i : i + 32] for i in (0, 32, 64)]
    return [*parts, key[96 : 96 + 128], *(slot_keys[i : i + 16] for i in range(0, 1600, 16))]


def test_neither_passphrase_nor_key_stays_or_leaves(
    page: Page, served: Any, server: Any, digits: Any
) -> None:
    page.type("passphrase", served.passphrase)
    assert served.passphrase in page.kept()  # it would be found
    page.open(served.codebook("digits"), served.bundle("alice"), served.passphrase)
    page.ask("/v1/models/digits:predict", request(digits, 3))
    assert len(page.rows()) == 3
    bundle = KeyBundle.read(served.bundle("alice"))
    key = bundle.unlock(served.passphrase).secret_bytes()
    sealed = json.loads(served.bundle("alice").read_text("ascii").split("\n")[1])
    secrets = [served.passphrase, key.hex(), sealed["bundle"]["body"]["sealed"], "correct h"]
    secrets += [str(int.from_bytes(part, "big")) for part in parts_of(key)]
    secrets += [part.hex() for part in parts_of(key)]
    sent = "".join(path + body.decode("latin-1") for _, path, body in server.requests)
    kept = page.kept()
    assert "seven" in kept or "two" in kept  # the answers are there
    for place in (kept, sent, "".join(page.urls()), "".join(page.console())):
        assert [secret for secret in secrets if secret in place] == []
    assert page.console() == []
    assert {path for method, path, _ in server.requests if method == "POST"} == {
        "/v1/models/digits:predict"
    }


def test_a_bundle_to_the_users_own_public_key(
    page: Page, served: Any, server: Any, digits: Any, tmp_path: Path
) -> None:
    assert not page.shows("private-key")
    carol, codebook = served.bundle("carol"), served.codebook("digits")
    page.open(codebook, carol, served.own_passphrase, served.private_key)
    assert page.text("opened") == "Model digits, 10 classes"
    page.ask("/v1/models/digits:predict", request(digits, 3))
    assert len(page.rows()) == 3
    private_key = X25519PrivateKey.read(served.private_key, served.own_passphrase)
    key = KeyBundle.read(carol).unlock(private_key=private_key).secret_bytes()
    armour = served.private_key.read_text("ascii").split("\n")
    secrets = [served.own_passphrase, *armour[1:-2], private_key._key.seed.hex()]
    secrets += [key.hex(), *(part.hex() for part in parts_of(key)), "passphrase of carol's"]
    sent = "".join(path + body.decode("latin-1") for _, path, body in server.requests)
    for place in (page.kept(), sent, "".join(page.urls()), "".join(page.console())):
        assert [secret for secret in secrets if secret in place] == []
    assert page.console() == []
    # A key without a passphrase, and then a bundle that needs no private key.
    plain = tmp_path / "plain.pem"
    plain.write_bytes(
        subprocess.run(
            ["openssl", "pkey", "-in", served.private_key, "-passin", "stdin"],
            input=served.own_passphrase.encode(),
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
    )
    page.open(codebook, carol, "", plain)
    assert page.text("opened") == "Model digits, 10 classes"
    page.choose("bundle", served.bundle("alice"))
    page.wait(lambda: not page.shows("private-key"))
    page.open(codebook, served.bundle("alice"), served.passphrase)
    assert page.text("opened") == "Model digits, 10 classes"
    assert not page.shows("problem")


def test_the_page_says_why_a_private_key_does_not_open(
    page: Page, served: Any, tmp_path: Path
) -> None:
    codebook, carol = served.codebook("digits"), served.bundle("carol")
    other = tmp_path / "other.private.pem"
    write_key_pair(other, tmp_path / "other.public.pem", served.own_passphrase)
    for file, passphrase, message in (
        (served.private_key, "wrong horse", "The passphrase does not open the private key"),
        (served.private_key, "", "The private key is encrypted: pass its passphrase."),
        (other, served.own_passphrase, "was made to the public key"),
        (carol, "", "The private key is too large"),
    ):
        page.open(codebook, carol, passphrase, file)
        assert message in page.text("problem")
        assert page.text("opened") == ""
        assert "wrong horse" not in page.kept()
    assert page.console() == []


@pytest.mark.parametrize(
    ("user", "passphrase", "message"),
    [
        ("bob", None, "was revoked before this model version was exported. Ask the model's owner"),
        ("alice", "wrong horse", "The passphrase does not open key bundle"),
    ],
    ids=["revoked", "wrong-passphrase"],
)
def test_the_page_says_why_not(
    user: str, passphrase: str | None, message: str, page: Page, served: Any
) -> None:
    page.open(served.codebook("digits"), served.bundle(user), passphrase or served.passphrase)
    assert message in page.text("problem")
    assert page.text("opened") == ""
    assert not page.browser.find_element("css selector", "#ask button").is_enabled()
    assert "wrong horse" not in page.kept()
    assert page.console() == []
    page.open(served.codebook("digits"), served.bundle("alice"), served.passphrase)
    assert page.text("opened") == "Model digits, 10 classes"
    assert not page.shows("problem")


def test_files_that_are_mixed_up(page: Page, served: Any) -> None:
    page.open(served.bundle("alice"), served.codebook("digits"), served.passphrase)
    assert "This is not a whole key bundle" in page.text("problem")


def test_pasted_dropped_and_encrypted_answers(
    page: Page, served: Any, server: Any, digits: Any
) -> None:
    page.open(served.codebook("digits"), served.bundle("alice"), served.passphrase)
    body = {**request(digits, 20), "signature_name": "encrypted_label"}
    answer = json.dumps(server.predict("/v1/models/digits:predict", json.dumps(body).encode()))
    page.browser.execute_script(
        """
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([arguments[0]], "answer.json"));
        const drop = new DragEvent("drop", { dataTransfer, cancelable: true, bubbles: true });
        document.getElementById("response").dispatchEvent(drop);
        """,
        answer,
    )
    field = page.browser.find_element("id", "response")
    page.wait(lambda: field.get_property("value") == answer)
    page.press("paste")
    names = [row[1] for row in page.rows()]
    expected = [served.names[label] for label in digits.y_test[:20]]
    assert np.mean([a == b for a, b in zip(names, expected, strict=True)]) > 0.8
    page.set("response", '{"predictions": [[1, 2]]}')
    page.press("paste")
    assert "Received: a row of 2" in page.text("problem")
    assert not page.shows("answers")


def test_model_names_are_text_not_markup(page: Page, served: Any) -> None:
    page.open(served.codebook("digits"), served.bundle("alice"), served.passphrase)
    page.set("response", json.dumps({"error": "<img src=x onerror=alert(1)>"}))
    page.press("paste")
    assert page.text("problem") == (
        "The model server reported an error: <img src=x onerror=alert(1)>"
    )


def test_server_errors_and_other_origins(page: Page, served: Any, server: Any, digits: Any) -> None:
    page.open(served.codebook("digits"), served.bundle("alice"), served.passphrase)
    page.ask("/v1/models/other:predict", request(digits, 1))
    assert "reported an error: Servable not found for request: Latest(other)" in page.text(
        "problem"
    )
    elsewhere = server.url.replace("127.0.0.1", "localhost")  # another origin, the same server
    page.ask(f"{elsewhere}/v1/models/digits:predict", request(digits, 1))
    assert "must be named in the page's Content-Security-Policy" in page.text("problem")
    assert [path for method, path, _ in server.requests if method == "POST"] == [
        "/v1/models/other:predict"
    ]
