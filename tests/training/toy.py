"""A small training that takes no time, for one process or, as a program under torchrun, for several."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.data.loader import WHOLE, Piece, as_pixels, batches_of
from unclip.data.pictures import PictureBatch, PictureConfig, open_pictures
from unclip.training.config import TrainingConfig
from unclip.training.draws import Draws
from unclip.training.loop import train
from unclip.training.metrics import METRICS, loss_by_step
from unclip.training.processes import crew, together

CONFIG = TrainingConfig(
    num_steps=12, batch_size=8, learning_rate=0.05, warmup_steps=3, log_every=1, checkpoint_seconds=1e9, device="cpu", ema_decays=(0.9, 0.5), tracker="none"
)
DATA = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
NETWORK = {"widths": [4, 16, 1]}

# what two processes are asked to do, each in a folder of its own
TOGETHER: Mapping[str, TrainingConfig] = {
    "ddp": dataclasses.replace(CONFIG, device="auto"),
    "ddp-accumulate": dataclasses.replace(CONFIG, accumulate=2),
    "ddp-muon": dataclasses.replace(CONFIG, optimizer="muon"),
    "fsdp": dataclasses.replace(CONFIG, parallel="fsdp", accumulate=2),
    "begun-by-two": dataclasses.replace(CONFIG, parallel="fsdp", max_steps=5),
    "begun-by-one": dataclasses.replace(CONFIG, parallel="fsdp"),
}
# and on pictures, each with a worker that reads ahead
PICTURES = dataclasses.replace(CONFIG, learning_rate=1e-4, accumulate=2)


def loss_fn(model: nn.Module, batch: Tensor, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
    i = (draws.uniform(len(batch)) * 100).long()
    noise = draws.normal(*batch.shape) * 0.1
    errors = (model(batch + noise) - batch.sum(1, keepdim=True)).square().mean(dim=1)
    return errors.mean(), loss_by_step(errors, i, 100) | {"twice": 2 * errors.detach().mean()}


def batches(start: int, own: Piece = WHOLE) -> Iterator[Tensor]:
    return (DATA[torch.from_numpy(rows)] for rows in batches_of(len(DATA), CONFIG.batch_size, seed=3, start=start, piece=own))


def train_toy(folder: Path, config: TrainingConfig) -> Path:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 1))
    return train(folder, model=model, kind="toy", network=NETWORK, loss_fn=loss_fn, batches=batches, config=config)


def picture_loss(model: nn.Module, batch: PictureBatch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
    batch = batch.to(torch.device("cpu"))
    pixels = as_pixels(batch.pictures)
    errors = (model(pixels + draws.normal(*pixels.shape)) - batch.image_emb).square().mean(dim=1)
    return errors.mean(), {"length": batch.text_emb.mean()}


def train_on_pictures(folder: Path, config: TrainingConfig, pairs: Path, num_workers: int) -> Path:
    """The same on the pictures of `tests.data.pairs`, windows of 4 of 8 pixels, some of them mirrored."""
    pictures = open_pictures(
        pairs / "shards", pairs / "store", PictureConfig(flip=True), split="train", image_size=8, crop=0.5, text_tokens=True, seed=config.seed
    )

    def read(start: int, own: Piece) -> Iterator[PictureBatch]:
        return pictures.batches(config.batch_size, start=start, piece=own, num_workers=num_workers)

    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Linear(16, 4))
    return train(folder, model=model, kind="toy", network=NETWORK, loss_fn=picture_loss, batches=read, config=config)


def rows_of(folder: Path) -> list[dict[str, float | None]]:
    """The metrics beside the newest checkpoint."""
    last = checkpoint.step_folder(folder, checkpoint.steps_of(folder)[-1])
    rows: list[dict[str, float | None]] = pq.read_table(last / METRICS).to_pylist()
    return rows


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights and all averages of the newest checkpoint."""
    last = checkpoint.step_folder(folder, checkpoint.steps_of(folder)[-1])
    return {f"{file.name} {name}": value for file in sorted(last.glob("*.safetensors")) for name, value in checkpoint.read_tensors(file).items()}


def main(folder: Path) -> None:
    with crew() as leads:
        if leads:
            for name, config in TOGETHER.items():
                together(train_toy, folder / name, config)
            together(train_on_pictures, folder / "pictures", PICTURES, folder / "pairs", 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
