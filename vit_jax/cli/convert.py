"""Write a run or a weights file in the layout of another code base."""

from vit_jax.cli.common import make_parser, run_command

EXAMPLES = """examples:
  python -m vit_jax.cli.convert runs/b16 b16.npz --dialect official
  python -m vit_jax.cli.convert augreg/B_16 b16.npz --dialect big_vision --image_size 384
"""


def main() -> None:
    """Parse the command line, read, write."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help="run directory, one step of it, .npz file, address, or published name")
    parser.add_argument("out", help="file to write")
    parser.add_argument("--dialect", required=True, choices=("official", "big_vision"), help="whose layout")
    parser.add_argument("--image_size", type=int, help="resize the position embedding for this size")
    parser.add_argument("--classes", type=int, help="reset a head of another class count")
    args = parser.parse_args()

    import vit_jax  # after parsing: --help stays quick

    loaded = vit_jax.load(args.ref, image_size=args.image_size, classes=args.classes)
    vit_jax.save(args.out, loaded, dialect=args.dialect)
    print(f"wrote {args.out} ({args.dialect})")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
