"""What a model is: sizes, numerics, preprocessing, classes, training record and result, on one screen."""

import dataclasses
import json
from typing import Any

from vit_jax import paths
from vit_jax.cli.common import REF, make_parser, run_command
from vit_jax.errors import UserError

EXAMPLES = """examples:
  python -m vit_jax.cli.info runs/b16
  python -m vit_jax.cli.info dinov2_folder --json
"""
SHOWN_CLASSES = 8


def main() -> None:
    """Parse the command line, read, print."""
    from vit_jax.weights import published

    names = "\n".join(f"  {name}" for name in published.TABLE)
    parser = make_parser(__doc__, f"{EXAMPLES}\npublished checkpoints:\n{names}")
    parser.add_argument("ref", help=REF)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()

    from vit_jax.weights.load import read  # after parsing: --help stays quick

    weights = read(args.ref)
    known = published.find(args.ref)
    facts: dict[str, Any] = {
        "ref": args.ref,
        "source": weights.report.source,
        "layout": weights.report.dialect,
        "parameters": weights.report.parameters,
        "model": dataclasses.asdict(weights.model),
        "preprocess": dataclasses.asdict(weights.preprocess),
        "class_names": list(weights.class_names),
        "loss": weights.loss,
        "multi_label": weights.multi_label,
        "training": dataclasses.asdict(weights.config) if weights.config else None,
        "result": _result(args.ref),
        "stopped_early": _stopped_early(args.ref),
        "published_top1": known.top1 if known else None,
    }
    print(json.dumps(facts) if args.json else text(facts))


def text(facts: dict[str, Any]) -> str:
    """The facts on one screen; without the sections of the training config that stand above."""
    model, seen = facts["model"], facts["preprocess"]
    tokens = [name for name in ("class_token", "distill_token") if model[name]]
    tokens += [f"{model['registers']} registers"] if model["registers"] else []
    names = facts["class_names"]
    shown = ", ".join(names[:SHOWN_CLASSES]) + (", ..." if len(names) > SHOWN_CLASSES else "")
    numerics = f"{model['gelu']} GELU, epsilon {model['norm_eps']:g}, {model['dtype']}"
    lines = {
        "from": f"{facts['source']} ({facts['layout']} layout)",
        "model": f"{model['family']}, {facts['parameters'] / 1e6:.4g} M parameters, depth {model['depth']}, "
        f"width {model['width']}, {model['heads']} heads, MLP {model['mlp_width']} ({model['mlp']})",
        "input": f"{model['image_size']} px, patches of {model['patch_size']}, {seen['channels']} channels",
        "tokens": f"{', '.join(tokens) or 'patches alone'}; positions {model['posemb']}; pooling "
        f"{model['pooling']}",
        "numerics": numerics,
        "preprocessing": f"{seen['resize']}, {seen['filter']}, crop {seen['crop_fraction']:g}, mean "
        f"{seen['mean']}, std {seen['std']}",
        "classes": f"{model['classes'] or 'no head'}{': ' if names else ''}{shown}",
        "confidences": "softmax"
        if facts["loss"] == "softmax"
        else "a sigmoid of each class"
        + (", of which an image may have several" if facts["multi_label"] else ""),
    }
    if facts["training"]:
        t = facts["training"]
        optim, train = t["optim"], t["train"]
        lines["training"] = (
            f"{t['data']['name']}, {optim['name']}, lr {optim['lr']:g}, batch {train['batch_size']}, "
            f"{train['steps'] or train['epochs']} {'steps' if train['steps'] else 'epochs'}, seed {t['seed']}"
        )
        if optim["lora_rank"]:
            lines["adapters"] = f"of rank {optim['lora_rank']}, merged here, beside {t['init']}"
    if facts["result"]:
        r = facts["result"]
        what, key = ("mean average precision", "eval/map") if "eval/map" in r else ("top-1", "eval/top1")
        lines["result"] = f"{what} {r[key]:.2%} at step {r['step']} (the last evaluation of the run)"
    if facts["stopped_early"]:
        lines["end"] = facts["stopped_early"]
    if facts["published_top1"]:
        lines["published"] = f"top-1 {facts['published_top1']}% on ImageNet"
    return "\n".join(f"{name:14} {line}" for name, line in lines.items())


def _result(ref: str) -> dict[str, Any] | None:
    """The last evaluation in a run's metrics."""
    from vit_jax.run.workdir import Workdir, metrics_in

    if (folder := paths.at_hand(ref)) is None:
        return None
    with paths.reached(folder):
        rows = metrics_in(Workdir(folder).metrics)
    return next((row for row in reversed(rows) if "eval/top1" in row), None)


def _stopped_early(ref: str) -> str | None:
    """How a run ended, as its newest checkpoint tells it; None unless it was early."""
    from vit_jax.run import patience
    from vit_jax.run.workdir import Workdir
    from vit_jax.weights.formats import orbax

    if (folder := paths.at_hand(ref)) is None:
        return None
    checkpoints = Workdir(folder).checkpoints
    steps = orbax.steps_in(checkpoints)
    if not steps:
        return None
    try:
        record = orbax.read_record(checkpoints / str(steps[-1]))
    except UserError:  # `read` has used another step then, and says so
        return None
    return patience.message(steps[-1], record) or None


if __name__ == "__main__":
    raise SystemExit(run_command(main))
