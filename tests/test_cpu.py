"""Products against float64; models through them against models without; what the allocator keeps and gives back, in pages."""

import os
import subprocess
import sys
import textwrap
import timeit

import joblib
import numpy as np
import pytest
import torch
import transformers

from lib.config import ROOT, ModelSection
from lib.cpu import product, speed, use_onednn
from lib.lm import model


@pytest.mark.parametrize("shape", [(1, 3, 2), (17, 33, 5), (64, 32, 128)])
def test_product_and_its_gradient_against_float64(shape: tuple[int, int, int]) -> None:
    n, k, m = shape
    generator = torch.Generator().manual_seed(0)
    a, b, g = (torch.randn(s, generator=generator) for s in ((n, k), (k, m), (n, m)))
    a.requires_grad_()
    b.requires_grad_()
    product(a, b).backward(g)
    a64, b64, g64 = (t.detach().double() for t in (a, b, g))
    np.testing.assert_allclose(product(a, b).detach(), a64 @ b64, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(a.grad, g64 @ b64.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(b.grad, a64.T @ g64, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [20, 150])
def test_a_model_through_onednn_says_the_same(tiny: ModelSection, length: int) -> None:
    """Hidden states and logits, with padding on either side and from a cache."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny.name, dtype=torch.float32).eval()
    fast = model.load(model.pinned(tiny)).model
    assert sum("forward" in vars(m) for m in fast.modules()) > 10
    ids = torch.randint(3, 400, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    for given in ({}, {"attention_mask": mask}, {"attention_mask": mask.flip(-1)}):
        with torch.inference_mode():
            expected, got = (m(ids, output_hidden_states=True, **given) for m in (plain, fast))
        there = given.get("attention_mask", torch.ones_like(ids)).bool()
        for a, b in zip(expected.hidden_states, got.hidden_states, strict=True):
            torch.testing.assert_close(b[there], a[there], rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        cache = fast(ids[:, : length - 5], use_cache=True).past_key_values
        later = [fast(ids[:, start:stop], past_key_values=cache).logits for start, stop in ((-5, -1), (-1, None))]
        torch.testing.assert_close(torch.cat(later, 1), plain(ids).logits[:, -5:], rtol=1e-4, atol=1e-4)


def _llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, num_hidden_layers=2)).eval()


def test_a_model_through_onednn_keeps_its_gradients_types_and_hooks() -> None:
    plain, fast = _llama(), use_onednn(use_onednn(_llama()))
    x = torch.randn(2, 20, 32)
    grads = []
    for net in (plain, fast):
        given = x.clone().requires_grad_()
        net(inputs_embeds=given).logits.square().sum().backward()
        grads.append([given.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
    ids = torch.randint(0, 50, (2, 20))
    logits = []
    for net in (plain, fast):
        hook = net.model.layers[1].mlp.gate_proj.register_forward_hook(lambda module, inputs, out: out / 2)
        with torch.inference_mode():
            logits.append(net(ids).logits)
        hook.remove()
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        assert not torch.allclose(logits[1], fast(ids).logits, rtol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(fast(ids).logits, plain(ids).logits)
        torch.testing.assert_close(fast.double()(ids).logits, plain.double()(ids).logits)


def test_a_bias_alone_gets_its_gradient_and_an_own_forward_stays() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).requires_grad_(False)
    net[0].forward = lambda x: x[..., :3]  # type: ignore[method-assign]
    use_onednn(net)
    x = torch.randn(5, 4)
    torch.testing.assert_close(net(x), torch.nn.functional.linear(x[:, :3], net[1].weight, net[1].bias))
    net[1].bias = torch.nn.Parameter(torch.zeros(2))
    net(x).sum().backward()
    assert net[1].bias.grad is not None


def test_large_tensors_keep_their_memory() -> None:
    """Page faults of writing a tensor of 72 MiB again and again: in the end none, where the C library is glibc's."""
    script = textwrap.dedent(
        """
        import resource, torch
        from lib.cpu import keep_memory
        keep_memory()
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.empty(4096, 4608).fill_(1.0)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(min([faults() for _ in range(40)][-10:]))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    if sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        assert int(done.stdout) < 1000  # 72 MiB are 18,432 pages


def test_memory_of_a_step_goes_back_to_the_system() -> None:
    """What is kept in the heap although it is freed leaves the process."""
    script = textwrap.dedent(
        """
        from pathlib import Path
        from lib import cpu
        cpu.keep_memory()
        held = [bytes(100_000) for _ in range(2000)]
        resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        last = bytes(100_000)  # keeps the end of the heap in use
        before = resident()
        del held
        kept = resident()
        cpu.give_back()
        print(before - kept, before - resident())
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    if sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        kept, given = map(int, done.stdout.split())
        assert kept < 20e6 < 150e6 < given  # of 200 MB


def test_threads_keep_to_a_containers_limit() -> None:
    """What joblib makes of affinity and limits, which its own variable stands in for here."""
    script = "import torch, numba, lib.cpu; print(torch.get_num_threads(), numba.get_num_threads())"
    for limit, most in (("1", {"1"}), ("1000", {str(joblib.cpu_count())})):
        environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")} | {
            "LOKY_MAX_CPU_COUNT": limit
        }
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
        )
        assert set(done.stdout.split()) <= most, done.stderr


def test_speed_is_in_billions_of_operations_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeit, "repeat", lambda *_, **__: [0.7, 0.5])  # seconds of a product
    assert speed() == pytest.approx(2 * (2048 * 576 * 2304) / 0.5e9)
