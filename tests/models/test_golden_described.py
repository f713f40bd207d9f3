"""The page on the stored outputs says what the files hold."""

import re

import numpy as np
import pytest
from paths import GOLDEN

ROWS = re.findall(r"^\| `(\w+)` \|(.*)\|$", (GOLDEN / "README.md").read_text(), flags=re.M)
CELLS = {name: [cell.strip() for cell in rest.split("|")] for name, rest in ROWS}
OFFICIAL = sorted(p.name.removesuffix(".io.npz") for p in GOLDEN.glob("*.io.npz"))


def test_every_file_has_one_row():
    assert len(CELLS) == len(ROWS)
    assert CELLS.keys() == {p.name.partition(".")[0] for p in GOLDEN.glob("*.npz")}


@pytest.mark.parametrize("name", OFFICIAL)
def test_images_weights_and_outputs_are_as_described(name):
    images, _, count, outputs = CELLS[name]
    io, weights = np.load(GOLDEN / f"{name}.io.npz"), np.load(GOLDEN / f"{name}.npz")
    assert " x ".join(map(str, io["images"].shape[1:3])) == images
    assert (io["images"].shape[0], io["images"].shape[3]) == (2, 3)
    assert io["logits"].shape == (2, 10)
    assert len(weights.files) == int(count)
    assert {x.dtype.name for file in (io, weights) for x in map(file.get, file.files)} == {"float32"}
    assert -1 <= io["images"].min() < -0.99 < 0.99 < io["images"].max() <= 1
    assert min(weights[key].std() for key in weights.files) > 0  # none is all zeros or all ones
    resized = {"images_resized", "logits_resized", "pos_embedding_resized"}
    assert set(io.files) == {"images", "logits"} | (resized if "48 x 48" in outputs else set())
    assert "images_resized" not in io.files or io["images_resized"].shape == (2, 48, 48, 3)


def test_the_programs_that_made_the_others_exist():
    made = [re.fullmatch(r"`python (\S+)`", CELLS[name][-1]) for name in CELLS.keys() - set(OFFICIAL)]
    assert len(made) == 5
    assert all(match and (GOLDEN.parents[1] / match[1]).is_file() for match in made)
