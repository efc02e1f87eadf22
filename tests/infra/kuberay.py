"""The fields of KubeRay's resources, as a JSON schema: those of its API reference, `ray.io/v1` of
KubeRay 1.6.2, with pod templates left to the schemas of Kubernetes itself.

KubeRay's own schema is in its Helm chart, which no package index has.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

VERSION = "1.6.2"

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
LIST: Schema = {"type": "array"}
# What `ray start` is given, as text throughout: a number here is the commonest mistake.
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def fields(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


AUTH_OPTIONS = fields(enableK8sTokenAuth=FLAG, secretName=TEXT, mode=one_of("disabled", "token"))
AUTOSCALER_OPTIONS = fields(
    resources=OBJECT,
    image=TEXT,
    imagePullPolicy=TEXT,
    securityContext=OBJECT,
    idleTimeoutSeconds=WHOLE,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env=LIST,
    envFrom=LIST,
    volumeMounts=LIST,
)
HEAD_GROUP = fields(
    ("template", "rayStartParams"),
    template=OBJECT,
    headService=OBJECT,
    enableIngress=FLAG,
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
)
WORKER_GROUP = fields(
    ("groupName", "template", "rayStartParams"),
    suspend=FLAG,
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    idleTimeoutSeconds=WHOLE,
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=OBJECT,
    scaleStrategy=OBJECT,
    numOfHosts=WHOLE,
)
RAY_CLUSTER_SPEC = fields(
    ("headGroupSpec", "rayVersion"),
    upgradeStrategy=OBJECT,
    authOptions=AUTH_OPTIONS,
    suspend=FLAG,
    managedBy=TEXT,
    autoscalerOptions=AUTOSCALER_OPTIONS,
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=OBJECT,
    headGroupSpec=HEAD_GROUP,
    rayVersion=TEXT,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
RAY_JOB_SPEC = fields(
    ("entrypoint",),
    activeDeadlineSeconds=WHOLE,
    backoffLimit=WHOLE,
    rayClusterSpec=RAY_CLUSTER_SPEC,
    submitterPodTemplate=OBJECT,
    metadata=OBJECT,
    clusterSelector=TEXTS,
    submitterConfig=fields(backoffLimit=WHOLE),
    managedBy=TEXT,
    deletionStrategy=OBJECT,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=WHOLE,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)


def resource(kind: str, spec: Schema) -> Schema:
    return fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=OBJECT,
        spec=spec,
    )


SCHEMAS = {
    "RayCluster": resource("RayCluster", RAY_CLUSTER_SPEC),
    "RayJob": resource("RayJob", RAY_JOB_SPEC),
}
