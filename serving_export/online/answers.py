"""Answers to batches of requests: states first, then the lists, by the export's own code."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from features.sequences import Sequences
from serving_export.loaded import Loaded
from serving_export.online.metrics import Metrics
from serving_export.online.states import SessionStates, keeps_state
from serving_export.online.versions import Edition
from serving_export.recommend import recommend
from serving_export.request import Request
from serving_export.scoring import Vectors

Told = dict[str, Any]


class Job(NamedTuple):
    """A request, and what it is answered from."""

    edition: Edition
    request: Request


class Answers:
    """Answers jobs, those of one edition together."""

    def __init__(self, states: SessionStates, metrics: Metrics) -> None:
        self.states, self.metrics = states, metrics

    def answer(self, jobs: Sequence[Job]) -> list[Told | Exception]:
        """An answer to each job, or why there is none."""
        told: list[Told | Exception] = [{} for _ in jobs]
        for edition in {id(job.edition): job.edition for job in jobs}.values():
            places = [n for n, job in enumerate(jobs) if job.edition is edition]
            for n, answer in zip(places, self.answer_alike(edition, [jobs[n].request for n in places]), strict=True):
                told[n] = answer
        return told

    def answer_alike(self, edition: Edition, requests: list[Request]) -> list[Told | Exception]:
        """The answers of one edition; where the batch fails, each request is tried alone."""
        try:
            return [*self.answer_together(edition, requests)]
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [self.answer_alike(edition, [request])[0] for request in requests]

    def answer_together(self, edition: Edition, requests: list[Request]) -> list[Told]:
        """The answers of one edition."""
        loaded = edition.loaded
        answers = recommend(loaded, requests, partial(self.vectors, loaded))
        for answer in answers:
            answer["items"] = edition.catalogue.describe(answer["items"])
            answer["release"] = edition.release
            if answer["source"] == "popular":
                answer["note"] = why_popular(loaded, answer)
            self.metrics.answers.labels(answer["source"]).inc()
            self.metrics.unknown_items.inc(answer["num_unknown"])
        return answers

    def vectors(self, loaded: Loaded, sequences: Sequences) -> Vectors | None:
        """What the model wants next of each request, from states; None for a model without any."""
        if loaded.bundle is None or loaded.version is None or loaded.maker.vectors_ID is None:
            return None
        if not keeps_state(loaded.bundle.recommender):
            return None
        return self.states.vectors(loaded.bundle, loaded.version, sequences, loaded.maker.vectors_ID.shape[1])


def why_popular(loaded: Loaded, answer: Told) -> str:
    """Why an answer holds popular items only."""
    if loaded.bundle is None:
        return "Popular items: no model serves yet."
    if not answer["num_items"] and not answer.get("num_history"):
        return "Popular items: nothing is known of this visitor yet."
    if answer["num_items"]:
        return f"Popular items: {answer['num_unknown']} of {answer['num_items']} items are unknown to the model."
    return "Popular items: the model knows none of the items of this user's history."
