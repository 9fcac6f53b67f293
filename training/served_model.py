"""The registered model as MLflow loads it: raw item ids in, raw item ids and scores out.

mlflow.pyfunc.load_model("models:/nightjar-SITE@serving").predict([["a", "b"], ["c"]])

A frame may tell more of the events, in columns of lists beside `item_ids`: `occurred_at`, `event_type`, context
columns, and `session`, a number for each event that tells a user's earlier sessions apart.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from training.bundle import SHA256, load_bundle
from training.score import score_sessions


class SessionRecommender(mlflow.pyfunc.PythonModel):
    """Lists of items for sessions; a session of unknown items gets an empty list."""

    def load_context(self, context: Any) -> None:
        """Read the bundle, if its files are those that were logged with this model."""
        folder = Path(context.artifacts["bundle"])
        recorded = mlflow.models.Model.load(str(folder.parents[1])).metadata or {}
        self.bundle = load_bundle(folder, recorded.get(SHA256))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Sessions, as a frame or as `read_sessions` takes them, to lists of `item_ids` and `scores`, best first."""
        top = (params or {}).get("top", 20)
        lists = score_sessions(self.bundle, read_sessions(model_input), top, self.read_told(model_input))
        return pd.DataFrame({"item_ids": [ids for ids, _ in lists], "scores": [scores for _, scores in lists]})

    def read_told(self, model_input: Any) -> dict[str, list[list[Any]]]:
        """What a frame or a dictionary tells of events beside their items; times without a zone are in UTC."""
        definitions = self.bundle.vocabulary.definitions
        known = ("session", "occurred_at", *(() if definitions is None else definitions.columns))
        has_columns = isinstance(model_input, pd.DataFrame | dict)
        told = {
            name: [list(values) for values in model_input[name]]
            for name in known
            if has_columns and name in model_input
        }
        if "occurred_at" in told:
            as_of = pd.Timestamp(self.bundle.as_of, unit="us", tz="UTC")
            told["occurred_at"] = [
                [moment.to_pydatetime() for moment in pd.Series(pd.to_datetime(times, utc=True)).fillna(as_of)]
                for times in told["occurred_at"]
            ]
        return told


def read_sessions(model_input: Any) -> list[list[str]]:
    """Sessions of a list of lists, or of a frame or a dictionary with `item_ids`; raises ValueError for others."""
    if isinstance(model_input, pd.DataFrame | dict):
        if "item_ids" not in model_input:
            raise ValueError(
                f"a session is a list in the column `item_ids`; there is {', '.join(map(str, model_input))}"
            )
        model_input = model_input["item_ids"]
    sessions = list(model_input)
    if any(isinstance(session, str) or not hasattr(session, "__iter__") for session in sessions):
        raise ValueError('a session is a list of item ids; write [["a", "b"], ["c"]], also for a single one')
    return [[str(item_id) for item_id in session] for session in sessions]


mlflow.models.set_model(SessionRecommender())
