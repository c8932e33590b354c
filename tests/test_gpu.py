"""What must be the same on a GPU: layers, augmentation, a whole run. Skipped where there is none."""

from pathlib import Path

import pytest
import torch

from equiscale import create_model, list_models
from equiscale.data import random_rescale
from equiscale.data.augment import crop_flip_cutout
from equiscale.experiments.execute import RunOptions, execute_run
from equiscale.experiments.plan import Selection, plan_runs
from equiscale.experiments.spec import load_suite

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


SMALL = [name for name in list_models() if "wrn_16" not in name]


def images_for(name: str) -> torch.Tensor:
    shape = {"mnist": (1, 28, 28), "scale": (1, 64, 64), "wrn": (3, 96, 96)}[name.split("_")[0]]
    return torch.randn(4, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_networks_agree_with_the_cpu_in_float64(name: str) -> None:
    model, images = create_model(name).double().eval(), images_for(name)
    on_gpu = create_model(name).double().eval()
    on_gpu.load_state_dict(model.state_dict())
    with torch.no_grad():
        actual = on_gpu.cuda()(images.cuda()).cpu()
        torch.testing.assert_close(actual, model(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_agree_with_the_cpu_in_float64(name: str) -> None:
    settings = {} if name.startswith("scale") else {"dropout": 0.0}
    model, images, gradients = create_model(name, **settings).double(), images_for(name), []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        model(images.to(device)).square().sum().backward()
        gradients.append({key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None})
    for key, gradient in gradients[0].items():
        tolerance = 1e-8 * (1 + float(gradient.abs().max()))
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-6, atol=tolerance)


def test_natural_image_augmentation_is_the_same_as_on_the_cpu() -> None:
    images = torch.randint(256, (16, 3, 96, 96), generator=torch.Generator().manual_seed(0)).byte()
    on_cpu, on_gpu = (
        crop_flip_cutout(
            images.to(device), mean=0.5, std=0.25, generator=torch.Generator().manual_seed(1)
        ).cpu()
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-6)


def test_a_wide_resnet_trains_in_bfloat16() -> None:
    model = create_model("wrn_10_1_ses_b").cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    images, labels = torch.randn(32, 3, 96, 96, device="cuda"), torch.arange(32, device="cuda") % 10
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0], losses


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
