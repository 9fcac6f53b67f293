"""What MLflow's pages say about themselves: descriptions in Markdown, and which columns a table shows."""

import json
from collections.abc import Mapping
from datetime import date

from training.bundle import Bundle
from training.settings import TrainingSite

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of an experiment or a run."""
VIEW = "mlflow.sharedViewState."
"""Before the key of a saved view: an entry in the menu of views above the table of runs, and a link."""
WRITTEN_AT = 0  # milliseconds; views are the same for all, and were not made at any particular time
MODEL_NOTE = """\
Models of one site, trained by nightjar. The alias **champion** is the version that won its gate; **serving** is the
champion after it has learnt the newest day, and is what the exported lists come from.

```python
import mlflow
model = mlflow.pyfunc.load_model("models:/{name}@serving")
model.predict([["item 1", "item 2"], ["item 3"]], params={{"top": 10}})    # item_ids and scores, best first
```
Versions whose tag `purpose` is `report` or `tune` never become champion.
"""


def experiment_note(site: TrainingSite, experiment_id: str) -> str:
    """What the experiment holds and where to click."""
    link = f"#/experiments/{experiment_id}/runs?viewStateShareKey="
    return f"""\
Models of **{site.name}**: [All models, best first]({link}models) · [Nights]({link}nights)

One row a night, and under it one row for each recipe and seed. **The best model in three clicks:** open *All models,
best first*; click the first row; open its *Artifacts* and there `pictures`. The models of one night beside each other:
open *Nights*, click a night, then `compare.html` among its *Artifacts*.

The metric that decides is `{site.training.champion_metric}`; `…_low` and `…_high` bound its 95 % interval.
`all/…` counts items that the model does not know as misses, `warm/…` leaves them out, `list/…` judges the list that
would have been published the evening before.
"""


def night_note(site: TrainingSite, night: date) -> str:
    """What the run of a night holds."""
    return f"""\
Night **{night}** of {site.name}: models that have seen no event of that day, tested on its sessions.

*Artifacts*: `compare.html` (download it; it opens offline), `pictures`, `comparison.txt` (what the gate saw) and
`data_docs` (what validation saw). *Tags*: `gate.reason` says who is champion and why, `gate.guards` what else was
asked. The metrics are the challenger's; `gate/…` is how it stood against the champion, `drift/…` how the day differed.
The models are the runs below this one.
"""


def run_note(site: TrainingSite, night: date, recipe_name: str) -> str:
    """What the run of a recipe holds."""
    return f"""\
Recipe **{recipe_name}**, trained on the days before {night} and tested on the sessions of that day.

*Model metrics*: `{site.training.champion_metric}` decides. *Artifacts*: `pictures` (learning curve, recall by length
of the list, by length of the session, by popularity of the item) and `outcomes.parquet` (sums by visitor). The other
models of the night: click *Parent run*.
"""


def refit_note(champion: int, night: date) -> str:
    """What the run of a refit holds."""
    return f"Version {champion}, the champion, after it has learnt the days through {night}. It is what is exported.\n"


def version_note(bundle: Bundle, tags: Mapping[str, str]) -> str:
    """What a version is."""
    if tags.get("kind") == "refit":
        return f"Refit of version {tags.get('parent_version')} ({bundle.recipe_name}) through {bundle.data_through}."
    seed, purpose = bundle.recipe.seed, tags.get("purpose", "nightly")
    return f"{bundle.recipe_name}, seed {seed}, trained through {bundle.data_through}; purpose: {purpose}."


def saved_views(site: TrainingSite) -> dict[str, str]:
    """Views of the table of runs by tag: `nights`, and `models`, the best first."""
    k = max(site.training.metric_ks)
    metric = site.training.champion_metric
    measured = dict.fromkeys([metric, f"all/next_recall_at_{k}", f"warm/next_recall_at_{k}", f"warm/next_mrr_at_{k}"])
    metrics = [f"metrics.`{name}`" for name in measured]
    bounds = [f"metrics.`{metric}_low`", f"metrics.`{metric}_high`"]
    models = ["tags.`night`", "tags.`recipe`", "tags.`seed`", "tags.`purpose`", *metrics, *bounds]
    models += ["metrics.`train_seconds`", "params.`num_sessions`"]
    nights = ["tags.`gate.promoted`", "tags.`gate.reason`", *metrics]
    return {
        f"{VIEW}models": view("All models, best first", models, "tags.`kind` = 'train'", f"metrics.`{metric}`"),
        f"{VIEW}nights": view("Nights", nights, "tags.`kind` = 'night'", "tags.`night`"),
    }


def view(name: str, columns: list[str], query: str, order: str) -> str:
    """A saved view as MLflow 3.17 keeps it: an envelope around the state of the page."""
    state = {
        "searchFilter": query,
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": columns,
    }
    return json.dumps(
        {"name": name, "createdAt": WRITTEN_AT, "updatedAt": WRITTEN_AT, "state": json.dumps(state)}, sort_keys=True
    )
