"""Parameters of the attacks and corruptions: of notebook 03_robustness."""

from pydantic import Field, field_validator

from rmlib.params import Eps, Int, Limit, NetworksParams

# 03_robustness as the paper's networks are measured: by their batches, and by `rmlib train
# --robustness` right after a training
FULL_ROBUSTNESS = {
    "images": None,
    "eps": ["0", "1/255", "2/255", "4/255", "8/255", "16/255", "32/255"],
    "square_eps": ["2/255", "4/255", "8/255"],
    "check_images": 1000,
    "autoattack_images": 200,
    "autoattack_eps": ["8/255"],
    "batch_size": 500,
}


class RobustnessParams(NetworksParams):
    """Parameters of 03_robustness."""

    images: Limit = Field(
        200,
        ge=1,
        description=(
            "test images under FGSM, Square and corruptions, drawn by the seed; None or all:"
            " every one"
        ),
    )
    eps: list[Eps] = Field(
        ["0", "8/255", "32/255"],
        description="sizes of the perturbation for FGSM and for PGD, which checks it",
    )
    square_eps: list[Eps] = Field(
        ["8/255"], min_length=1, description="sizes of the perturbation for Square"
    )
    queries: Int = Field(
        100, ge=1, description="Square: evaluations of perturbed images per image; 100 in the paper"
    )
    check_images: Limit = Field(
        None, ge=1, description="how many of the images PGD attacks; None or all: every one"
    )
    autoattack_images: Int = Field(
        4,
        ge=0,
        description="how many of them AutoAttack attacks: seconds per image on a CPU; 0: none",
    )
    autoattack_eps: list[Eps] = Field(
        ["32/255"], description="sizes of the perturbation for AutoAttack"
    )
    batch_size: Int = Field(200, ge=1, description="images attacked together: for speed and memory")

    @field_validator("eps")
    @classmethod
    def _moves(cls, sizes):
        if set(sizes) <= {"0"}:
            raise ValueError("expected at least one size above 0")
        return sizes
