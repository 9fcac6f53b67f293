"""The models, one file each; a new one adds a line here."""

from training.models.base import SessionModel
from training.models.gru import Gru
from training.models.gru4rec import Gru4Rec
from training.models.hrnn import Hrnn
from training.models.intentrec import IntentRec
from training.models.lstm import Lstm
from training.models.narm import Narm
from training.models.rnn import Rnn
from training.models.sasrec import SasRec
from training.models.session_retriever import SessionRetriever

MODELS: dict[str, type[SessionModel]] = {
    "gru": Gru,
    "gru4rec": Gru4Rec,
    "hrnn": Hrnn,
    "intentrec": IntentRec,
    "lstm": Lstm,
    "narm": Narm,
    "rnn": Rnn,
    "sasrec": SasRec,
    "session_retriever": SessionRetriever,
}
