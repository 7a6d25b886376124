"""The parameters of a run: one table of names, types, defaults and help.

Notebooks, batches and the command line all read it, through :mod:`rmlib.study.settings`. Nothing
here imports torch, so that a mistake is answered in a fraction of a second.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from rmlib import ALPHAS, brief
from rmlib.paths import expanded, runs_dir

DATASETS = ("shapes", "cifar10", "cifar100", "tiny-imagenet")
MixerName = Literal["none", "mixup", "cutmix", "region_mixup"]
MIXERS: tuple[str, ...] = get_args(MixerName)
_REGION = ("k", "regions", "per_sample", "shared_partner", "shared_weight")
# parameter -> the one mixer for which it does something
OWNERS = dict.fromkeys(_REGION, "region_mixup") | {"cutmix_prob": "cutmix"}


def _number(value: Any) -> Any:
    """Accept 8/255 and 1e-3 as text, as papermill and YAML deliver them; refuse yes and no."""
    if type(value).__name__ in ("bool", "bool_"):  # numpy's, too
        raise ValueError("expected a number")
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ArithmeticError):
            raise ValueError("expected a number such as 0.03 or 8/255") from None
    if isinstance(value, str) and re.fullmatch(r"\d+ *(\.\.+|[-:,]) *\d+", value):
        raise ValueError("expected a number, or in a batch a list of them, such as [0, 1, 2]")
    return value


def _optional(value: Any) -> Any:
    """Accept the words none and all for "no limit", as a command line says it."""
    return None if isinstance(value, str) and value.lower() in ("none", "all") else _number(value)


def _in_64_bits(number: int) -> int:
    """What torch takes as a seed, and tables as a number."""
    if number >= 2**63:
        raise ValueError(f"expected at most {2**63 - 1}")
    return number


def _drawn_from(alpha: float) -> float:
    if not ALPHAS[0] <= alpha <= ALPHAS[1]:
        raise ValueError("expected 1e-300 to 1e+300, beyond which Beta cannot be drawn from")
    return alpha


def _home(path: str) -> str:
    """``~`` as the folder that it means; anything else stays as it is written."""
    return str(expanded(path)) if path.startswith("~") else path


Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Alpha = Annotated[Float, Field(gt=0), AfterValidator(_drawn_from)]
_Whole = Annotated[int, AfterValidator(_in_64_bits)]
Int = Annotated[_Whole, BeforeValidator(_number)]
Limit = Annotated[_Whole | None, BeforeValidator(_optional)]
Folder = Annotated[str, AfterValidator(_home)]


def eps_text(value: object) -> str:
    """A perturbation size as text: n/255 where it is one, so that 8/255 stays 8/255.

    Raises:
        ValueError: no number, or outside [0, 1].
    """
    try:
        text = str(value).replace(" ", "")
        # through float: Fraction would write out every zero of 1e-999999999
        exact = Fraction(text if "/" in text else str(float(text)))
    except (ValueError, ArithmeticError):
        exact = Fraction(-1)
    if not 0 <= exact <= 1:
        raise ValueError("expected a size on the scale of pixels in [0, 1], such as 8/255 or 0.03")
    levels = exact * 255
    if abs(levels - round(levels)) < Fraction(1, 10**6):
        return f"{round(levels)}/255" if levels else "0"
    return str(float(exact))


Eps = Annotated[str, BeforeValidator(eps_text)]
Device = Literal["auto", "cpu", "cuda"]
ROOT = "folder of the datasets (default: $RMLIB_DATA, then data/)"


def nearest(name: object, valid: Iterable[str]) -> str:
    """Remedy for a misspelt name: the closest valid one, or all of them."""
    for spelling in (str(name).lower().replace("-", "_"), str(name)):
        close = difflib.get_close_matches(spelling, list(valid), n=1, cutoff=0.5)
        if close:
            return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(valid)}"


class Params(BaseModel):
    """Parameters of a notebook: nothing unknown is accepted, nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataParams(Params):
    """Parameters of the notebooks that name a dataset."""

    dataset: str = Field("shapes", description=", ".join([*DATASETS, "folder:PATH"]))
    root: Folder | None = Field(None, description=ROOT)
    allow_partial: bool = Field(False, description="accept a part of a named dataset, for lessons")

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        if name not in DATASETS and not name.startswith("folder:"):
            raise ValueError(nearest_dataset(name))
        without_path(name)
        return name


def nearest_dataset(name: str) -> str:
    """Remedy for an unknown dataset: a path needs its "folder:"."""
    if os.path.exists(name) or "/" in name:
        return f"did you mean 'folder:{name}'?"
    return nearest(name, (*DATASETS, "folder:PATH"))


def without_path(dataset: str) -> str:
    """A dataset as a configuration names it: a folder or zip by its name alone.

    Raises:
        ValueError: a folder without a name, or with one that cannot be read back.
    """
    kind, _, path = dataset.partition(":")
    if kind != "folder":
        return dataset
    name = Path(os.path.abspath(expanded(path))).name.removesuffix(".zip") if path else ""
    if not name or name.startswith("~"):
        raise ValueError("expected folder:PATH, and a name at its end that does not begin with ~")
    return f"folder:{name}"


class TrainParams(DataParams):
    """Parameters of 02_training: one run of one mixer."""

    # what is learned
    mixer: MixerName = Field("region_mixup", description=", ".join(MIXERS))
    k: Int = Field(2, ge=1, description="region_mixup: tiles per side")
    alpha: Alpha = Field(1.0, description="of Beta(alpha, alpha), the distribution of lam")
    regions: Literal["grid", "random"] = Field(
        "grid", description="region_mixup: equal or random tiles"
    )
    per_sample: bool = Field(False, description="region_mixup: other weights for every image")
    shared_partner: bool = Field(False, description="region_mixup: one partner for all tiles")
    shared_weight: bool = Field(False, description="region_mixup: one weight for all tiles")
    cutmix_prob: Float = Field(1.0, ge=0, le=1, description="cutmix: share of batches mixed")
    clean_weight: Float = Field(
        1.0, ge=0, le=1e38, description="weight of the clean loss; 0: mixed alone"
    )
    average: bool = Field(False, description="divide the loss by 1 + clean_weight")
    # with what network and how long
    width: Int = Field(8, ge=1, le=4096, description="channels of the first stage; 64 in the paper")
    stem_stride: Int = Field(1, ge=1, description="stride of the first convolution")
    final_norm: bool = Field(False, description="BN-ReLU before the pooling")
    epochs: Int = Field(6, ge=1, description="length of the schedule; 400 in the paper")
    batch_size: Int = Field(25, ge=2, description="images per step; 128 in the paper")
    schedule: Literal["multistep", "onecycle"] = Field(
        "onecycle", description="multistep (paper) or onecycle (short lessons)"
    )
    milestones: list[Float] = Field(
        [0.25, 0.375], description="multistep: shares of the schedule at which lr is divided by 10"
    )
    lr: Float = Field(0.03, gt=0, le=1e38, description="peak learning rate; 0.1 in the paper")
    momentum: Float = Field(0.9, ge=0, lt=1, description="of SGD, without Nesterov")
    weight_decay: Float = Field(5e-4, ge=0, le=1e38, description="on all parameters")
    # on which images
    seed: Int = Field(0, ge=0, description="of initialisation, order, augmentation and mixing")
    train_images: Limit = Field(
        2000,
        ge=2,
        description="training images, balanced; None or all: all, the default for folder:PATH",
    )
    test_images: Limit = Field(None, ge=1, description="test images, balanced; None or all: all")
    augment: bool = Field(True, description="zero-pad 2, random crop, random flip")
    holdout: bool = Field(False, description="evaluate on a tenth kept out of training: for tuning")
    # how it is measured and computed
    eval_every: Int = Field(1, ge=0, description="epochs between evaluations; 0: only the end")
    snapshots: list[Int] = Field([], description="epochs after which a full evaluation is stored")
    bn_recalibration: bool = Field(False, description="also with BatchNorm of clean images")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of training; the end is fp32")
    threads: Int = Field(1, ge=1, le=1024, description="CPU threads of the run")
    # where and how long: not part of the run's identity
    device: Device = Field("auto", description="auto: cuda where there is one")
    compiled: bool = Field(False, description="compile network and mixing: faster on a GPU")
    out: Folder | None = Field(
        None, description="folder for the run's folder (default: runs/single)"
    )
    max_minutes: Float | None = Field(None, gt=0, description="minutes until it is stopped")
    robustness: bool = Field(False, description="then attack it and measure its maps: hours")
    measured_images: Limit = Field(
        None, ge=1, description="robustness: test images, drawn by seed 0; None or all: all"
    )

    RUNTIME: ClassVar = {"root", "device", "compiled", "out", "max_minutes"}
    RUNTIME |= {"robustness", "measured_images"}

    @model_validator(mode="before")
    @classmethod
    def _all_of_a_folder(cls, given: Any) -> Any:
        """Of somebody's own images none is left out unasked."""
        own = isinstance(given, dict) and str(given.get("dataset")).startswith("folder:")
        return {"train_images": None, **given} if own else given

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainParams":
        wrong, mixer = [], self.mixer
        for name, owner in OWNERS.items():
            if owner != mixer and not self._is_default(name):
                words = f"does nothing for mixer '{mixer}' (it belongs to '{owner}')"
                wrong.append(f"{name}={getattr(self, name)} {words}")
        if mixer == "none" and not self._is_default("alpha"):
            wrong.append(f"alpha={self.alpha} does nothing for mixer 'none'")
        if self.measured_images is not None and not self.robustness:
            wrong.append(f"measured_images={self.measured_images} does nothing without robustness")
        shares = self.milestones
        if shares != sorted(set(shares)) or any(not 0 < share < 1 for share in shares):
            remedy = "expected growing shares of the schedule, e.g. [0.25, 0.375]"
            wrong.append(f"milestones={brief(shares)}: {remedy}")
        beyond = [epoch for epoch in self.snapshots if not 1 <= epoch <= self.epochs]
        if beyond:
            wrong.append(f"snapshots: epoch {beyond[0]} is not in 1..{self.epochs}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == type(self).model_fields[name].default)

    @property
    def config(self) -> dict[str, Any]:
        """What identifies the run: what can change its result, without paths of the machine."""
        return self.model_dump(exclude=self.RUNTIME) | {"dataset": without_path(self.dataset)}

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits from the configuration: the name of the run's folder."""
        return config_id(self.config)

    @property
    def folder(self) -> Path:
        """Where the run keeps checkpoint, weights and record."""
        return (Path(self.out) if self.out else runs_dir() / "single") / self.run_id


class NetworksParams(Params):
    """Parameters of the notebooks that look at trained networks."""

    runs: Folder | None = Field(None, description="folder of trained runs (default: results/quick)")
    clean_weight: Annotated[float | None, BeforeValidator(_optional)] = Field(
        1.0, ge=0, description="only runs with this weight of the clean loss; None or all: all"
    )
    seed: Int = Field(0, ge=0, description="of the choice of images and of random measurements")
    root: Folder | None = Field(None, description=ROOT)
    device: Device = Field("auto", description="auto: cuda where there is one")
    threads: Int = Field(1, ge=1, le=1024, description="CPU threads")
    save: bool = Field(False, description="store results with the run, and load stored ones")


# parameters younger than the first records, with the value that those records mean
ADDED = {"allow_partial": False}


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """A stored training configuration with the parameters that have been added since."""
    return {**ADDED, **config}


def config_id(config: dict[str, Any]) -> str:
    """Hash of a training configuration.

    A younger parameter counts only where it differs, so that older ids stay.
    """
    hashed = {name: value for name, value in config.items() if (name, value) not in ADDED.items()}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """The allowed words of a field, or ()."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
