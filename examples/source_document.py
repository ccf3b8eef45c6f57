"""Print the document that this project grew from, made from a new run: `python examples/source_document.py`."""

from talkerviz import recording
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.render.charts.legacy_mermaid import render_legacy_mermaid
from talkerviz.talker import Scenario, build_talker, preset, run

config, scenario = preset("lite"), Scenario(frames=4)
talker = build_talker(config, seed=scenario.seed)
with recording(talker, name="talker", phases=TalkerPhases, clock="none") as rec:
    run(talker, "native", scenario, config)
print(render_legacy_mermaid(rec.trace), end="")
