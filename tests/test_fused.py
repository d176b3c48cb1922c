"""A sped-up model against the model as transformers has it."""

import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from lib.config import ModelSection
from lib.lm import fused, model
from lib.lm.fused import speed_up


def test_speed_up_changes_nothing_but_speed() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4, bias=False))
    net.requires_grad_(False)
    x = torch.randn(3, 5, 16)
    before = net(x)
    torch.testing.assert_close(speed_up(net)(x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_causal_attention_against_float64(length: int, groups: int) -> None:
    """Row by row: the softmax over a token and those before it, heads of a group on the same keys."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, heads, length, 8, generator=generator) for heads in (6, groups, groups))
    got = fused.causal_attention(q, k, v, 0.3)
    k, v = (t.double().repeat_interleave(6 // groups, dim=1) for t in (k, v))
    score = 0.3 * q.double() @ k.mT
    score = score.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(got.double(), score.softmax(-1) @ v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [8, 16, 50, 576])
def test_rms_norm_against_float64(width: int) -> None:
    norm = LlamaRMSNorm(width, eps=1e-5).requires_grad_(False)
    norm.weight.copy_(torch.linspace(-1, 2, width))
    x = torch.randn(3, 7, width, generator=torch.Generator().manual_seed(0)) * 30
    x[0, 0] = 0
    exact = norm.weight.double() * x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(fused._rms_norm(norm, x).double(), exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(fused._rms_norm(norm, x.bfloat16()), norm(x.bfloat16()))  # does not fit: the model's own way
    torch.testing.assert_close(fused._rms_norm(norm, x.mT.contiguous().mT), norm(x))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("straight", [True, False])
def test_rotary_is_the_models_own_to_the_bit(batch: int, straight: bool) -> None:
    """Queries and keys laid out as products leave them, or not; angles shared or each row's own. What is given stays."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 9, heads, 16, generator=generator).transpose(1, 2) for heads in (6, 3))
    if not straight:
        q, k = q.contiguous(), k.contiguous()
    cos, sin = torch.randn(2, batch, 9, 16, generator=generator)
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    given = q.clone(), k.clone()
    for got, want in zip(fused._rotary(q, k, cos, sin), expected, strict=True):
        assert torch.equal(got, want)
    assert torch.equal(q, given[0]) and torch.equal(k, given[1])
    one = cos[:, :1], sin[:, :1]  # an angle for all places: transformers broadcasts it
    assert torch.equal(fused._rotary(q, k, *one)[0], apply_rotary_pos_emb(q, k, *one)[0])


@pytest.mark.parametrize("length", [20, 150])
def test_a_sped_up_model_says_the_same(tiny: ModelSection, length: int) -> None:
    """Hidden states and logits of two kinds of model, short and long, with and without a cache and padding."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny.name, dtype=torch.float32).eval()
    fast = model.load(model.pinned(tiny)).model
    ids = torch.randint(3, 400, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    for given in ({}, {"attention_mask": mask}, {"attention_mask": mask.flip(-1)}):
        with torch.inference_mode():
            expected, got = (m(ids, output_hidden_states=True, **given) for m in (plain, fast))
        for a, b in zip(expected.hidden_states, got.hidden_states, strict=True):
            there = given.get("attention_mask", torch.ones_like(ids)).bool()
            torch.testing.assert_close(b[there], a[there], rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        cache = fast(ids[:, : length - 5], use_cache=True).past_key_values
        later = [fast(ids[:, start:stop], past_key_values=cache).logits for start, stop in ((-5, -1), (-1, None))]
        torch.testing.assert_close(torch.cat(later, 1), plain(ids).logits[:, -5:], rtol=1e-4, atol=1e-4)


def test_what_speeds_up_is_in_use(tiny: ModelSection) -> None:
    """Llama's MLPs are SwiGLUs and its attention plain; Gemma 2 has a GELU and caps its scores, and stays as it is."""
    loaded = model.load(model.pinned(tiny)).model
    llama = loaded.config.model_type == "llama"
    block = loaded.get_decoder().layers[0]
    assert ("forward" in vars(block.mlp)) == llama
    assert ("forward" in vars(block.input_layernorm)) == llama  # Gemma 2 multiplies by 1 + weight
    names = block.self_attn.forward.__func__.__globals__
    assert names["apply_rotary_pos_emb"] is fused._rotary
    assert names["ALL_ATTENTION_FUNCTIONS"].get_interface("sdpa", None) is fused._attention


def _llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**small, num_key_value_heads=2, num_hidden_layers=2)
    return transformers.LlamaForCausalLM(config).eval()


def test_long_plain_texts_go_through_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, real = [], fused.causal_attention
    monkeypatch.setattr(fused, "causal_attention", lambda q, *rest: lengths.append(q.shape[2]) or real(q, *rest))
    fast = speed_up(_llama().requires_grad_(False))
    for length in (fused.LONG - 1, fused.LONG):
        fast(torch.zeros(1, length, dtype=torch.long))
    assert lengths == [fused.LONG] * 2  # once a block


@pytest.mark.parametrize("length", [20, 150])
def test_a_sped_up_model_keeps_its_gradients_types_and_hooks(length: int) -> None:
    plain, fast = _llama(), speed_up(_llama())
    x = torch.randn(2, length, 32)
    grads = []
    for net in (plain, fast):
        given = x.clone().requires_grad_()
        net(inputs_embeds=given).logits.square().sum().backward()
        grads.append([given.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)

    ids = torch.randint(0, 50, (2, length))
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.act_fn", "mlp"):
        seen: list[list[torch.Tensor]] = [[], []]
        logits = []
        for net, kept in zip((plain, fast), seen, strict=True):

            def halve(module: object, inputs: object, out: torch.Tensor, kept: list = kept) -> torch.Tensor:
                kept.append(out)
                return out / 2

            hook = net.model.layers[1].get_submodule(name).register_forward_hook(halve)
            with torch.inference_mode():
                logits.append(net(ids).logits)
            hook.remove()
        torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)

    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(fast(ids).logits, plain(ids).logits)
        torch.testing.assert_close(fast.double()(ids).logits, plain.double()(ids).logits)


def test_what_has_a_forward_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _llama().requires_grad_(False)
    block = net.model.layers[0]
    block.mlp.forward = lambda x: x
    net.model.layers[1].mlp.gate_proj = torch.nn.Sequential(net.model.layers[1].mlp.gate_proj)
    ids = torch.arange(20)[None]
    before = net(ids).logits
    torch.testing.assert_close(speed_up(speed_up(net))(ids).logits, before, rtol=1e-4, atol=1e-5)
    block = net.model.layers[1].mlp
    x = torch.randn(1, 3, 32)
    for name, part in (("gate_proj", torch.nn.Linear(32, 48, bias=False)), ("act_fn", torch.nn.GELU())):
        setattr(block, name, part.requires_grad_(False))  # put in afterwards
        torch.testing.assert_close(block(x), type(block).forward(block, x))
    block = net.model.layers[0]
    block.self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(32))  # the only one that is trained
    net(ids).logits.square().sum().backward()
    assert block.self_attn.q_proj.bias.grad is not None
    with pytest.raises(RuntimeError):
        block.input_layernorm(torch.randn(2, 64))
    calls = []
    real = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *args, **how: calls.append(1) or real(*args, **how))
    with torch.no_grad():
        net(ids)
    assert len(calls) == 2


def test_mlps_and_attention_of_other_kinds_stay_as_they_are() -> None:
    """Multipliers between the projections (Falcon H1), values narrower than keys (DeepSeek V3): neither is Llama's."""
    from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Config, FalconH1MLP

    torch.manual_seed(0)
    mlp = FalconH1MLP(FalconH1Config(hidden_size=16, intermediate_size=24, mlp_multipliers=[3.0, 0.5]))
    x = torch.randn(2, 5, 16)
    before = mlp.requires_grad_(False)(x)
    torch.testing.assert_close(speed_up(mlp)(x), before)
    settings = transformers.DeepseekV3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        max_position_embeddings=256,
    )
    deep = transformers.DeepseekV3ForCausalLM(settings).eval().requires_grad_(False)
    ids = torch.randint(0, 50, (2, fused.LONG + 20))
    before = deep(ids).logits
    torch.testing.assert_close(speed_up(deep)(ids).logits, before, rtol=1e-4, atol=1e-5)


KINDS: dict[str, dict[str, object]] = {
    "AfmoeConfig": {},  # gives its mask by keyword
    "DeepseekV32Config": {"index_topk": 8, "index_n_heads": 2, "index_head_dim": 16},  # each query sees its top 8 only
    "Gemma4TextConfig": {
        "num_kv_shared_layers": 1,
        "layer_types": ["full_attention"] * 2,
    },  # a layer without keys of its own
    "Qwen3Config": {},  # norms between product and rotary embedding
    "CohereConfig": {},  # turns neighbouring pairs
    "Phi3Config": {},  # queries, keys and values from one product
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [20, 150])
def test_models_of_many_kinds_say_the_same(kind: str, length: int) -> None:
    common = {
        **{"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256, "q_lora_rank": 16},
        **{"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_experts": 4},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "pad_token_id": 0},
        **{"moe_intermediate_size": 16, "vocab_size_per_layer_input": 50, "hidden_size_per_layer_input": 8},
    }
    settings = getattr(transformers, kind)(**{**common, **KINDS[kind]})
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(settings).eval().requires_grad_(False)
    ids = torch.randint(1, 50, (2, length))
    with torch.inference_mode():
        before = [net(ids, logits_to_keep=keep).logits for keep in (0, 5)]
        after = [speed_up(net)(ids, logits_to_keep=keep).logits for keep in (0, 5)]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
