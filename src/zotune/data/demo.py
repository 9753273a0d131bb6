"""Files that come with zotune: a small model and reviews for the demo."""

from importlib import resources


def demo_path(*parts: str) -> str:
    """A file or folder of the demo."""
    return str(resources.files("zotune").joinpath("demo", *parts))
