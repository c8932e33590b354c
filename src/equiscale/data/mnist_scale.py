"""MNIST-scale: the six published realisations, made from MNIST byte for byte.

Source:
    Sosnovik, Szmaja and Smeulders, 2020, "Scale-equivariant steerable networks".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from equiscale._files import atomic_path
from equiscale._machine import available_cores
from equiscale.citations import SESN
from equiscale.data.dataset import DatasetInfo, Preparation, Realisation
from equiscale.data.mnist import download_mnist, read_mnist_pool
from equiscale.data.root import data_root, prepare_command
from equiscale.data.scale_recipe import (
    DRAW_ORDER,
    Split,
    encode_pngs,
    make_splits,
    pngs_checksum,
    splits_checksum,
)
from equiscale.errors import ChecksumError, DataError, SettingError

NAME: Final = "mnist-scale"
FORMAT_VERSION: Final = "1"
SPLIT_SIZES: Final = {"train": 10_000, "val": 2_000, "test": 50_000}

# What safetensors raises beside its own error: for types of numbers that NumPy lacks, and odd names.
_DAMAGES: Final = (
    OSError, SafetensorError, ValueError, TypeError, AttributeError, LookupError, MemoryError
)  # fmt: skip

# MD5 over the bytes of the PNG files, in sorted order of their paths: the published checksums.
PUBLISHED_MD5: Final = (
    "00f60f1d99234b8fe8e5e1fe79306759",
    "f13da5cde237fb224846b8e0dd8188b2",
    "f06ad4b20d3f7d33f7b417cf7a1eb811",
    "eeb05f67093efae9f9b3f5a5617b2444",
    "5aa583af4e3c08a32f633bcb565823e5",
    "35ec90ad3cd9543123208cbb4a311233",
)

# SHA-256 over the arrays of the same six, taken when their PNG files had the published checksums.
CHECKSUMS: Final = (
    "732f86ffb41eb2cbf1d60ff5a2fc11cf090255590d8c6e24374bde0d790836d1",
    "0f1129ce629bb1b1f66eb5cb300af378d52f6a04e4ba57f17ffe8623fa219d30",
    "32cafa339d19ccd410b92c78d8bc522e8a5e6d25a1f3b83387c38cc7286680b2",
    "3c11bf6c974d27ad9cd2bb0c6257499c5e7883fb3ddced3fda3950e341bc9c9e",
    "6d6bd2855ad24d1928c641e189848ec6ae0759afdd5518dc4766916732e32ca1",
    "9696d00786b45bc766a561d2c17b9fa7d6d80fda1b384b3e551b767fec1b51b0",
)


@dataclass(frozen=True)
class Prepared:
    """What was done for one realisation.

    Args:
        realisation: Its number.
        path: Its file.
        reused: Whether a finished and valid file was there already.
        png_md5: The MD5 over the PNG files, or None where none were made. Where it differs from the
            published one although the arrays are right, this Pillow packs PNG files differently.
    """

    realisation: int
    path: Path
    reused: bool
    png_md5: str | None


@dataclass(frozen=True)
class _Job:
    realisation: int
    root: Path
    source: Path
    png: bool

    @property
    def path(self) -> Path:
        """The file to be made."""
        return realisation_path(self.root, self.realisation)


def realisation_path(root: Path, realisation: int) -> Path:
    """The file of a realisation in the folder of prepared data."""
    return root / NAME / f"realisation-{realisation}.safetensors"


def png_folder(root: Path, realisation: int) -> Path:
    """The folder of a realisation's PNG files, in the published layout."""
    return root / f"{NAME}-png" / f"seed_{realisation}" / "scale_0.3_1.0"


def prepare(
    root: Path | str | None = None,
    *,
    source: Path | str | None = None,
    download: bool = False,
    realisations: Sequence[int] = range(6),
    png: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Prepared]:
    """Make realisations from MNIST and check each against its published checksum.

    Several realisations are made by worker processes, so that a script calls this under
    ``if __name__ == "__main__":``. Realisations that are there and valid are left alone.

    Args:
        root: The folder of prepared data; ``None`` as for ``equiscale.data.data_root``.
        source: The folder of MNIST's four files; ``None`` for ``<root>/mnist``.
        download: Whether to download MNIST's files to ``<root>/mnist``.
        realisations: Which of 0…5.
        png: Whether to write the published PNG files too.
        progress: Called with a line of text after each step.

    Returns:
        What was done for each realisation, in increasing order.

    Raises:
        SettingError: If a realisation does not exist, or both ``source`` and ``download`` are given.
        DataError: If MNIST's files are missing or damaged.
        ChecksumError: If the result is not the published realisation.
    """
    chosen = _check_settings(realisations, source, download)
    folder, tell = data_root(root), progress or _ignore
    mnist = folder / "mnist" if source is None else Path(source)
    jobs = [_Job(realisation, folder, mnist, png) for realisation in chosen]
    done = {
        job: Prepared(job.realisation, job.path, reused=True, png_md5=None)
        for job in jobs
        if _is_finished(job)
    }
    missing = [job for job in jobs if job not in done]
    if missing and download:
        download_mnist(mnist, progress=tell)
    for job in done:
        tell(f"{NAME} {job.realisation}: {job.path} is there and valid")
    for job, result in _run(missing):
        done[job] = result
        tell(_told(result))
    return [done[job] for job in jobs]


def read_realisation(realisation: int, root: Path) -> Realisation:
    """Read a prepared realisation and check it.

    Raises:
        DataError: If the file is missing, unreadable or of another format version.
        ChecksumError: If its arrays are not the published ones.
    """
    path = realisation_path(root, realisation)
    mend = f"run: {prepare_command(NAME, root)} --download (or --source DIR with MNIST's four original files)"
    if not path.is_file():
        raise DataError(
            f"expected the prepared realisation {realisation} of {NAME} at {path}, got no file; {mend}"
        )
    try:
        splits, version = _read_arrays(path)
    except DataError:
        raise
    except _DAMAGES as error:
        raise DataError(f"expected a safetensors file of {NAME} at {path}, got: {error}; {mend}") from error
    if version != FORMAT_VERSION:
        raise DataError(f"expected format version {FORMAT_VERSION} in {path}, got {version}; {mend}")
    found = splits_checksum(splits)
    if found != CHECKSUMS[realisation]:
        raise ChecksumError(
            f"expected SHA-256 {CHECKSUMS[realisation]} of the arrays in {path}, found {found}: "
            f"the file is damaged; {mend}"
        )
    return Realisation(splits, found)


def _prepare(asked: Preparation) -> list[Prepared]:
    chosen = range(len(PUBLISHED_MD5)) if asked.realisations is None else asked.realisations
    return prepare(
        asked.root,
        source=asked.source,
        download=asked.download,
        realisations=chosen,
        png=asked.png,
        progress=asked.progress,
    )


INFO: Final = DatasetInfo(
    name=NAME,
    title="MNIST's digits, scaled by a factor of 0.3 to 1",
    citation=SESN,
    licence="MNIST: CC BY-SA 3.0",
    image_shape=(1, 28, 28),
    num_classes=10,
    split_sizes=SPLIT_SIZES,
    realisations=len(PUBLISHED_MD5),
    mean=0.0607,  # both as published
    std=0.2161,
    read=read_realisation,
    prepare=_prepare,
)


def _make(job: _Job) -> Prepared:
    """Make one realisation's file, and its PNG folder where that is wanted; runs in a worker process."""
    splits = _stored(job) or make_splits(
        *read_mnist_pool(job.source), sizes=SPLIT_SIZES, seed=job.realisation
    )
    pngs = encode_pngs(splits)
    png_md5 = pngs_checksum(pngs)
    _check_published(job, splits, png_md5)
    with atomic_path(job.path) as path:
        path.write_bytes(save(_tensors(splits), _metadata(job.realisation, png_md5)))
    if job.png:
        _write_pngs(png_folder(job.root, job.realisation), pngs)
    return Prepared(job.realisation, job.path, reused=False, png_md5=png_md5)


def _run(jobs: Sequence[_Job]) -> Iterator[tuple[_Job, Prepared]]:
    """The results as they come, made by one process a core; a single job needs no process."""
    if len(jobs) <= 1:
        yield from ((job, _make(job)) for job in jobs)
        return
    # Spawned, because a forked process may inherit PyTorch's locks in any state.
    with ProcessPoolExecutor(min(len(jobs), available_cores()), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_make, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "expected the worker processes to finish, got one that ended early; call prepare() under "
                "'if __name__ == \"__main__\":', or prepare one realisation at a time"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _check_published(job: _Job, splits: Mapping[str, Split], png_md5: str) -> None:
    """The arrays decide: PNG files of the same images may be packed differently by another Pillow."""
    expected, found = CHECKSUMS[job.realisation], splits_checksum(splits)
    if found != expected:
        raise ChecksumError(
            f"expected the published realisation {job.realisation}, with the PNG MD5 "
            f"{PUBLISHED_MD5[job.realisation]} and arrays of SHA-256 {expected}, found PNG MD5 {png_md5} and "
            f"arrays of {found}: the installed NumPy, scikit-learn or Pillow gives other images; "
            "install the versions that constraints.txt names"
        )


def _is_finished(job: _Job) -> bool:
    return _stored(job) is not None and (not job.png or _pngs_are_there(job))


def _stored(job: _Job) -> Mapping[str, Split] | None:
    """The splits of a finished and valid file."""
    try:
        return read_realisation(job.realisation, job.root).splits
    except DataError:
        return None


def _pngs_are_there(job: _Job) -> bool:
    folder = png_folder(job.root, job.realisation)
    files = {path.relative_to(folder).as_posix(): path for path in folder.glob("*/*/*.png")}
    return pngs_checksum({name: files[name].read_bytes() for name in sorted(files)}) == _recorded_png_md5(job)


def _recorded_png_md5(job: _Job) -> str:
    with safe_open(job.path, framework="numpy") as stored:
        return str((stored.metadata() or {}).get("png_md5"))


def _write_pngs(folder: Path, pngs: Mapping[str, bytes]) -> None:
    with atomic_path(folder) as temporary:
        for label in {Path(name).parent for name in pngs}:
            (temporary / label).mkdir(parents=True)
        for name, content in pngs.items():
            (temporary / name).write_bytes(content)


def _tensors(splits: Mapping[str, Split]) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for name in DRAW_ORDER:
        tensors[f"{name}.images"] = splits[name].images[:, None]  # (N, H, W) -> (N, C, H, W)
        tensors[f"{name}.labels"] = splits[name].labels
        tensors[f"{name}.factors"] = splits[name].factors
    return tensors


def _metadata(realisation: int, png_md5: str) -> dict[str, str]:
    return {
        "dataset": NAME,
        "realisation": str(realisation),
        "format_version": FORMAT_VERSION,
        "checksum": CHECKSUMS[realisation],
        "published_md5": PUBLISHED_MD5[realisation],
        "png_md5": png_md5,
    }


def _read_arrays(path: Path) -> tuple[dict[str, Split], str | None]:
    with safe_open(path, framework="numpy") as stored:
        splits = {name: _read_split(stored, name, path) for name in DRAW_ORDER}
        return splits, (stored.metadata() or {}).get("format_version")


def _read_split(stored: safe_open, name: str, path: Path) -> Split:
    count = SPLIT_SIZES[name]
    wanted = {
        "images": ("U8", (count, *INFO.image_shape)),
        "labels": ("U8", (count,)),
        "factors": ("F64", (count,)),
    }
    arrays = {}
    for kind, (dtype, shape) in wanted.items():
        header = stored.get_slice(f"{name}.{kind}")  # type: ignore[no-untyped-call]
        found = header.get_dtype(), tuple(header.get_shape())
        if found != (dtype, shape):
            raise DataError(
                f"expected {name}.{kind} of {dtype} {shape} in {path}, got {found[0]} {found[1]}; "
                f"prepare it again: {prepare_command(NAME, path.parents[1])}"
            )
        arrays[kind] = stored.get_tensor(f"{name}.{kind}")  # type: ignore[no-untyped-call]
    return Split(images=arrays["images"][:, 0], labels=arrays["labels"], factors=arrays["factors"])


def _told(result: Prepared) -> str:
    published = PUBLISHED_MD5[result.realisation]
    if result.png_md5 == published:
        return f"{NAME} {result.realisation}: {result.path} has the published checksum {published}"
    return (
        f"{NAME} {result.realisation}: {result.path} holds the published images; this Pillow packs their PNG "
        f"files differently (MD5 {result.png_md5} instead of {published})"
    )


def _check_settings(realisations: Sequence[int], source: Path | str | None, download: bool) -> list[int]:
    known = range(len(PUBLISHED_MD5))
    for realisation in realisations:
        if realisation not in known:
            raise SettingError(f"expected realisations of {list(known)}, got {realisation}")
    if source is not None and download:
        raise SettingError(f"expected either a source or a download, got both: {source} and download=True")
    return sorted(set(realisations))


def _ignore(_: str) -> None:
    """Progress that nobody asked for."""
