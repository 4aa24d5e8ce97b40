"""A folder that a model hub holds: safetensors, facts, a model card, a picture and the plan."""

from __future__ import annotations

from dsconvert.hub.pretrained import HubFolder, check_hub, from_pretrained, save_pretrained

__all__ = ["HubFolder", "check_hub", "from_pretrained", "save_pretrained"]
