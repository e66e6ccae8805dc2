"""The plots are well-formed, and as long as what they show."""

from __future__ import annotations

from xml.etree import ElementTree

from bench.plots import plots

NS = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_their_values() -> None:
    found = [
        {"name": f"test_core[{name}-{count}]", "params": {"name": name, "count": count},
         "extra_info": {"ns_per_event": spent}}
        for name, count, spent in (
            ("mixed", 25, 50.0), ("mixed", 1000, 100.0), ("open", "falco", 25.0)
        )
    ] + [
        {"name": "test_stages[mixed]", "params": {"name": "mixed"},
         "extra_info": {"hash": 10.0, "classes": 30.0}},
        {"name": "test_memory", "params": None, "extra_info": {"bytes": 1}},
    ]  # fmt: skip
    made = plots(found)
    assert set(made) == {"core-streams.svg", "core-stages.svg"}
    root = ElementTree.fromstring(made["core-streams.svg"])
    widths = [float(rect.attrib["width"]) for rect in root.iter(f"{NS}rect")][4:]
    assert widths == [widths[1] / 2, widths[1], widths[1] / 4]
    stacked = ElementTree.fromstring(made["core-stages.svg"])
    first, second = list(stacked.iter(f"{NS}rect"))[-2:]
    assert float(second.attrib["x"]) == float(first.attrib["x"]) + float(first.attrib["width"])
