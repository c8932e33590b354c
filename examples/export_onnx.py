"""
A trained network without equiscale
===================================

A scale-equivariant network is trained with :mod:`equiscale`, but need not be run with it:
:func:`equiscale.fold` makes it a network of plain convolutions, and :func:`equiscale.export` an ONNX file.
"""

# %%
# A trained network
# -----------------
# With trained weights where they are, else with random ones.

import statistics
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import onnxruntime
import torch

import equiscale
from equiscale.errors import CheckpointError

torch.manual_seed(0)
try:
    network = equiscale.create_model("mnist_ses_vector_28", pretrained=True)
except CheckpointError:
    network = equiscale.create_model("mnist_ses_vector_28").eval()
images = torch.randn(2, 1, 28, 28)

# %%
# Fold
# ----
# Filters are computed once. What is left are torch's own layers.

folded = equiscale.fold(network, images, batch_norm=True)
print(sorted({type(module).__name__ for module in folded.modules()}))

# %%
# Export
# ------
# The file is read back and compared before it appears.

path = Path(tempfile.mkdtemp()) / "network.onnx"
print(equiscale.export(network, path))

# %%
# Run
# ---
# From here on equiscale is not needed.

session = onnxruntime.InferenceSession(str(path))
with torch.no_grad():
    expected = network(images)
(outputs,) = session.run(None, {"input": images.numpy()})
print(f"largest difference: {(torch.from_numpy(outputs) - expected).abs().max():.1e}")


# %%
# Time
# ----
# One image at a time, by turns.

image = images[:1]
runs = {
    "PyTorch": lambda: network(image),
    "folded": lambda: folded(image),
    "onnxruntime": lambda: session.run(None, {"input": image.numpy()}),
}
times: dict[str, list[float]] = {name: [] for name in runs}
with torch.no_grad():
    for turn in range(21):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:  # the first one warms up
                times[name].append(1000 * (time.perf_counter() - begun))
medians = {name: statistics.median(taken) for name, taken in times.items()}
print({name: f"{milliseconds:.1f} ms" for name, milliseconds in medians.items()})

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
left.bar([digit - 0.2 for digit in range(10)], expected[0].tolist(), width=0.4, label="PyTorch")
left.bar([digit + 0.2 for digit in range(10)], outputs[0], width=0.4, label="onnxruntime")
left.set(title="The same outputs", xlabel="class", ylabel="logit", xticks=range(10))
left.legend()
right.barh(list(medians), list(medians.values()))
right.invert_yaxis()
right.set(title="One image", xlabel="milliseconds")
plt.show()
