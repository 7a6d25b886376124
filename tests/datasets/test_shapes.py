"""The drawn figures: always the same, and told apart by their outline alone."""

import numpy as np

from rmlib.data import load
from rmlib.datasets import shapes, sources


def test_shapes_are_deterministic_balanced_and_marked():
    images, labels, masks = shapes.draw_images("train", 0, 200)
    again, _, _ = shapes.draw_images("train", 100, 200)
    assert np.array_equal(images[100:], again), (
        "an image does not depend on what was drawn before it"
    )
    assert not np.array_equal(images[:100], shapes.draw_images("test", 0, 100)[0])
    assert np.bincount(labels).tolist() == [20] * 10
    assert images.shape == (200, 3, 32, 32) and images.dtype == np.uint8
    assert (masks.sum((1, 2)) > 60).all(), "every figure is there"
    boxes = sources._mask_boxes(masks)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        assert mask[y1:y2, x1:x2].sum() == mask.sum() and mask[y1].any() and mask[:, x2 - 1].any()


def linear_accuracy(features, labels, test_features, test_labels):
    """Test accuracy of ridge regression on one-hot targets, in percent."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    x, z = ((f - mean) / std for f in (features, test_features))
    x, z = (np.concatenate([f, np.ones((len(f), 1))], axis=1) for f in (x, z))
    weights = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ np.eye(10)[labels])
    return 100 * np.mean((z @ weights).argmax(1) == test_labels)


def test_no_single_property_of_shapes_tells_the_class():
    train, test = (
        load("shapes", split=split).subset(count)
        for split, count in (("train", 5000), ("test", 2000))
    )

    def accuracy(feature):
        return linear_accuracy(
            feature(train), train.labels.numpy(), feature(test), test.labels.numpy()
        )

    def position_and_size(data):
        boxes, masks = data.boxes.numpy().astype(float), data.masks.numpy()
        centre = np.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], 1)
        return np.concatenate([centre, centre**2, masks.mean((1, 2))[:, None]], 1)

    def colour(data):
        pixels = data.images.numpy().astype(np.float32) / 255
        return np.concatenate(
            [
                pixels.mean((2, 3)),
                pixels.std((2, 3)),
                np.percentile(pixels, [5, 50, 95], axis=(2, 3))
                .transpose(1, 2, 0)
                .reshape(len(pixels), -1),
            ],
            1,
        )

    def texture(data):
        """Differences between neighbours both of which lie on the figure, in four directions."""
        grey, masks = data.images.numpy().mean(1), data.masks.numpy()
        inner = masks.copy()  # without the border, whose pixels are blended with the background
        for axis in (1, 2):
            for step in (-1, 1):
                inner &= np.roll(masks, step, axis)
        masks, features = inner, []
        for y, x in ((0, 1), (1, 0), (1, 1), (0, 2)):
            pairs = masks[:, y:, x:] & masks[:, : 32 - y, : 32 - x]
            steps = np.abs(grey[:, y:, x:] - grey[:, : 32 - y, : 32 - x]) * pairs
            features.append(steps.sum((1, 2)) / pairs.sum((1, 2)).clip(1))
        return np.stack(features, 1)

    def pixels(data):
        return data.images.numpy().reshape(len(data), -1) / 255.0

    assert accuracy(position_and_size) < 25  # chance is 10
    assert accuracy(colour) < 20
    assert accuracy(texture) < 20
    assert accuracy(pixels) < 35

    def outline(data):
        """The mask, cut to its box and brought to 12 x 12."""
        grids = []
        for mask, (x1, y1, x2, y2) in zip(data.masks.numpy(), data.boxes.tolist()):
            rows, columns = (
                np.linspace(y1, y2 - 1, 12).round().astype(int),
                np.linspace(x1, x2 - 1, 12).round().astype(int),
            )
            grids.append(mask[np.ix_(rows, columns)].ravel())
        return np.array(grids, dtype=float)

    assert accuracy(outline) > 90, "the outline does tell the class, and this test could see it"
