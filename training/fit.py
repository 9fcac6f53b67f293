"""Fit a session model with Lightning: whole sessions or session-parallel steps, one loss, one optimiser."""

import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from features.sequences import Sequences
from pipeline.errors import ConfigurationError
from pipeline.terminal import log
from training.adagrad import MomentumAdagrad
from training.batch import Batch, gather, plan_batches
from training.models.base import SessionModel
from training.models.gru4rec import Gru4Rec
from training.objective import NextItem
from training.recipes import SequenceRecipe
from training.session_parallel import Step, parallel_steps


class EpochBatches:
    """The batches of one epoch, gathered when they are asked for."""

    def __init__(self, sequences: Sequences, recipe: SequenceRecipe, epoch: int, rank: int, world_size: int) -> None:
        self.sequences = sequences
        self.plan = plan_batches(
            sequences.num_sessions,
            recipe.batch_size,
            "shuffled" if recipe.order == "shuffled" else "chronological",
            seed=recipe.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        return (gather(self.sequences, sessions) for sessions in self.plan)


class ParallelSteps:
    """The session-parallel steps of one epoch."""

    def __init__(self, sequences: Sequences, batch_size: int) -> None:
        self.sequences, self.batch_size = sequences, batch_size

    def __iter__(self) -> Iterator[Step]:
        return parallel_steps(self.sequences, self.batch_size)


class SessionTraining(lightning.LightningModule):
    """Any SessionModel, next-item loss plus the model's own terms."""

    def __init__(self, model: SessionModel, sequences: Sequences, recipe: SequenceRecipe) -> None:
        super().__init__()
        self.model = model
        self.sequences = sequences
        self.recipe = recipe
        counts_I = np.bincount(sequences.item_codes, minlength=len(model.item_vectors(0)))
        self.next_item = NextItem(recipe, torch.from_numpy(counts_I))

    def train_dataloader(self) -> EpochBatches:
        """A new plan for every epoch."""
        world = self.trainer
        return EpochBatches(self.sequences, self.recipe, self.current_epoch, world.global_rank, world.world_size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning does not know our batch."""
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """() the loss of a batch."""
        states_RD = self.model.states(batch)[batch.target_mask]
        loss = self.next_item(self.model, states_RD, batch.targets(), batch.as_of)
        terms = self.model.extra_terms(batch)
        self.log_dict({"train_loss": loss, **terms}, on_step=False, on_epoch=True, batch_size=len(states_RD))
        return loss + sum(terms.values())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimiser for all weights."""
        by_rows = self.recipe.optimiser == "adagrad"
        for table in self.model.modules():
            if isinstance(table, nn.Embedding):
                table.sparse = by_rows  # a sparse gradient says which rows a step has touched
        if by_rows:
            return MomentumAdagrad(self.parameters(), self.recipe.learning_rate, self.recipe.momentum)
        return torch.optim.Adam(self.parameters(), lr=self.recipe.learning_rate)


class ParallelTraining(SessionTraining):
    """A model that carries its state, through session-parallel steps, on one device."""

    model: Gru4Rec

    def train_dataloader(self) -> Any:
        """The same steps in every epoch."""
        return ParallelSteps(self.sequences, self.recipe.batch_size)

    def on_train_epoch_start(self) -> None:
        """Nothing is carried from epoch to epoch."""
        self.carry_BD = torch.zeros(self.recipe.batch_size, self.recipe.hidden_size, device=self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning does not know our steps."""
        return batch.to(device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """() the loss of a step; a step that has shrunk weighs less, as with the authors."""
        step: Step = batch
        carry_BD = self.carry_BD[step.slots_B].masked_fill(step.is_new_B[:, None], 0)
        states_BD, self.carry_BD = self.model.step(step.item_codes_B, carry_BD)
        loss: Tensor = self.next_item(self.model, states_BD, step.targets_B, step.as_of)
        self.log_dict({"train_loss": loss}, on_step=False, on_epoch=True, batch_size=len(states_BD))
        return loss * (len(states_BD) / self.recipe.batch_size)


class EpochLines(lightning.Callback):
    """A line an epoch, for terminals and task logs alike."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Say how far the training is."""
        loss = float(trainer.callback_metrics["train_loss"])
        log.info("epoch %d of %d: loss %.4f", trainer.current_epoch + 1, trainer.max_epochs, loss)


def fit(
    model: SessionModel, sequences: Sequences, recipe: SequenceRecipe, epochs: int, folder: Path, logger: Any = None
) -> dict[str, float]:
    """Train `model` in place; return the last epoch's losses. The same seed, model and data give the same weights."""
    torch.manual_seed(recipe.seed)
    quiet_lightning()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=logger or False,
        callbacks=[EpochLines()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1,
        default_root_dir=folder,
        deterministic=torch.cuda.is_available() or None,
    )
    model.train()
    training = ParallelTraining if recipe.order == "session_parallel" else SessionTraining
    trainer.fit(training(model, sequences, recipe))
    model.cpu().eval()
    losses = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if not all(map(math.isfinite, losses.values())):
        raise ConfigurationError(
            f"the training of {recipe.encoder} came apart: {losses} after {epochs} epochs. "
            f"Lower its learning_rate (now {recipe.learning_rate}) in the site file"
        )
    return losses


def quiet_lightning() -> None:
    """Leave out tips and set-up chatter; warnings about our own code stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
