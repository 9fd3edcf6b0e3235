"""MM-SafetyBench: harmful questions whose key phrase is in the picture, in thirteen scenarios.

The authors' repository with the pictures of their archive in data/imgs/, or its folder data/. A split is a kind of
picture: SD is drawn, TYPO is written, SD_TYPO both, and Text_only has none; `-tiny` is the authors' sample of each.
"""

from __future__ import annotations

from pathlib import Path

from safecode_trt.errors import EvalError
from safecode_trt.eval.benchmarks.files import (
    Record,
    first_file,
    first_folder,
    picture_path,
    read_json,
    records,
)
from safecode_trt.eval.benchmarks.item import Benchmark, Draft, EvalItem, Templates

__all__ = ["BENCHMARK", "SCENARIOS"]

# The names as they are published, with the first one's spelling, and how many questions each has.
SCENARIOS = {
    "01-Illegal_Activitiy": 97,
    "02-HateSpeech": 163,
    "03-Malware_Generation": 44,
    "04-Physical_Harm": 144,
    "05-EconomicHarm": 122,
    "06-Fraud": 154,
    "07-Sex": 109,
    "08-Political_Lobbying": 153,
    "09-Privacy_Violence": 139,
    "10-Legal_Opinion": 130,
    "11-Financial_Advice": 167,
    "12-Health_Consultation": 109,
    "13-Gov_Decision": 149,
}
RESPELT = {"01-Illegal_Activitiy": "01-Illegal_Activity"}
QUESTIONS = {
    "SD": "Rephrased Question(SD)",
    "SD_TYPO": "Rephrased Question",
    "TYPO": "Rephrased Question",
    "Text_only": "Changed Question",
}
TINY = "TinyVersion_ID_List.json"
WHAT = "the folder of MM-SafetyBench"


def _read(folder: Path, split: str, templates: Templates) -> Draft:
    kind, _, tiny = split.partition("-")
    questions = first_folder(folder, ("data/processed_questions", "processed_questions"), WHAT)
    sample = _sample(folder) if tiny else None
    draft = Draft()
    for scenario in SCENARIOS:
        spellings = (scenario, *([RESPELT[scenario]] if scenario in RESPELT else []))
        path = first_file(questions, [f"{name}.json" for name in spellings], f"all scenarios of {WHAT}")
        found = dict(Record(read_json(path), str(path)).members())
        asked = found if sample is None else _chosen(found, sample.get(scenario, []), path)
        for number, record in asked.items():
            draft.items.append(
                EvalItem(
                    benchmark="mm-safetybench",
                    split=split,
                    item=f"{scenario}:{number}",
                    query="0",
                    side="unsafe",
                    prompt=record.text(QUESTIONS[kind]),
                    picture=_picture(questions.parent / "imgs", spellings, kind, number, record.where),
                    category=scenario,
                )
            )
    return draft


def _picture(images: Path, spellings: tuple[str, ...], kind: str, number: str, where: str) -> Path | None:
    if kind == "Text_only":
        return None
    scenario = next((name for name in spellings if (images / name).is_dir()), spellings[0])
    return picture_path(images, f"{scenario}/{kind}/{number}.jpg", where)


def _sample(folder: Path) -> dict[str, list[str]]:
    """The numbers of the authors' sample by scenario."""
    path = first_file(folder, (TINY, f"../{TINY}"), WHAT)
    published = {right: name for name, right in RESPELT.items()}
    sample: dict[str, list[str]] = {}
    for entry in records(read_json(path), str(path)):
        name = entry.text("Scenario")
        scenario = published.get(name, name)
        numbers = entry.data.get("Sampled_ID_List")
        if scenario not in SCENARIOS or scenario in sample or not isinstance(numbers, list):
            raise EvalError(f"{entry.where}: expected a scenario once with its Sampled_ID_List, got {name!r}")
        sample[scenario] = [str(number) for number in numbers]
    return sample


def _chosen(found: dict[str, Record], numbers: list[str], path: Path) -> dict[str, Record]:
    absent = [number for number in numbers if number not in found]
    if absent:
        raise EvalError(
            f"{path}: question {absent[0]} of the sample is missing; {TINY} is of another version"
        )
    return {number: found[number] for number in numbers}


BENCHMARK = Benchmark(
    name="mm-safetybench",
    source="https://github.com/isXinLiu/MM-SafetyBench",
    licence="CC BY-NC 4.0",
    splits=(*QUESTIONS, *(f"{kind}-tiny" for kind in QUESTIONS)),
    default=("SD", "SD_TYPO", "TYPO"),
    published={kind: sum(SCENARIOS.values()) for kind in QUESTIONS},
    read=_read,
)
