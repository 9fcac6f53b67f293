"""Where a training keeps its state between epochs, and whether a state can be gone on from.

NIGHTJAR_HOME/checkpoints/SITE/NIGHT/RECIPE-SEED-DIGEST/last.ckpt     until the version is registered
"""

import hashlib
import json
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from features.vocabulary import Vocabulary
from pipeline.errors import ConfigurationError, kind_of, reason_of
from training.settings import TrainingSite

TRAINING = "training"
"""Under which a checkpoint says which training it is of."""
ODD_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, KeyError)


def checkpoint_folder(site: TrainingSite, night: date, tags: Mapping[str, str], vocabulary: Vocabulary) -> Path:
    """The folder of one training: other data, items or fields of the recipe make another."""
    told = json.dumps(dict(tags) | {"vocabulary": vocabulary.digest()}, sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return site.home / "checkpoints" / site.name / str(night) / f"{tags['recipe']}-{tags['seed']}-{digest}"


def remove_checkpoints(folder: Path) -> None:
    """What was trained is registered, or told: nothing is left to go on from."""
    shutil.rmtree(folder, ignore_errors=True)


def training_mark(folder: Path) -> str:
    """What a checkpoint of the training in a folder carries: the end of its path, which no other training has."""
    return "/".join(folder.parts[-2:])


def check_checkpoint(file: Path, weights: Mapping[str, Tensor]) -> int:
    """The number of epochs that a checkpoint has done.

    Raises ConfigurationError if it is damaged or cannot be this training's. torch does not look at the checksums that
    it writes for each tensor, so they are compared here first.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ConfigurationError(f"{file} is damaged, at {damaged}. Delete it to train from the start")
        kept = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"{file} holds a pickled object, which could run code when it is opened; it was not opened. "
            "Delete it to train from the start"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, *ODD_ARCHIVE) as error:
        raise kind_of(error)(f"cannot read {file}: {reason_of(error)}. Delete it to train from the start") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    found = {name: tuple(tensor.shape) for name, tensor in kept["state_dict"].items()}
    mark = training_mark(file.parent)
    if found != shapes or kept.get(TRAINING, mark) != mark:
        raise ConfigurationError(
            f"{file} is of another model or vocabulary, or of another training, than this one's. Delete it to train "
            "from the start"
        )
    return int(kept["epoch"]) + 1
