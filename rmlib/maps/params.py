"""Parameters of the maps and their measures: of notebook 04_cam."""

from pydantic import Field

from rmlib.params import Int, Limit, NetworksParams

# 04_cam on the paper's networks, in the same two ways; ROAD's list of images is that of `perturbed`
FULL_CAM = {"measured": 1000, "perturbed": 500}


class CamParams(NetworksParams):
    """Parameters of 04_cam."""

    images: Int = Field(6, ge=1, le=40, description="images in the figures, drawn by the seed")
    measured: Limit = Field(
        200, ge=2, description="images whose maps are measured, drawn by the seed; None or all: all"
    )
    perturbed: Limit = Field(
        24, ge=2, description="of them changed and shown to the network again; None or all: all"
    )
    layer: str = Field("layer4", description="module that is explained; layer4 in the paper")
    beside: str = Field("layer3", description="a second one, shown beside it")
    k: Int = Field(2, ge=2, description="tiles per side of the grid whose trace is looked for")
