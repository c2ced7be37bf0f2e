import json

from autopeft.objectives.objective import resolve_objectives
from autopeft.studies.saved_view import MAX_VALUE, VIEW_KEY, knows, view_path, view_value
from tests.studies.synthetic import OBJECTIVES


def charts(value: str) -> list[dict]:
    return json.loads(json.loads(value)["state"])["compareRunCharts"]


def test_the_view_has_a_scatter_for_each_cost_and_one_parallel_plot() -> None:
    made = charts(view_value(OBJECTIVES))
    scatters = [(one["xaxis"]["key"], one["yaxis"]["key"]) for one in made if one["type"] == "SCATTER"]
    assert scatters == [("parameters", "accuracy"), ("memory", "accuracy")]
    assert [one["selectedMetrics"] for one in made if one["type"] == "PARALLEL"] == [
        ["memory", "parameters", "accuracy"]
    ]


def test_every_chart_lies_in_a_section_of_the_view() -> None:
    state = json.loads(json.loads(view_value(OBJECTIVES))["state"])
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])


def test_runs_are_ordered_best_first_whichever_way_is_better() -> None:
    def order(metric: str) -> bool:
        return json.loads(json.loads(view_value(resolve_objectives([metric], metric=metric)))["state"])["orderByAsc"]

    assert (order("accuracy"), order("perplexity")) == (False, True)


def test_the_value_fits_a_tag_and_never_changes_for_the_same_objectives() -> None:
    everything = resolve_objectives(["accuracy", "parameters", "memory", "train_seconds"], metric="accuracy")
    assert len(view_value(everything)) < MAX_VALUE
    assert view_value(everything) == view_value(everything)


def test_the_address_names_experiment_and_view() -> None:
    assert view_path("7") == (
        f"/#/experiments/7/runs?viewStateShareKey={VIEW_KEY}&compareRunsMode=CHART&workflowType=machine_learning"
    )


def test_the_format_is_known_for_one_major_version_only() -> None:
    assert knows("3.17.2")
    assert not knows("4.0.0")
    assert not knows("30.1")
