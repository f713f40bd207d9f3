"""`demo`: what is answered of an image, and how it is served; the page itself in a real browser."""

import base64
import contextlib
import http.client
import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from commands import call
from paths import GOLDEN
from PIL import Image

import vit_jax
from vit_jax.cli import answers, demo, embed
from vit_jax.cli.answers import Answers
from vit_jax.data.sources import read_image
from vit_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
# The same float32 operations in batches of another size, on numbers of order one.
ATOL = 1e-5


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine images of noise, each brighter than the one before."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 60 + 20 * i, (20, 24), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def loaded(workdir):
    return vit_jax.load(workdir)


@pytest.fixture(scope="module")
def features(loaded, photos, tmp_path_factory):
    """A file as embed writes it."""
    names = sorted(map(str, photos.iterdir()))
    about = {"ref": "REF", "image_size": 8, "layer": 1, "pool": "token"}
    out = tmp_path_factory.mktemp("features") / "features.npz"
    embed.write(out, names, loaded.features([read_image(name) for name in names]), about)
    return out


@contextlib.contextmanager
def served(answers_of, title="model <b> & more"):
    """The port of a server that runs meanwhile."""
    with demo.bind("127.0.0.1", 0) as server:
        server.title, server.answers = title, answers_of
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def ask(port, method, path, body=None, headers=None):
    """(status, kind, body) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return reply.status, reply.getheader("Content-Type"), reply.read()


def test_an_answer_has_the_classes_that_python_gives(loaded, photos):
    file = photos / "3.png"
    answer = Answers(loaded)(file.read_bytes())
    (wanted,) = loaded.classify([read_image(file)])
    assert [row["class"] for row in answer["classes"]] == [p.name for p in wanted]
    got = [row["confidence"] for row in answer["classes"]]
    np.testing.assert_allclose(got, [p.confidence for p in wanted], rtol=0, atol=ATOL)
    assert answer["loss"] == "softmax"
    assert "near" not in answer
    assert "set" not in answer
    assert json.loads(json.dumps(answer)) == answer


@pytest.mark.parametrize("name", ["vit_token", "vit_gap", "bigvision_map", "hybrid_stem", "mixer"])
def test_attention_is_drawn_over_what_the_model_sees(photos, name):
    model = vit_jax.load(GOLDEN / f"{name}.npz")
    pictures = Answers(model)((photos / "3.png").read_bytes())["attention"]
    assert len(pictures) == (0 if name == "mixer" else 3)
    for picture in pictures:
        kind, data = picture["png"].split(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (image.height, image.width) == model.spec.model.image_hw
        assert np.ptp(np.asarray(image)) > 0


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_the_nearest_images_are_those_of_the_largest_cosine(
    monkeypatch, capsys, workdir, loaded, photos, tmp_path, ending
):
    file = tmp_path / f"features.{ending}"
    assert call(monkeypatch, capsys, embed, workdir, photos, "--out", file, "--layer", 0)[0] == 0
    found = embed.read(file)
    near = Answers(loaded, answers.near(loaded, found, str(file)))((photos / "4.png").read_bytes())["near"]
    x_nd = loaded.features([read_image(path) for path in found.paths], layer=0)
    x_nd /= np.linalg.norm(x_nd, axis=1, keepdims=True)
    similarity_n = x_nd @ x_nd[4]
    best = np.argsort(-similarity_n)[: answers.NEAREST]
    assert [one["number"] for one in near] == best.tolist()
    assert [one["path"] for one in near] == [str(photos / f"{i}.png") for i in best]
    np.testing.assert_allclose([one["similarity"] for one in near], similarity_n[best], rtol=0, atol=ATOL)
    assert near[0]["number"] == 4


def test_features_of_another_model_or_of_images_that_are_gone_are_refused(
    monkeypatch, capsys, workdir, loaded, features, photos, tmp_path
):
    found = embed.read(features)
    with pytest.raises(UserError, match="was made by another model"):
        answers.near(loaded, found._replace(features=found.features[::-1]), "x.npz")
    with pytest.raises(UserError, match="was made by another model"):
        answers.near(
            vit_jax.load(GOLDEN / "vit_gap.npz"),
            found._replace(about=found.about | {"pool": "model"}),
            "x.npz",
        )
    with pytest.raises(UserError, match=r"images that are not here .*gone\.png"):
        answers.near(loaded, found._replace(paths=["gone.png"] * 9), "x.npz")
    with pytest.raises(UserError, match="features of every token"):
        answers.near(loaded, found._replace(features=found.features[:, None]), "x.npz")
    code, _, err = call(monkeypatch, capsys, demo, workdir, "--port", 0, "--features", tmp_path / "no.npz")
    assert (code, err[-1]) == (2, f"error: cannot read {tmp_path}/no.npz: No such file or directory")
    np.savez(tmp_path / "other.npz", features=np.zeros(3))
    (tmp_path / "x.parquet").write_text("PAR1 no table")
    for bad in (photos / "0.png", tmp_path / "other.npz", tmp_path / "x.parquet"):
        with pytest.raises(UserError, match=f"{bad} has no features that embed wrote"):
            embed.read(bad)


@pytest.mark.parametrize(
    ("data", "told"), [(b"", "is empty"), (b"GIF89a no picture", "is not a readable image")]
)
def test_what_is_no_image_is_one_line(loaded, data, told):
    with pytest.raises(UserError, match=told):
        Answers(loaded)(data)


def test_pages_answers_and_errors_are_served(loaded, features, photos, capfd):
    near = answers.near(loaded, embed.read(features), str(features))
    image = (photos / "2.png").read_bytes()
    with served(Answers(loaded, near)) as port:
        status, kind, page = ask(port, "GET", "/")
        assert (status, kind) == (200, "text/html; charset=utf-8")
        assert b"model &lt;b&gt; &amp; more" in page
        status, kind, answer = ask(port, "POST", "/answer", image)
        assert (status, kind) == (200, "application/json")
        assert json.loads(answer) == Answers(loaded, near)(image)
        status, kind, picture = ask(port, "GET", "/near/2")
        assert (status, kind) == (200, "image/png")
        assert Image.open(io.BytesIO(picture)).size == (24, 20)
        for method, path, body, headers, wanted in (
            ("POST", "/answer", b"no image", {}, (400, "the file is not a readable image")),
            ("POST", "/answer", None, {"Content-Length": str(2**40)}, (413, "the file is too large")),
            ("POST", "/answer", None, {"Transfer-Encoding": "chunked"}, (411, "does not say how long")),
            ("POST", "/other", b"", {}, (404, "no such page")),
            ("GET", "/other", None, {}, (404, "no such page")),
            ("GET", "/near/9", None, {}, (400, "no image 9")),
            ("GET", "/near/../x", None, {}, (400, "no image")),
        ):
            status, kind, reply = ask(port, method, path, body, headers)
            assert (status, kind) == (wanted[0], "application/json")
            assert wanted[1] in json.loads(reply)["error"]
    assert capfd.readouterr().err == ""


def test_a_fault_of_ours_is_told_to_the_page_and_printed(capfd):
    def broken(data):
        raise RuntimeError("a fault")

    with served(broken) as port:
        status, _, reply = ask(port, "POST", "/answer", b"x")
        assert (status, json.loads(reply)["error"][:15]) == (500, "the demo failed")
    assert "RuntimeError: a fault" in capfd.readouterr().err


def test_users_at_once_get_their_own_answers(loaded, photos):
    alone = [Answers(loaded)((photos / f"{i}.png").read_bytes()) for i in range(9)]
    with served(Answers(loaded)) as port, ThreadPoolExecutor(9) as users:
        send = lambda i: ask(port, "POST", "/answer", (photos / f"{i}.png").read_bytes())
        replies = list(users.map(send, range(9)))
    assert [json.loads(body) for _, _, body in replies] == alone


def test_what_cannot_be_served_is_one_line(monkeypatch, capsys, workdir, tmp_path):
    with demo.bind("127.0.0.1", 0) as taken:
        port = taken.server_address[1]
        code, _, err = call(monkeypatch, capsys, demo, workdir, "--port", port)
    assert (code, err) == (2, [f"error: --port={port} is taken: give another, or 0 for one that is free"])
    code, _, err = call(monkeypatch, capsys, demo, workdir, "--port", 70000)
    assert (code, len(err)) == (2, 1)
    assert "--port=70000" in err[0]
    headless = tmp_path / "headless.npz"
    with np.load(GOLDEN / "vit_token.npz") as whole:
        np.savez(headless, **{name: whole[name] for name in whole if not name.startswith("head/")})
    code, _, err = call(monkeypatch, capsys, demo, headless, "--port", 0)
    assert code == 2
    assert "has no head, so it names no class" in err[-1]


def test_the_command_says_where_it_serves(monkeypatch, capsys, workdir, features):
    def look(server):
        assert server.answers.near.names == embed.read(features).paths

    monkeypatch.setattr(demo.Server, "serve_forever", look)
    code, out, err = call(monkeypatch, capsys, demo, workdir, "--port", 0, "--features", features)
    assert code == 0, err
    assert out.startswith(f"demo of {workdir}: http://127.0.0.1:")


SHOWN = {"timeout": 120_000}  # ms: two cores, and the answer of a model


@pytest.fixture
def browser():
    """Chromium without a window, as the system has it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a Chromium on the PATH")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow  # starts a browser
def test_the_page_in_a_real_browser(browser, loaded, features, photos, tmp_path):
    near = answers.near(loaded, embed.read(features), str(features))
    (tmp_path / "<b>broken.png").write_text("no image")
    with served(Answers(loaded, near)) as port:
        pages = [browser.new_context().new_page() for _ in range(2)]
        faults = []
        for page in pages:
            page.on("pageerror", lambda error: faults.append(error))  # a function of Python's own
            page.goto(f"http://127.0.0.1:{port}/")
            assert page.title() == "model <b> & more"
        one, other = pages
        one.set_input_files("input", [photos / "2.png", photos / "7.png"])
        other.set_input_files("input", tmp_path / "<b>broken.png")
        other.wait_for_selector(".error", **SHOWN)
        assert "the file is not a readable image" in other.inner_text(".error")
        assert other.inner_text("h2") == "<b>broken.png"
        other.set_input_files("input", photos / "5.png")  # while the first user's are computed
        for page, files in ((one, ("7", "2")), (other, ("5",))):  # the newest above
            page.wait_for_function(f"document.querySelectorAll('.near').length == {len(files)}", **SHOWN)
            for card, file in zip(page.query_selector_all("article:has(table)"), files, strict=True):
                answer = Answers(loaded, near)((photos / f"{file}.png").read_bytes())
                shown = [row.inner_text().split() for row in card.query_selector_all("tr")]
                wanted = [[row["class"], f"{100 * row['confidence']:.1f}", "%"] for row in answer["classes"]]
                assert shown == wanted
                assert len(card.query_selector_all(".attention img")) == 3
                assert f"{file}.png" in card.query_selector(".near figcaption").inner_text()
            loaded_all = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
            page.wait_for_function(loaded_all, **SHOWN)
        assert faults == []
