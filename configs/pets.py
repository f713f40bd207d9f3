"""Oxford's 37 breeds of cats and dogs, fine-tuned from AugReg's ViT-B/32 at 384 px: 500 steps of 512.

    python train.py --config configs/pets.py --workdir runs/pets

Published accuracy (big_vision's transfer.py, mean of five,
test split): 93.78 % (93.62 to 94.00). No cost was published. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """AugReg's B/32. Takes no argument."""
    return recipes.transfer(
        "oxford_iiit_pet", lr=3e-3, steps=500, warmup_steps=100, train_split="train[:90%]"
    )
