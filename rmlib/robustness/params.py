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

    images: Limit = Field(200, ge=1, description="test images, drawn by the seed; None or all: all")
    eps: list[Eps] = Field(["0", "8/255", "32/255"], description="perturbations of FGSM and PGD")
    square_eps: list[Eps] = Field(["8/255"], min_length=1, description="perturbations of Square")
    queries: Int = Field(100, ge=1, description="of Square about an image; 100 in the paper")
    check_images: Limit = Field(None, ge=1, description="of them under PGD; None or all: all")
    autoattack_images: Int = Field(
        4, ge=0, description="of them under AutoAttack: seconds for each on a CPU; 0: none"
    )
    autoattack_eps: list[Eps] = Field(["32/255"], description="perturbations of AutoAttack")
    batch_size: Int = Field(200, ge=1, description="images attacked together: for speed and memory")

    @field_validator("eps")
    @classmethod
    def _moves(cls, sizes):
        if set(sizes) <= {"0"}:
            raise ValueError("expected at least one size above 0")
        return sizes
