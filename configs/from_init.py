"""Fine-tuning of any weights on a folder of images: the model and its preprocessing are those of the weights.

    python train.py --config configs/from_init.py:REF --config.data.dir=pets --workdir runs/pets

REF is a run, a file, a folder of transformers or timm, an address, a published name, such as augreg/B_16, or
org/name of the Hugging Face Hub (extra `hub`).
Optimized as in MAE's end-to-end fine-tuning (arXiv:2111.06377 table 9), whose learning rate is 1e-3 for 256
images, but for 20 epochs, in batches for small data, with gentler crops and without mixing of images.
Unmeasured here.
"""

import dataclasses
from typing import Any

from vit_jax import config
from vit_jax.errors import UserError


def get_config(arg: str = "") -> Any:
    """`arg` is the REF of the weights. The head, and a hidden layer before it, are made new for the data."""
    if not arg:
        raise UserError("configs/from_init.py follows weights: name them, --config configs/from_init.py:REF")

    from vit_jax.weights import load  # needs jax, which other configs do without

    model, preprocess = load.describe(arg)
    c = config.default()
    c.init = arg
    c.model.update(dataclasses.asdict(model), classes=0, dtype="bfloat16")
    c.model.update(pre_logits=0, pre_logits_form="tanh")
    c.data.update(dataclasses.asdict(preprocess), name="folder", min_area=0.25)
    c.optim.update(name="adamw", lr=2.5e-4, warmup_steps=0.05, weight_decay=0.05, layer_decay=0.75)
    c.optim.clip_norm = 1.0
    c.train.update(epochs=20.0, batch_size=64, checkpoint_every=500)
    return c
