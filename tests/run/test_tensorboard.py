"""What TensorBoard is given beside scalars: the config, pictures, and a profile of some steps."""

import io
import json

import numpy as np
import pytest
from event_files import events
from PIL import Image
from tiny_run import tiny

import vit_jax
from vit_jax import config
from vit_jax.analysis.statistics import confusion
from vit_jax.data import loader, sources
from vit_jax.errors import UserError
from vit_jax.run import loop, pictures
from vit_jax.run.profile import Profile
from vit_jax.run.setup import set_up
from vit_jax.run.workdir import Workdir

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
FIELDS = (
    "model.depth=1",
    "optim.warmup_steps=0",
    "train.steps=4",
    "train.profile_steps=2-3",
    "train.log_every=1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, optax_dtypes, one_device):
    folder = tmp_path_factory.mktemp("run")
    cfg = config.apply(tiny(eval_every=2), [f"--config.{field}" for field in FIELDS])
    loop.run(cfg, folder)
    return cfg, folder


@pytest.mark.long
def test_the_config_the_rate_and_the_first_batch_are_there(finished):
    cfg, folder = finished
    values = [(e.step, v) for e in events(folder / "tensorboard") for v in e.summary.value]
    (written,) = [v for _, v in values if v.tag.startswith("config")]
    assert written.metadata.plugin_data.plugin_name == "text"
    text = written.tensor.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines())  # Markdown's code
    assert config.parse(json.loads(text)) == cfg
    assert [step for step, v in values if v.tag == "train/lr"] == [1, 2, 3, 4]
    ((step, first),) = [(step, v.image) for step, v in values if v.tag == "first_batch"]
    assert step == 1
    source, size = sources.digits(train=True), cfg.train.batch_size
    batch = loader.TrainBatches(source, cfg.data, (8, 8), size, cfg.seed, 4, range(size))[0]
    with Image.open(io.BytesIO(first.encoded_image_string)) as shown:
        np.testing.assert_array_equal(np.asarray(shown), pictures.tiled(batch.image)[..., 0])


def test_each_evaluation_shows_which_class_is_taken_for_which(finished):
    _, folder = finished
    values = [(e.step, v) for e in events(folder / "tensorboard") for v in e.summary.value]
    shown = {step: v.image.encoded_image_string for step, v in values if v.tag == "eval/confusion"}
    assert shown.keys() == {2, 4}
    loaded, source = vit_jax.load(folder / "checkpoints" / "4"), sources.digits(train=False)
    pairs = [source.get(i) for i in range(source.size)]
    predicted = loaded.probabilities([image for image, _ in pairs]).argmax(axis=1)
    counts = confusion(np.array([label for _, label in pairs]), predicted, 10)
    wanted = pictures.confused(counts, source.class_names)
    with Image.open(io.BytesIO(shown[4])) as image:
        np.testing.assert_array_equal(np.asarray(image), wanted)


def test_a_confusion_is_darker_where_more_of_a_class_are():
    small = pictures.confused(np.array([[3, 1], [0, 0]]), ["a name that is far too long for the margin", "b"])
    side, left = pictures.CELL_PX, pictures.NAME_PX
    assert small.shape == (2 * side, left + 2 * side, 3)
    corners = [[small[y * side, left + x * side].tolist() for x in range(2)] for y in range(2)]
    assert corners == [[[70, 100, 144], [193, 203, 218]], [[255] * 3] * 2]  # 3/4 and 1/4 of the way, and none
    assert small[:side, left : left + side].min(axis=2).max() > 200  # the count, in white
    many = pictures.confused(np.eye(200), [])
    assert many.shape == (600, 600, 3)
    assert (many[::3, ::3] == np.where(np.eye(200, dtype=bool)[..., None], pictures.FULL, 255)).all()


def test_images_are_tiled_row_by_row():
    image = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(2, 1).repeat(3, 2)
    tiled = pictures.tiled(image)
    assert tiled.shape == (4, 9, 1)
    assert tiled[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 0]]
    assert [pictures.tiled(np.zeros((2, 4, 4, c), np.uint8)).shape[-1] for c in (1, 2, 3, 5)] == [1, 1, 3, 3]
    assert pictures.tiled(np.zeros((100, 4, 4, 3), np.uint8)).shape == (32, 32, 3)


def test_steps_are_profiled_into_the_folder_of_the_run(finished):
    _, folder = finished
    (found,) = (folder / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert b"jit_step_and_halted" in found.read_bytes()  # the step's program


def test_what_is_recorded_begins_and_ends_with_its_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda to: calls.append(to))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))

    def recorded(steps, first, last):
        calls.clear()
        with Profile(steps, Workdir(tmp_path)) as profile:
            for step in range(first, last + 1):
                profile.before(step)
                calls.append(step)
                profile.after(step, np.zeros(1))
        return calls.copy()

    to = str(tmp_path / "tensorboard")
    assert recorded((2, 3), 1, 4) == [1, to, 2, 3, "stop", 4]
    assert recorded((2, 9), 1, 3) == [1, to, 2, 3, "stop"]  # the run ends before
    assert recorded((2, 5), 4, 6) == [to, 4, 5, "stop", 6]  # the run continues within
    assert recorded((2, 3), 4, 5) == recorded(None, 4, 5) == [4, 5]


@pytest.mark.parametrize("text", ["5", "5-", "3-2", "0-2", "a-b", "1-2-3"])
def test_other_text_is_refused(text):
    with pytest.raises(UserError, match=f"train.profile_steps={text} is not a first and a last step"):
        config.apply(tiny(), [f"--config.train.profile_steps={text}"])


def test_steps_that_never_come_are_refused(one_device):
    data = sources.open_splits(tiny().data)
    cfg = config.apply(tiny(), ["--config.train.profile_steps=61-62"])
    with pytest.raises(UserError, match=r"train.profile_steps=61-62 is after the last step, 60"):
        set_up(cfg, one_device, data)
