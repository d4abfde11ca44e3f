"""The compiled tests and the programs, one process a framework: TensorFlow followed by Triton in one process aborts it.

With --full the programs (test_programs_*.py) run once more on xent's formulas alone; JAX has two fake devices.
"""

from pathlib import Path

import pytest
from cases import backends, needs_installed
from processes import run_tests

HERE = Path(__file__).parent


MATRIX = ("test_matrix.py", "test_log_prob.py", "test_linear.py", "test_empty_mean.py", "test_contender.py")
OWN = {
    "torch": ("test_torch.py", "test_compat_torch_modules.py", "test_compat_transformers.py"),
    "tensorflow": ("test_tensorflow.py", "test_tensorflow_graphs.py"),
    "jax": ("test_jax.py",),
}
PROGRAMS = {
    "torch": ("test_programs_torch.py", "test_programs_torch_compiled.py"),
    "tensorflow": ("test_programs_tensorflow.py",),
    "jax": ("test_programs_jax.py", "test_programs_jax_loops.py"),
}


@pytest.mark.parametrize("framework", backends("torch", "tensorflow", "jax"))
def test_with_kernels(framework, pytestconfig):
    in_its_own_process(pytestconfig, framework, *MATRIX, *OWN[framework], *PROGRAMS[framework])


@pytest.mark.full  # .ci/run has PyTorch's; XLA has the formulas anyway, as have JAX's programs on two devices
@pytest.mark.parametrize("framework", backends("torch", "tensorflow", "jax"))
def test_programs_on_formulas(framework, pytestconfig):
    in_its_own_process(pytestconfig, framework, *PROGRAMS[framework], "-knot xla", XENT_NATIVE="0")


def in_its_own_process(config, framework, *names, **variables):
    needs_installed(framework)
    files = [str(HERE / name) if name.endswith(".py") else name for name in names]
    variables["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of processes takes longer to start than these compile
    if framework == "jax":
        variables["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    printed = run_tests(config, "--compiled", "--backend", framework, *files, **variables)
    assert "skipped" not in printed, printed[-2000:]
