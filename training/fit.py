"""Fit a session model with Lightning: whole sessions or session-parallel steps, one loss, one optimiser.

A checkpoint is written at each epoch's end, and a training that finds one goes on from it. What an epoch draws follows
from the seed and the number of the epoch alone, so the weights come out as if nothing had happened.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from features.sequences import Sequences
from pipeline.errors import ContractError
from pipeline.terminal import log
from training.adagrad import MomentumAdagrad
from training.batch import Batch, gather, plan_batches
from training.checkpoint import TRAINING, check_checkpoint, training_mark
from training.durations import duration_weights
from training.faults import diverged, explained
from training.models.base import SessionModel
from training.models.item_table import ItemTable
from training.objective import NextItem
from training.recipes import SequenceRecipe
from training.session_parallel import Step, parallel_steps

CHECKPOINT, BEST = "last", "best"
PRIORS_A_BATCH = 16
SHARE_OF_TOLD = 0.07  # of Adagrad's rate
STEPS_UNREAD = 100  # on an accelerator: reading a loss waits for all that was asked of it before

Losses = dict[str, float]
Report = Callable[[int, Losses], None]
"""Takes the number of an epoch, from 0, and its mean losses."""


class EarlyStop(NamedTuple):
    """When to stop a training whose epochs are not fixed; its best epoch is kept."""

    measure: Callable[[], Losses]
    """Metrics of the model as it stands."""
    metric: str
    """The one that shall rise."""
    patience: int
    """Epochs that may pass without a rise."""
    gives_up: Callable[[int, float], bool] = lambda epoch, value: False
    """Whether to go no further after an epoch, from 0, with that value of the metric."""

    def callbacks(self, folder: Path) -> list[lightning.Callback]:
        """Lightning's own means to this end."""
        best = ModelCheckpoint(folder, BEST, monitor=self.metric, mode="max", enable_version_counter=False)
        stop = EarlyStopping(self.metric, mode="max", patience=self.patience, check_on_train_epoch_end=True)
        return [best, stop]


class EpochBatches:
    """The batches of one epoch, gathered when they are asked for."""

    def __init__(self, sequences: Sequences, recipe: SequenceRecipe, epoch: int, rank: int, world_size: int) -> None:
        self.sequences = sequences
        self.plan = plan_batches(
            sequences.unit_lengths,
            recipe.batch_size,
            "shuffled" if recipe.order == "shuffled" else "chronological",
            seed=recipe.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            batch_events=recipe.batch_events,
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        return (gather(self.sequences, units) for units in self.plan)


class ParallelSteps:
    """The session-parallel steps of one epoch."""

    def __init__(self, sequences: Sequences, batch_size: int) -> None:
        self.sequences, self.batch_size = sequences, batch_size

    def __iter__(self) -> Iterator[Step]:
        return parallel_steps(self.sequences, self.batch_size)


class SessionTraining(lightning.LightningModule):
    """Any SessionModel, next-item loss plus the model's own terms."""

    def __init__(
        self,
        model: SessionModel,
        sequences: Sequences,
        recipe: SequenceRecipe,
        report: Report | None = None,
        stop: EarlyStop | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.sequences = sequences
        self.recipe = recipe
        self.report = report
        self.stop = stop
        counts_I = np.bincount(sequences.item_codes, minlength=len(model.item_vectors(0)))
        self.next_item = NextItem(recipe, torch.from_numpy(counts_I))
        self.losses: Losses = {}
        self.last_loss = math.nan
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """No losses yet."""
        self.unread: list[Tensor] = []
        self.num_rows: list[int] = []
        self.sums: Losses = {}

    def train_dataloader(self) -> Any:
        """A new plan for every epoch."""
        world = self.trainer
        return EpochBatches(self.sequences, self.recipe, self.current_epoch, world.global_rank, world.world_size)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning does not know our batches."""
        return batch.to(device)

    def on_train_epoch_start(self) -> None:
        """Draw anew, from the seed and the epoch: a training that goes on from a checkpoint draws the same."""
        torch.manual_seed(self.recipe.seed + 1_000_003 * self.current_epoch)
        self.begin_epoch()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """() the loss of a batch."""
        loss = self.next_item_loss(batch)
        terms = self.model.extra_terms(batch)
        self.note({"train_loss": loss, **terms}, int(batch.target_mask.sum()))
        return loss + sum(terms.values())

    def next_item_loss(self, batch: Batch) -> Tensor:
        """() the mean over the targets.

        Sessions of users lie all over the window, so what is popular is asked for anew on the way through their time.
        """
        states_RD, targets_R = self.model.states(batch)[batch.target_mask], batch.targets()
        cap = self.recipe.duration_cap
        weights_R = None if cap is None else duration_weights(batch, cap)
        if batch.user_offsets is None or self.recipe.prior_half_life is None:
            loss: Tensor = self.next_item(self.model, states_RD, targets_R, batch.as_of, weights_R)
            return loss
        parts = []
        for rows_R, as_of in batch.targets_in_time(PRIORS_A_BATCH):
            weights = None if weights_R is None else weights_R[rows_R]
            part = self.next_item(self.model, states_RD[rows_R], targets_R[rows_R], as_of, weights)
            parts.append(part * len(rows_R))
        return torch.stack(parts).sum() / len(targets_R)

    def note(self, losses: Mapping[str, Tensor], num_rows: int) -> None:
        """Take a step's losses into the means; reading them waits for the device, so not often where that costs."""
        self.sums = self.sums or dict.fromkeys(losses, 0.0)
        self.unread.append(torch.stack([loss.detach() for loss in losses.values()]))
        self.num_rows.append(num_rows)
        if len(self.unread) >= (1 if self.device.type == "cpu" else STEPS_UNREAD):
            self.read_losses()

    def read_losses(self) -> None:
        """Add up what was noted; raises ConfigurationError at the first loss that is no number."""
        first = len(self.num_rows) - len(self.unread)
        for number, losses in enumerate(torch.stack(self.unread).tolist() if self.unread else [], first):
            if not math.isfinite(sum(losses)):
                raise diverged(self.recipe, self.current_epoch, number, self.last_loss)
            self.last_loss = losses[0]
            for name, loss in zip(self.sums, losses, strict=True):
                self.sums[name] += loss * self.num_rows[number]
        self.unread = []

    def on_train_epoch_end(self) -> None:
        """A line an epoch, for terminals and task logs alike; its losses to whom they are for."""
        self.read_losses()
        if not all(bool(weights.isfinite().all()) for weights in self.parameters()):
            raise diverged(self.recipe, self.current_epoch, len(self.num_rows) - 1, self.last_loss)
        self.losses = {name: total / max(1, sum(self.num_rows)) for name, total in self.sums.items()}
        epoch, loss = self.current_epoch, self.losses.get("train_loss", math.nan)
        log.info("epoch %d of %d: loss %.4f", epoch + 1, self.trainer.max_epochs, loss)
        if self.stop is not None:
            self.losses |= self.measure(self.stop)
        if self.report is not None:
            self.report(epoch, self.losses)

    def measure(self, stop: EarlyStop) -> Losses:
        """Metrics after the epoch, from the model as it would be used: on the CPU, without dropout."""
        self.model.cpu().eval()
        metrics = stop.measure()
        self.model.to(self.device).train()
        self.log(stop.metric, metrics[stop.metric])
        log.info("epoch %d: %s %.4f", self.current_epoch + 1, stop.metric, metrics[stop.metric])
        if stop.gives_up(self.current_epoch, metrics[stop.metric]):
            self.trainer.should_stop = True
        return metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The last losses, for a training that has nothing left to do but be registered, and which training it is."""
        checkpoint["losses"] = self.losses
        checkpoint[TRAINING] = training_mark(Path(self.trainer.default_root_dir))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        self.losses = checkpoint["losses"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimiser for all weights."""
        by_rows = self.recipe.optimiser == "adagrad"
        for table in self.model.modules():
            if isinstance(table, nn.Embedding):
                table.sparse = by_rows  # a sparse gradient says which rows a step has touched
        if by_rows:
            return MomentumAdagrad(self.by_rate(), self.recipe.learning_rate, self.recipe.momentum)
        return torch.optim.Adam(self.parameters(), lr=self.recipe.learning_rate)

    def by_rate(self) -> list[dict[str, Any]]:
        """The weights in groups, each with its own rate.

        Adagrad's first steps are as long as its rate, whatever the gradient: of a table's row the model hears now and
        then, of what is told beside items at each event, and at a rate that suits the table that alone would fill the
        input.
        """
        told = {weights for part in self.model.modules() if isinstance(part, ItemTable) for weights in part.of_told()}
        own, of_told = ([each for each in self.parameters() if (each in told) == is_told] for is_told in (False, True))
        groups: list[dict[str, Any]] = [{"params": own}]
        return [*groups, {"params": of_told, "lr": SHARE_OF_TOLD * self.recipe.learning_rate}] if told else groups


class ParallelTraining(SessionTraining):
    """A model that carries its state, through session-parallel steps, on one device."""

    def train_dataloader(self) -> Any:
        """The same steps in every epoch."""
        return ParallelSteps(self.sequences, self.recipe.batch_size)

    def on_train_epoch_start(self) -> None:
        """Nothing is carried from epoch to epoch."""
        super().on_train_epoch_start()
        self.carry_BD = torch.zeros(self.recipe.batch_size, self.recipe.hidden_size, device=self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """() the loss of a step; a step that has shrunk weighs less, as with the authors."""
        step: Step = batch
        carry_BD = self.carry_BD[step.slots_B].masked_fill(step.is_new_B[:, None], 0)
        states_BD, self.carry_BD = self.model.step(step.item_codes_B, carry_BD)
        loss: Tensor = self.next_item(self.model, states_BD, step.targets_B, step.as_of)
        self.note({"train_loss": loss}, len(states_BD))
        return loss * (len(states_BD) / self.recipe.batch_size)


def fit(
    model: SessionModel,
    sequences: Sequences,
    recipe: SequenceRecipe,
    epochs: int,
    folder: Path,
    report: Report | None = None,
    stop: EarlyStop | None = None,
) -> Losses:
    """Train `model` in place; return the last epoch's losses. The same seed, model and data give the same weights.

    With `stop`, epochs end when its metric has risen no more; the model is then that of the best epoch, and what is
    returned are that epoch's losses and metrics, and `best_epoch`, counted from 1.

    Goes on from the checkpoint in `folder`, if there is one. Raises ConfigurationError if the loss comes apart, if the
    memory does not suffice, and for a checkpoint that is not this training's.
    """
    if not len(sequences.at_least(2).item_codes):
        raise ContractError(
            "there is nothing to train on: no session of the window holds two items that are in the vocabulary. Lower "
            "window.min_item_count or lengthen window.length"
        )
    quiet_lightning()
    model.see(sequences)
    kind = ParallelTraining if recipe.order == "session_parallel" else SessionTraining
    training = kind(model, sequences, recipe, report, stop)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        callbacks=[
            *(stop.callbacks(folder) if stop is not None else []),
            ModelCheckpoint(folder, CHECKPOINT, every_n_epochs=1, enable_version_counter=False),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=folder,
        deterministic=torch.cuda.is_available() or None,
    )
    model.train()
    with explained(recipe):
        trainer.fit(training, ckpt_path=checkpoint_in(folder, training), weights_only=True)
    if stop is not None:
        take_best(training, folder)
    model.cpu().eval()
    return training.losses


def take_best(training: SessionTraining, folder: Path) -> None:
    """Go back to the weights and metrics of the best epoch."""
    file = folder / f"{BEST}.ckpt"
    check_checkpoint(file, training.state_dict())
    best = torch.load(file, weights_only=True, map_location=training.device)
    training.load_state_dict(best["state_dict"])
    training.losses = best["losses"] | {"best_epoch": best["epoch"] + 1.0}


def checkpoint_in(folder: Path, training: SessionTraining) -> Path | None:
    """The checkpoint to go on from; None if the training begins."""
    file = folder / f"{CHECKPOINT}.ckpt"
    if not file.exists():
        return None
    epoch = check_checkpoint(file, training.state_dict())
    log.info("going on from %s: %d epochs are done", file, epoch)
    return file


def quiet_lightning() -> None:
    """Leave out tips and set-up chatter; warnings about our own code stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
