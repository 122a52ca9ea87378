"""Skeletons as a backbone wants to be driven by them; knows of no files, unlike `driving`."""

from __future__ import annotations

from dataclasses import replace

from dreamactor.backbones.base import Backbone
from dreamactor.conditioning.augment import add_lead, normalise
from dreamactor.conditioning.skeleton import PoseTrack


def lead_of(backbone: Backbone) -> int:
    """Empty frames that come before a skeleton, for the canvas to begin as it did in training.

    Its first frame, the reference's, is not generated and shows what the next one shows.
    """
    return max(0, backbone.lead - 1)


def skeleton(track: PoseTrack, backbone: Backbone) -> PoseTrack:
    """What drives in place of a clip with these joints: as in training, behind its lead."""
    native = backbone.native
    fitted = normalise(replace(track, height=native.height, width=native.width))
    return add_lead(fitted, lead_of(backbone))
