"""Named models: ``create_model("mnist_ses_vector_28")``."""

from equiscale.citations import Citation
from equiscale.models import mnist, scale_generalisation, unet, wide_resnet
from equiscale.models.registry import ModelEntry, create_model, list_models, model_entry

__all__ = [
    "Citation",
    "ModelEntry",
    "create_model",
    "list_models",
    "mnist",
    "model_entry",
    "scale_generalisation",
    "unet",
    "wide_resnet",
]
