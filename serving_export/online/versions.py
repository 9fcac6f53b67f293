"""What is served now, what takes its place when the alias or the release changes, and other versions to compare with.

A new version is loaded beside the old one, by a thread that answers nobody, and has to pass before it serves: its files
are what the manifest says, it answers a warm-up request for every channel, and on a probe set of sessions its index
finds what its vectors say. Then one reference is switched; requests that are being answered keep the old one. A version
that does not pass changes nothing, and is told in the log, in /ready and in /metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Event as Flag
from threading import Lock, Thread
from time import monotonic
from typing import Any

import numpy as np
from cachetools import LRUCache
from mlflow.entities.model_registry import ModelVersion

from pipeline.errors import ConfigurationError
from pipeline.publish import Store
from pipeline.terminal import log
from serving_export.loaded import Loaded, load
from serving_export.online.catalogue import Catalogue
from serving_export.online.metrics import Metrics
from serving_export.reader import Recommendations
from serving_export.recommend import hear, read, recommend
from serving_export.related import Related, read_related
from serving_export.request import Event, Request
from serving_export.scoring import session_vectors
from serving_export.tables import RECOMMENDATIONS, RELATED_ITEMS
from training.settings import TrainingSite
from training.tracking import WITHDRAWN, Tracking, number

MOST_BESIDE = 2
"""Versions besides the one that serves that are kept in memory."""
LIST_EVERY = 1.0
"""Seconds for which a listing of the registered versions is good."""
NUM_PROBES = 32
LEAST_FOUND = 0.5
"""Of what the vectors say on the probe set, the share that an index must find: another model's finds next to nothing.

How good an approximate one has to be was the export's matter (export.index_recall)."""
PROBED = 10


@dataclass(frozen=True)
class Edition:
    """A version of the model with a release of the lists; it never changes."""

    loaded: Loaded
    lists: Recommendations | None
    """Last night's lists; None where nothing was exported yet."""
    related: Related | None
    """What goes with each item; None on a site that does not say so."""

    @cached_property
    def catalogue(self) -> Catalogue:
        """Items by what they are called."""
        return Catalogue(self.loaded)

    @property
    def release(self) -> int | None:
        """The version of the exported lists."""
        return None if self.lists is None else int(self.lists.facts["table_version"])

    @property
    def intents_version(self) -> int | None:
        """The version of `session_intents` that belongs to the release; None where its model predicts none."""
        version = None if self.lists is None else self.lists.facts["session_intents_version"]
        return None if version is None else int(version)

    @property
    def mark(self) -> tuple[int | None, int | None]:
        """What two editions are told apart by."""
        return self.loaded.version, self.release


class Versions:
    """The edition that serves, and how it is replaced."""

    def __init__(self, site: TrainingSite, store: Store, secret: str, metrics: Metrics) -> None:
        self.site, self.store, self.secret, self.metrics = site, store, secret, metrics
        self.beside: LRUCache[int, Edition] = LRUCache(MOST_BESIDE)
        self.loading, self.looking, self.listing = Lock(), Lock(), Lock()
        self.listed: tuple[float, Sequence[ModelVersion]] | None = None
        self.stopped = Flag()
        self.fault: str | None = None
        """Why the newest version does not serve; None where it does."""
        self.tracking = Tracking(site)
        self.serving = self.load_checked(None)
        self.tell(self.serving)

    def at_hand(self, version: int | None) -> Edition | None:
        """The one that serves, or that of a version that is in memory; None for one that must be loaded."""
        serving = self.serving
        if version is None or version == serving.loaded.version:
            return serving
        with self.looking:
            found = self.beside.get(version)
        is_current = found is not None and (found.release or 0) >= (serving.release or 0)  # newer: not taken up yet
        return found if is_current else None

    def edition(self, version: int) -> Edition:
        """That of a version; raises ConfigurationError for one that the site does not have."""
        with self.loading:  # one at a time; who waited finds what another one loaded
            found = self.at_hand(version)
            if found is None:
                found = self.load_checked(version)
                with self.looking:
                    self.beside[version] = found
        return found

    def load_checked(self, version: int | None) -> Edition:
        """An edition that may serve; raises NightjarError for one that may not."""
        lists = None
        if self.store.has(RECOMMENDATIONS):
            lists = Recommendations(self.store.root, when_stale="ignore", secret=self.secret)
        loaded = load(self.site, self.store, version)
        edition = Edition(loaded, lists, self.read_related(loaded, lists))
        check(edition)
        return edition

    def read_related(self, loaded: Loaded, lists: Recommendations | None) -> Related | None:
        """The related items of the release, which a channel may have wanted already."""
        version = None if lists is None else lists.facts["related_items_version"]
        if loaded.maker.related is not None or version is None:
            return loaded.maker.related
        return read_related(self.store.scan(RELATED_ITEMS, int(version)).collect(), loaded.assortment)

    def watch(self, seconds: float) -> Thread:
        """Look for something new every so many seconds, in a thread of its own, until `stop`."""

        def look_again() -> None:
            while not self.stopped.wait(seconds):
                self.look()

        thread = Thread(target=look_again, name="reload", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End the watch."""
        self.stopped.set()

    def look(self) -> bool:
        """Switch to what is new, if anything is and it passes; whether it was switched."""
        try:
            if self.wanted() == self.serving.mark:
                self.fault = None
                return False
            edition = self.load_checked(None)
        except Exception as error:
            if str(error) != self.fault:
                log.warning("what is new does not serve, the former version stays: %s", error)
                self.metrics.reloads.labels("refused").inc()
            self.fault = str(error)
            return False
        if edition.mark == self.serving.mark:
            return False
        self.serving, self.fault = edition, None
        with self.looking:
            self.beside.clear()  # they stand beside another release now
        self.tell(edition)
        self.metrics.reloads.labels("switched").inc()
        return True

    def wanted(self) -> tuple[int | None, int | None]:
        """The version and the release that should serve by now."""
        version = self.tracking.by_alias("serving")
        return None if version is None else number(version), self.store.version(RECOMMENDATIONS)

    def list(self, most: int) -> list[dict[str, Any]]:
        """The newest versions of the site that can be asked: what serves, and those of the nights."""
        serving = self.serving.loaded.version
        fitting = [
            version
            for version in self.registered()
            if WITHDRAWN not in version.tags
            and (version.tags.get("purpose", "nightly") == "nightly" or number(version) == serving)
        ]
        return [
            {
                "model_version": number(version),
                "recipe": version.tags["recipe"],
                "data_through": version.tags["data_through"],
                "kind": version.tags["kind"],
                "is_serving": number(version) == serving,
            }
            for version in fitting[:most]
        ]

    def has(self, version: int) -> bool:
        """Whether a version is registered."""
        return any(number(each) == version for each in self.registered())

    def registered(self) -> Sequence[ModelVersion]:
        """All versions of the site, newest first, as they were a second ago at most."""
        with self.listing:
            if self.listed is None or monotonic() - self.listed[0] > LIST_EVERY:
                self.listed = monotonic(), self.tracking.versions(withdrawn=True)
            return self.listed[1]

    def tell(self, edition: Edition) -> None:
        """Say in log and metrics what serves."""
        log.info("serving model version %s with release %s of %s", *edition.mark, self.site.name)
        self.metrics.model_version.set(edition.loaded.version or 0)
        self.metrics.release.set(edition.release or 0)


def check(edition: Edition) -> None:
    """Raise ConfigurationError for an edition that does not answer as it should."""
    loaded = edition.loaded
    num_known = loaded.assortment.num_known if loaded.bundle is not None else 0
    probes = [Request([Event(loaded.item_ids[code])]) for code in range(1, num_known, max(1, num_known // NUM_PROBES))]
    for channel, plan in loaded.plans.items():
        requests = [replace(request, channel=channel, top=PROBED) for request in (Request(), *probes)]
        answers = recommend(loaded, requests)
        scores = [item["score"] for answer in answers for item in answer["items"]]
        if not np.isfinite(scores).all():
            raise ConfigurationError(f"model version {loaded.version} gives scores that are no numbers. Train it again")
        may_be_listed = plan.rules.allowed_A[:num_known].sum() > 1
        if may_be_listed and not any(answer["source"] == "model" for answer in answers):
            raise ConfigurationError(
                f"model version {loaded.version} fills no list of the channel {channel!r} on {len(answers)} "
                "probes. Is it a model of this site's items? Train it again, or roll back"
            )
    check_indexes(loaded, probes)
    edition.catalogue.search("", 1)  # its tables are made at first use, which no visitor shall wait for


def check_indexes(loaded: Loaded, probes: list[Request]) -> None:
    """Raise ConfigurationError where an index does not find what the vectors say: it is another model's."""
    sequences, vectors_ID = read(loaded, [hear(loaded, probe) for probe in probes]), loaded.maker.vectors_ID
    if loaded.bundle is None or vectors_ID is None or sequences is None or not probes:
        return
    queries_RD = session_vectors(loaded.bundle, sequences, vectors_ID.shape[1])
    scores_RI = queries_RD @ vectors_ID.T
    for plan in loaded.plans.values():
        if plan.index is None:
            continue
        codes = plan.index.codes[:-1]
        depth = min(PROBED, len(codes))
        best_RN = codes[np.argpartition(-scores_RI[:, codes], depth - 1, axis=1)[:, :depth]]
        found_RN, _ = plan.index.search(queries_RD, depth)
        share = np.mean([len(set(best) & set(found)) / depth for best, found in zip(best_RN, found_RN, strict=True)])
        if share < LEAST_FOUND:
            raise ConfigurationError(
                f"the item index of model version {loaded.version} finds {share:.0%} of what its vectors say, for the "
                f"channel {plan.rules.name!r}. Run export again"
            )
