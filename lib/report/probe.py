"""``make probe``: notebook 02's probes on somebody's own labelled prompts, and on an SAE of theirs, as a table."""

import argparse

from lib import config, pages, store
from lib.lm import sequences
from lib.probes import views
from lib.probes.methods import SingleLatent
from lib.probes.views import Error, Latents, Reconstruction
from lib.report import runner
from lib.sae import controls, exchange
from lib.store import Artifact
from lib.study import Study, open_study
from lib.texts import files

SPLITS = {"train": "train", "val": "validation", "ood": "OOD"}
FEW = 20  # clusters of a split


def table(options: argparse.Namespace) -> str:
    """The table of probes, OOD best first, and which are left out and why; also written to ``build/probe/results``."""
    if not options.data.strip():
        raise config.ConfigError("no prompts given: make probe DATA=file.csv (or .json, .parquet, hub:owner/name)")
    named = {f"probes.{name}": value for name in ("text", "label", "positive") if (value := getattr(options, name))}
    given = {"probes.layers": []} | runner.parse_settings(options.settings)  # no row is of a swept layer
    overrides = given | named | {"probes.data": runner.located(options.data)}
    study = open_study(options.profile, overrides)
    profile, q = study.profile, study.profile.probes
    store.open_store("probe")  # its results do not stand among those of a run
    if options.any_place and not options.sae:
        raise config.ConfigError("--any-place says where an SAE may be from: give --sae FOLDER with it")
    here = study.labelled, study.prompt_activations, profile.layer
    read = {name: study.saes[name][0] for name in ("IT", "finetuned", "chat")} if options.saes else {}
    if options.sae:
        theirs = study.bring(options.sae, any_place=options.any_place)
        read |= {"the SAE": theirs, "an untrained SAE": controls.untrained(theirs, *here, profile.seed)}
    fits = study.baselines | {probe: fit for name, sae in read.items() for probe, fit in on(study, name, sae).items()}
    every = study.table(fits, name="probes").value
    left_out = "".join(f"\n{name} is left out: {e['left out']}." for name, e in every.items() if "left out" in e)
    found = sorted((x for x in every.items() if "ood" in x[1]), key=lambda item: -item[1]["ood"]["auroc"])
    if not found:
        raise config.Expected(f"{options.data}: no probe could be fit.{left_out}")
    rows = [(name, *(pages.interval(e[s]) for s in SPLITS), pages.share(e["ood"]["recall"])) for name, e in found]
    parts = {name: found[0][1][split] for split, name in SPLITS.items()}
    counts = ", ".join(f"{e['n']:,} {name} in {e['clusters']:,} clusters" for name, e in parts.items())
    said = [
        f"AUROC with 95 % intervals, {q.draws} draws of train and validation; prompts, in the first: {counts}. Dense: layer {profile.layer}, "
        f"place +{q.position} after the user's text. Also by slice: {config.build_dir()}/probe/results/probes.json"
    ]
    if any(e["ood"]["recall"] is None for _, e in found):
        said.append("Recall is blank: of fewer than 100 harmless OOD prompts, 1 % is none.")
    if min(e["clusters"] for e in parts.values()) < FEW:
        said.append(f"Of fewer than {FEW} clusters figures say next to nothing, whatever their intervals.")
    about = files.told(study.labelled).value
    if drawn := about["drawn"]:
        names = " and ".join(SPLITS[split] for split in drawn)
        like = ": so OOD prompts are of the same kinds as train" if "ood" in drawn else ""
        why = "All rows are in one split, or in none" if len(drawn) == 2 else f"No rows were given for {names}"
        said.append(f"{why}: {names} are a fifth of the clusters each, drawn by class{like}.")
    if len(words := about["harmless"]) > 1:
        said.append(f"Harmless is all but {q.positive!r}: {', '.join(f'{w} ({n:,})' for w, n in words.items())}.")
    if cut := sequences.cut(study.conversations).value:
        most = f"{q.limit:,} tokens, or what the model can read (probes.limit)"
        said.append(f"{cut:,} of the prompts: longer than {most}, so only their beginnings are read.")
    seen = {name: {"": study.see(Latents, [sae])[0]} for name, sae in read.items()}
    for name, by_place in (views.kept(*here, seen).value if seen else {}).items():
        (one,) = by_place.values()
        told = f"{name} loses {one['lost']:.2f} (their mean alone 1), with {one['l0']:.0f} latents active"
        said.append(f"Of the variance between prompts, {told}.")
    if options.any_place:
        said.append(f"{exchange.says(options.sae)}; here it reads {profile.model.name} after block {profile.layer}.")
    table = pages.table(rows, ("probe", *SPLITS.values(), "OOD recall at 1 % FP")).data
    return f"{table}\n\n" + "\n".join(said) + left_out


def on(study: Study, name: str, sae: Artifact) -> dict[str, Artifact]:
    """Probes on an SAE, under its name."""
    latents, rebuilt, missed = (study.see(kind, [sae]) for kind in (Latents, Reconstruction, Error))
    return {
        f"best latent, {name}": study.fit(SingleLatent(), *latents),
        f"k latents, {name}": study.fit(study.few(), *latents),
        f"all latents, {name}": study.fit(study.linear, *latents),
        f"reconstruction, {name}": study.fit(study.linear, *rebuilt),
        f"error, {name}": study.fit(study.linear, *missed),
    }
