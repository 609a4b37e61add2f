"""What changes how pictures are drawn, a file each, and the one place where they act together."""

from variegate.sample.methods.conductor import Conductor, Scene, plain_scene

__all__ = ["Conductor", "Scene", "plain_scene"]
