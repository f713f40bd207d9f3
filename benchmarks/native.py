"""Images a second of data.resize=native beside squash, at as many tokens: loader, and training steps.

python benchmarks/native.py [--rounds 5] takes turns on photographs of aspects from 1:3 to 3:1, and prints
medians as JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

import vit_jax
from vit_jax.data import loader, sources
from vit_jax.run.setup import set_up
from vit_jax.sections import seen_size
from vit_jax.training import mesh as meshes

IMAGES, BATCH, STEPS = 64, 16, 3
ASPECTS = (1 / 3, 1 / 2, 3 / 4, 1.0, 4 / 3, 2.0, 3.0)
MODEL = {
    **{"model.image_size": 128, "model.patch_size": 16, "model.width": 192, "model.depth": 4},
    **{"model.heads": 3, "model.mlp_width": 768, "data.name": "folder", "data.channels": 3},
}


def photographs(root: Path) -> None:
    """Parts of real photographs of 640 x 427 pixels, all of the same area, in two classes."""
    photos = load_sample_images().images
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        aspect, area = ASPECTS[i % len(ASPECTS)], 160_000 / 3
        h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        top, left = int(rng.integers(427 - h + 1)), int(rng.integers(640 - w + 1))
        for split in ("train", "val"):
            folder = root / split / str(i % 2)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photos[i % 2][top : top + h, left : left + w]).save(
                folder / f"{i}.jpg", quality=90
            )


class Case:
    """One way to resize: its loader and its compiled step."""

    def __init__(self, folder: str, resize: str) -> None:
        tree: dict[str, Any] = MODEL | {"data.dir": folder, "data.resize": resize}
        tree |= {"train.batch_size": BATCH, "train.steps": 10**6, "train.epochs": 0.0}
        cfg = vit_jax.config("configs/quickstart.py", tree)
        self.mesh, data = meshes.make("any", 1), sources.open_splits(cfg.data)
        with jax.set_mesh(self.mesh):
            self.setup = set_up(cfg, self.mesh, data)
            self.state = self.setup.init()
        seen = seen_size(self.setup.spec.model, cfg.data)
        self.batches = loader.TrainBatches(data.train, cfg.data, seen, BATCH, 0, 10**6, range(BATCH))
        self.given = meshes.to_devices(self.batches[0], BATCH, self.mesh)
        self.step()  # compiles

    def load(self) -> float:
        """Images a second of the loader in one thread."""
        start = time.perf_counter()
        for i in range(STEPS):
            self.batches[i]
        return STEPS * BATCH / (time.perf_counter() - start)

    def step(self) -> float:
        """Images a second of training steps on a batch that is there."""
        start = time.perf_counter()
        with jax.set_mesh(self.mesh):
            for _ in range(STEPS):
                self.state, halted = self.setup.step(self.state, self.given, None, None)
            jax.block_until_ready(halted)
        return STEPS * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Prints {"loader": {...}, "step": {...}, "filled": share of tokens that are real}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder))
        cases = {resize: Case(folder, resize) for resize in ("squash", "native")}
        turns = [{name: (case.load(), case.step()) for name, case in cases.items()} for _ in range(rounds)]
        grids = cases["native"].batches[0].image.grid
    found = {
        what: {name: round(statistics.median(turn[name][i] for turn in turns), 1) for name in cases}
        for i, what in enumerate(("loader", "step"))
    }
    print(json.dumps(found | {"filled": round(float(grids.prod(axis=1).mean() / 64), 3)}))


if __name__ == "__main__":
    main()
