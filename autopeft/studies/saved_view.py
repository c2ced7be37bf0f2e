"""A named view of the MLflow UI that opens a study on its front: scatters, parallel coordinates, hypervolume.

The format is MLflow's own and internal (an experiment tag that its UI reads); it was read off and tried with the
versions below. With another version the study is mirrored all the same and only the view is left out.
"""

import json
from collections.abc import Sequence
from uuid import NAMESPACE_URL, uuid5

from autopeft.objectives.objective import Objective

VIEW_KEY = "autopeft-front"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
VIEW_NAME = "AutoPEFT front"
KNOWN_MAJOR = 3
MAX_VALUE = 20_000
"""Length of an experiment tag."""


def knows(version: str) -> bool:
    """Whether the view's format is known for this MLflow version."""
    return version.split(".", 1)[0] == str(KNOWN_MAJOR)


def view_path(experiment_id: str) -> str:
    """The part of the UI's address behind the server that opens an experiment on the view.

    The UI shows its pages for language-model applications unless it is told otherwise here.
    """
    query = f"viewStateShareKey={VIEW_KEY}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"/#/experiments/{experiment_id}/runs?{query}"


def view_value(objectives: Sequence[Objective]) -> str:
    """The tag's value: charts of the first objective against each other one, and how they fit together."""
    metric, costs = objectives[0].name, [objective.name for objective in objectives[1:]]
    front = _section("Pareto front", n_columns=max(1, min(3, len(costs))))
    settings = _section("What the trials adapt", n_columns=1)
    course = _section("How the search went", n_columns=3)
    charts = [_scatter(front, x=cost, y=metric) for cost in costs]
    charts.append(_parallel(settings, objectives))
    charts += [_line(course, key, title) for key, title in _lines(metric)]
    state = {
        "searchFilter": "",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": objectives[0].to_loss(1.0) > 0,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "compareRunCharts": charts,
        "compareRunSections": [front, settings, course],
        "runsHiddenMode": "SHOWALL",
        "runListHidden": True,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "selectedColumns": _columns(objectives),
    }
    stamp = 0
    return json.dumps({"name": VIEW_NAME, "createdAt": stamp, "updatedAt": stamp, "state": json.dumps(state)})


def _lines(metric: str) -> list[tuple[str, str]]:
    return [
        ("hypervolume", "Hypervolume over trials"),
        (f"best_{metric}", f"Best {metric} over trials"),
        (f"epoch/{metric}", f"{metric} by epoch, all trials"),
    ]


def _columns(objectives: Sequence[Objective]) -> list[str]:
    metrics = [f"metrics.`{objective.name}`" for objective in objectives]
    return ["attributes.`Source`", *metrics, "tags.`on_front`", "params.`methods`", "tags.`description`"]


def _uuid(text: str) -> str:
    return str(uuid5(NAMESPACE_URL, f"autopeft/{text}"))


def _section(name: str, *, n_columns: int) -> dict[str, object]:
    return {
        "uuid": _uuid(name),
        "name": name,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": n_columns,
        "cardHeight": 400,
    }


def _chart(section: dict[str, object], kind: str, title: str, **rest: object) -> dict[str, object]:
    return {
        "type": kind,
        "uuid": _uuid(f"{section['name']}/{title}"),
        "metricSectionId": section["uuid"],
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
        "displayName": title,
        **rest,
    }


def _scatter(section: dict[str, object], *, x: str, y: str) -> dict[str, object]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _chart(section, "SCATTER", f"{y} against {x}", **axes)


def _parallel(section: dict[str, object], objectives: Sequence[Objective]) -> dict[str, object]:
    metrics = [objective.name for objective in reversed(objectives)]
    chosen = {"selectedParams": ["methods", "n_adapted_layers"], "selectedMetrics": metrics, "showAllRuns": True}
    return _chart(section, "PARALLEL", "Methods, layers and objectives", **chosen)


def _line(section: dict[str, object], key: str, title: str) -> dict[str, object]:
    return _chart(
        section,
        "LINE",
        title,
        metricKey=key,
        selectedMetricKeys=[key],
        xAxisKey="step",
        xAxisScaleType="linear",
        scaleType="linear",
        lineSmoothness=0,
        useGlobalXaxisKey=False,
        useGlobalLineSmoothing=False,
        yAxisKey="metric",
        yAxisExpressions=[],
        selectedXAxisMetricKey="",
        ignoreOutliers=False,
        range={},
    )
