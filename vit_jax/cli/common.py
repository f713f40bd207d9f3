"""What commands share: the shape of --help, one line for a user's mistake, a traceback for ours, pictures."""

import argparse
import dataclasses
import glob
import io
import os
import pathlib
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from vit_jax import config, paths
from vit_jax.errors import UserError
from vit_jax.paths import Path

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from vit_jax.data.source import Source
    from vit_jax.loaded import Loaded
    from vit_jax.sections import Data

FIGURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")  # endings of what matplotlib writes
REF = "run directory, one step of it, file, folder, address, published name, org/name of the Hugging Face Hub"
IMAGES = "image files, folders, patterns, or - for names on stdin"  # of what `image_files` takes
SIGPIPE = 13  # the number that a shell counts 128 from; Windows has no such signal
PANEL_PX = 224  # pictures of fewer pixels are shown with each pixel a square


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: --help lists what is accepted")


def make_parser(description: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser whose --help ends with `examples` as they are written, and whose errors are UserErrors."""
    return _Parser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def nonempty_path(text: str) -> Path:
    """A path of the command line. Raises UserError for an empty one, such as an unset variable of a shell."""
    if not text:
        raise UserError("a path on the command line is empty")
    return paths.of(text)


def output_path(*endings: str) -> Callable[[str], Path]:
    """A type of arguments: a file to write, in a folder that exists, with one of `endings` if there are any.

    What cannot be written raises UserError before the work for it is done.
    """

    def parse(text: str) -> Path:
        path = nonempty_path(text)
        if endings and path.suffix.lower() not in endings:
            raise UserError(f"cannot write {text}: want a name that ends in {', '.join(endings)}")
        if not paths.in_bucket(path) and not path.parent.is_dir():
            raise UserError(f"cannot write {text}: there is no folder {path.parent}")
        return path

    return parse


def run_command(main: Callable[[], int | None]) -> int:
    """Exit code of `main`; 2 after a UserError, whose message goes to stderr. Ctrl-C exits with 130.

    Where the reader of the output goes away, as `| head` does, the exit code is that of other commands.
    """
    if sys.stdout is None:  # closed by the parent process
        sys.stdout = pathlib.Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where it is ignored, as after nohup
        signal.signal(signal.SIGINT, _interrupted)
    try:
        try:
            return main() or 0
        except UserError as e:
            print(f"error: {e.command}", file=sys.stderr)
            return 2
        finally:
            sys.stdout.flush()  # now, and not when Python ends, where nobody can catch an error
    except BrokenPipeError:
        if not _reader_left():
            raise  # another pipe: an error of ours
        return 128 + SIGPIPE
    finally:
        signal.signal(signal.SIGINT, before)


def _reader_left() -> bool:
    """Whether stdout or stderr is a pipe without a reader; what else goes there is dropped."""
    left = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a stream that is no file
            watch = select.poll()
            watch.register(stream.fileno(), 0)
            if any(events & (select.POLLERR | select.POLLHUP) for _, events in watch.poll(0)):
                left = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return left


def _interrupted(number: int, frame: FrameType | None) -> None:
    # Not by an exception: it may be lost in a callback, and on its way out crash in threads that compile.
    os.write(2, b"interrupted: what was saved is intact\n")
    os._exit(128 + number)


def image_files(words: Iterable[str]) -> Iterator[Path]:
    """The image files of files, folders, patterns and stdin. Raises UserError for a word that has none."""
    from vit_jax.data.sources import images_below

    for word in words:
        path = paths.of(word)
        if word == "-":
            yield from (paths.of(line.strip()) for line in sys.stdin if line.strip())
        elif path.is_dir():
            found, left_out = images_below(path)
            if left_out:
                print(f"note: {path}: left out {left_out}", file=sys.stderr)
            if not found:
                raise UserError(f"{path} has no images in it: give another folder")
            yield from (path / name for name in found)
        elif not path.exists() and glob.has_magic(word):
            names = sorted(glob.glob(word, recursive=True))
            if not names:
                raise UserError(f"{word} matches no file: check the pattern")
            yield from map(paths.of, names)
        elif not path.exists():
            raise UserError(f"cannot read {word}: there is no such file")
        else:
            yield path


def image_names(words: Iterable[str]) -> list[str]:
    """The names of `image_files`, at least one. Raises UserError."""
    names = [str(path) for path in image_files(words)]
    if not names:
        raise UserError("there is no image: give files, folders, patterns, or names on stdin")
    return names


def data_for(loaded: "Loaded", arguments: list[str], **fixed: Any) -> "Data":
    """The data that the model was trained on, with fields as `fixed` and as `--data.field=value` say.

    Raises UserError for unknown fields, and for images of other channels than the model takes.
    """
    data = config.override_data(dataclasses.replace(loaded.data, **fixed), arguments)
    channels = loaded.spec.preprocess.channels
    if data.channels != channels:
        raise UserError(f"data.channels={data.channels} is not the {channels} that the model takes")
    return data


def data_of_files(loaded: "Loaded", arguments: list[str]) -> "Data":
    """How image files are read: as the data of the model, by threads of this process. As `data_for`."""
    return data_for(loaded, arguments, name="images", workers=0, cache_gib=0.0)


def tell(*sources: "Source") -> None:
    """On stderr, what is left out of the data."""
    for note in dict.fromkeys(source.note() for source in sources):
        if note:
            print(note, file=sys.stderr)


def progress(what: str, total: int) -> Callable[[int], None]:
    """To be called with how many of `total` are done: one line of a terminal, else a line per tenth."""
    live, shown = sys.stderr.isatty(), 0

    def show(done: int) -> None:
        nonlocal shown
        tenth = 10 * done // total
        if live or (tenth > shown and done < total):
            shown = tenth
            start, end = ("\r", "\n" if done == total else "") if live else ("", "\n")
            print(f"{start}{what}: {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)

    return show


def shown(image_hwc: "np.ndarray") -> "np.ndarray":
    """What there is to see of any number of channels: grey [h, w], or RGB."""
    if image_hwc.shape[-1] < 3:
        return image_hwc[..., 0]
    return image_hwc[..., :3].copy()


def save_sheet(
    pictures: "Sequence[Image]", titles: Sequence[str], path: Path, *, columns: int, option: str = "--out"
) -> None:
    """Pictures in rows of at most `columns`, a title over each, in the file that `option` named.

    Raises UserError if it cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, picture, title in zip(figure.axes, pictures, titles, strict=False):
        smooth = None if picture.width >= PANEL_PX else "nearest"
        axes.imshow(picture, cmap="gray", interpolation=smooth)
        axes.set_title(title, fontsize=10)
    save_figure(figure, path, option)


def save_figure(figure: "Figure", path: Path, option: str) -> None:
    """Write to the file that `option` named. Raises UserError if it cannot be written."""
    try:
        with paths.replacing(path) as file:
            figure.savefig(file, dpi=100, format=path.suffix.removeprefix("."))
    except (UserError, ValueError) as e:
        raise UserError(f"{option}: {e}") from e
