"""Everything MLflow: the experiment of a site, the run of a night, versions, aliases and tags.

One registered model a site, `nightjar-SITE`. A version is found by its tags, never by its number: `recipe`, `night`,
`data_through`, `kind` (train | refit), `purpose` (nightly | report | tune), `parent_version`. The alias `champion`
names the winner, `serving` what is exported.

Several stores of one site name may share an MLflow, like staging beside production. Versions and runs carry the id of
their store in the tag `store`, and only those of the site's own store are found here. Those without the tag were made
before there was one: they belong to each store that is older than they are and has built features.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from functools import cached_property
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from features.tables import VOCABULARY
from pipeline.addresses import redacted, scheme_of, shown, split_login
from pipeline.checksums import DAMAGED_PARQUET, check_sha256, sha256_of
from pipeline.data_docs import day_page, docs_folder
from pipeline.dates import ONE_DAY
from pipeline.errors import ConfigurationError, RetryableError
from pipeline.publish import Store, open_store
from pipeline.store_identity import store_identity
from pipeline.terminal import log
from training.bundle import SHA256, Bundle, load_bundle, save_bundle
from training.delivery import answered, deliver_all, post, without_patience
from training.notes import MODEL_NOTE, NOTE, experiment_note, night_note, saved_views, version_note
from training.outcomes import Outcomes, known_key, load_outcomes, outcome_key
from training.settings import TrainingSite

SERVED_MODEL = Path(__file__).parent / "served_model.py"
REQUIREMENTS = ["nightjar[train]"]
BUNDLE = "bundle"
OUTCOMES = "outcomes.parquet"
OUTCOMES_SHA256 = "outcomes_sha256"
STORE = "store"  # the tag of versions and runs that holds the id of their store
RUNS_A_PAGE = 1000
COMPLETE = "kind"  # the tag that is written last: a version without it was never finished
WITHDRAWN = "withdrawn"  # the tag of a version that was rolled back from: no step takes it up
SIGNATURE = ModelSignature(  # no inputs: with a schema MLflow would refuse plain lists of lists
    outputs=Schema([ColSpec(Array(DataType.string), "item_ids"), ColSpec(Array(DataType.double), "scores")]),
    params=ParamSchema([ParamSpec("top", DataType.long, 20)]),
)
ADDRESS, USER, PASSWORD = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def tracking_uri(home: Path) -> str:
    """Where runs are kept: MLFLOW_TRACKING_URI, else a sqlite file under NIGHTJAR_HOME.

    MLflow prints the address of a server, so a user and password in it go to the variables that MLflow also reads.
    """
    uri = os.environ.get(ADDRESS) or f"sqlite:///{home.resolve() / 'mlflow.db'}"
    if not uri.startswith(("http://", "https://")):
        return uri
    try:
        address, user, password = split_login(uri)
    except ValueError:
        raise ConfigurationError(
            f"{ADDRESS} is {scheme_of(uri)} and cannot be read. Put the user and password of MLflow into {USER} and "
            f"{PASSWORD}"
        ) from None
    if user and password:
        os.environ.update({USER: user, PASSWORD: password})
    return address if password else uri


def use_tracking(uri: str) -> None:
    """Point MLflow's own functions at an address; they also write it into the environment, which is the user's."""
    told = os.environ.get(ADDRESS)
    mlflow.set_tracking_uri(uri)
    os.environ.pop(ADDRESS, None)
    if told is not None:
        os.environ[ADDRESS] = told


class Tracking:
    """A site's experiment and registered model."""

    def __init__(self, site: TrainingSite) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message=".*input example was not provided.*")
        self.site = site
        self.model_name = f"nightjar-{site.name}"
        self.store = store_identity(site)
        site.home.mkdir(parents=True, exist_ok=True)
        use_tracking(tracking_uri(site.home))
        self.client = MlflowClient()
        with answered(tracking_uri(site.home)):
            self.experiment_id = self.find_experiment()
            self.describe_experiment()
            deliver_all(site.home, tracking_uri(site.home))

    def find_experiment(self) -> str:
        """The site's experiment, made at first use; two processes may try at once."""
        found = self.client.get_experiment_by_name(self.site.name)
        if found is not None:
            return str(found.experiment_id)
        is_local = tracking_uri(self.site.home).startswith("sqlite")
        artifacts = f"file:{self.site.home.resolve() / 'mlartifacts' / self.site.name}" if is_local else None
        try:
            return str(self.client.create_experiment(self.site.name, artifact_location=artifacts))
        except MlflowException:
            return str(self.client.get_experiment_by_name(self.site.name).experiment_id)

    def describe_experiment(self) -> None:
        """Say what the experiment holds, and which columns its tables show; written once."""
        told = self.client.get_experiment(self.experiment_id).tags
        wanted = saved_views(self.site) | {
            f"{STORE}.{self.store.id}": self.store.root,
            NOTE: experiment_note(self.site, self.experiment_id),
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.experiment.primaryMetric.name": self.site.training.champion_metric,
        }
        for name, value in wanted.items():
            if told.get(name) != value:
                self.client.set_experiment_tag(self.experiment_id, name, value)

    @cached_property
    def has_features(self) -> bool:
        """Whether the store has ever built features, without which nothing is trained."""
        return Store(self.store.root).has(VOCABULARY)

    @cached_property
    def is_shared(self) -> bool:
        """Whether another store of this site name has used this MLflow, since runs carry their store's id."""
        marks = self.client.get_experiment(self.experiment_id).tags
        return any(name.startswith(f"{STORE}.") and name != f"{STORE}.{self.store.id}" for name in marks)

    def is_own(self, made: ModelVersion | Run) -> bool:
        """Whether a version or a run belongs to the site's store."""
        tags = made.data.tags if isinstance(made, Run) else made.tags
        if STORE in tags:
            return bool(tags[STORE] == self.store.id)
        made_at = made.info.start_time if isinstance(made, Run) else made.creation_timestamp
        return bool(made_at >= self.store.made_at and self.has_features)

    def surely_own(self, tags: Mapping[str, str]) -> bool:
        """Whether what has these tags and is taken for the store's cannot be another one's: safe to remove."""
        return STORE in tags or not self.is_shared

    def runs(self, query: str = "", order_by: Sequence[str] = ()) -> Iterator[Run]:
        """The runs of the store that a query finds."""
        page = None
        while page is None or page.token:
            token = page.token if page else None
            page = self.client.search_runs(
                [self.experiment_id], query, max_results=RUNS_A_PAGE, order_by=list(order_by), page_token=token
            )
            yield from filter(self.is_own, page)

    def night_run(self, night: date) -> Run:
        """The parent run of a night, made at first use."""
        found = next(self.runs(f"tags.night = '{night}' and tags.kind = 'night'"), None)
        if found is not None:
            return found
        tags = {"site": self.site.name, "night": str(night), "kind": "night", "purpose": "nightly"}
        tags[STORE] = self.store.id
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=f"night {night}")
        self.client.set_tag(run.info.run_id, NOTE, night_note(self.site, night))
        self.client.set_terminated(run.info.run_id)
        return run

    def keep_report(self, night: date) -> None:
        """Keep with the night's run what validation saw: where its report lies, and the pages of the last two days.

        That is the last day that the night learns from and the one it is tested on; either may have been judged
        elsewhere, and then has no page here.
        """
        run_id = self.night_run(night).info.run_id
        self.client.set_tag(run_id, "data_docs", str((docs_folder(self.site) / "index.html").resolve()))
        for day in (night - ONE_DAY, night):
            if day_page(self.site, day).exists():
                self.client.log_artifact(run_id, str(day_page(self.site, day)), "data_docs")

    @contextmanager
    def run(self, night: date, name: str, tags: Mapping[str, str], parent: str | None = None) -> Iterator[str]:
        """A run inside the night's run, or another one, by its id; marked as failed if what it is opened for raises.

        A run with the same tags that was not finished, as its process was killed or failed, goes on.
        """
        told = {"site": self.site.name, "night": str(night), "test_day": str(night), "purpose": "nightly"} | dict(tags)
        run_id = self.unfinished_run(told)
        if run_id is None:
            inside = {"mlflow.parentRunId": parent or self.night_run(night).info.run_id, STORE: self.store.id}
            run_id = self.client.create_run(self.experiment_id, tags=told | inside, run_name=name).info.run_id
        self.client.update_run(run_id, status="RUNNING")
        try:
            with answered(tracking_uri(self.site.home)):
                yield run_id
        except BaseException:
            with suppress(MlflowException), without_patience():  # what happened counts, not that it cannot be told
                self.client.set_terminated(run_id, "FAILED")
            raise
        self.client.set_terminated(run_id)

    def unfinished_run(self, tags: Mapping[str, str]) -> str | None:
        """The newest run with all these tags that did not end well; None if there is none."""
        wanted = [f"tags.{name} = '{value}'" for name, value in tags.items()] + ["attributes.status != 'FINISHED'"]
        found = next(self.runs(" and ".join(wanted), ["attributes.start_time DESC"]), None)
        return str(found.info.run_id) if found else None

    def describe(self, run_id: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Parameters and tags of a run, in one call; parameters of a run that goes on must be as they were."""
        told = [Param(name, str(value)) for name, value in params.items()]
        self.client.log_batch(run_id, params=told, tags=[RunTag(name, value) for name, value in tags.items()])

    def keep_outcomes(self, run_id: str, outcomes: Outcomes) -> None:
        """What a model did on the day, visitor by visitor, as an artifact: enough to compare it with others later."""
        with tempfile.TemporaryDirectory(prefix="nightjar-") as scratch:
            file = Path(scratch) / OUTCOMES
            outcomes.save(file, outcome_key(open_store(self.site)))
            self.client.log_artifact(run_id, str(file))
            self.client.set_tag(run_id, OUTCOMES_SHA256, sha256_of(file))

    def read_outcomes(self, run: Run) -> Outcomes:
        """What `keep_outcomes` kept of a run; raises ConfigurationError where it is missing or damaged."""
        run_id = run.info.run_id
        with tempfile.TemporaryDirectory(prefix="nightjar-") as folder:
            try:
                file = Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{OUTCOMES}", dst_path=folder))
                if OUTCOMES_SHA256 in run.data.tags:
                    check_sha256(file, run.data.tags[OUTCOMES_SHA256])
                return load_outcomes(file, known_key(Store(self.store.root)))
            except (MlflowException, OSError, *DAMAGED_PARQUET, ConfigurationError) as error:
                recipe, night = run.data.tags.get("recipe"), run.data.tags.get("night")
                raise ConfigurationError(
                    f"cannot read {OUTCOMES} of run {run_id} ({recipe}, night {night}): {error}. Restore it from a "
                    "backup, or run `nightjar train` for that night and recipe again"
                ) from error

    def keep_pictures(self, run_id: str, pictures: Mapping[str, bytes], folder: str) -> None:
        """Pictures by file name, as artifacts of a run."""
        with tempfile.TemporaryDirectory(prefix="nightjar-") as scratch:
            for name, content in pictures.items():
                (Path(scratch) / name).write_bytes(content)
            self.client.log_artifacts(run_id, scratch, folder)

    def losses(self, run_id: str) -> list[tuple[int, float]]:
        """The training loss after each epoch; none for a baseline, or while the server is away."""
        with suppress(MlflowException), without_patience():
            points = {p.step: p.value for p in self.client.get_metric_history(run_id, "train_loss")}
            return sorted(points.items())
        return []

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Numbers of a run, in one call; they wait on disk while the server is away."""
        post(self.site.home, tracking_uri(self.site.home), run_id, metrics, step)

    def report_epochs(self, run_id: str) -> Callable[[int, Mapping[str, float]], None]:
        """What takes the losses of each epoch of a run; MLflow's step is the number of epochs done."""
        return lambda epoch, losses: self.log_metrics(run_id, losses, epoch + 1)

    def register(self, bundle: Bundle, run_id: str, tags: Mapping[str, str]) -> int:
        """Keep a bundle as a loadable model of a run and as a new version; return the version."""
        with tempfile.TemporaryDirectory(prefix="nightjar-") as folder:
            files = Path(folder) / BUNDLE
            sha256 = save_bundle(bundle, files)
            with mlflow.start_run(run_id=run_id):
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(SERVED_MODEL),
                    artifacts={BUNDLE: str(files)},
                    signature=SIGNATURE,
                    registered_model_name=self.model_name,
                    pip_requirements=REQUIREMENTS,
                    metadata={SHA256: sha256},
                )
        version = int(logged.registered_model_version)
        self.client.update_registered_model(self.model_name, MODEL_NOTE.format(name=self.model_name))
        self.client.update_model_version(self.model_name, str(version), version_note(bundle, tags))
        own = {STORE: self.store.id, SHA256: sha256}
        told = {"data_through": str(bundle.data_through), "recipe": bundle.recipe_name, **own, **tags}
        for name in sorted(told, key=lambda name: name == COMPLETE):
            self.client.set_model_version_tag(self.model_name, str(version), name, told[name])
        return version

    def versions(self, *, withdrawn: bool = False) -> list[ModelVersion]:
        """The store's complete versions, newest first: those whose tags were all written; withdrawn ones on demand."""
        found: list[ModelVersion] = []
        page = None
        while page is None or page.token:
            token = page.token if page else None
            page = self.client.search_model_versions(f"name = '{self.model_name}'", max_results=1000, page_token=token)
            found += page
        whole = [v for v in found if COMPLETE in v.tags and (withdrawn or WITHDRAWN not in v.tags) and self.is_own(v)]
        return sorted(whole, key=lambda version: int(version.version), reverse=True)

    def champion(self) -> ModelVersion | None:
        """The version with the alias `champion`; None before the first promotion."""
        return self.by_alias("champion")

    def by_alias(self, alias: str) -> ModelVersion | None:
        """The version that an alias names for this store; None if there is no such alias or no model yet.

        A plain alias that names another store's version says nothing here: then it is the alias with the start of the
        store's id behind it, or without that one the version that the tags call for.
        """
        plain = self.named(alias)
        if plain is not None and self.is_own(plain):
            return plain
        own = self.named(self.alias_beside(alias))
        if own is not None or plain is None:
            return own
        kinds = ("refit",) if alias == "serving" else ()
        return newest(v for v in self.versions() if v.tags.get("promoted") or v.tags[COMPLETE] in kinds)

    def named(self, alias: str) -> ModelVersion | None:
        """The version that an alias of the registered model names, whoever's it is; None if there is none."""
        try:
            return self.client.get_model_version_by_alias(self.model_name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            uri = tracking_uri(self.site.home)
            raise RetryableError(
                f"cannot read the alias {alias!r} of {self.model_name} from {shown(uri)}: {redacted(str(error), uri)}"
            ) from error

    def alias_beside(self, alias: str) -> str:
        """What an alias is called for a store that comes second: `champion-655d4f78`."""
        return f"{alias}-{self.store.id[:8]}"

    def own_alias(self, alias: str) -> str:
        """The name under which this store moves an alias: the plain one, unless it names another store's version."""
        plain = self.named(alias)
        return alias if plain is None or self.is_own(plain) else self.alias_beside(alias)

    def by_number(self, version: int) -> ModelVersion:
        """A version; raises ConfigurationError if the site's store has none of that number."""
        found = next((each for each in self.versions(withdrawn=True) if number(each) == version), None)
        if found is None:
            raise ConfigurationError(
                f"{self.model_name} has no version {version} of the store {self.store.root}; `nightjar compare` lists "
                "a night's"
            )
        return found

    def set_alias(self, alias: str, version: int) -> None:
        """Point an alias at a version."""
        self.client.set_registered_model_alias(self.model_name, self.own_alias(alias), str(version))

    def delete_alias(self, alias: str) -> None:
        """Take an alias away from this store's versions."""
        self.client.delete_registered_model_alias(self.model_name, self.own_alias(alias))

    def load(self, version: ModelVersion) -> Bundle:
        """The bundle of a version; raises ConfigurationError if its files are not those that were registered."""
        what = f"the model {version.name} version {version.version}"
        try:
            with answered(tracking_uri(self.site.home)):
                folder = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}")
            bundle = load_bundle(Path(folder) / "artifacts" / BUNDLE, version.tags.get(SHA256))
        except (MlflowException, OSError, ConfigurationError) as error:
            raise ConfigurationError(
                f"cannot read {what}: {error}. Restore its files from a backup, serve an earlier version (`nightjar "
                "rollback model`), or make a new one: `nightjar refit` if the champion is sound, else `nightjar train`"
            ) from error
        if SHA256 not in version.tags:
            log.info("%s was registered without checksums: damage to its weights would not be noticed", what)
        return bundle


def number(version: ModelVersion) -> int:
    """A version's number; tracking servers write it as text."""
    return int(version.version)


def newest(versions: Iterable[ModelVersion]) -> ModelVersion | None:
    """The version that has seen the latest day, of several the last one made; None of none."""
    return max(versions, key=lambda version: (data_through(version), number(version)), default=None)


def data_through(version: ModelVersion) -> date:
    """The last day that a version has seen."""
    return date.fromisoformat(version.tags["data_through"])
