"""What must be the same on a GPU: layers, augmentation, a whole run. Skipped where there is none."""

from pathlib import Path

import pytest
import torch

from equiscale import create_model, list_models
from equiscale.data import random_rescale
from equiscale.experiments.execute import RunOptions, execute_run
from equiscale.experiments.plan import Selection, plan_runs
from equiscale.experiments.spec import load_suite

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", list_models())
def test_networks_agree_with_the_cpu_in_float64(name: str) -> None:
    model, images = create_model(name).double().eval(), torch.randn(4, 1, 28, 28, dtype=torch.float64)
    on_gpu = create_model(name).double().eval()
    on_gpu.load_state_dict(model.state_dict())
    with torch.no_grad():
        actual = on_gpu.cuda()(images.cuda()).cpu()
        torch.testing.assert_close(actual, model(images), rtol=1e-9, atol=1e-9)


def test_augmentation_agrees_with_the_cpu() -> None:
    images = torch.randint(256, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    on_cpu, on_gpu = (
        random_rescale(images.to(device), generator=torch.Generator().manual_seed(1)).cpu()
        for device in ("cpu", "cuda")
    )
    assert (on_cpu - on_gpu).abs().max() <= 1
    assert (on_cpu == on_gpu).double().mean() > 0.999


def test_a_run_learns(tmp_path: Path) -> None:
    suite = load_suite("digits-scale")
    run = plan_runs(suite, Selection("mnist_ses_vector_28", realisations=[0]))[0]
    record = execute_run(run, RunOptions(tmp_path, device="cuda"))
    assert record.test is not None
    assert record.test.error < 30
    assert "gpu" in record.provenance.machine
