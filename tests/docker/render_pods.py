"""Renders pod templates as the KubernetesExecutor does, and reads other objects as Kubernetes' own client does."""

import json
import sys
from pathlib import Path

import yaml
from airflow.providers.cncf.kubernetes.kube_config import KubeConfig
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from kubernetes.client.api_client import ApiClient

template, misspelt, objects = sys.argv[1:]
client = ApiClient()
KINDS = {"Deployment": "V1Deployment", "Service": "V1Service"}


class Answer:
    """What `deserialize` expects of an answer of the API."""

    def __init__(self, content):
        self.data = json.dumps(content)


def pod_of(image):
    """The pod of one task, from the template and what the executor knows."""
    return PodGenerator.construct_pod(
        dag_id="shop__retrain",
        task_id="train",
        pod_id="shop-retrain-train",
        try_number=1,
        kube_image=image,
        date=None,
        args=["airflow", "tasks", "run"],
        pod_override_object=None,
        base_worker_pod=PodGenerator.deserialize_model_file(template),
        namespace="nightjar",
        scheduler_job_id="1",
        run_id="asset_triggered__1",
        map_index=0,
    )


def read(content):
    return client.sanitize_for_serialization(client.deserialize(Answer(content), KINDS[content["kind"]]))


others = [read(content) for content in yaml.safe_load_all(Path(objects).read_text())]
print()
print(
    json.dumps(
        {
            "read_back": client.sanitize_for_serialization(PodGenerator.deserialize_model_file(template)),
            "misspelt": client.sanitize_for_serialization(PodGenerator.deserialize_model_file(misspelt)),
            "pod": client.sanitize_for_serialization(pod_of(KubeConfig().kube_image)),
            "image_with_repository": pod_of("apache/airflow:3.3.2").spec.containers[0].image,
            "objects": others,
        }
    )
)
