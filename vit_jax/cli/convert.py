"""Write a run or a weights file in the layout of another code base."""

from vit_jax.cli.common import make_parser, run_command

EXAMPLES = """examples:
  python -m vit_jax.cli.convert runs/b16 b16.npz --dialect official
  python -m vit_jax.cli.convert augreg/B_16 b16.npz --dialect big_vision --image_size 384
  python -m vit_jax.cli.convert augreg/B_16-384 b16_folder --dialect huggingface
  python -m vit_jax.cli.convert dinov2_folder dinov2.safetensors --dialect timm

A file's GELU and epsilon follow from its family. If readers of the new file would use other values, nothing
is written, unless it is a folder whose config.json states them, or --numerics theirs accepts the change.
"""


def main() -> None:
    """Parse the command line, read, write."""
    from vit_jax.weights import dialects

    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "ref",
        help="run directory, one step of it, .npz or .safetensors file, folder of transformers or timm, "
        "address, published name, or org/name of the Hugging Face Hub",
    )
    parser.add_argument("out", help=".npz or .safetensors file to write, or a folder (huggingface)")
    parser.add_argument("--dialect", required=True, choices=dialects.names(), help="whose layout")
    parser.add_argument("--patch_size", type=int, help="resize the patch embedding for patches of this size")
    parser.add_argument("--image_size", type=int, help="resize the position embedding for this size")
    parser.add_argument("--classes", type=int, help="reset a head of another class count")
    parser.add_argument("--heads", type=int, help="attention heads, for torch files that do not tell them")
    parser.add_argument("--numerics", choices=("same", "theirs"), default="same", help="see below")
    args = parser.parse_args()

    import sys  # after parsing: --help stays quick

    from vit_jax.weights.adapt import Wish
    from vit_jax.weights.load import read
    from vit_jax.weights.save import write

    sizes = {"image_size": args.image_size, "patch_size": args.patch_size}
    wish = Wish(**sizes, classes=args.classes, heads=args.heads)
    weights = read(args.ref, wish)
    print(weights.report, file=sys.stderr)
    beside = {"preprocess": weights.preprocess, "class_names": weights.class_names, "loss": weights.loss}
    write(args.out, weights.params, weights.model, dialect=args.dialect, numerics=args.numerics, **beside)
    print(f"wrote {args.out} ({args.dialect})")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
