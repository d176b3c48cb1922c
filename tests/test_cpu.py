"""Products against float64; what the allocator keeps and gives back, in pages."""

import os
import subprocess
import sys
import textwrap

import joblib
import numpy as np
import pytest
import torch

from lib.config import ROOT
from lib.cpu import product


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
