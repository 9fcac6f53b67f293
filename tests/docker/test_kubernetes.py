"""The pods that the KubernetesExecutor would start, rendered by the executor's own code; no cluster is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

KUBERNETES = Path(__file__).parent.parent.parent / "docker" / "kubernetes"
TEMPLATE = KUBERNETES / "gpu-pod.yaml"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """What becomes of the template with the chart's default image, and with the values of this folder."""
    misspelt = tmp_path_factory.mktemp("pods") / "pod.yaml"
    misspelt.write_text(TEMPLATE.read_text().replace("nodeSelector:", "nodeSelectors:"))
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("render_pods.py"), TEMPLATE, misspelt, KUBERNETES / "mlflow.yaml"],
        env=os.environ | {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow"))},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_nothing_of_the_template_is_unknown_to_kubernetes(rendered):
    assert rendered["read_back"] == yaml.safe_load(TEMPLATE.read_text())


def test_a_misspelt_key_would_be_seen(rendered):
    assert "nodeSelector" not in json.dumps(rendered["misspelt"])


def test_the_pod_of_a_task_keeps_place_image_and_limits(rendered):
    pod = rendered["pod"]
    [container] = pod["spec"]["containers"]
    assert container["image"].endswith("/gpu-worker:0.1.0")
    assert container["args"] == ["airflow", "tasks", "run"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["metadata"]["labels"]["task_id"] == "train"
    assert {"name": "AIRFLOW_IS_K8S_EXECUTOR_POD", "value": "True"} in container["env"]
    assert "MLFLOW_TRACKING_URI" in {variable["name"] for variable in container["env"]}


def test_an_image_of_the_executor_would_take_the_place_of_the_templates(rendered):
    assert rendered["image_with_repository"] == "apache/airflow:3.3.2"
    chart = yaml.safe_load((KUBERNETES / "values.yaml").read_text())["config"]["kubernetes_executor"]
    assert chart == {"worker_container_repository": "", "worker_container_tag": ""}


def test_no_container_is_root_or_can_become_it(rendered):
    for pod in (rendered["pod"]["spec"], rendered["objects"][0]["spec"]["template"]["spec"]):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_nothing_of_mlflows_objects_is_unknown_to_kubernetes(rendered):
    assert rendered["objects"] == list(yaml.safe_load_all((KUBERNETES / "mlflow.yaml").read_text()))
