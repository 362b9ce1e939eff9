"""A page for this model. The Hugging Face hub runs it if the folder is pushed as a Space.

On your machine: pip install -r requirements.txt gradio, then python app.py
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image, ImageChops

pipe = DiffusionPipeline.from_pretrained(Path(__file__).parent, trust_remote_code=True)


def generate(prompt: str, number: float, seed: float) -> Iterator[list[str]]:
    """Yield the PNGs that are finished so far; each carries its sentence, seed and settings."""
    generation = pipe.faces().start(prompt, num=int(number), seed=int(seed))
    with TemporaryDirectory() as folder:
        for batch in generation.batches(batch_size=1):
            for image in batch:
                image.save(f"{folder}/{image.file_name}")
            yield [f"{folder}/{image.file_name}" for image in generation.results]


def edit(
    painted: dict[str, Any], add: str, remove: str, sentence: str, strength: float, seed: float
) -> Iterator[str]:
    """Yield the PNG of an edited face.

    painted: `background`, the face, and `layers`, on which the part that shall be new is painted.
    """
    if not painted or painted["background"] is None:
        raise ValueError("choose a face first")  # the page shows it
    face = painted["background"].convert("RGB")
    mask = Image.new("L", face.size)
    for layer in painted["layers"]:
        mask = ImageChops.lighter(mask, layer.convert("RGBA").getchannel("A").resize(face.size))
    given = {"add": [add] if add else [], "remove": [remove] if remove else []}
    changes = {**given, "strength": strength, "mask": mask if mask.getbbox() else None}
    prompts = [sentence] if sentence else []
    (image,) = pipe.faces().edit(face, prompts=prompts, **changes, seeds=[int(seed)]).results
    with TemporaryDirectory() as folder:
        image.save(f"{folder}/edited.png")
        yield f"{folder}/edited.png"


def page() -> Any:
    """Return the page, which is also an API: `gradio_client.Client(…).predict(…)`."""
    import gradio  # the hub installs it for a Space; `generate` works without it

    common = {"flagging_mode": "never", "delete_cache": (3600, 3600)}  # seconds
    new = gradio.Interface(
        generate,
        [
            gradio.Textbox("a person with long red hair", label="Sentence"),
            gradio.Slider(1, 16, 4, step=1, label="Images"),
            gradio.Number(0, label="Seed of the first image", precision=0, minimum=0),
        ],
        gradio.Gallery(label="Faces", format="png"),
        api_name="generate",
        **common,
    )
    changed = gradio.Interface(
        edit,
        [
            gradio.ImageEditor(type="pil", label="Face; paint over what shall be new"),
            gradio.Textbox("round glasses", label="Add"),
            gradio.Textbox(label="Remove"),
            gradio.Textbox(label="Or a whole sentence"),
            gradio.Slider(0, 1, 1, step=0.05, label="Strength"),
            gradio.Number(0, label="Seed", precision=0, minimum=0),
        ],
        gradio.Image(label="Edited", format="png"),
        api_name="edit",
        **common,
    )
    tabs = ["New faces", "Edit a face"]
    return gradio.TabbedInterface([new, changed], tabs, title="Faces from sentences")


if __name__ == "__main__":
    page().queue(max_size=20).launch(show_error=True)
