from prometheus_client.parser import text_string_to_metric_families

from meshnode.api.metrics import Metrics, outcome
from meshnode.api.record import STATUS_CALLER_LEFT, Record


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render().decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def record(**more: object) -> Record:
    values = {"id": "req_1", "endpoint": "/v1/chat/completions", "started_at": 0.0, "model": "demo", "status": 200}
    return Record(**(values | more))  # type: ignore[arg-type]


def test_a_finished_request_is_counted_and_timed() -> None:
    metrics = Metrics(list)
    metrics.finished(record(tokens_in=7, tokens_out=3, first_byte_s=0.02, total_s=0.4, queued_s=0.001))
    metrics.finished(record(tokens_in=1, tokens_out=1, first_byte_s=None))
    found = samples(metrics)
    both = (("endpoint", "/v1/chat/completions"), ("model", "demo"))
    assert found["meshnode_requests_total", (*both, ("outcome", "ok"))] == 2
    assert found["meshnode_request_seconds_count", both] == 2
    assert found["meshnode_time_to_first_token_seconds_count", both] == 1
    assert found["meshnode_request_seconds_bucket", (both[0], ("le", "0.25"), both[1])] == 1
    assert found["meshnode_tokens_total", (("direction", "in"), ("model", "demo"))] == 8
    assert found["meshnode_tokens_total", (("direction", "out"), ("model", "demo"))] == 4


def test_retries_and_continued_answers_are_counted() -> None:
    metrics = Metrics(list)
    metrics.finished(record(retries=2, resumed=1))
    metrics.finished(record(resumed=3, resume_failed=True, error="answer-not-continued"))
    found = samples(metrics)
    assert found["meshnode_retries_total", (("model", "demo"),)] == 2
    assert found["meshnode_resumed_total", (("model", "demo"), ("outcome", "continued"))] == 4
    assert found["meshnode_resumed_total", (("model", "demo"), ("outcome", "failed"))] == 1


def test_outcomes() -> None:
    for wanted, given in (
        ("ok", record()),
        ("left", record(status=STATUS_CALLER_LEFT)),
        ("refused", record(status=429, error="too-many-requests")),
        ("failed", record(status=502, error="engine-crashed")),
        ("failed", record(status=200, error="engine-crashed")),
    ):
        assert outcome(given) == wanted


def test_refused_requests_add_no_series_however_many_names_they_make_up() -> None:
    metrics = Metrics(list)
    for number in range(1000):
        metrics.finished(record(id=f"req_{number}", model="", status=404, error="model-not-found"))
    text = metrics.render().decode()
    assert len([line for line in text.splitlines() if not line.startswith("#")]) == 2  # the count and its creation


def test_gauges_are_read_when_scraped_and_any_name_is_escaped() -> None:
    value = 1.0
    name = 'a"\\\n<img>é'
    metrics = Metrics(
        lambda: [
            ("meshnode_slots_busy", "Busy", {"model": name}, value),
            ("meshnode_slots_busy", "Busy", {"model": "b"}, 5),
            ("meshnode_memory_bytes", "Memory", {}, 3),
        ]
    )
    for value in (2.0, 4.0):
        found = samples(metrics)
        assert found["meshnode_slots_busy", (("model", name),)] == value
        assert found["meshnode_slots_busy", (("model", "b"),)] == 5
        assert found["meshnode_memory_bytes", ()] == 3


def test_two_nodes_in_one_process_do_not_share_a_registry() -> None:
    first, second = Metrics(list), Metrics(list)
    first.finished(record())
    assert len(samples(second)) == 0
