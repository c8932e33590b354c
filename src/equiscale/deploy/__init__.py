"""In and out: published checkpoints."""

from equiscale.deploy.published import load_published_state_dict

__all__ = ["load_published_state_dict"]
