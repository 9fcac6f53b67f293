"""The registered model as MLflow loads it: raw item ids in, raw item ids and scores out.

mlflow.pyfunc.load_model("models:/SITE@serving").predict(pd.DataFrame({"item_ids": [["a", "b"]]}))
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from training.bundle import load_bundle
from training.score import score_sessions


class SessionRecommender(mlflow.pyfunc.PythonModel):
    """Lists of items for sessions; a session of unknown items gets an empty list."""

    def load_context(self, context: Any) -> None:
        """Read the bundle."""
        self.bundle = load_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """`item_ids` (a list a row, oldest first) to `item_ids` and `scores` (lists, best first)."""
        top = (params or {}).get("top", 20)
        lists = score_sessions(self.bundle, [list(ids) for ids in model_input["item_ids"]], top)
        return pd.DataFrame({"item_ids": [ids for ids, _ in lists], "scores": [scores for _, scores in lists]})


mlflow.models.set_model(SessionRecommender())
