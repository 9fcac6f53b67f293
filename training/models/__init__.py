"""The models, one file each; a new one adds a line here."""

from training.models.base import SessionModel
from training.models.gru import Gru

MODELS: dict[str, type[SessionModel]] = {"gru": Gru}
