"""The recipes of "Use it in your loop", run as they stand on the page, with the real libraries."""

import importlib
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from batches import generator
from pages import section, snippets, text_of
from torch import multiprocessing, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rmlib.mixers import NoMix, RegionMixup

PAGE = section(text_of("rmlib/README.md"), "## Use it in your loop")
RECIPES = {
    heading: snippets(section(PAGE, f"### {heading}"))
    for heading in (line[4:] for line in PAGE.splitlines() if line.startswith("### "))
}


class Seen(nn.Module):
    """A linear network that remembers its batches."""

    def __init__(self):
        super().__init__()
        self.linear, self.batches = nn.Linear(3 * 8 * 8, 10), []

    def forward(self, images):
        self.batches.append(images)
        return self.linear(images.flatten(1))


def samples(count=12):
    images = torch.rand(count, 3, 8, 8, generator=generator())
    return [(image, i % 10) for i, image in enumerate(images)]


@pytest.fixture
def names(monkeypatch):
    """What the recipes take as given, with a loss that remembers its targets."""
    torch.manual_seed(0)
    model, losses = Seen(), []

    def cross_entropy(logits, targets):
        losses.append((logits, targets))
        return F.cross_entropy(logits, targets)

    model.losses = losses
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "dataset": samples(),
        "loader": DataLoader(samples(), batch_size=6),
        "mix": RegionMixup(num_classes=10, k=2),
        "cross_entropy": cross_entropy,
        "criterion": nn.CrossEntropyLoss(reduction="none"),
        **{"epochs": 8, "last_mixed": 6, "seed": 0, "rank": 1},
    }


def run(heading, names):
    """Run the recipe under a heading of the page."""
    (code,) = RECIPES[heading]
    kept = names["cross_entropy"]
    exec(code.replace("from torch.nn.functional import cross_entropy\n", ""), names)
    assert names["cross_entropy"] is kept
    return names


def test_the_loop_trains_on_mixed_images_alone(names):
    before = names["model"].linear.weight.clone()
    run("Loop", names)
    assert torch.equal(names["model"].batches[-1], names["mixed"])
    assert names["targets"].shape == (6, 10) and names["targets"].dtype == torch.float32
    assert not torch.equal(before, names["model"].linear.weight)


def test_the_loss_of_the_paper_has_the_clean_batch_first(names):
    run("Paper", names)
    clean, mixed = names["model"].batches[-2:]
    assert torch.equal(clean, names["images"]) and torch.equal(mixed, names["mixed"])
    assert names["loss"] > names["clean"] > 0


def test_workers_mix_in_the_collate_fn(names):
    run("Workers", names)
    assert names["targets"].shape == (12, 10)
    assert not torch.equal(names["images"], torch.stack([image for image, _ in samples()]))


def test_half_of_the_batches_are_mixed_and_none_at_the_end(names):
    names["loader"] = [next(iter(names["loader"]))] * 10
    seen, mixer = [], NoMix(10)

    class Watched(RegionMixup):
        def __call__(self, *batch):
            seen.append(1)
            return super().__call__(*batch)

    names["mix"] = Watched(10)
    run("Sometimes", names)
    assert 15 < len(seen) < 45, "of 60 batches in the first six of eight epochs"
    assert torch.equal(names["mixed"], mixer(names["images"], names["labels"])[0])


def test_any_loss_weighted_by_the_plan_is_cross_entropy_of_the_targets(names):
    for mix in (names["mix"], RegionMixup(10, per_sample=True)):
        names["mix"] = mix
        run("Any loss", names)
        _, targets = mix.apply(names["images"], names["labels"], names["plan"])
        torch.testing.assert_close(names["loss"], F.cross_entropy(names["logits"], targets))


def test_masks_are_mixed_with_their_images(names):
    """Images that show nothing but their masks: the mixed ones must show the mixed masks."""
    masks = torch.randint(0, 3, (6, 8, 8), generator=generator())
    names |= {"masks": masks, "mask_classes": 3, "labels": torch.arange(6)}
    names["images"] = F.one_hot(masks, 3).movedim(-1, 1).float()
    run("Masks", names)
    torch.testing.assert_close(names["mixed_masks"], names["mixed"])
    torch.testing.assert_close(names["mixed_masks"].sum(1), torch.ones(6, 8, 8))
    assert F.cross_entropy(names["mixed"], names["mixed_masks"]) > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_lightning(names, precision):
    lightning = pytest.importorskip("pytorch_lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    module = run("Lightning", names)["Network"](names["model"])
    module.validation_step = lambda batch, batch_idx: names.update(validated=batch[1])
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        accelerator="cpu", precision=precision, max_epochs=1, **dict.fromkeys(quiet, False)
    )
    trainer.fit(module, names["loader"], names["loader"])
    logits, targets = names["model"].losses[-1]
    assert targets.shape == (6, 10) and targets.dtype == torch.float32
    assert logits.dtype == (torch.bfloat16 if "bf16" in precision else torch.float32)
    assert names["validated"].shape == (6,), "what is evaluated is not mixed"
    assert torch.get_default_dtype() == torch.float32


def test_timm(names):
    pytest.importorskip("timm")
    run("timm", names)
    logits = names["model"](names["mixed"])
    torch.testing.assert_close(names["loss"], F.cross_entropy(logits, names["targets"]))
    mixup = importlib.import_module("timm.data.mixup").Mixup
    # as the table says of timm
    theirs, images = mixup(num_classes=10), names["images"].clone()
    assert theirs(images, names["labels"])[0] is images
    with pytest.raises(AssertionError, match="even"):
        theirs(images[:3], names["labels"][:3])


def test_hugging_face(names, tmp_path, monkeypatch):
    """Two steps, and what a model's own loss would be on soft labels: another one."""
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    # on the path of these tests "datasets" is a folder of theirs
    monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "image_size": 8, "patch_size": 4}
    depth = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_labels": 10}
    names["model"] = transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, **depth)
    )
    names["samples"] = [{"pixel_values": image, "labels": label} for image, label in samples()]
    names["arguments"] = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=6,
        max_steps=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    losses = []

    def cross_entropy(logits, targets):
        losses.append((logits, targets))
        return F.cross_entropy(logits, targets)

    names["cross_entropy"] = cross_entropy
    trainer = run("Hugging Face", names)["trainer"]
    assert trainer.state.global_step == 2 == len(losses)
    assert all(targets.shape == (6, 10) for _, targets in losses)
    trainer.evaluate(names["samples"])
    assert losses[-1][1].dtype == torch.int64, "what is evaluated is not mixed"

    batch = RegionMixup(10)(trainer.data_collator(names["samples"]))
    outputs = names["model"](**batch)
    own = F.binary_cross_entropy_with_logits(outputs.logits, batch["labels"])
    torch.testing.assert_close(outputs.loss, own)
    assert not torch.isclose(outputs.loss, F.cross_entropy(outputs.logits, batch["labels"]))


def test_batches_of_hugging_face_stay_what_they_are():
    transformers = pytest.importorskip("transformers")
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    kind = transformers.BatchFeature
    mixed = RegionMixup(10)(kind({"pixel_values": images, "labels": labels}))
    assert type(mixed) is kind and mixed.labels.shape == (4, 10)


def test_the_mixing_is_compiled(names, monkeypatch):
    """Captured by dynamo without its backend, so that no compiler is needed."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    run("Compiled", names)
    assert names["mixed"].shape == (6, 3, 8, 8) and not torch.equal(names["mixed"], names["images"])
    torch.testing.assert_close(names["targets"].sum(1), torch.ones(6))


def train_rank(rank, folder):
    """One rank: the same seed and network on every rank, and the recipe's own generator."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    place = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    model = Seen()
    names = {"model": nn.parallel.DistributedDataParallel(model), "seed": 0, "rank": rank}
    names |= {"mix": RegionMixup(10), "cross_entropy": F.cross_entropy}
    names["loader"] = DataLoader(samples(6), batch_size=6)
    run("DDP", names)
    names["loss"].backward()
    lam = RegionMixup(10).draw((6, 3, 8, 8)).lam
    torch.save([names["targets"], model.linear.weight.grad, lam], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_of_ddp_mix_differently_and_share_the_gradient(tmp_path):
    multiprocessing.start_processes(train_rank, (str(tmp_path),), 2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert not torch.equal(first[0], second[0]), "the targets of each"
    assert torch.equal(first[1], second[1]), "the gradient of both"
    assert torch.equal(first[2], second[2]), "what both would draw from torch's generator"


def test_every_recipe_is_tested():
    text = Path(__file__).read_text()
    assert sum(map(bool, RECIPES.values())) == 11
    untested = [name for name, code in RECIPES.items() if code and f'run("{name}"' not in text]
    assert not untested
