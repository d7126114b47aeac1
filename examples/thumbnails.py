"""Make thumbnails of all pictures in a folder, with Pillow.

    python examples/thumbnails.py --demo
    python examples/thumbnails.py ~/Pictures /tmp/thumbnails --size 256

Pillow is a C extension that CPython refuses in interpreters with a lock of their own: each worker
loads a private copy. Pictures differ in size, so each one is a task of its own (`chunksize=1`), and
a picture that is broken is reported without ending the others.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    from PIL import Image, ImageOps
except ImportError:
    sys.exit("this example needs Pillow: pip install pillow")

from subinterp import InterpreterPool

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Job:
    """One picture, and where its thumbnail goes."""

    source: str
    target: str
    size: int


@dataclass(frozen=True)
class Done:
    """The thumbnail's width and height, or what went wrong."""

    job: Job
    width: int = 0
    height: int = 0
    problem: str = ""


def make_thumbnail(job: Job) -> Done:
    """Shrink one picture; runs in a worker."""
    try:
        with Image.open(job.source) as picture:
            # JPEG is read at a fraction of its size, if that is enough.
            picture.draft("RGB", (2 * job.size, 2 * job.size))
            small = ImageOps.exif_transpose(picture).convert("RGB")
        small.thumbnail((job.size, job.size))
        small.save(job.target, "JPEG", quality=85)
    # Image.DecompressionBombError is neither of the others.
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return Done(job, problem=str(error))
    return Done(job, *small.size)


def find_jobs(source: Path, target: Path, size: int) -> list[Job]:
    """Return a job for each picture below a folder; make the folders of their thumbnails."""
    jobs = []
    for path in sorted(source.rglob("*")):
        # Thumbnails of an earlier run may lie in there.
        if path.suffix.lower() in SUFFIXES and path.is_file() and target not in path.parents:
            # Two pictures may differ in their suffix only.
            thumbnail = target / path.relative_to(source).with_name(path.name + ".jpg")
            thumbnail.parent.mkdir(parents=True, exist_ok=True)
            jobs.append(Job(str(path), str(thumbnail), size))
    return jobs


def make_thumbnails(jobs: Iterable[Job], workers: int | None = None) -> list[Done]:
    """Do all jobs, as many at a time as there are workers."""
    with InterpreterPool(workers) as pool:
        return list(pool.map(make_thumbnail, jobs, chunksize=1))


def make_pictures(folder: Path, n: int = 8) -> None:
    """Save pictures to work with: colourful gradients, each a little different."""
    ramp = Image.linear_gradient("L").resize((1200, 800))
    for k in range(n):
        bands = ramp, ramp.rotate(180), Image.new("L", ramp.size, 255 * k // n)
        picture = Image.merge("RGB", bands).rotate(90 * (k % 2), expand=True)
        picture.save(folder / f"picture{k}{('.jpg', '.png')[k % 2]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the thumbnails that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="?", type=Path, help="a folder; those in it as well")
    parser.add_argument("target", nargs="?", type=Path, help="the folder for thumbnails")
    parser.add_argument("--demo", action="store_true", help="make pictures, and work on these")
    parser.add_argument("--size", type=int, default=128, help="longer side in pixels")
    parser.add_argument("--workers", type=int, help="default: as many as there are processors")
    options = parser.parse_args(argv)
    if options.demo != (options.target is None) or (options.demo and options.source):
        parser.error("name the pictures' folder and one for thumbnails, or --demo")
    if options.size < 1:
        parser.error("--size must be at least 1")
    if not options.demo and not options.source.is_dir():
        parser.error(f"{options.source} is not a folder")
    with tempfile.TemporaryDirectory() as folder:
        source = (options.source or Path(folder)).resolve()
        target = (options.target or Path(folder, "small")).resolve()
        if options.demo:
            make_pictures(source)
        try:
            done = make_thumbnails(find_jobs(source, target, options.size), options.workers)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    for result in done:
        name = Path(result.job.source).relative_to(source)
        print(f"{name}: {result.problem or f'{result.width} x {result.height}'}")
    return 1 if any(result.problem for result in done) else 0


if __name__ == "__main__":
    sys.exit(main())
