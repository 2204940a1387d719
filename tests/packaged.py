"""The trained model that ships with the package: a stand-in where there are no shared assets."""

from jaxtune.quickstart.tiny_model import packaged_model_folder as packaged_model_folder

__all__ = ["packaged_model_folder"]
