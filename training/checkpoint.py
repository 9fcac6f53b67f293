"""Where a training keeps its state between epochs, and whether a state can be gone on from.

NIGHTJAR_HOME/checkpoints/SITE/NIGHT/RECIPE-SEED-DIGEST/last.ckpt     until the version is registered
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor

from features.vocabulary import Vocabulary
from pipeline.errors import ConfigurationError, kind_of, reason_of
from training.settings import TrainingSite


def checkpoint_folder(site: TrainingSite, night: date, tags: Mapping[str, str], vocabulary: Vocabulary) -> Path:
    """The folder of one training: other data, items or fields of the recipe make another."""
    told = json.dumps(dict(tags) | {"vocabulary": vocabulary.digest()}, sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return site.home / "checkpoints" / site.name / str(night) / f"{tags['recipe']}-{tags['seed']}-{digest}"


def remove_checkpoints(folder: Path) -> None:
    """What was trained is registered, or told: nothing is left to go on from."""
    shutil.rmtree(folder, ignore_errors=True)


def check_checkpoint(file: Path, weights: Mapping[str, Tensor]) -> int:
    """The number of epochs that a checkpoint has done; raises ConfigurationError if it cannot be this training's."""
    try:
        kept = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"{file} holds a pickled object, which could run code when it is opened; it was not opened. "
            "Delete it to train from the start"
        ) from error
    except (RuntimeError, EOFError, BadZipFile, OSError) as error:
        raise kind_of(error)(f"cannot read {file}: {reason_of(error)}. Delete it to train from the start") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if {name: tuple(tensor.shape) for name, tensor in kept["state_dict"].items()} != shapes:
        raise ConfigurationError(
            f"{file} is of another model or vocabulary than this training's. Delete it to train from the start"
        )
    return int(kept["epoch"]) + 1
