"""An evaluation from end to end: make and measure what isn't yet, compute every metric, write the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from contrastive_i2v.data.examples import SKIPPED
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.captions import parse_caption
from contrastive_i2v.evaluation.extractors.shapes_reader import ShapesReader
from contrastive_i2v.evaluation.generators import Method
from contrastive_i2v.evaluation.report import build_page
from contrastive_i2v.evaluation.results import (
    Difference,
    Evaluated,
    EvaluatedClip,
    Extractor,
    LatentMap,
    Metric,
    Report,
    Training,
    save_report,
)
from contrastive_i2v.evaluation.suite import provenance
from contrastive_i2v.evaluation.suite.background import Background
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos
from contrastive_i2v.evaluation.suite.measures import Networks, build_measures, networks_by_role
from contrastive_i2v.evaluation.suite.metrics import (
    caption,
    distribution,
    drift,
    fidelity,
    latent,
    neighbours,
    over_time,
    prompt,
)
from contrastive_i2v.evaluation.suite.scored import FEW_CLIPS, Scored, difference
from contrastive_i2v.evaluation.suite.training_seeds import over_seeds
from contrastive_i2v.evaluation.suite.work import Work
from contrastive_i2v.evaluation.videos import ReferenceSet
from contrastive_i2v.files import locked_folder, write_whole
from contrastive_i2v.system import default_device

Known: TypeAlias = dict[tuple[str, str], list[Scored]]
"""The scores of a method's videos beside the truth, by the stamps of both."""


def evaluate(
    reference: ReferenceSet,
    methods: Sequence[Method],
    networks: Networks,
    output: Path,
    *,
    title: str,
    command: str,
    batch_size: int = 8,
    trainings: Mapping[str, Training] | None = None,
    umap: bool = True,
    page: str = "report.html",
    about: dict[str, str] | None = None,
    warnings: Sequence[str] = (),
    known: Known | None = None,
    progress: bool = True,
) -> Report:
    """Evaluate methods on the same clips; writes `output/report.json`, the page, the videos, and
    `output/skipped.csv` where clips were left out.

    Run again with the same arguments it goes on where it was stopped; what changed is made anew.

    Args:
        command: how to run it again, for the report.
        trainings: method -> the training that made it, of those that are one of several.
        umap: False leaves UMAP's maps out, and the 20 s or more that they take.
        page: the page's file name in `output`.
        about: more provenance of the whole evaluation.
        warnings: said in the report before its own.
        known: what earlier calls scored, which isn't scored again; this one's is added.

    Raises:
        InputError: two methods of one name, another process at work in `output`, and what generators and measures
            raise; what is finished stays.
    """
    began = time.perf_counter()
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1 or name == "truth"}):
        raise InputError(f"methods: {', '.join(twice)} is taken already; name them apart with NAME=...")
    networks = _with_reader(networks, reference)
    measures = build_measures(networks, frame_rate=reference.frame_rate)
    with locked_folder(output):
        work = Work(output, reference, methods, measures, batch_size, progress)
        extractors = _extractors(networks)
        maps: dict[str, Background[list[LatentMap]]] = {}

        def measured(name: str) -> MeasuredVideos:
            return MeasuredVideos(work.jobs[name], work.reference.clips)

        def start_maps(method: Method) -> None:  # UMAP takes 20 s of one core to compile: meanwhile the work goes on
            maps[method.name] = Background(latent.maps, measured(method.name), measured("truth"), umap)

        work.run(start_maps)
        reference, truth = work.reference, measured("truth")
        known, scored = {} if known is None else known, {}
        evaluated = []
        for method in tqdm(methods, desc="metrics", unit="method", disable=not progress):
            ours = measured(method.name)
            with work.clock("metrics"), work.clock(method.name):
                if (key := (ours.stamp, truth.stamp)) not in known:
                    known[key] = _score(ours, truth)
            scored[method.name] = known[key]
            with work.clock("maps"):
                found = maps[method.name].result()
            training = (trainings or {}).get(method.name)
            evaluated.append(_evaluated(work, method, [one.metric for one in scored[method.name]], found, training))
        with work.clock("differences"):
            differences = _differences(scored, trainings or {})
        parts = {name: spent for name, spent in work.seconds.items() if name not in work.jobs}
        report = Report(
            title=title,
            command=command,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            methods=evaluated,
            extractors={one.name: one for one in extractors.values()},
            provenance={
                **provenance.data(reference),
                **provenance.environment(),
                **(about or {}),
                "seconds": f"{time.perf_counter() - began:.1f}",
                "seconds by part": ", ".join(f"{name} {spent:.1f}" for name, spent in parts.items()),
            },
            differences=differences,
            over_seeds=over_seeds(evaluated),
            warnings=[*warnings, *_warnings(reference, networks)],
        )
        save_report(report, output / "report.json")
        html = build_page(report, output)
        write_whole(output / page, lambda part: part.write_text(html, encoding="utf-8"))
        return report


def _score(ours: MeasuredVideos, truth: MeasuredVideos) -> list[Scored]:
    return [
        *distribution.distribution_metrics(ours, truth),
        *neighbours.neighbour_metrics(ours, truth),
        *caption.caption_metrics(ours, truth),
        *prompt.prompt_metrics(ours, truth),
        *over_time.over_time_metrics(ours, truth),
        *drift.drift_metrics(ours, truth),
        *fidelity.fidelity_metrics(ours),
        *latent.latent_metrics(ours, truth),
    ]


def _with_reader(networks: Networks, reference: ReferenceSet) -> Networks:
    """With the packaged classifier of generated clips, where there is a caption that it can be held against."""
    if networks.shapes is not None or not any(parse_caption(clip.caption) for clip in reference.clips):
        return networks
    return replace(networks, shapes=ShapesReader(default_device()))


def _differences(scored: Mapping[str, list[Scored]], trainings: Mapping[str, Training]) -> list[Difference]:
    """Of the pairs of methods that answer a question, for the metrics that both have."""
    trained = {training.form for training in trainings.values()}
    found = []
    for a, b in combinations(scored, 2):
        both = [trainings[name] for name in (a, b) if name in trainings]
        forms, against = {one.form for one in both}, {one.against for one in both} & trained
        if len(both) == 2 and (both[0].seed != both[1].seed or (against and not against & forms)):
            continue  # forms are held against that of their seed; over seeds there is a section of its own
        others = {one.metric.name: one for one in scored[b]}
        for one in scored[a]:
            if (other := others.get(one.metric.name)) is not None:
                found.append(difference(one.metric.name, (a, one), (b, other)))
    return found


def _extractors(networks: Networks) -> dict[str, Extractor]:
    return {role: network.about for role, network in networks_by_role(networks).items()}


def _evaluated(
    work: Work, method: Method, metrics: list[Metric], maps: list[LatentMap], training: Training | None
) -> Evaluated:
    job = work.jobs[method.name][0]
    seeds = {"seeds": " ".join(map(str, method.seeds))} if method.seeds else {}
    clips = [
        EvaluatedClip(
            name=clip.name,
            caption=clip.caption,
            video=job.video(clip).relative_to(work.output).as_posix(),
            truth=work.truth.video(clip).relative_to(work.output).as_posix(),
        )
        for clip in work.reference.clips
    ]
    return Evaluated(
        name=method.name,
        kind=method.kind,
        provenance={**method.about, **method.identity, **seeds},
        metrics=metrics,
        clips=clips,
        maps=maps,
        seconds=work.seconds.get(method.name, 0.0),
        training=training,
    )


def _warnings(reference: ReferenceSet, networks: Networks) -> list[str]:
    found = []
    count = len(reference.clips)
    if count < FEW_CLIPS:
        found.append(f"{count} clip{'s' * (count > 1)}: too few to tell methods apart; take {FEW_CLIPS} or more.")
    if reference.skipped:
        shown = "; ".join(f"{one.path.name}: {one.reason}" for one in reference.skipped[:3])
        more = f" and {len(reference.skipped) - 3} more, all of them in {SKIPPED}" if len(reference.skipped) > 3 else ""
        clips = f"{len(reference.skipped)} clip{'s' * (len(reference.skipped) > 1)}"
        found.append(f"{clips} left out of {reference.folder}: {shown}{more}.")
    if networks.clip is None:
        found.append(
            "CLIP scores and CLIPSIM are left out, and backgrounds are compared on the image extractor's features: no "
            "CLIP was given. Download one, say openai/clip-vit-base-patch32, and give its folder to evaluate --clip."
        )
    if networks.lpips is None:
        found.append("LPIPS is left out: evaluate --lpips alex needs the packages lpips and torchvision.")
    if networks.latents is None:
        found.append("Latent-space metrics are left out: evaluate --latents MODEL says whose VAE encodes frames.")
    stand_ins = {one.name: one.stands_in_for for one in _extractors(networks).values() if one.stands_in_for}
    for name, original in stand_ins.items():
        found.append(f"{name} stands in for {original}: no number on it compares with published ones.")
    return found
