"""timm's and Hugging Face's ViTs under torch, as their users train them. Needs the extra `parity`.

SDPA attention; bfloat16 is torch's autocast over float32 parameters, as ours is; convolutions channels-last
on a GPU. Only for measuring: vit_jax never imports torch.
"""

from typing import Any

import torch
from contenders import CLIP_NORM, INFERENCE, Program, Work, timed

from vit_jax.sections import Model


def program(work: Work, *, library: str, compile: bool = False) -> Program:
    """The work by `timm` or `huggingface`, eager or by torch.compile."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    others = torch.cuda.memory_allocated() if device.type == "cuda" else 0  # of contenders before this one
    model = {"timm": _timm, "huggingface": _huggingface}[library](work.cfg).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    forward: Any = torch.compile(model) if compile else model
    image, label = (torch.from_numpy(x).to(device) for x in work.examples())
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=work.cfg.dtype == "bfloat16")
    turn = _inference if work.mode == INFERENCE else _training
    once = turn(work, model, forward, image.permute(0, 3, 1, 2), label.long(), mixed)

    def whole() -> None:
        once()
        if device.type == "cuda":
            torch.cuda.synchronize()

    if device.type == "cpu":
        return timed(whole, lambda: 0)
    torch.cuda.reset_peak_memory_stats()
    return timed(whole, lambda: torch.cuda.max_memory_allocated() - others)


def _inference(work: Work, model: Any, forward: Any, image: Any, label: Any, mixed: Any) -> Any:
    model.eval()

    def once() -> None:
        with torch.inference_mode(), mixed:
            forward(image.float() / 127.5 - 1)

    return once


def _training(work: Work, model: Any, forward: Any, image: Any, label: Any, mixed: Any) -> Any:
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    }
    if work.mode not in kinds:
        raise SystemExit(f"--modes {work.mode}: peers know {INFERENCE}, {', '.join(kinds)}")
    parameters = list(model.parameters())
    optimizer = kinds[work.mode](parameters)
    model.train()

    def once() -> None:
        with mixed:
            logits = forward(image.float() / 127.5 - 1)
        torch.nn.functional.cross_entropy(logits.float(), label).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def _timm(cfg: Model) -> Any:
    from peers.timm_loader import stand_in_for_torchvision

    stand_in_for_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=cfg.image_hw,
        patch_size=cfg.patch_size,
        embed_dim=cfg.width,
        depth=cfg.depth,
        num_heads=cfg.heads,
        mlp_ratio=cfg.mlp_width / cfg.width,
        num_classes=cfg.classes,
    )


class _Logits(torch.nn.Module):
    """A Hugging Face classifier that returns what the others return."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Any) -> Any:
        return self.classifier(image).logits


def _huggingface(cfg: Model) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = ViTConfig(
        hidden_size=cfg.width,
        num_hidden_layers=cfg.depth,
        num_attention_heads=cfg.heads,
        intermediate_size=cfg.mlp_width,
        image_size=cfg.image_hw[0],
        patch_size=cfg.patch_size,
        num_labels=cfg.classes,
        attn_implementation="sdpa",
    )
    return _Logits(ViTForImageClassification(sizes))
