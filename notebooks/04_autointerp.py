# %% [markdown]
# # 04 · Can latents be explained, and does it matter how often they fire?
#
# The *latents* of a sparse autoencoder (SAE) are meant to be readable: one might fire on “bank” after “river”, and on nothing else. To check
# thousands of them one lets a program read. *Autointerp* explains a latent from texts on which it fires, then predicts from the
# explanation alone how strongly it fires on other texts. The score is the rank correlation (Spearman's) of prediction and truth: one if the
# order is right, nought if the explanation says nothing.
#
# Such scores are usually averaged over latents. Then a latent that fires on every tenth token counts as much as one that fires once a book.
# [Smith et al. 2025](https://www.alignmentforum.org/posts/4uXCAJNuPKtKBsi28/negative-results-for-saes-on-downstream-tasks), "the post",
# average over *firings* instead: they draw latents in proportion to how often they fire. Does that change which SAE looks better? We ask it of
# two chat SAEs, with the plain penalty on L0 (the number of active latents a token) and with the *quadratic-frequency* penalty (QF) of
# [notebook 05](05_quadratic_frequency.ipynb), which punishes latents that fire often.

# %% tags=["parameters"]
profile = "report"  # smoke, report, gpu or paper: see lib/config.py
frozen = False  # True: read committed results only, compute nothing
overrides = {}  # any field of the profile, e.g. {"layer": 8, "training.latents": 1024}

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from safetensors.numpy import load_file
from scipy.sparse import csc_array
from scipy.stats import spearmanr

from lib import claims, figures, pages, stats, wheels
from lib.latents import autointerp
from lib.latents.autointerp import Best, Contexts, Explainer, Places, Tokens, Topic
from lib.lm import activations, model, sequences
from lib.lm.residual import residuals
from lib.pages import expect
from lib.probes import views
from lib.sae import training
from lib.sae.metrics import HIGH
from lib.sae.variants import SAEConfig, make
from lib.store import cached, result, values
from lib.study import open_study
from lib.texts import examples
from lib.texts.examples import Example

study = open_study(profile, overrides, frozen)
p, a = study.profile, study.profile.autointerp
pages.banner(profile, overrides)

# %% [markdown]
# ## The comparison

# %%
few = range(p.saes.level_seeds)
saes = {
    "IT": study.saes["IT"][: len(few)],
    "pretraining": study.saes["pretraining"][: len(few)],
    "JumpReLU": study.saes["chat"][: p.saes.fewer_seeds],
    "QF": study.saes["QF"],
    "TopK": study.saes["TopK"],
    "Gated": study.saes["Gated"],
} | {f"{name}, denser": trained for name, trained in study.denser.items()}
scores = values(
    {
        name: [study.explain(sae, run, f"04_{name.replace(', ', '_')}_{run}") for run, sae in enumerate(trained)]
        for name, trained in saes.items()
    }
)

# %% [markdown]
# Controls.


# %%
@cached
def half_trained(out, config, source, layer, section, seed, stays):
    """Step: an SAE trained as the others are, but that the tensor ``stays`` never moves."""
    read = activations.read(source, layer, seed)
    sae = make(config, read.width)
    sae.initialise(training.sample(read, seed), torch.Generator().manual_seed(seed))
    getattr(sae, stays).register_hook(torch.zeros_like)
    trainee = training.Trainee(sae, section)
    training.fit([trainee], read, seed)
    if trainee.error is not None:
        raise trainee.error
    training.save(trainee.sae, trainee.log, out)


@cached
def random_directions(out, like, harvested, layer, seed):
    """Step: an SAE whose latents read random directions, each as often as the latent of ``like`` in whose place it stands."""
    sae, source = training.load(like), activations.read(harvested, layer)
    x = source.gather(np.random.default_rng(seed).permutation(len(source))[:20_000]) / sae.scale
    with torch.inference_mode():
        silent = (sae.encode(x * sae.scale) == 0).float().mean(0)
        made = make(SAEConfig(variant="jumprelu", latents=len(silent)), x.shape[1])
        made.W_enc.copy_(
            torch.nn.functional.normalize(
                torch.randn(made.W_enc.shape, generator=torch.Generator().manual_seed(seed)), dim=0
            )
        )
        ordered = ((x - x.mean(0)) @ made.W_enc).sort(0).values
        at = (silent * (len(x) - 1)).round().long()
        made.b_enc.copy_(-ordered.gather(0, at[None])[0] - x.mean(0) @ made.W_enc)
        made.theta.fill_(1e-6)
        made.scale.copy_(sae.scale)
    training.save(made, [], out)


@cached
def bigrams(out, latents, harvested, layer, seed):
    """Step: an SAE of bigrams and a basis. Two latents for each direction of a random basis, one either way, rebuild everything; each
    of the others looks for one frequent pair of tokens, by a linear discriminant, as often as it occurs, and writes nothing."""
    source, rng = activations.read(harvested, layer), np.random.default_rng(seed)
    d, latents = source.width, max(latents, 3 * source.width)  # at small sizes there would be no room for pairs
    token, sequence = source.column("token").astype(np.int64), source.column("sequence")
    pair = np.where(sequence[1:] == sequence[:-1], token[:-1] << 32 | token[1:], -1)
    known, count = np.unique(pair[pair >= 0], return_counts=True)
    wanted = known[np.argsort(-count, kind="stable")[: latents - 2 * d]]
    x = source.gather(rng.permutation(len(source))[:40_000])
    scale = x.square().sum(1).mean().sqrt()
    x, mean = x / scale, x.mean(0) / scale
    order = np.argsort(pair, kind="stable")
    starts = np.searchsorted(pair[order], wanted)
    ends = np.searchsorted(pair[order], wanted, side="right")
    centres = torch.stack(
        [source.gather(order[i : min(j, i + 200)] + 1).mean(0) for i, j in zip(starts, ends, strict=True)]
    )
    within = torch.cov(x.T) + 1e-5 * x.var(0).mean() * torch.eye(d)
    towards = torch.linalg.solve(within, (centres / scale - mean).T)
    towards /= towards.norm(dim=0)
    ordered = (x @ towards).sort(0).values
    rate = torch.from_numpy((ends - starts) / len(source)).float()
    at = ((1 - rate) * (len(x) - 1)).round().long()
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed))).Q
    sae = make(SAEConfig(variant="jumprelu", latents=latents), d)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([basis, -basis, towards], 1))
        sae.b_enc.copy_(torch.cat([-mean @ basis, mean @ basis, -ordered.gather(0, at[None])[0]]))
        sae.W_dec.copy_(torch.cat([basis.T, -basis.T, torch.zeros(latents - 2 * d, d)]))
        sae.b_dec.copy_(mean)
        sae.theta.fill_(1e-6)
        sae.scale.copy_(scale)
    training.save(sae, [], out)


# %%
chats, topk = study.activations("chat", "train"), study.sae("topk", k=p.saes.k)
floors = {
    "frozen decoder": [half_trained(topk, chats, p.layer, p.training, p.seed + run, "W_dec") for run in few],
    "random directions": [random_directions(study.denser["JumpReLU"][run], chats, p.layer, run) for run in few],
    "bigrams and a basis": [bigrams(p.training.latents, chats, p.layer, run) for run in few],
}
early = {
    f"{said} of the steps": [study.train("chat", study.jumprelu(), run=run, share=share) for run in few]
    for said, share in {"an eighth": 1 / 8, "half": 1 / 2}.items()
}
beside = values(
    {
        name: [study.explain(sae, run, f"04_{name.replace(' ', '_')}_{run}") for run, sae in enumerate(trained)]
        for name, trained in (floors | early).items()
    }
)

# %%
SUBJECTS = {
    "programming": " code function python javascript program variable array class html database",
    "food": " food recipe cook eat meal chicken sugar restaurant coffee bread",
    "money": " money price market sales customers investment financial cost business budget",
    "health": " health patient medical disease treatment doctor pain cancer symptoms body",
}


def columns_of(pool, kind, number, tokenizer, rng):
    """Values [tokens] of a planted latent on a pool: graded by token, by pair of tokens, by place, by words of a subject."""
    token = pool.tokens[pool.window, pool.offset]
    before = np.where(pool.offset > 0, np.roll(token, 1), -1)
    if kind == "place":
        return np.clip(4 - np.abs(pool.places[pool.window, pool.offset] - 6 * number), 0, None)
    if kind == "subject":
        ids = [tokenizer.encode(" " + word, add_special_tokens=False) for word in SUBJECTS[number].split()]
        said = np.isin(token, [one[0] for one in ids if len(one) == 1])
        return np.bincount(pool.window, said, len(pool.tokens))[pool.window]  # on every token of the window
    strength = dict(zip(number, (1.0, 2.0, 3.0, 4.0), strict=True))
    of = zip(before.tolist(), token.tolist(), strict=True) if kind == "pair" else token.tolist()
    return np.array([strength.get(one, 0.0) for one in of])


@result
def planted(texts, lm, layer, section, seed):
    """Step: rows {kind, explainer, scores}: of latents that are planted, one column each, and of dealt-out copies."""
    pools, tokenizer = autointerp.pools_of(texts, layer, section.window), model.tokenizer(lm)
    flat = pools[0].tokens[pools[0].window, pools[0].offset]
    rng, often = np.random.default_rng(seed), np.bincount(flat)
    medium = np.flatnonzero((often > len(flat) / 2000) & (often < len(flat) / 100))
    same = pools[0].offset[1:] > 0
    pairs, count = np.unique(np.stack([flat[:-1][same], flat[1:][same]], 1), axis=0, return_counts=True)
    frequent = pairs[np.argsort(-count, kind="stable")[:200]].tolist()
    kinds = {
        "token": [rng.choice(medium, 4, replace=False).tolist() for _ in range(8)],
        "pair": [[tuple(frequent[i]) for i in rng.choice(len(frequent), 4, replace=False)] for _ in range(8)],
        "place": list(range(1, 9)),
        "subject": list(SUBJECTS),
    }
    out = []
    for kind, numbers in kinds.items():
        made = [
            csc_array(np.stack([columns_of(pool, kind, n, tokenizer, rng) for n in numbers], 1).astype(float))
            for pool in pools
        ]
        dealt = (made[0], csc_array(made[1].toarray()[rng.permutation(made[1].shape[0])]))
        for name, both in {kind: made, f"{kind}, dealt out": dealt}.items():
            for explainer in (Best(), Tokens(), Places(), Topic()):
                done = [
                    autointerp.score(pools, both, i, explainer, section.examples, seed) for i in range(len(numbers))
                ]
                scored = [one.value for one in done if one is not None]
                out.append({"kind": name, "explainer": type(explainer).__name__, "scores": scored})
    return out


planted_rows = planted(study.halves, study.lm, p.layer, a, p.seed, name="04_planted").value

# %%
SHOWN, AROUND = 12, 4  # excerpts of either kind, and tokens on either side of the peak


@cached
def excerpts(out, sae, text, lm, layer, section, latents, seed):
    """Step: of each latent, as prompts to be embedded, excerpts about its peak in so many windows, and as many of windows in which it is silent."""
    pool, tokenizer = autointerp.pools_of((text, text), layer, section.window)[0], model.tokenizer(lm)
    f, rng, found = pool.latents(training.load(sae)), np.random.default_rng(seed), []
    for latent in latents:
        peaks, at = np.zeros(len(pool.tokens)), np.zeros(len(pool.tokens), int)
        mine = slice(f.indptr[latent], f.indptr[latent + 1])
        for row, value in zip(f.indices[mine], f.data[mine], strict=True):
            if value > peaks[pool.window[row]]:
                peaks[pool.window[row]], at[pool.window[row]] = value, pool.offset[row]
        lengths = (pool.tokens >= 0).sum(1)
        for which in (np.flatnonzero(peaks), np.flatnonzero(peaks == 0)):
            for i in rng.choice(which, SHOWN, replace=len(which) < SHOWN):
                centre = at[i] if peaks[i] else rng.integers(lengths[i])
                ids = pool.tokens[i, max(0, centre - AROUND) : centre + AROUND + 1]
                found.append(tokenizer.decode(ids[ids >= 0].tolist(), skip_special_tokens=True))
    rest = {"label": 0, "split": "train", "slice": "", "transform": "plain"}
    examples.write(out, [Example(text=t, base=str(i), group=i, **rest) for i, t in enumerate(found)])


@result
def intruders(vectors, latents, seed, trials=200):
    """Step: [share of trials] of each latent: of four excerpts on which it is active and one on which it is not, that one is the least like
    the others, by sentence embedding. Chance is a fifth."""
    x = load_file(vectors.path / "embeddings.safetensors")["x"].reshape(len(latents), 2, SHOWN, -1)
    rng, found = np.random.default_rng(seed), []
    for active, silent in x:
        right = 0
        for _ in range(trials):
            five = np.concatenate([active[rng.choice(SHOWN, 4, replace=False)], silent[rng.integers(SHOWN)][None]])
            right += np.argmin((five @ five.T).sum(1)) == 4
        found.append(right / trials)
    return found


@result
def minimal(sae, text, lm, layer, section, latents, seed, contexts=3):
    """Step: rows {latent, context, token}: by the real model, how many tokens, the one on which it fires the most among them, a latent needs to keep half of its
    activation, the median over its strongest contexts; and the share of it that is left when a token before the peak is another, for the four before."""
    pool = autointerp.pools_of((text, text), layer, section.window)[0]
    f, trained, loaded = pool.latents(training.load(sae)), training.load(sae), model.load(lm)
    rows, rng = sequences.read(text.harvest.arguments["sequences"]), np.random.default_rng(seed)
    sequence, position = pool.source.column("sequence"), pool.source.column("position")
    lengths, vocabulary = (1, 2, 3, 5, 9, 17, 400), pool.source.column("token")

    def active(texts, latent):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in texts], batch_first=True)
        last = torch.tensor([len(t) - 1 for t in texts])
        x = residuals(loaded, ids.long(), (layer,))[layer][torch.arange(len(texts)), last]
        with torch.inference_mode():
            return trained.encode(x.float())[:, latent].numpy()

    out = []
    for latent in latents:
        mine = slice(f.indptr[latent], f.indptr[latent + 1])
        needed, left = [], []
        for row in f.indices[mine][np.argsort(-f.data[mine], kind="stable")][:contexts]:
            ids, at = rows[sequence[row]], int(position[row])
            start = int(rows.keep_start[sequence[row]])
            cut = [[*ids[:start], *ids[max(start, at + 1 - n) : at + 1]] for n in lengths]
            kept = active(cut, latent)
            half = kept[-1] / 2
            needed.append(next(n for n, value in zip(lengths, kept, strict=True) if value >= half))
            other = []
            for back in range(1, 5):
                if at - back >= start:
                    for _ in range(3):
                        changed = [int(i) for i in ids[: at + 1]]
                        changed[at - back] = int(rng.choice(vocabulary))
                        other.append((back, changed))
            if other and kept[-1] > 0:
                shares = active([t for _, t in other], latent) / kept[-1]
                left.append(
                    [
                        float(np.mean([s for s, (b, _) in zip(shares, other, strict=True) if b == back] or [np.nan]))
                        for back in range(1, 5)
                    ]
                )
        out.append(
            {
                "latent": latent,
                "context": float(np.median(needed)),
                "left": [None if np.isnan(v) else round(float(v), 3) for v in np.nanmean(left, 0)] if left else [],
            }
        )
    return out


# %%
CHOSEN = saes["JumpReLU"][0], 0  # and its run
sae, run = CHOSEN
every = study.explain(sae, run, "04_every", every=True).value
sampled = [
    i
    for i, s, fired in zip(*(scores["JumpReLU"][0][n] for n in ("latent", "score", "fired")), strict=True)
    if s is not None and fired >= 4 * SHOWN
][:200]
by = {
    "counting, the best form": study.explain(sae, run, "04_by_best", explainer=Best()),
    "tokens and pairs only": study.explain(sae, run, "04_by_tokens", explainer=Tokens()),
    "sentence embedding": study.explain(sae, run, "04_by_topic", explainer=Topic()),
}
by = values(by)
embedder = wheels.wheel_hash(wheels.EMBEDDER_WHEEL[0])
shown = excerpts(sae, study.halves[1], study.lm, p.layer, a, tuple(sampled), p.seed)
spotted = intruders(views.embeddings(shown, embedder), tuple(sampled), p.seed, name="04_intruders").value
checked = minimal(sae, study.halves[1], study.lm, p.layer, a, tuple(sampled[::4][:50]), p.seed, name="04_minimal").value
